"""`tune` as a user calls it, on a machine whose truths are known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from meprop_bench.cli import run
from meprop_bench.errors import ExitCode
from meprop_bench.report.document import Document
from meprop_bench.tuning import run as tuning
from meprop_bench.tuning.journal import Trained
from tests.tuning.instant import Instant


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> type[Instant]:
    class Own(Instant):
        pass

    monkeypatch.setattr(tuning, "Processes", Own)
    return Own


def tune(tmp_path: Path, *words: str) -> int:
    return run(["tune", "--task", "digits", "--out", str(tmp_path), "--budget", "1h", *words])


def test_the_sentence_comes_first_then_code_commands_and_table(
    instant: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(tmp_path, "--method", "unified", "--k", "0.25,0.5") == ExitCode.OK
    out, err = capsys.readouterr()
    lines = [line for line in out.splitlines() if line and not line.startswith("This machine was busy")]
    assert lines[0].startswith("Take unified, k = 0.25")
    assert '    nn.convert(model, k=0.25, selection="unified")' in out
    assert "    meprop-bench speedup --workload model --model digits --method unified --k 0.25" in out
    assert "    meprop-bench parity --task digits --method unified --k 0.25" in out
    assert "digits: arms against dense" in out
    assert "dense, " in err
    (folder,) = tmp_path.iterdir()
    assert (folder / "README.md").read_text().startswith("Take unified")
    # Of reports and their index, too: not what one of its timings alone would say.
    assert Document.load(folder).outcome.startswith("Take unified, k = 0.25")


def test_json(instant: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(tmp_path, "--k", "0.25", "--format", "json", "--real-clock") == ExitCode.OK
    record = json.loads(capsys.readouterr().out)
    found = record["tune"]
    assert record["schema"] == "meprop-bench/1"
    assert found["verdict"] == "take"
    assert found["take"] == {"method": "unified", "k": 0.25}
    assert found["take"] in found["pareto"]
    assert {arm["standing"] for arm in found["arms"]} <= {"pass", "outranked"}
    assert "By the real clock" in found["real_clock"]


def test_k_by_layer_is_a_part_of_every_arm(instant: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(tmp_path, "--k", "0.25,0.5", "--k-by-layer", "linear0=0.75", "--format", "json") == ExitCode.OK
    found = json.loads(capsys.readouterr().out)["tune"]
    assert {str(arm["arm"]["ks"]) for arm in found["arms"]} == {"[['linear0', 0.75]]"}
    assert all("--k-by-layer linear0=0.75" in command for command in found["commands"])
    (folder,) = tmp_path.iterdir()
    plan = json.loads((folder / "environment.json").read_text())["plan"]
    assert plan["arms"]["k_by_layer"] == "linear0=0.75"
    assert tune(tmp_path, "--k", "0.25,0.5", "--k-by-layer", "linear0=0.75", "--resume") == ExitCode.OK
    assert [folder] == list(tmp_path.iterdir())


def test_undecided_and_dense_have_their_codes(instant: Any, tmp_path: Path) -> None:
    instant.quality = staticmethod(lambda arm, steps: 90.0 if arm is None else 80.0)
    assert tune(tmp_path / "dense") == ExitCode.OK
    instant.quality = staticmethod(lambda arm, steps: 90.0 + (arm is not None) * 30 * math.sin(steps))
    instant.train = lambda self, jobs, budget: iter(
        [(job, Trained(90 + (job.arm is not None) * 9 * math.sin(job.seed * 5), 0.01, 0.01)) for job in jobs]
    )
    assert tune(tmp_path / "undecided", "--k", "0.25", "--method", "unified") == ExitCode.INCONCLUSIVE


def test_a_curve_is_for_methods_that_select_a_top_k(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--task", "digits", "--k", "0.25", "--algorithm", "mesimp", "--budgets", "1s", "--out", str(tmp_path)]
    assert run(["parity", *words]) == ExitCode.USAGE
    assert "leave --algorithm out" in capsys.readouterr().err


def test_an_interrupt_is_130_and_resume_goes_on(
    instant: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    instant.stop_after = 7
    assert tune(tmp_path, "--k", "0.25,0.5") == ExitCode.INTERRUPTED
    assert "same command and --resume" in capsys.readouterr().err
    (folder,) = tmp_path.iterdir()
    before = (folder / "trainings.jsonl").read_text()
    assert len(before.splitlines()) == 7
    instant.stop_after = math.inf
    assert tune(tmp_path, "--k", "0.25,0.5", "--resume") == ExitCode.OK
    assert [folder] == list(tmp_path.iterdir())
    assert (folder / "trainings.jsonl").read_text().startswith(before)


def test_a_spent_budget_says_what_to_do(instant: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(tmp_path, "--k", "0.25") == ExitCode.OK
    (folder,) = tmp_path.iterdir()
    state = json.loads((folder / "tune.json").read_text())
    (folder / "tune.json").write_text(json.dumps(state | {"spent_s": 3601.0}))
    assert tune(tmp_path, "--k", "0.25", "--resume") == ExitCode.USAGE
    assert "is spent" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [["tune"], ["parity", "--method", "unified"]])
def test_a_curve(verb: list[str], instant: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        *verb,
        "--task",
        "digits",
        "--k",
        "0.25",
        "--budgets",
        "1s,10s",
        "--out",
        str(tmp_path),
        "--format",
        "json",
    ]
    assert run(words) == ExitCode.OK
    found = json.loads(capsys.readouterr().out)["tune"]
    assert found["sentence"].startswith("From 1 s on unified, k = 0.25 is ahead of dense")
    assert [(point["seconds"], point["steps"]) for point in found["points"]] == [
        (1.0, 100), (1.0, 150), (10.0, 1000), (10.0, 1500),
    ]  # fmt: skip
    (folder,) = tmp_path.iterdir()
    pytest.importorskip("matplotlib")
    assert (folder / "time-to-quality.svg").read_text().lstrip().startswith("<?xml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "soon"], "'soon' is no time"),
        (["--margin", "-1"], "margin must be a number of at least 0"),
        (["--k", "0"], "k must be"),
        (["--method", "unify"], "did you mean 'unified'?"),
        (["--method", "mesimp"], "unknown method to tune: 'mesimp'"),
        (["--algorithm", "mesimp"], "No such option '--algorithm'"),
        (["--gradient", "rows"], "takes no gradient as rows"),
        (["--gradient", "row"], "did you mean 'rows'?"),
        (["--budgets", "1s,later"], "'later' is no time"),
        (["--seeds", "1"], "seeds must be at least 2"),
        (["--k-by-layer", "0.5"], "k by layer is written as 'blocks.0.*=0.25;*.up=0.1', and not as '0.5'"),
        (["--k-by-layer", "linear0=2.5"], "k of 'linear0' must be an int >= 1 or a ratio in (0, 1], not '2.5'"),
        (["--model", "my_model.py:build"], "one of the two"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    words: list[str], message: str, instant: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(tmp_path, *words) == ExitCode.USAGE
    err = capsys.readouterr().err.splitlines()
    assert message in err[-1]
    assert err[-1].startswith("meprop-bench: error: ")
