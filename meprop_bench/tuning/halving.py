"""Which arms to go on with: successive halving whose figure is a paired difference, and what is planned for a budget.

    rungs     all arms are trained shortly from a few seeds, the better ones longer, the last of them in full length;
              variants of the most promising one join after the first rung
    final     the last two from fresh seeds, that no arm was chosen by, beside dense of equal steps and of equal time;
              while none passes, others after them

An arm stops at a rung when even the upper bound of its difference lies below minus the margin. Of the others those go
on whose best is expected to save most time:

    P_i = P(difference > -margin)     Student's t, given its seeds so far
    g_i = 1 - 1 / speed-up            share of the time that it saves
    expected best of a set = Σ_i g_i P_i Π_j (1 - P_j)        i from fast to slow, j those that are faster

which takes the fast but doubtful one together with the slow but safe one, where a plain ranking by g P would take two
doubtful ones. Source of the scheme: K. Jamieson and A. Talwalkar, "Non-stochastic Best Arm Identification and
Hyperparameter Optimization", AISTATS (2016).

Optuna's and Ray's pruners were looked at and not taken: they compare one figure of one trial with those of others; here
it is a difference over seeds, with an interval, against a margin, with a dense side that all arms share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from meprop_bench.stats import Estimate, Interval, clear_of, median

__all__ = [
    "FINALISTS",
    "SAFETY",
    "HalvingPlan",
    "Pace",
    "Rung",
    "chance",
    "choose",
    "enough",
    "expected",
    "expected_best",
    "few",
    "hopeless",
    "needed",
    "planned",
    "round_down",
]  # fmt: skip

FINALISTS = 2
"""Arms that are judged first: each one more has a wider interval."""
_SCREENING_SEEDS = 3
_RUNGS = 3
_FINAL_SEEDS = (8, 5, 3)
"""Seeds of the last trainings, as many as the budget allows for."""
_ENOUGH_STEPS = {8: 400, 5: 150}
"""Steps below which fewer seeds and longer trainings say more: these models have hardly begun to learn by then."""
_FEWEST_STEPS = 20
SAFETY = 0.85
"""Share of the time that a plan fills: trainings differ in how long they take, and the last ones run alone."""

Key = TypeVar("Key")


@dataclass(frozen=True)
class Pace:
    """How long a training takes in its process, beside the others: seconds of a step, and of all that is besides."""

    step_s: float
    overhead_s: float

    @classmethod
    def of(cls, trainings: Sequence[tuple[int, float, float]]) -> Self:
        """Return that of the steps, seconds in steps, and all seconds of trainings, at least one."""
        steps = sum(each[0] for each in trainings)
        in_steps = math.fsum(each[1] for each in trainings)
        # The first training of a process loads its data: the median is that of the others.
        return cls(max(in_steps / steps, 1e-9), median(max(0.0, each[2] - each[1]) for each in trainings))

    def seconds(self, steps: int) -> float:
        """Return how long a training is expected to take."""
        return self.overhead_s + steps * self.step_s


@dataclass(frozen=True)
class Rung:
    """One round: all arms that are left are trained so long from these seeds, then at most so many go on."""

    seeds: tuple[int, ...]
    share: float  # of the full steps
    survivors: int

    def steps(self, full: int) -> int:
        """Return the steps of its trainings."""
        return max(1, round(full * self.share))


@dataclass(frozen=True)
class HalvingPlan:
    """What a search will train."""

    rungs: tuple[Rung, ...]
    seeds: tuple[int, ...]  # of the last trainings; none of a rung's
    steps: int  # of a training in full length
    screening: float  # share of the work that the rungs are
    joining: int = 0  # variants, at most, that join after the first rung

    def seed(self, count: int) -> tuple[int, ...]:
        """Return the first so many seeds of the last trainings, more than were planned too."""
        return tuple(range(self.seeds[0], self.seeds[0] + count))

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Return the plan of a JSON object, which `dataclasses.asdict` makes."""
        rungs = tuple(Rung(**{**rung, "seeds": tuple(rung["seeds"])}) for rung in record["rungs"])
        return cls(**{**record, "rungs": rungs, "seeds": tuple(record["seeds"])})


def planned(
    arms: int,
    *,
    seconds: float,
    pace: Pace,
    whole: int,
    steps: int | None = None,
    seeds: int | None = None,
    joining: int = 0,
) -> HalvingPlan:
    """Return the plan for so many arms.

    Args:
        arms: how many there are.
        seconds: that are left, of all processes together.
        pace: how long a training takes.
        whole: steps of the training that was asked for: more are never planned.
        steps: of a training in full length, if that is fixed.
        seeds: of the last trainings, if that is fixed.
        joining: variants that join after the first rung, if there is one.

    """
    rungs = _rungs(arms, joining)
    joining = joining if rungs else 0
    for count in (seeds,) if seeds is not None else _FINAL_SEEDS:
        trainings, length, share = _work(arms, rungs, count, joining)
        fitting = round_down((SAFETY * seconds - trainings * pace.overhead_s) / (length * pace.step_s))
        if steps is not None:
            if fitting >= steps or count in (seeds, _FINAL_SEEDS[-1]):
                return HalvingPlan(rungs, _fresh(count), steps, share, joining)
        elif fitting >= min(whole, _ENOUGH_STEPS.get(count, 0)) or seeds is not None:
            return HalvingPlan(rungs, _fresh(count), min(whole, max(_FEWEST_STEPS, fitting)), share, joining)
    raise AssertionError("unreachable: the last number of seeds is taken whatever it costs")


