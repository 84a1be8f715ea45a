"""A slowdown inside a timed region: of the one phase, by the share that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from meprop_bench.measure.clock import WallClock
from meprop_bench.sweep.blocks import SlowedClock
from meprop_bench.workloads import setup
from meprop_bench.workloads.case import Case


class _Time:
    """Nanoseconds that pass when they are looked at, or spent."""

    def __init__(self) -> None:
        self.ns = 0

    def look(self) -> int:
        self.ns += 10
        return self.ns

    def spend(self, ns: int) -> Callable[[], None]:
        def work() -> None:
            self.ns += ns

        return work


@pytest.fixture
def time() -> _Time:
    return _Time()


def _clock(time: _Time, call: Callable[[], object] | None = None) -> SlowedClock:
    return SlowedClock(WallClock(timer=lambda: time.look() / 1e9), "backward", call, now=time.look)


def test_the_phase_of_that_name_takes_longer(time: _Time) -> None:
    clock = _clock(time)
    phases: Mapping[str, Callable[[], object]] = {"forward": time.spend(50_000), "backward": time.spend(100_000)}
    plain = clock.time_phases(phases, 10)
    clock.wait(0.03 * plain["backward"])
    slowed = clock.time_phases(phases, 10)
    assert slowed["forward"] == pytest.approx(plain["forward"])
    assert slowed["backward"] == pytest.approx(1.03 * plain["backward"], rel=1e-3)
    clock.wait(0.0)
    assert clock.time_phases(phases, 10)["backward"] == pytest.approx(plain["backward"])


def test_the_call_takes_longer_where_there_are_no_names(time: _Time) -> None:
    backward, forward = time.spend(100_000), time.spend(50_000)
    clock = _clock(time, backward)
    clock.wait(1e-5)
    assert clock.time(backward, 10) == pytest.approx(1.1e-4, rel=1e-3)
    assert clock.time(forward, 10) == pytest.approx(5e-5, rel=1e-3)


def test_several_backward_passes_of_a_step_share_the_wait(time: _Time) -> None:
    clock = _clock(time)
    phases = {f"{name} {part}": time.spend(100_000) for part in range(4) for name in ("forward", "backward")}
    clock.wait(1e-5)
    slowed = clock.time_phases(phases, 10)
    assert [slowed[f"forward {part}"] for part in range(4)] == pytest.approx([1e-4] * 4, rel=1e-3)
    assert sum(slowed[f"backward {part}"] for part in range(4)) == pytest.approx(4.1e-4, rel=1e-3)


@pytest.mark.parametrize(
    "case",
    [
        Case(workload="linear", method="unified", k=2, batch=4, in_features=8, out_features=8),
        Case(workload="mlp", method="unified", k=2, batch=4, data="digits", in_features=64, out_features=8),
    ],
    ids=lambda case: case.workload,
)
def test_what_is_timed_of_a_case_is_reached(case: Case) -> None:
    prepared = setup(case)
    clock = SlowedClock(WallClock(), "backward", prepared.memory.get("backward", (None, None))[1])
    wait_s = 0.02
    clock.wait(wait_s)
    found = prepared.method(2, clock)
    assert found["backward"] > wait_s
    assert found["forward"] < found["backward"]
