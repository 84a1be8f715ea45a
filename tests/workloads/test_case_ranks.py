"""Cases of several processes: what they are filled in with, and what is refused of them, each in one line."""

from __future__ import annotations

from typing import Any

import pytest

from meprop_bench.errors import UserError
from meprop_bench.results.axes import case_name
from meprop_bench.sweep.feasible import check_feasible
from meprop_bench.sweep.plan import plan_axes
from meprop_bench.workloads.case import Case
from meprop_bench.workloads.dense_side import DenseSide, candidates

_SIZES: dict[str, Any] = {
    "workload": "mlp", "method": "unified", "k": 4, "batch": 8, "data": "digits", "in_features": 64, "out_features": 32,
    "gradient": "rows", "optimizer": "adagrad", "baseline": "fused", "threads": 1,
}  # fmt: skip


def _two(**more: Any) -> Case:
    return Case(**{**_SIZES, "world_size": 2, **more})


def test_two_processes_gather_rows_and_stand_against_plain_ddp_if_nothing_is_said() -> None:
    case = _two()
    assert (case.exchange, case.dense_exchange) == ("gathered", "ddp")
    assert case_name(case).endswith("P=2 rows gathered against ddp")
    assert str(DenseSide.of(case)) == "eager, fused optimizer, DDP"


def test_one_process_is_the_case_that_it_has_always_been() -> None:
    assert Case(**_SIZES).case_id == Case(**_SIZES, world_size=1).case_id
    assert "P=" not in case_name(Case(**_SIZES))


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"world_size": 1, "exchange": "agreed"}, "exchange 'agreed' is for several processes"),
        ({"gradient": "dense"}, "add --gradient rows"),
        ({"exchange": "agreed", "method": "meprop"}, "agree on one selection"),
        ({"fused_step": "method"}, "fused-step does not go with --world-size 2"),
        ({"dense_exchange": "fp15"}, "did you mean 'fp16'"),
    ],
)
def test_what_does_not_go_is_refused(wrong: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line) as refused:
        _two(**wrong)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("workload", ["linear", "seq2seq", "meact"])
def test_a_workload_that_does_not_have_it_says_which_do(workload: str) -> None:
    with pytest.raises(UserError, match="'world-size' is for the workload mlp, transformer"):
        plan_axes({"workload": [workload], "world-size": [2]})


def test_the_processes_share_the_cores_and_one_has_no_axes_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meprop_bench.sweep.plan.default_threads", lambda: 4)
    axes = {name.replace("_", "-"): [value] for name, value in _SIZES.items() if name not in ("threads", "in_features")}
    axes["hidden"] = axes.pop("out-features")
    plan = plan_axes({**axes, "world-size": [1, 2], "exchange": ["gathered", "agreed"]})
    assert [(case.world_size, case.exchange) for case in plan.cases] == [(1, None), (2, "gathered"), (2, "agreed")]
    assert plan.cases[1].threads == 2


def test_more_processes_or_threads_than_cores_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with pytest.raises(UserError, match=r"4 processes on 2 cores .* --world-size 2"):
        check_feasible([_two(world_size=4)], ranks=True)
    with pytest.raises(UserError, match=r"2 processes with 2 threads each .* --threads 1"):
        check_feasible([_two(threads=2)], ranks=True)
    check_feasible([_two()], ranks=True)


def test_who_measures_one_process_and_who_binds_it_says_so() -> None:
    with pytest.raises(UserError, match="measured by speedup alone"):
        check_feasible([_two()])
    with pytest.raises(UserError, match="--pin binds one process"):
        check_feasible([_two()], ranks=True, pin=True)


def test_the_best_dense_side_is_looked_for_among_the_exchanges() -> None:
    found = candidates(_two(dense_exchange="best"))
    assert [one.exchange for one in found] == ["ddp", "fp16", "powersgd"]
    assert {one.optimizer for one in found} == {"fused"}
    with pytest.raises(ValueError, match="has to be chosen"):
        DenseSide.of(_two(dense_exchange="best"))
    both = candidates(_two(dense_exchange="best", baseline="best"))
    assert len(both) == 9
    assert not any(one.compiled for one in both)
