"""The pytest-benchmark suite from end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("pytest_benchmark", reason="not installed: pip install 'meprop-bench[suites]'")
pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

_SUITE = Path(__file__).parents[2] / "benchmarks" / "pytest_suite"
_QUIET = ("-q", "-p", "no:cacheprovider")


def test_without_timing_each_case_is_checked_and_run(run: Callable) -> None:
    found = run("pytest", _SUITE, *_QUIET, "--benchmark-disable", "-k", "linear and backward")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "3 passed, 1 skipped" in found.stdout
    assert "the device cuda:7 is not there" in found.stdout


def test_a_preset_may_be_of_models_alone(run: Callable, tmp_path: Path) -> None:
    model = Path(__file__).with_name("own_model.py")
    (preset := tmp_path / "own.toml").write_text(_OWN.format(model=model))
    found = run("pytest", _SUITE, *_QUIET, "--benchmark-disable", "-k", "test_model and step or parity", preset=preset)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "2 passed" in found.stdout  # the quality is compared, too


_OWN = """
name = "own"
analysis = "A user's model."
checks = ["gradients", "accuracy"]
accuracy-seeds = 2
accuracy-steps = 4
[[sweep]]
model = "{model}:build"
method = "unified"
k = 0.25
threads = 1
baseline = "fused"
"""


def test_a_wrong_word_in_the_environment_is_one_line(run: Callable) -> None:
    found = run("pytest", _SUITE, *_QUIET, "--collect-only", part="some")
    assert found.returncode == pytest.ExitCode.USAGE_ERROR
    assert found.stderr.startswith("ERROR: MEPROP_BENCH_SUITE is 'some'")
    assert "Traceback" not in found.stdout + found.stderr


def test_the_row_is_in_the_json(run: Callable, tmp_path: Path) -> None:
    chosen = ("--benchmark-only", "-k", "test_mlp and (step or update)", "--benchmark-json", tmp_path / "found.json")
    found = run("pytest", _SUITE, *_QUIET, *chosen)
    assert found.returncode == 0, found.stdout + found.stderr
    written = json.loads((tmp_path / "found.json").read_text())
    step, update = sorted(written["benchmarks"], key=lambda each: each["params"]["phase"])
    assert step["group"] == "mlp digits h=32 B=10: step"
    assert step["params"]["case"] == "mlp unified-k8-hidden32-batch10-cpu:1-baselinefused"
    extra = step["extra_info"]
    assert extra["k"] == 8
    assert extra["check"] == "passed"
    assert extra["speedup_low"] <= extra["speedup"] <= extra["speedup_high"]
    assert extra["floor_s"] > 0
    assert extra["efficiency"] == pytest.approx(extra["floor_s"] / step["stats"]["median"])
    assert extra["parity"]["task"] == update["extra_info"]["parity"]["task"] == "digits"
    assert written["environments"][extra["environment_id"]]["torch_threads"] == 1
    assert written["machine_info"]["meprop_bench"]["torch"]
    assert "node" not in written["machine_info"]
    said = run("meprop_bench", "report", tmp_path / "found.json", "--format", "json")
    assert said.returncode == 0, said.stderr
    report = json.loads(said.stdout)
    assert "--benchmark-only" in report["command"]
    assert report["environment"] == written["environments"]
    (row,) = (row for row in report["rows"] if row["phase"] == "step")
    assert row == extra["row"]
    assert row["values_s"] == pytest.approx(step["stats"]["data"])
