"""The preset of the suites as grids, and the part of it that is run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from meprop_bench.errors import UserError
from meprop_bench.sweep.suite import PRESET, SWITCH, Grid, Suite, absent, measured
from meprop_bench.workloads.case import Case


@pytest.fixture(autouse=True)
def _no_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.delenv(PRESET, raising=False)


def test_each_case_of_the_suite_is_one_point_of_its_grid() -> None:
    suite = Suite("suite")
    assert suite.workloads == ("linear", "mlp", "conv", "lstm", "transformer", "seq2seq", "mesimp", "meact")
    grids = {workload: suite.grid(workload) for workload in suite.workloads}
    assert [len(grid.cases) for grid in grids.values()] == [48, 8, 6, 4, 2, 2, 2, 2]
    assert {case for grid in grids.values() for case in grid.cases.values()} == set(suite.cases)
    assert grids["linear"].names == ("method", "k", "hidden", "batch", "device")
    assert grids["linear"].values[-1] == ("cpu:1", "cpu:2", "cuda:0")
    assert grids["mlp"].names[-3:] == ("data", "optimizer", "baseline")
    assert grids["meact"].names == ("method", "hidden", "batch", "device", "baseline")  # it has no k


def test_the_part_has_all_methods_on_all_devices_and_data() -> None:
    suite = Suite("suite")
    assert 0 < len(suite.chosen) < len(suite.cases)
    for name in ("workload", "method", "device", "threads", "data"):
        assert {getattr(case, name) for case in suite.chosen} == {getattr(case, name) for case in suite.cases}
    assert Suite("suite").chosen == suite.chosen
    assert Suite("suite", seed=1).chosen != suite.chosen


def test_the_switch_asks_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "all")
    suite = Suite("suite")
    assert suite.chosen == suite.cases
    monkeypatch.setenv(SWITCH, "al")
    with pytest.raises(UserError, match="'al': set it to part or all"):
        Suite("suite")


def test_another_axis_becomes_a_parameter_where_cases_differ() -> None:
    cases = [Case(gradient=gradient, threads=1) for gradient in ("dense", "rows")]
    grid = Grid.of(cases)
    assert grid.names[-1] == "gradient"
    assert grid.label(cases[1]) == "meprop-k30-hidden500-batch50-cpu:1-gradientrows"
    with pytest.raises(UserError, match="two cases of the preset are"):
        Grid.of([Case(device="cuda:0", threads=threads) for threads in (1, 2)])


def test_a_history_against_another_dense_side_does_not_go_on_under_the_same_name() -> None:
    same, fused = (
        Case(workload="mlp", data="digits", in_features=64, threads=1, baseline=baseline)
        for baseline in ("same", "fused")
    )
    assert Grid.of([same]).label(same) == "meprop-k30-hidden500-batch50-cpu:1"
    assert Grid.of([fused]).label(fused) == "meprop-k30-hidden500-batch50-cpu:1-baselinefused"


def test_a_users_model_has_its_name_and_no_sizes_that_are_none() -> None:
    cases = [Case(workload="model", model="gpt.py:build", k=k, threads=1) for k in (0.1, 0.2)]
    grid = Grid.of(cases)
    assert grid.names == ("model", "method", "k", "device")
    assert grid.label(cases[1]) == "gpt.py:build-meprop-k0.2-cpu:1"


def test_a_workload_that_the_preset_has_not_has_no_points() -> None:
    grid = Suite("suite").grid("gru")
    assert grid.names == ("method", "k", "hidden", "batch", "device")
    assert grid.values == ((),) * 5
    assert not grid.cases


def test_what_is_not_there_has_a_reason() -> None:
    here = Case(threads=1, allocator="default")
    nowhere = Case(threads=(os.cpu_count() or 1) + 1, allocator="default")
    assert list(absent([here, nowhere])) == [nowhere]


def test_measured_once_and_then_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PRESET, str(Path(__file__).parents[1] / "suites" / "tiny.toml"))
    suite = Suite("suite")
    plan = suite.plan(suite.cases[:1])
    rows, environments = measured(plan, tmp_path)
    assert [row.phase for row in rows] == ["forward", "backward"]
    assert environments.keys() == {row.environment_id for row in rows}
    again, _ = measured(plan, tmp_path)
    assert again == rows  # to the last digit: nothing was timed
