"""From what was found of each arm to one sentence: take this one, stay dense, or undecided.

An arm is taken if its step is shown to be faster and both of these hold, each with an interval over fresh seeds. The 5%
that all intervals together may be wrong are dealt out by halves, 2.5% to the first look at an arm, 1.25% to the second
and so on, be it at another arm or at more seeds of the same one: so the interval that is shown is the one that decides,
which Holm's steps do not give.

    equal steps   it is not inferior to dense by more than the margin     lower bound above -margin
    equal time    dense with the same seconds is not shown to be better   upper bound not below 0

The second is what a user could do instead, for nothing: train dense for fewer steps, its schedule fitted to them. An
arm that loses there has only saved what fewer steps save, too. Of several arms that pass the fastest is taken.

"Stay dense" needs a reason against every arm; where one is left open, because the seeds did not decide or the budget
ended, it is "undecided".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from meprop_bench.errors import ExitCode
from meprop_bench.measure.notes import Note
from meprop_bench.report.cells import capital, counted
from meprop_bench.report.quality import POINTS, Quality
from meprop_bench.stats import Interval, clear_of, mean_interval, non_inferiority
from meprop_bench.sweep.dense_sides import UNCOMPILED
from meprop_bench.tuning.arms import Arm, Layer
from meprop_bench.tuning.timing import Timing

__all__ = [
    "OPEN",
    "ArmResult",
    "Decision",
    "Metric",
    "Standing",
    "bounds",
    "decide",
    "front",
    "interval_json",
    "judged",
    "left_uncompiled",
    "times",
]  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """What is compared, higher is better, and how much of it may be lost."""

    name: str
    margin: float  # in its unit: points, of a percentage
    quality: Quality = POINTS  # how it is written


Standing = Literal[
    "pass",  # not inferior at equal steps, and dense with the same seconds is not better
    "behind",  # dense with the same seconds is better
    "worse",  # inferior by more than the margin
    "inconclusive",  # was judged, and the seeds do not decide
    "hopeless",  # stopped at a rung: worse than the margin allows
    "outranked",  # stopped at a rung: others are expected to save more
    "slow",  # no gain is seen in its step
    "replaced",  # another one is as fast, and nearer to dense
    "failed",  # its check, or a training
    "left out",  # the budget ended
]
OPEN: frozenset[Standing] = frozenset({"inconclusive", "outranked", "left out"})
"""Standings that leave open whether the arm would pass."""

Kind = Literal["take", "dense", "undecided", "part"]  # of a shard, which has no verdict
_CODES = {"take": ExitCode.OK, "dense": ExitCode.OK, "undecided": ExitCode.INCONCLUSIVE, "part": ExitCode.OK}


@dataclass(frozen=True)
class ArmResult:
    """What was found of one arm."""

    arm: Arm
    standing: Standing
    reason: str  # in words
    timing: Timing | None = None
    gain: Interval | None = None  # of training time, with what goes with a step
    steps: int | None = None  # of its longest trainings
    seeds: int = 0  # of these
    equal_steps: Interval | None = None  # the arm minus dense, in the metric's unit
    dense_steps: int | None = None  # that take as long
    equal_time: Interval | None = None  # the arm minus dense with those

    @property
    def untimed(self) -> bool:
        """Whether it is open for no other reason than that its step has no time that says anything."""
        return self.standing == "left out" and (self.timing is None or self.timing.unsure)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object; what is not there is null."""
        return {
            "arm": self.arm.to_json(),
            "standing": self.standing,
            "reason": self.reason,
            "timing": None if self.timing is None else self.timing.to_json(),
            "gain": interval_json(self.gain),
            "steps": self.steps,
            "seeds": self.seeds,
            "equal_steps": interval_json(self.equal_steps),
            "dense_steps": self.dense_steps,
            "equal_time": interval_json(self.equal_time),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Return the finding of a JSON object; KeyError, TypeError or ValueError for what is none."""
        if (standing := record["standing"]) not in get_args(Standing):
            raise ValueError(f"there is no standing {standing!r}")
        timing = record["timing"]
        intervals = {
            name: None
            if (found := record[name]) is None
            else Interval.of(found["estimate"], found["low"], found["high"])
            for name in ("gain", "equal_steps", "equal_time")
        }
        return cls(
            Arm.from_json(record["arm"]),
            standing,
            record["reason"],
            None if timing is None else Timing.from_json(timing),
            steps=record["steps"],
            seeds=record["seeds"],
            dense_steps=record["dense_steps"],
            **intervals,
        )


def interval_json(found: Interval | None) -> dict[str, float | None] | None:
    """Return the JSON object of an estimate with its bounds, null where there are none."""
    if found is None:
        return None
    bound = found.bounded
    return {"estimate": found.estimate, "low": found.low if bound else None, "high": found.high if bound else None}


@dataclass(frozen=True)
class Decision:
    """The answer."""

    kind: Kind
    sentence: str
    arm: Arm | None = None  # to take

    @property
    def code(self) -> ExitCode:
        """The exit code that says it."""
        return _CODES[self.kind]


def judged(
    arm: Arm,
    timing: Timing,
    gain: Interval,
    *,
    margin: float,
    confidence: float,
    steps: int,
    dense_steps: int,
    equal_steps: Sequence[float],
    equal_time: Sequence[float],
) -> ArmResult:
    """Judge an arm by its differences from dense at equal steps and at equal time, one for each seed."""

    seeds = min(len(equal_steps), len(equal_time))

    def found(standing: Standing, reason: str) -> ArmResult:
        return ArmResult(arm, standing, reason, timing, gain, steps, seeds, at_steps, dense_steps, at_time)

    at_steps, at_time = (mean_interval(each, confidence) if each else None for each in (equal_steps, equal_time))
    if at_steps is None or at_time is None or not (at_steps.bounded and at_time.bounded):
        return found("left out", "not judged")
    ahead, behind = clear_of(at_time.low, at_time.high, 0.0)
    verdict = non_inferiority(at_steps, margin)
    if behind:
        return found("behind", "dense is better at equal time")
    if verdict == "fail":
        more = ", yet ahead at equal time" if ahead else ""
        return found("worse", f"loses more than {margin:.4g} at equal steps{more}")
    if verdict == "inconclusive":
        return found("inconclusive", f"{seeds} seeds do not decide")
    if not gain.low > 1:
        return found("inconclusive", "its step is not shown to be faster")
    return found("pass", "passes" + (", and is ahead at equal time" if ahead else ""))


def decide(
    findings: Iterable[ArmResult],
    metric: Metric,
    layers: Sequence[Layer] = (),
    more: Callable[[ArmResult | None], str] = lambda _: " A larger --budget with --resume may decide.",
) -> Decision:
    """Return the answer to all findings.

    `more` says, in a sentence, what would decide: of an arm that the seeds left open, or of those that were not judged.
    """
    found = list(findings)
    footing = left_uncompiled(each.timing for each in found)
    passing = [each for each in found if each.standing == "pass"]
    if passing:
        best = max(passing, key=_speed)
        untried = sum(each.standing == "left out" for each in found)
        return Decision("take", _take(best, metric, layers) + _not_tried(untried) + footing, best.arm)
    still_open = [each for each in found if each.standing in OPEN]
    if still_open:
        return Decision("undecided", _undecided(still_open, found, metric, more) + footing)
    return Decision("dense", _dense(found, metric) + footing)


def left_uncompiled(timings: Iterable[Timing | None]) -> str:
    """Return the sentence that says that there was too little time to compile dense; "" where that was not so."""
    limits_s = [found.uncompiled_s for found in timings if found is not None and found.uncompiled_s is not None]
    if not limits_s:
        return ""
    text = Note.of(UNCOMPILED, seconds=max(limits_s)).text
    return f" {capital(text)}."


def front(findings: Iterable[ArmResult]) -> list[Arm]:
    """Return the arms than which none is both faster and better, by their estimates; dense is (1, 0) among them.

    Of the arms that were trained in full length, since a difference after fewer steps is another one.
    """
    found = [each for each in findings if each.equal_steps is not None and each.gain is not None and each.steps]
    longest = max((each.steps or 0 for each in found), default=0)
    points = [(_speed(each), each.equal_steps.estimate, each.arm) for each in found
              if each.equal_steps is not None and each.steps == longest]  # fmt: skip
    others = [(1.0, 0.0), *((speed, quality) for speed, quality, _ in points)]
    return [
        arm
        for speed, quality, arm in sorted(points, key=lambda point: -point[0])
        if not any(s >= speed and q >= quality and (s, q) != (speed, quality) for s, q in others)
    ]


def times(ratio: Interval) -> str:
    """Return a ratio with its interval: `1.42x [1.38, 1.46]`."""
    return f"{ratio.estimate:.2f}x" + (f" [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio.bounded else "")


def bounds(difference: Interval, quality: Quality) -> str:
    """Return a difference with its interval: `-0.10 [-0.40, +0.20]`."""
    if not difference.bounded:
        return f"{quality.change(difference.estimate)} (no interval from one seed)"
    low, high = quality.change(difference.low), quality.change(difference.high)
    return f"{quality.change(difference.estimate)} [{low}, {high}]"


def _speed(found: ArmResult) -> float:
    assert found.gain is not None
    return found.gain.estimate


def _step(found: ArmResult) -> str:
    """Return how fast its step is, and training where that is not the same."""
    assert found.timing is not None
    assert found.gain is not None
    step, whole = found.timing.speedup, found.gain
    besides = f" ({times(whole)} with batches and evaluations)" if step.estimate - whole.estimate > 0.01 else ""
    return f"a step is {times(step)}{besides}"


def _quality(found: ArmResult, metric: Metric) -> str:
    assert found.equal_steps is not None
    of = f"after {found.steps:,} steps, {counted(found.seeds, 'seed')}"
    return f"{metric.name} {bounds(found.equal_steps, metric.quality)} {of}"


def _at_equal_time(found: ArmResult, metric: Metric) -> str:
    if found.equal_time is None:
        return ""
    ahead, behind = clear_of(found.equal_time.low, found.equal_time.high, 0.0)
    what = "it is ahead" if ahead else "it is behind" if behind else "no difference is seen"
    then = "" if ahead or behind else "; fewer dense steps may save as much"
    against = f"against dense with {found.dense_steps:,} steps"
    return f" At equal time, {against}, {what}: {bounds(found.equal_time, metric.quality)}{then}."


def _take(best: ArmResult, metric: Metric, layers: Sequence[Layer]) -> str:
    return (
        f"Take {best.arm.label}{_on(best.arm, layers)}: {_step(best)}, {_quality(best, metric)}: passes at "
        f"{metric.margin:.4g}.{_at_equal_time(best, metric)}"
    )


def _not_tried(count: int) -> str:
    return f" {counted(count, 'arm')} {'was' if count == 1 else 'were'} not tried, for lack of time." if count else ""


def _on(arm: Arm, layers: Sequence[Layer]) -> str:
    if not layers:
        return ""
    converted = sum(each.converted and not arm.leaves(each.name) for each in layers)
    return f", on {converted} of {counted(len(layers), 'layer')}"


def _undecided(
    still_open: Sequence[ArmResult],
    found: Sequence[ArmResult],
    metric: Metric,
    more: Callable[[ArmResult | None], str],
) -> str:
    tried = [each for each in still_open if each.standing == "inconclusive"]
    if tried:
        best = max(tried, key=lambda each: each.equal_steps.estimate if each.equal_steps else -math.inf)
        assert best.equal_steps is not None
        what = f"which decides neither for nor against a margin of {metric.margin:.4g}"
        then = more(best)
        if non_inferiority(best.equal_steps, metric.margin) == "pass":
            what, then = "but the step is not shown to be faster: time it on an idle machine", ""
        return (
            f"Undecided: with {best.arm.label} {_step(best)}, {_quality(best, metric)}, {what}."
            f"{_at_equal_time(best, metric)}{then}"
        )
    open_arms = f"{len(still_open)} of {len(found)} arms" if len(still_open) < len(found) else "any arm"
    others = _reasons([each for each in found if each not in still_open], metric)
    return f"Undecided: the budget ended before {open_arms} could be judged{others}.{more(None)}"


def _dense(found: Sequence[ArmResult], metric: Metric) -> str:
    behind = [each for each in found if each.standing == "behind"]
    ahead = [each for each in found if each.standing == "worse" and each.equal_time and each.equal_time.low > 0]
    if behind:
        best = max(behind, key=_speed)
        assert best.equal_steps is not None
        passes = non_inferiority(best.equal_steps, metric.margin) == "pass"
        head = (
            f"Stay dense: with {best.arm.label} {_step(best)}, {_quality(best, metric)}"
            f"{f' (passes at {metric.margin:.4g})' if passes else ''}, but dense with the same seconds is better."
            f"{_at_equal_time(best, metric)}"
        )
        return head + _rest([each for each in found if each is not best], metric)
    slow = [each.gain for each in found if each.standing == "slow" and each.gain is not None]
    most = max((max(each.estimate, each.high) if each.bounded else each.estimate for each in slow), default=None)
    what = f"is faster than {most:.2f}x" if most is not None else "is faster than dense"
    head = f"Stay dense: nothing within a margin of {metric.margin:.4g} {what}."
    if ahead:
        best = max(ahead, key=_speed)
        head += (
            f" But {best.arm.label} pays where the seconds are fixed and not the steps.{_at_equal_time(best, metric)}"
        )
    return head + _rest([each for each in found if each not in ahead], metric)


def _rest(found: Sequence[ArmResult], metric: Metric) -> str:
    text = _reasons(found, metric).removeprefix("; ")
    return f" Of the arms {text}." if text else ""


def _reasons(found: Sequence[ArmResult], metric: Metric) -> str:
    """Return how many arms there are for each reason."""
    early = max((each.steps or 0 for each in found if each.standing == "hopeless"), default=0)
    after = f"{metric.margin:.4g}" + (f" in {early:,} steps" if early else "")
    words: Mapping[Standing, tuple[str, str]] = {
        "slow": ("gains nothing", "gain nothing"),
        "hopeless": (f"loses more than {after}", f"lose more than {after}"),
        "worse": (f"loses more than {metric.margin:.4g}", f"lose more than {metric.margin:.4g}"),
        "behind": ("is behind dense with the same seconds", "are behind dense with the same seconds"),
        "failed": ("failed", "failed"),
    }
    counts = Counter(each.standing for each in found)
    parts = [f"{counts[name]} {text[counts[name] > 1]}" for name, text in words.items() if counts[name]]
    return "; " + ", ".join(parts) if parts else ""
