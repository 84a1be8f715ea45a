from __future__ import annotations

from typing import Any

import pytest

from meprop_bench.report.quality import POINTS, Quality
from meprop_bench.stats import Interval
from meprop_bench.tuning.arms import Arm, Layer
from meprop_bench.tuning.judge import ArmResult, Metric, bounds, decide, front, judged
from meprop_bench.tuning.timing import Timing

ARM = Arm("unified", 0.08, "rows")
LAYERS = tuple(Layer(f"layer{number}", 100, converted=number < 10) for number in range(12))


def found(equal_steps: list[float], equal_time: list[float], *, arm: Arm = ARM, speed: float = 1.42) -> ArmResult:
    ratio = Interval(speed, speed - 0.04, speed + 0.04)
    settings: dict[str, Any] = {"margin": 0.5, "confidence": 0.95, "steps": 1200, "dense_steps": 845}
    return judged(arm, Timing(ratio, 0.01), ratio, **settings, equal_steps=equal_steps, equal_time=equal_time)


def decision(*findings: ArmResult) -> Any:
    return decide(findings, Metric("accuracy", 0.5), LAYERS)


def test_the_sentence_of_what_is_taken() -> None:
    taken = decision(found([-0.2, -0.1, 0.0], [0.2, 0.3, 0.4]))
    assert taken.kind == "take"
    assert taken.sentence == (
        "Take unified, k = 0.08, rows, on 10 of 12 layers: a step is 1.42x [1.38, 1.46], accuracy -0.10 [-0.35, +0.15] "
        "after 1,200 steps, 3 seeds: passes at 0.5. At equal time, against dense with 845 steps, it is ahead: "
        "+0.30 [+0.05, +0.55]."
    )


@pytest.mark.parametrize(
    ("equal_steps", "equal_time", "standing"),
    [
        ([-0.2, -0.1, 0.0], [0.2, 0.3, 0.4], "pass"),
        ([-0.2, -0.1, 0.0], [-0.2, 0.0, 0.2], "pass"),
        ([-0.2, -0.1, 0.0], [-0.4, -0.3, -0.35], "behind"),
        ([-2.2, -2.1, -2.0], [0.2, 0.3, 0.4], "worse"),
        ([-1.2, 0.1, 1.0], [0.2, 0.3, 0.4], "inconclusive"),
        ([-0.1], [0.1], "left out"),  # one seed has no interval
        ([], [], "left out"),
    ],
)
def test_standings(equal_steps: list[float], equal_time: list[float], standing: str) -> None:
    assert found(equal_steps, equal_time).standing == standing


def test_a_step_that_is_not_shown_to_be_faster_is_not_taken() -> None:
    unsure = found([-0.2, -0.1, 0.0], [0.2, 0.3, 0.4], speed=1.03)
    assert unsure.standing == "inconclusive"
    assert "the step is not shown to be faster" in decision(unsure).sentence


def test_of_several_that_pass_the_fastest_is_taken() -> None:
    slow = found([-0.2, -0.1, 0.0], [0.2, 0.3, 0.4], arm=Arm("unified", 0.5), speed=1.2)
    fast = found([-0.2, -0.1, 0.0], [0.2, 0.3, 0.4])
    assert decision(slow, fast).arm == ARM


def test_one_that_passes_decides_though_others_are_open() -> None:
    other = ArmResult(Arm("meprop", 0.1), "outranked", "others are expected to save more")
    assert decision(other, found([-0.2, -0.1, 0.0], [0.2, 0.3, 0.4])).kind == "take"
    untried = ArmResult(Arm("meprop", 0.1), "left out", "its step is not timed")
    taken = decision(untried, found([-0.2, -0.1, 0.0], [0.2, 0.3, 0.4]))
    assert taken.sentence.endswith(" 1 arm was not tried, for lack of time.")
    assert decision(other).kind == "undecided"
    assert decision(other).sentence == (
        "Undecided: the budget ended before any arm could be judged. A larger --budget with --resume may decide."
    )


def test_stay_dense_has_a_reason_for_each_arm() -> None:
    slow = Interval(1.0, 0.98, 1.03)
    findings = (
        ArmResult(Arm("meprop", 0.1), "slow", "no gain", gain=slow),
        ArmResult(Arm("meprop", 0.2), "hopeless", "loses", steps=500),
        ArmResult(Arm("meprop", 0.3), "hopeless", "loses", steps=1000),
        ArmResult(Arm("meprop", 0.4), "failed", "its check"),
    )
    assert decision(*findings).sentence == (
        "Stay dense: nothing within a margin of 0.5 is faster than 1.03x. Of the arms 1 gains nothing, 2 lose more "
        "than 0.5 in 1,000 steps, 1 failed."
    )
    assert decision(ArmResult(ARM, "hopeless", "loses")).sentence.startswith(
        "Stay dense: nothing within a margin of 0.5 is faster than dense."
    )


def test_an_inferior_arm_that_is_ahead_at_equal_time_is_named() -> None:
    inferior = decision(found([-2.2, -2.1, -2.0], [0.2, 0.3, 0.4]))
    assert inferior.kind == "dense"
    assert "But unified, k = 0.08, rows pays where the seconds are fixed and not the steps." in inferior.sentence


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    fast = found([-0.2, -0.1, 0.0], [0.2, 0.3, 0.4], speed=2.0)
    good = found([0.2, 0.1, 0.3], [0.2, 0.3, 0.4], arm=Arm("unified", 0.5), speed=1.2)
    beaten = found([-0.4, -0.3, -0.2], [0.2, 0.3, 0.4], arm=Arm("meprop", 0.5), speed=1.5)
    slower = found([-0.4, -0.3, -0.2], [0.2, 0.3, 0.4], arm=Arm("meprop", 0.9), speed=0.9)  # than dense, and worse
    assert front([beaten, good, fast, slower]) == [ARM, Arm("unified", 0.5)]


def test_differences_are_written_as_the_metric_needs_it() -> None:
    difference = Interval(-0.1234, -0.4321, 0.2)
    assert bounds(difference, POINTS) == "-0.12 [-0.43, +0.20]"
    assert bounds(difference, Quality(False, 3.1)) == "-0.123 [-0.432, +0.200]"
    assert bounds(Interval(-0.1, float("nan"), float("nan")), POINTS) == "-0.10 (no interval from one seed)"
