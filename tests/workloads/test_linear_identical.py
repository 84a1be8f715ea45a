from __future__ import annotations

from itertools import count

import pytest
import torch

from meprop_bench.errors import UserError
from meprop_bench.measure.clock import WallClock
from meprop_bench.ops.cost import linear_backward, linear_forward
from meprop_bench.workloads import setup
from meprop_bench.workloads.case import Case
from meprop_bench.workloads.linear import Slowed

_SMALL = {"method": "dense", "batch": 4, "in_features": 6, "out_features": 10, "threads": 1}


@pytest.mark.parametrize("slowdown", [None, 0, 0.5])
def test_both_sides_are_the_same_dense_step(slowdown: float | None) -> None:
    prepared = setup(Case(slowdown=slowdown, **_SMALL))  # type: ignore[arg-type]
    assert prepared.check() == "passed"
    assert (prepared.phases, prepared.kernel) == (("step",), "dense")
    baseline, method = (call() for call in prepared.memory["step"])
    assert all(map(torch.equal, baseline, method))  # type: ignore[call-overload]
    assert [tuple(gradient.shape) for gradient in baseline] == [(4, 6), (10, 6), (10,)]  # type: ignore[attr-defined]
    cost = linear_forward(4, 6, 10, 4) + linear_backward(4, 6, 10, 4)
    assert prepared.costs == {"step": (cost, cost)}


def test_the_gradients_are_those_of_the_dense_layer() -> None:
    step = setup(Case(dtype="float64", **_SMALL)).memory["step"][0]  # type: ignore[arg-type]
    other = setup(Case(**{**_SMALL, "method": "meprop", "k": 3, "dtype": "float64"})).memory["backward"][0]  # type: ignore[arg-type]
    assert all(map(torch.equal, step(), other()))  # type: ignore[call-overload]


def test_a_side_that_computes_something_else_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = setup(Case(slowdown=0.5, **_SMALL))  # type: ignore[arg-type]
    monkeypatch.setattr(Slowed, "__call__", lambda self: tuple(2 * gradient for gradient in self._call()))
    assert prepared.check().startswith("dx is off by")


def test_both_sides_time_the_step() -> None:
    ticks = count()
    clock = WallClock(timer=lambda: float(next(ticks)))
    prepared = setup(Case(**_SMALL))  # type: ignore[arg-type]
    assert [side(2, clock) for side in (prepared.baseline, prepared.method)] == [{"step": 0.5}] * 2


class _Time:
    """Nanoseconds that pass when the clock is read, and when the call is made."""

    def __init__(self) -> None:
        self.ns = 0

    def now(self) -> int:
        self.ns += 10
        return self.ns

    def call(self) -> str:
        self.ns += 1_000_000
        return "result"


def test_a_slowed_call_waits_for_its_share() -> None:
    time = _Time()
    slowed = Slowed(time.call, 0.03, time.now)
    assert slowed() == "result"  # finds out what it takes
    begun = time.ns
    assert slowed() == "result"
    assert time.ns - begun == pytest.approx(1_030_000, abs=50)


def test_a_share_of_a_long_call_is_found_from_a_few() -> None:
    calls = count()
    time = _Time()

    def long() -> None:
        next(calls)
        time.ns += 10**9

    Slowed(long, 1e-4, time.now)()  # a clock of 10 ns a look: a long wait would take as long here
    assert next(calls) == 5 + 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"slowdown": -0.1}, "slowdown must be a share from 0 to 100"),
        ({"slowdown": float("nan")}, "slowdown must be a share"),
        ({"slowdown": 0.03, "method": "meprop"}, "slowdown 0.03 is for --method dense"),
        ({"slowdown": 0.03, "device": "cuda"}, "use --device cpu"),
        ({"gradient": "rows"}, "gradient 'rows' does nothing with --method dense"),
        ({"kernel": "gather"}, "kernel 'gather' does nothing with --method dense"),
        ({"workload": "lstm"}, "choose from meprop"),
    ],
)
def test_what_does_nothing_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as caught:
        Case(**{**_SMALL, **changes})  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_k_is_nothing_to_a_dense_case() -> None:
    assert Case(k=30, **_SMALL) == Case(k=7, **_SMALL)  # type: ignore[arg-type]
    case = Case(slowdown=0.03, seed=4, caches="cold", **_SMALL)  # type: ignore[arg-type]
    assert case.label.startswith("linear 6→10 B=4 dense +3% ")
    assert Case.from_json(case.to_json()) == case
