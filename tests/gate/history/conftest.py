"""Folders of runs, made up: every benchmark with a noise of its own, from a seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

COLUMNS = "result params version started_at duration stats_ci_99_a stats_ci_99_b stats_q_25 stats_q_75 stats_number"
COLUMNS += " stats_repeat samples profile"
MACHINE = {"machine": "box", "os": "Linux", "arch": "x86_64", "cpu": "AMD EPYC", "num_cpu": "2", "ram": "8"}
SIZES = ["1", "2", "3", "4"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Suite:
    """asv's results of `benchmarks` benchmarks with four points each, of which one run differs from the next by 1%."""

    def __init__(self, folder: Path, benchmarks: int = 30, spread: float = 0.01) -> None:
        self.folder, self.names, self.spread = folder, [f"m.B.time_{i}" for i in range(benchmarks)], spread

    def run(
        self,
        number: int,
        slow: Mapping[str, float] | None = None,
        *,
        name: str = "",
        width: Mapping[str, float] | None = None,
        failed: tuple[str, ...] = (),
        everything: float = 1.0,
        commit: str = "",
        **changes: Any,
    ) -> Path:
        """Write the run of a commit and return its path; `slow` has factors of benchmarks, `width` half quartiles."""
        rng = np.random.default_rng([number, len(name)])
        results = {}
        for place, benchmark in enumerate(self.names):
            level = 1e-3 * (1 + place) * everything * (slow or {}).get(benchmark, 1.0)
            values = level * np.exp(rng.normal(0, self.spread, len(SIZES)))
            half = (width or {}).get(benchmark, 0.003)
            quartiles = [(values * (1 - half)).tolist(), (values * (1 + half)).tolist()]
            shown = [None] * len(SIZES) if benchmark in failed else values.tolist()
            results[benchmark] = [shown, [SIZES], "v", 1, 1.0, None, None, *quartiles, [1] * 4, [10] * 4]
        record = {
            "commit_hash": commit or f"{number:040x}",
            "env_name": "env",
            "date": 1_600_000_000_000 + 86_400_000 * number,
            "params": {**MACHINE, "python": "3.11", **changes.pop("params", {})},
            "python": "3.11",
            "requirements": {},
            "env_vars": {},
            "result_columns": COLUMNS.split(),
            "results": results,
            "durations": {},
            "version": 2,
            **changes,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / (name or f"{number:08x}-env.json")
        path.write_text(json.dumps(record))
        return path

    def runs(self, count: int, **changes: Any) -> None:
        """Write the runs of so many commits."""
        for number in range(count):
            self.run(number, **changes)


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return Suite(tmp_path / "results" / "box")


@pytest.fixture
def twenty(suite: Suite) -> Suite:
    suite.runs(20)
    return suite


Judge = Callable[..., Any]


@pytest.fixture
def judged(twenty: Suite) -> Judge:
    """Return what judges a run beside the twenty of the suite."""
    from meprop_bench.gate.history import judge_run
    from meprop_bench.gate.settings import Settings

    def go(run: Path, *again: Path | None, confirm: bool = False, **settings: Any) -> Any:
        found, more = Settings(**settings), [path for path in again if path is not None]
        return judge_run(twenty.folder, run, found, confirm=confirm or bool(more), again=more)

    return go
