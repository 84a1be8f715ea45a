"""A slowdown inside a timed region: of the one phase, by the share that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from meprop_bench.measure.clock import WallClock
from meprop_bench.sweep.blocks import Blocks, SlowedClock
from meprop_bench.sweep.plan import load_preset, plan_preset
from meprop_bench.workloads import setup


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


def test_parts_of_the_phase_share_what_it_takes_longer(time: _Time) -> None:
    clock = _clock(time)
    parts = {f"{phase} {part}": time.spend(50_000) for part in range(2) for phase in ("forward", "backward")}
    plain = clock.time_phases(parts, 10)
    clock.wait(0.1 * (plain["backward 0"] + plain["backward 1"]))
    slowed = clock.time_phases(parts, 10)
    for part in parts:
        assert slowed[part] == pytest.approx((1.1 if "backward" in part else 1.0) * plain[part], rel=1e-3)


def test_a_phase_that_is_not_there_is_not_slowed_in_silence(time: _Time) -> None:
    with pytest.raises(ValueError, match="nothing of what is timed is the phase 'backward': forward, update"):
        _clock(time).time_phases({"forward": time.spend(1), "update": time.spend(1)}, 1)


@pytest.mark.parametrize("place", range(5))
def test_each_case_of_the_gates_preset_is_slowed_by_what_is_injected(place: int) -> None:
    """On a clock that passes only when it is looked at."""
    cases = plan_preset(load_preset("gate"), {"baseline": ["same"], "threads": [1]}).cases
    assert len(cases) == 5
    prepared, time = setup(cases[place]), _Time()
    blocks = Blocks(prepared, WallClock(timer=lambda: time.look() / 1e9))
    try:
        assert blocks._slowed is not None
        blocks._slowed._now = time.look
        plain, _ = blocks.take("method", 2, 0, 0.0)
        slowed, _ = blocks.take("method", 2, 0, 100.0)  # of 10 ns, for a look
    finally:
        blocks.close()
    assert slowed["backward"] > 20 * plain["backward"]
    others = [phase for phase in plain if phase not in ("backward", "step")]
    assert others
    assert all(slowed[phase] == pytest.approx(plain[phase]) for phase in others)


def test_the_call_takes_longer_where_there_are_no_names(time: _Time) -> None:
    backward, forward = time.spend(100_000), time.spend(50_000)
    clock = _clock(time, backward)
    clock.wait(1e-5)
    assert clock.time(backward, 10) == pytest.approx(1.1e-4, rel=1e-3)
    assert clock.time(forward, 10) == pytest.approx(5e-5, rel=1e-3)
