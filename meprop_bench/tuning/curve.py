"""Time to quality: what dense and each arm reach in the same seconds, for several budgets of seconds.

    steps of a side in budget T = T / seconds of one of its steps, with batches and evaluations (`timing.VirtualClock`)

Each training is one of its own: its learning rate, and its k where that moves, are fitted to its budget, since a
training that is cut off in the middle of a schedule is nobody's. Dense and arm of a seed start from the same weights,
and see the same batches as long as both have any.

All differences of all budgets are judged together: Holm's step-down over their p-values. An arm is ahead from a budget
on if it is ahead there and at every longer one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import median_low
from typing import Literal, Self

from meprop_bench.durations import duration
from meprop_bench.errors import ExitCode, UserError
from meprop_bench.report.quality import POINTS, Quality
from meprop_bench.stats import LEVEL, Estimate, Interval, holm, mean_interval
from meprop_bench.tuning.arms import Arm
from meprop_bench.tuning.candidates import LEAST
from meprop_bench.tuning.journal import Job, Journal
from meprop_bench.tuning.judge import bounds, left_uncompiled
from meprop_bench.tuning.outlook import TIMES, TIMES_LATE, nothing_timed
from meprop_bench.tuning.session import Session
from meprop_bench.tuning.timing import Costs, Timing, VirtualClock

__all__ = ["Curve", "CurvePart", "Point", "joined", "time_to_quality"]

Standing = Literal["ahead", "behind", "open", "left out"]


@dataclass(frozen=True)
class Point:
    """One side in one budget."""

    budget_s: float
    arm: Arm | None  # None for dense
    steps: int  # of the middle clock, where seeds were trained by different ones
    figures: tuple[float, ...]  # the metric of each seed at the end
    quality: Interval | None = None  # mean over the seeds
    difference: Interval | None = None  # from dense, of pairs; None of dense itself, and where there is no pair
    standing: Standing = "open"
    clocks: tuple[int, ...] = ()  # steps by each clock, from few to many, where they differ


@dataclass(frozen=True)
class Curve:
    """What was reached in each budget."""

    points: tuple[Point, ...]  # budget by budget, dense first
    quality: Quality  # how figures are written
    clock: VirtualClock
    timings: Mapping[Arm, Timing]
    slow: tuple[Arm, ...]  # that gain nothing, and were not trained
    failed: Mapping[Arm, str]
    sentence: str
    code: ExitCode
    left_out: tuple[str, ...]

    @property
    def arms(self) -> list[Arm]:
        """The arms that were trained."""
        return list(dict.fromkeys(point.arm for point in self.points if point.arm is not None))


@dataclass(frozen=True)
class CurvePart:
    """What is timed on one machine, and trained there, from all seeds or some of them."""

    journal: Journal
    seeds: tuple[int, ...]
    clock: VirtualClock
    timings: Mapping[Arm, Timing]
    failed: Mapping[Arm, str]  # arms without a timing, and why there is none
    steps: Mapping[tuple[float, Arm | None], int]  # of dense, and of the arms that gain anything, in each budget

    @classmethod
    def of(
        cls,
        journal: Journal,
        costs: Costs,
        timings: Mapping[Arm, Timing],
        lengths: Sequence[float],
        seeds: Sequence[int],
        least: float = LEAST,
    ) -> Self:
        """Work out how long each side is trained, where any arm was timed; `UserError`: no step fits in a budget."""
        sound = {arm: found for arm, found in timings.items() if found.failed is None}
        failed: dict[Arm, str] = {arm: found.failed for arm, found in timings.items() if found.failed is not None}
        dense_s = sorted(found.dense_s for found in sound.values())[len(sound) // 2]
        clock = VirtualClock(dense_s, costs)
        if clock.steps(lengths[0]) < 1:
            raise UserError(
                f"{duration(lengths[0])} is less than a step takes, {duration(clock.step_s())}: give longer ones"
            )
        useful = [(arm, found) for arm, found in sound.items() if clock.gain(found.speedup).estimate >= least]
        sides: list[tuple[Arm | None, float]] = [(None, 1.0), *((arm, found.speedup.estimate) for arm, found in useful)]
        steps = {(length, arm): clock.steps(length, speed) for length in lengths for arm, speed in sides}
        return cls(journal, tuple(seeds), clock, sound, failed, steps)

    @property
    def useful(self) -> list[Arm]:
        """The arms that gain anything, which alone are trained."""
        return list(dict.fromkeys(arm for _, arm in self.steps if arm is not None))

    @property
    def jobs(self) -> list[Job]:
        """Its trainings, the shortest first; none where no arm gains anything."""
        lengths, sides = list(dict.fromkeys(length for length, _ in self.steps)), (None, *self.useful)
        return [
            Job(arm, seed, self.steps[length, arm])
            for length in (lengths if self.useful else ())
            for seed in self.seeds
            for arm in sides
        ]

    def gain(self, arm: Arm) -> Interval:
        """Return how much faster training by an arm is."""
        return self.clock.gain(self.timings[arm].speedup)


def time_to_quality(
    session: Session,
    arms: Sequence[Arm],
    budgets: Iterable[float],
    *,
    seeds: int,
    metric: str,
    percent: bool = True,
    least: float = LEAST,
    only: Sequence[int] = (),
) -> Curve:
    """Time the arms, train every side in each budget from so many seeds, and say where which is ahead.

    Budgets are seconds; an arm whose training gains less than `least` is not trained. Of the seeds those in `only` are
    trained here, where others train the rest; none for all.

    Raises:
        UserError: a budget is too short for a step, there is none, or no arm could be timed.

    """
    lengths = sorted(set(budgets))
    if not lengths:
        raise UserError("there is no budget to draw a curve over: give one or several, 30s,2m,8m")
    if seeds < 2:
        raise UserError(f"seeds must be at least 2, not {seeds}: one has no interval")
    costs = session.costs()
    session.measure(arms, session.budget.part(TIMES))
    session.insist(arms, session.budget.part(TIMES_LATE))
    timings = {arm: found for arm in arms if (found := session.timings.get(arm)) is not None}
    if all(found.failed is not None for found in timings.values()):
        raise nothing_timed(timings.values(), session.machine.stages, untimed=len(timings) < len(arms))
    session.journal.settle(timings=[[arm.to_json(), found.to_json()] for arm, found in timings.items()])
    part = CurvePart.of(session.journal, costs, timings, lengths, only or range(1, seeds + 1), least)
    session.train(part.jobs, session.budget)
    return joined([part], metric=metric, percent=percent, least=least, left_out=tuple(session.left_out))


def joined(
    parts: Sequence[CurvePart],
    *,
    metric: str,
    percent: bool = True,
    least: float = LEAST,
    left_out: tuple[str, ...] = (),
) -> Curve:
    """Return the curve of what machines of one kind trained from different seeds, each as long as its own clock says.

    So what the clocks differ in is in the spread of the seeds.
    """
    lengths = sorted({length for part in parts for length, _ in part.steps})
    useful = list(dict.fromkeys(arm for part in parts for arm in part.useful))
    points = _judged(parts, [(length, arm) for length in lengths for arm in (None, *useful)])
    timings = {arm: found for part in reversed(parts) for arm, found in part.timings.items()}
    failed = {arm: reason for part in parts for arm, reason in part.failed.items()}
    for arm, part in product(useful, parts):
        if (reason := part.journal.failure(arm)) is not None:
            failed[arm] = reason
    dense = [figure for part in parts for figure in part.journal.dense(part.steps[lengths[-1], None])]
    quality = POINTS if percent else Quality(False, abs(math.fsum(dense) / len(dense)) if dense else 1.0)
    slow = tuple(dict.fromkeys(arm for part in parts for arm in part.timings if arm not in useful))
    if useful:
        sentence, code = _answer(points, lengths, useful, metric, quality)
    else:
        sentence, code = _no_gain([part.gain(arm) for part in parts for arm in slow if arm in part.timings], least)
    sentence += left_uncompiled(found for part in parts for found in part.timings.values())
    sides = [{found.baseline for found in part.timings.values() if found.baseline} for part in parts]
    together: set[str] = set().union(*sides)
    if len(together) > max(map(len, sides)):
        sentence += (
            f" The machines had different dense sides ({'; '.join(sorted(together))}): their steps differ by that."
        )
    return Curve(tuple(points), quality, parts[0].clock, timings, slow, failed, sentence, code, left_out)


def _judged(parts: Sequence[CurvePart], places: Sequence[tuple[float, Arm | None]]) -> list[Point]:
    """Return the points, each with which side is ahead, all differences taken together."""
    points, differences = [], []
    of_seed = sorted(((seed, part) for part in parts for seed in part.seeds), key=lambda each: each[0])
    for length, arm in places:
        steps, figures, pairs = list[int](), list[float](), list[float]()
        for seed, part in of_seed:
            if (own := part.steps.get((length, arm))) is None:  # no gain is seen in its step there
                continue
            steps.append(own)
            if (figure := part.journal.figure(arm, seed, own)) is not None:
                figures.append(figure)
            if arm is not None:
                pairs += part.journal.differences(arm, own, (seed,), part.steps[length, None])
        quality, difference = (mean_interval(each) if each else None for each in (figures, pairs))
        done = len(figures if arm is None else pairs) > 1
        standing: Standing = "open" if done else "left out"
        clocks = tuple(sorted(set(steps))) if len(set(steps)) > 1 else ()
        points.append(Point(length, arm, median_low(steps), tuple(figures), quality, difference, standing, clocks))
        differences.append(pairs if done else [])
    judged = [place for place, pairs in enumerate(differences) if pairs]
    for place, p in zip(judged, holm([Estimate.of(differences[place]).p_value() for place in judged]), strict=True):
        if p <= LEVEL:
            mean = Estimate.of(differences[place]).value
            points[place] = replace(points[place], standing="ahead" if mean > 0 else "behind")
    return points


def _answer(
    points: Sequence[Point], lengths: Sequence[float], arms: Sequence[Arm], metric: str, quality: Quality
) -> tuple[str, ExitCode]:
    """Return from when on an arm is ahead, or that none is, in words."""
    shown = ", ".join(map(duration, lengths))
    of = {(point.budget_s, point.arm): point for point in points}
    from_on = {arm: since for arm in arms if (since := _since(arm, lengths, of)) is not None}
    if from_on:
        last = lengths[-1]
        best = max(from_on, key=lambda arm: _mean(of[last, arm]))
        since = from_on[best]
        where = f"From {duration(since)} on" if since < last else f"In {duration(last)}, the longest budget,"
        parts = [f"{where} {best.label} is ahead of dense: {metric} {_difference(of[since, best], quality)}"]
        if since < last:
            parts[0] += f" there, {_difference(of[last, best], quality)} in {duration(last)}"
        others = [f"{arm.label} from {duration(since)} on" for arm, since in from_on.items() if arm != best]
        if others:
            parts.append(f"so are {'; '.join(others)}" if len(others) > 1 else f"so is {others[0]}")
        return "; ".join(parts) + "." + _early(lengths, arms, of), ExitCode.OK
    final = [of[lengths[-1], arm].standing for arm in arms]
    if all(standing == "behind" for standing in final):
        best = max(arms, key=lambda arm: _mean(of[lengths[-1], arm]))
        difference = _difference(of[lengths[-1], best], quality)
        head = f"In none of {shown} is an arm ahead" if len(lengths) > 1 else f"In {shown} no arm is ahead"
        return f"{head}: dense is, and {best.label} comes nearest, {metric} {difference} in the longest.", ExitCode.OK
    head = f"Undecided: in none of {shown} is an arm shown to be ahead of dense, and to stay ahead"
    return f"{head}, nor dense of all arms.{_early(lengths, arms, of)}", ExitCode.INCONCLUSIVE


def _no_gain(gains: Sequence[Interval], least: float) -> tuple[str, ExitCode]:
    """Return, in words, that no arm was worth training, or that the times do not rule it out."""
    most = max(max(gain.estimate, gain.high) if gain.bounded else gain.estimate for gain in gains)
    if most < least:
        return f"Stay dense: no arm's training gains anything ({most:.2f}x at most), so none was trained.", ExitCode.OK
    return (
        f"Undecided: no arm's training is seen to be faster than dense, so none was trained; up to {most:.2f}x is not"
        " ruled out: time the steps on an idle machine, or try a smaller k."
    ), ExitCode.INCONCLUSIVE


def _since(arm: Arm, lengths: Sequence[float], of: Mapping[tuple[float, Arm | None], Point]) -> float | None:
    """Return the shortest budget at which an arm is ahead, and at every longer one."""
    since = None
    for length in reversed(lengths):
        if of[length, arm].standing != "ahead":
            break
        since = length
    return since


def _early(lengths: Sequence[float], arms: Sequence[Arm], of: Mapping[tuple[float, Arm | None], Point]) -> str:
    """Say in which budgets dense is ahead of every arm."""
    dense = [duration(length) for length in lengths if all(of[length, arm].standing == "behind" for arm in arms)]
    return f" In {', '.join(dense)} dense is ahead of every arm." if dense else ""


def _mean(point: Point) -> float:
    return -math.inf if point.difference is None else point.difference.estimate


def _difference(point: Point, quality: Quality) -> str:
    assert point.difference is not None
    return bounds(point.difference, quality)