def needed(arms: int, *, pace: Pace, steps: int, seeds: int | None = None, joining: int = 0) -> float:
    """Return the seconds, of all processes together, in which a plan has trainings of so many steps."""
    known = seeds or next(count for count in _FINAL_SEEDS if steps >= _ENOUGH_STEPS.get(count, 0))
    rungs = _rungs(arms, joining)
    trainings, length, _ = _work(arms, rungs, known, joining if rungs else 0)
    return (trainings * pace.overhead_s + length * steps * pace.step_s) / SAFETY


def few(steps: int, whole: int) -> bool:
    """Whether trainings of so many steps say little of whole ones: these models have hardly begun to learn."""
    return steps < min(whole, _ENOUGH_STEPS[5])


def enough(whole: int) -> int:
    """Return the steps from which on a plan takes all the seeds that it would like."""
    return min(whole, _ENOUGH_STEPS[8])


def round_down(value: float) -> int:
    """Return an integer with at most two digits that are not zero, at most the value."""
    if value < 10:
        return max(0, math.floor(value))
    unit = 10 ** (math.floor(math.log10(value)) - 1)
    return int(value // unit * unit)


def _fresh(count: int) -> tuple[int, ...]:
    return tuple(range(_SCREENING_SEEDS + 1, _SCREENING_SEEDS + 1 + count))


def _rungs(arms: int, joining: int = 0) -> tuple[Rung, ...]:
    """Return the rounds that bring so many arms down to the finalists: by halves, at most three, the last in full.

    Where others join after the first, there are two at least.
    """
    if arms <= FINALISTS:
        return ()
    count = min(_RUNGS, math.ceil(math.log2(arms / FINALISTS)))
    if joining and count == 1:
        return tuple(Rung(tuple(range(1, _SCREENING_SEEDS + 1)), share, FINALISTS) for share in (0.5, 1.0))
    ratio = (FINALISTS / arms) ** (1 / count)
    seeds = tuple(range(1, _SCREENING_SEEDS + 1))
    left = [max(FINALISTS, math.ceil(arms * ratio**place - 1e-9)) for place in range(1, count + 1)]
    return tuple(Rung(seeds, 2.0 ** (place + 1 - count), left[place]) for place in range(count))


def _work(arms: int, rungs: Sequence[Rung], seeds: int, joining: int) -> tuple[int, float, float]:
    """Return the trainings of a plan, their steps in trainings of full length, and the rungs' share of these."""
    screening, final = _cost(arms, rungs, joining), _final_cost(arms, seeds)
    trainings, length = (screening[place] + final[place] for place in (0, 1))
    return int(trainings), length, screening[1] / length


def _cost(arms: int, rungs: Sequence[Rung], joining: int) -> tuple[int, float]:
    """Return how many trainings the rungs have, and their steps in trainings of full length."""
    trainings, length, left = 0, 0.0, arms
    for place, rung in enumerate(rungs):
        trainings += len(rung.seeds) * (left + 1)
        length += len(rung.seeds) * (left + 1) * rung.share
        left = rung.survivors + (joining if place == 0 else 0)
    return trainings, length


def _final_cost(arms: int, seeds: int) -> tuple[int, float]:
    """Return the same of the last trainings; those of dense in equal time count as in full length."""
    count = seeds * (1 + 2 * min(arms, FINALISTS))
    return count, float(count)


def chance(differences: Sequence[float], margin: float) -> float:
    """Return P(difference > -margin) given those of each seed, in points; one half of none, or of a single one."""
    if len(differences) < 2:
        return 0.5
    return Estimate.of(differences).p_value(-margin, "below")


def hopeless(difference: Interval, margin: float) -> bool:
    """Whether even the upper bound of a difference, in points, lies below minus the margin."""
    return bool(clear_of(difference.low, difference.high, -margin)[1])


def choose(candidates: Mapping[Key, tuple[float, float]], count: int) -> list[Key]:
    """Return at most so many whose best is expected to save most time; the one that does it alone comes first.

    Args:
        candidates: each with its speed-up and its chance to be within the margin.
        count: how many to choose.

    """
    chosen: list[Key] = []
    left = list(candidates)
    while left and len(chosen) < count:
        best = max(left, key=lambda key: expected_best([candidates[each] for each in (*chosen, key)]))
        chosen.append(best)
        left.remove(best)
    return chosen


def expected(speedup: float, within: float) -> float:
    """Return the share of the time that an arm is expected to save, by its chance to be within the margin."""
    return (1 - 1 / speedup) * within


def expected_best(arms: Sequence[tuple[float, float]]) -> float:
    """Return the share that the best of several is expected to save, given each one's speed-up and chance."""
    found, none_yet = 0.0, 1.0
    for speedup, within in sorted(arms, reverse=True):
        found += expected(speedup, within) * none_yet
        none_yet *= 1 - within
    return found
