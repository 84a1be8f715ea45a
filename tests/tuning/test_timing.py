from __future__ import annotations

import pytest

from meprop_bench.stats import Interval
from meprop_bench.tuning.arms import Arm
from meprop_bench.tuning.timing import Costs, Timing, VirtualClock, of_schedule


def timing(speedup: float) -> Timing:
    return Timing(Interval(speedup, speedup * 0.9, speedup * 1.1), 0.01)


def test_batches_and_evaluations_count_on_both_sides() -> None:
    clock = VirtualClock(0.010, Costs(batch_s=0.002, evaluation_s=0.3, per_epoch=100, whole=1000))
    assert clock.step_s() == pytest.approx(0.015)
    assert clock.step_s(2.0) == pytest.approx(0.010)
    assert clock.steps(30.0) == 2000
    assert clock.steps(30.0, 2.0) == 3000
    assert clock.opponent(3000, 2.0) == 2000
    assert clock.gain(Interval(2.0, 1.0, 2.5)).estimate == pytest.approx(1.5)
    assert clock.gain(Interval(2.0, 1.0, 2.5)).low == pytest.approx(1.0)


def test_a_schedule_takes_the_mean_of_the_times_on_its_way() -> None:
    ends = {Arm("unified", 0.5): timing(1.0), Arm("unified", 0.1): timing(2.0)}
    down, up = (of_schedule(arm, ends) for arm in (Arm("unified", 0.5, end=0.1), Arm("unified", 0.1, end=0.5)))
    assert down is not None
    assert up is not None
    assert down.speedup.estimate == pytest.approx(1 / 0.75)  # times 1 and 1/2, linear in k between
    assert up.speedup.estimate == pytest.approx(down.speedup.estimate)
    assert down.speedup.low < down.speedup.estimate < down.speedup.high
    between = ends | {Arm("unified", 0.3): timing(2.0)}  # dear at 0.5 alone
    shorter = of_schedule(Arm("unified", 0.5, end=0.1), between)
    assert shorter is not None
    assert shorter.speedup.estimate > down.speedup.estimate


def test_a_schedule_beyond_what_was_timed_has_no_time() -> None:
    ends = {Arm("unified", 0.5): timing(1.0), Arm("unified", 0.1): timing(2.0)}
    assert of_schedule(Arm("unified", 0.5, end=0.05), ends) is None
    assert of_schedule(Arm("meprop", 0.5, end=0.1), ends) is None
    failed = ends | {Arm("unified", 0.1): Timing.without("its check failed")}
    assert of_schedule(Arm("unified", 0.5, end=0.1), failed) is None


def test_what_was_not_timed_is_null_in_json() -> None:
    assert Timing.without("why").to_json() == {
        "speedup": None, "low": None, "high": None, "dense_s": None, "failed": "why", "case_id": None, "baseline": None,
        "compiled": False, "uncompiled_s": None,
    }  # fmt: skip
