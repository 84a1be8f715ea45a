"""The asv suite from end to end: what asv finds, what it runs, and what it saves."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("asv", reason="asv is not installed: pip install 'meprop-bench[suites]'")
pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

from asv import util

from meprop_bench.sweep.suite import PRESET, SWITCH

_ROOT = Path(__file__).parents[2]
_HERE = f"existing:{sys.executable}"


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """Return this project's configuration with its results in a folder of the test."""
    record = util.load_json(str(_ROOT / "asv.conf.json"), js_comments=True)
    own = {
        "version": 1,
        "repo": str(_ROOT),
        "benchmark_dir": str(_ROOT / record["benchmark_dir"]),
        "results_dir": str(tmp_path / "results"),
    }
    (path := tmp_path / "asv.conf.json").write_text(json.dumps({**record, **own}))
    return path


def test_check_is_clean(run: Callable, configuration: Path) -> None:
    found = run("asv", "--config", configuration, "check", "-E", _HERE)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "No problems found" in found.stdout


def test_a_wrong_word_in_the_environment_is_said_in_a_line(run: Callable, configuration: Path) -> None:
    found = run("asv", "--config", configuration, "check", "-E", _HERE, part="some")
    assert found.returncode
    assert "MEPROP_BENCH_SUITE is 'some': set it to part or all" in found.stdout
    assert "Traceback" not in found.stdout + found.stderr


def test_a_run_asks_nothing_and_saves_samples(run: Callable, configuration: Path) -> None:
    head = subprocess.run(["git", "-C", str(_ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        pytest.skip("not a checkout: asv saves results by commit")
    commit = head.stdout.strip()
    asv = ("asv", "--config", configuration)
    assert run(*asv, "machine", "--yes", "--machine", "box").returncode == 0
    chosen = ("--bench", r"linear\.Backward\.track_(ratio|time|flops|gpu_idle)")
    saved = ("--set-commit-hash", commit, "--machine", "box", "--record-samples", "--launch-method", "forkserver")
    found = run(*asv, "run", "-E", _HERE, *saved, *chosen)
    assert found.returncode == 0, found.stdout + found.stderr
    (path,) = (configuration.parent / "results" / "box").glob(f"{commit[:8]}*.json")
    stored = json.loads(path.read_text())
    results = {name: dict(zip(stored["result_columns"], row, strict=False)) for name, row in stored["results"].items()}
    assert results.keys() == {f"linear.Backward.track_{what}" for what in ("ratio", "time", "flops", "gpu_idle")}
    ratio = results["linear.Backward.track_ratio"]
    # meprop and unified x cpu:1 and cuda:7: the first device is there, the other is nowhere, and nothing failed.
    assert [value is None or math.isnan(value) for value in ratio["result"]] == [False, True, False, True]
    assert ratio["params"][0] == ["'meprop'", "'unified'"]
    assert ratio["params"][-1] == ["'cpu:1'", "'cuda:7'"]
    assert 2 <= len(ratio["samples"][0]) <= 99
    medians = results["linear.Backward.track_time"]["result"]
    assert all(0 < medians[index] < 1 for index in (0, 2))


_OWN = """
name = "own"
analysis = "A user's model, named from the project's folder as on the command line."
checks = ["gradients"]
target = 0.5
budget = 0.2
processes = 2
utilization = false

[[sweep]]
workload = "model"
model = "tests/suites/own_model.py:build"
method = "unified"
k = 0.25
threads = 1
"""

_LIKE_ASV = """
import os
from asv_suite import _costs, model

grid = _costs._SUITE.grid("model")
(point,) = grid.cases
step = model.Step()
missing = step.setup_cache()
step.setup(missing, *point)
print(sorted(missing.values()), step.row.passed, grid.names, os.getcwd())
print(model.Parity.track_accuracy_gap.unit, "|", _costs._track("accuracy_gap", "mlp").unit)
"""


def test_users_models_are_found_from_the_projects_folder_wherever_asv_runs(tmp_path: Path) -> None:
    """asv calls `setup_cache` and `setup` in a folder of its own, where the rows are to stay."""
    (preset := tmp_path / "own.toml").write_text(_OWN)
    (cache := tmp_path / "cache").mkdir()
    path = os.pathsep.join([str(_ROOT / "benchmarks"), str(_ROOT)])
    variables = {**os.environ, PRESET: str(preset), SWITCH: "all", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-c", _LIKE_ASV], cwd=cache, env=variables, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    # No size stands among the parameters that the model has not.
    assert found.stdout.splitlines() == [
        f"[] True ('model', 'method', 'k', 'device') {cache}",
        "quality lost: points of a percentage, else % of dense's | points of accuracy lost",
    ]
    assert [path.name for path in cache.iterdir()]
