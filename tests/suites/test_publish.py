"""`asv publish` with this project's own configuration: a made-up history, in which one step is a regression."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

pytest.importorskip("asv", reason="asv is not installed: pip install 'meprop-bench[suites]'")

from asv import util
from asv.results import Results
from asv.runner import BenchmarkResult

_ROOT = Path(__file__).parents[2]
_COMMITS, _STEP_AT, _STEP = 30, 18, 1.15
_STEPPED = ("linear.Backward.track_time", 1)
"""The benchmark, and the parameter combination of it, that gets slower."""

_VALUES = {
    "linear.Backward.track_time": ("time", "seconds", 2e-3, 0.02),
    "linear.Backward.track_ratio": ("track", "method / dense time", 0.4, 0.004),
    "linear.Backward.track_peak_memory": ("memory", "bytes", 5e6, 0.0),
    "mlp.Parity.track_accuracy_gap": ("track", "points of accuracy lost", 0.1, 0.5),
}
"""Benchmark -> type, unit, usual value and the standard deviation, relative, of a commit's."""

_PARAMS = {"method": ["'meprop'", "'unified'"], "device": ["'cpu:2'"]}


def _git(folder: Path, *arguments: str, date: int = 0) -> str:
    who = {f"GIT_{role}_{what}": "test" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    when = {f"GIT_{role}_DATE": f"{1_700_000_000 + 86_400 * date} +0000" for role in ("AUTHOR", "COMMITTER")}
    command = ["git", "-C", str(folder), *arguments]
    found = subprocess.run(command, env={**os.environ, **who, **when}, capture_output=True, text=True, check=True)
    return found.stdout.strip()


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, list[str]]:
    """Return the web pages of a history of 30 commits, and the commits."""
    project = tmp_path / "project"
    project.mkdir()
    _git(project, "init", "--quiet", "--initial-branch=main")
    commits = []
    for number in range(_COMMITS):
        _git(project, "commit", "--quiet", "--allow-empty", "--message", f"commit {number}", date=number)
        commits.append(_git(project, "rev-parse", "HEAD"))
    record = util.load_json(str(_ROOT / "asv.conf.json"), js_comments=True)
    (project / "asv.conf.json").write_text(json.dumps({**record, "version": 1}))
    _write_history(project / record["results_dir"], commits)
    command = [sys.executable, "-m", "asv", "publish", "--no-pull"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return project / record["html_dir"], commits


def _write_history(folder: Path, commits: list[str]) -> None:
    benchmarks = {
        name: {
            "name": name,
            "type": kind,
            "unit": unit,
            "params": list(_PARAMS.values()),
            "param_names": list(_PARAMS),
            "version": "1",
            "code": "",
        }
        for name, (kind, unit, _, _) in _VALUES.items()
    }
    (folder / "machine").mkdir(parents=True)
    (folder / "machine" / "machine.json").write_text(json.dumps({"machine": "machine", "version": 1}))
    (folder / "benchmarks.json").write_text(json.dumps({**benchmarks, "version": 2}))
    rng = random.Random(0)
    for number, commit in enumerate(commits):
        results = Results(
            {"machine": "machine", "python": "3.11"},
            {},
            commit,
            1_700_000_000_000 + 86_400_000 * number,
            "3.11",
            "env",
            {},
        )
        for name, (_, _, usual, spread) in _VALUES.items():
            values = []
            for index in range(2):
                slower = _STEP if (name, index) == _STEPPED and number >= _STEP_AT else 1
                values.append(usual * slower * (1 + spread * rng.gauss(0, 1)))
            samples = [[value * (1 + 0.01 * rng.gauss(0, 1)) for _ in range(30)] for value in values]
            found = BenchmarkResult([True] * 2, samples, [1] * 2, 0, "", None)
            results.add_result(benchmarks[name], found, started_at=datetime.fromtimestamp(1_700_000_000 + number, UTC))
        results.save(str(folder))


def test_one_injected_step_is_found_and_no_other(published: tuple[Path, list[str]]) -> None:
    pages, commits = published
    found = json.loads((pages / "regressions.json").read_text())["regressions"]
    assert [entry[0] for entry in found] == [f"{_STEPPED[0]}('unified', 'cpu:2')"]
    (_, _, _, _, last, best, ((_, after, old, new),)) = found[0]
    revisions = {
        int(number): commit
        for number, commit in json.loads((pages / "index.json").read_text())["revision_to_hash"].items()
    }
    assert revisions[after] == commits[_STEP_AT]
    assert new / old == pytest.approx(_STEP, rel=0.03)
    assert last / best == pytest.approx(_STEP, rel=0.03)


def test_the_pages_name_the_parameters(published: tuple[Path, list[str]]) -> None:
    index = json.loads((published[0] / "index.json").read_text())
    for name in _VALUES:
        assert index["benchmarks"][name]["param_names"] == ["method", "device"]
        assert list((published[0] / "graphs").rglob(f"{name}.json"))
