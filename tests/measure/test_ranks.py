"""The clock of several ranks: what it says is the slowest's, and what it is asked is rank 0's."""

from __future__ import annotations

from typing import Any, cast

from meprop_bench.measure.clock import WallClock
from meprop_bench.measure.ranks import RankClock, Ranks, here


class _Others:
    """Two ranks, the other of which takes what it is told."""

    def __init__(self, other: dict[str, float]) -> None:
        self.other, self.met = other, 0

    def barrier(self) -> None:
        self.met += 1

    def now(self) -> float:
        return 42.0

    def slowest(self, phases: dict[str, float]) -> dict[str, float]:
        return max((phases, self.other), key=lambda one: sum(one.values()))


def _clock(other: dict[str, float], ticks: list[float]) -> tuple[RankClock, _Others]:
    others = _Others(other)
    return RankClock(WallClock(timer=iter(ticks).__next__), cast("Ranks", others)), others


def test_a_value_is_the_slowest_rank_s_and_begins_when_all_are_there() -> None:
    clock, others = _clock({"call": 3.0}, [0.0, 2.0])
    assert clock.time(lambda: None, 1) == 3.0
    clock, _ = _clock({"call": 1.0}, [0.0, 2.0])
    assert clock.time(lambda: None, 1) == 2.0
    assert others.met == 1


def test_all_phases_are_of_one_rank_so_that_they_add_up() -> None:
    ticks = [0.0, 1.0, 5.0]
    clock, _ = _clock({"forward": 3.0, "backward": 1.5}, ticks)
    phases: Any = {"forward": lambda: None, "backward": lambda: None}
    assert clock.time_phases(phases, 1) == {"forward": 1.0, "backward": 4.0}


def test_the_time_for_budgets_is_rank_0_s() -> None:
    clock, _ = _clock({}, [])
    assert clock.now() == 42.0


def test_a_process_by_itself_is_no_rank() -> None:
    assert here() is None
