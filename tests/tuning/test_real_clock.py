"""A search that ends with a run by the real clock, as a user calls it: what is timed and judged before is known."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from meprop_bench.cli import run
from meprop_bench.errors import ExitCode
from meprop_bench.stats import Interval
from meprop_bench.tuning import run as tuning
from meprop_bench.tuning.arms import Arm
from meprop_bench.tuning.budget import Budget
from meprop_bench.tuning.journal import Job, Trained
from meprop_bench.tuning.processes import Processes
from meprop_bench.tuning.timing import Timing


class Known(Processes):
    """Steps have the times, and trainings the figures, of a table; what runs by the real clock is real."""

    compiled = False

    def measure(self, arms: Sequence[Arm], budget: Budget) -> Mapping[Arm, Timing]:
        return {arm: Timing(Interval(1.5, 1.45, 1.55), 0.001, compiled=self.compiled) for arm in arms}

    def train(self, jobs: Iterator[Job], budget: Budget) -> Iterator[tuple[Job, Trained]]:
        for job in jobs:
            yield job, Trained(90 + math.log2(job.steps) + job.seed % 5 / 100, 0.01, 0.01)


def tune(out: Path, capsys: pytest.CaptureFixture[str], budget: str) -> dict[str, Any]:
    words = ["--hidden", "16", "--batch", "50", "--steps", "20", "--method", "unified", "--k", "0.5"]
    sizes = ["--threads", "1", "--processes", "1", "--budget", budget, "--out", str(out)]
    assert run(["tune", "--task", "digits", *words, *sizes, "--real-clock", "--format", "json"]) == ExitCode.OK
    found: dict[str, Any] = json.loads(capsys.readouterr().out)["tune"]
    return found


def test_the_choice_and_its_opponent_are_run_by_the_real_clock(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    monkeypatch.setattr(tuning, "Processes", Known)
    found = tune(tmp_path, capsys, "1h")
    assert found["verdict"] == "take"
    assert found["real_clock"].startswith("By the real clock 20 steps of it took ")
    assert " of the time (median of 3 in turn, " in found["real_clock"]
    assert found["real_clock"].endswith("), where virtual time says 1.")
    assert found["sentence"].endswith(found["real_clock"])
    (folder,) = tmp_path.iterdir()
    assert not list(folder.glob("checkpoints/*"))


def test_where_it_is_not_run_it_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    monkeypatch.setattr(tuning, "Processes", Known)
    monkeypatch.setattr(tuning, "_ALONE_S", 7200.0)
    assert "not run, as it takes about 2 h and the budget had " in tune(tmp_path, capsys, "1h")["real_clock"]
    monkeypatch.setattr(Known, "compiled", True)
    assert "in virtual time dense is compiled" in tune(tmp_path, capsys, "1h")["real_clock"]
