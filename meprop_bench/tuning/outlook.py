"""What a budget is good for: said before it is spent, and of one that decided nothing how much would.

    Outlook(processes=2, spent_s=0.0, pace=pace, costs=costs).of_plan(12, steps=None, left_s=600)
    ->  "600 s are enough for trainings of about 40 steps ..., a budget of about 1.4 h for 400"

All of it follows from what is known by then: how long a step takes, how much the seeds differ. It is an estimate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meprop_bench.durations import as_option, duration
from meprop_bench.errors import ExitCode, UserError
from meprop_bench.stats import LEVEL, Estimate
from meprop_bench.tuning.halving import SAFETY, Pace, enough, few, needed, planned
from meprop_bench.tuning.timing import Costs, Timing

__all__ = [
    "BATCHES", "EXAMINING", "TIMES", "TIMES_LATE", "WAITING", "Outlook", "first_pace", "nothing_timed", "seeds_needed",
    "too_short",
]  # fmt: skip

TIMES, TIMES_LATE = 0.3, 0.6
"""Share of the budget for the times of steps, and of what is left then, where none of them says anything yet."""
_BEFORE = 0.2
"""Share that what comes before them should have at most."""
EXAMINING, BATCHES = "examining the model", "timing batches and evaluations"
"""What comes before them."""
WAITING = "waiting for another run"

_BUILD_S = 0.5
"""Seconds of a training besides its steps and evaluation, before one was run."""
_AT_ONCE = 3
"""Trainings for each seed of a last judgement: the arm's, and dense at equal steps and at equal time."""


def too_short(stages: Mapping[str, float]) -> str:
    """Return, of a budget that ended before a step was timed, what it was spent on, and what may do.

    `stages` has the seconds of what was waited for, such as `EXAMINING` and "compiling".
    """
    if not stages:
        return "the budget ended before a step was timed: give more"
    before_s = math.fsum(stages.get(name, 0.0) for name in (EXAMINING, BATCHES))
    waiting_s = stages.get(WAITING, 0.0)
    timing_s = math.fsum(stages.values()) - before_s - waiting_s
    wanted_s = waiting_s + max(before_s / _BEFORE, before_s + 2 * timing_s / TIMES)
    spent = ", ".join(f"{duration(seconds)} {what}" for what, seconds in stages.items())
    return f"the budget ended before a step was timed ({spent}): give --budget {as_option(wanted_s)} or more"


def nothing_timed(timings: Iterable[Timing], stages: Mapping[str, float], *, untimed: bool) -> UserError:
    """Return why a search has no time of any step, and what to do about it; `untimed` is whether any is missing."""
    failed = sorted((found for found in timings if found.failed is not None), key=lambda found: not found.unsure)
    if failed and failed[0].unsure:
        why = f"no arm could be timed well enough: {failed[0].failed}, by the same command and --resume"
    elif untimed or not failed:
        why = too_short(stages)
    else:
        why = f"no arm could be timed: {failed[0].failed}"
    return UserError(why, ExitCode.NOTHING_MEASURED)


def first_pace(costs: Costs) -> Pace | None:
    """Return how long trainings will take, from a few steps; None where none was timed."""
    if not costs.step_s:
        return None
    return Pace(costs.step_s + costs.batch_s, _BUILD_S + costs.evaluation_s)


def seeds_needed(
    differences: Sequence[float], margin: float, *, looks: int, most: int, level: float = LEVEL
) -> int | None:
    """Return from how many seeds a difference would be decided if it stayed what it is; None if so many are too few.

    Args:
        differences: arm minus dense of each seed so far, two at least.
        margin: what may be lost.
        looks: how many were taken before: each one more has half of the chance of error that is left.
        most: seeds, of which there are twice as many at each look.
        level: chance of error of all looks together.

    """
    seen = Estimate.of(differences)
    spread, count = seen.error * math.sqrt(len(differences)), len(differences)
    while (count := 2 * count) <= most:
        looks += 1
        found = Estimate(seen.value, spread / math.sqrt(count), count - 1).interval(1 - level / 2**looks)
        if found.low > -margin or found.high < -margin:
            return count
    return None


@dataclass(frozen=True)
class Outlook:
    """What is known when something is foreseen."""

    processes: int  # trainings that run side by side
    spent_s: float  # of the whole budget, in earlier runs, too
    pace: Pace
    costs: Costs

    def of_plan(
        self, arms: int, *, steps: int | None, seeds: int | None, joining: int, left_s: float, timing: float
    ) -> str | None:
        """Return a line if what is left of the budget is enough for trainings of few steps alone; None if it is not.

        Args:
            arms: how many are trained.
            steps: of a training, if that is fixed.
            seeds: of the last trainings, if that is fixed.
            joining: variants by layer, at most.
            left_s: seconds that are left.
            timing: share of these that goes before, to times.

        """
        if not math.isfinite(left_s):
            return None
        seconds = left_s * (1 - timing) * self.processes
        sizes: dict[str, Any] = {"pace": self.pace, "joining": joining}
        if steps is not None:
            least = self._whole_budget(needed(arms, steps=steps, seeds=seeds or 3, **sizes), timing)
            if least <= self.spent_s + left_s:
                return None
            return (
                f"this budget is too short to judge by trainings of {steps:,} steps: about {duration(least)} would do"
            )
        found = planned(arms, seconds=seconds, whole=self.costs.whole, seeds=seeds, **sizes).steps
        if not few(found, self.costs.whole):
            return None
        wanted = enough(self.costs.whole)
        least = self._whole_budget(needed(arms, steps=wanted, seeds=seeds, **sizes), timing)
        return (
            f"this budget allows trainings of about {found:,} steps, too few to say much of {arms} arms: about"
            f" {duration(least)} allow {wanted:,}; fewer arms (method, k) allow more, too"
        )

    def _whole_budget(self, training_s: float, timing: float) -> float:
        return self.spent_s + training_s / self.processes / (1 - timing)

    def of_more_seeds(
        self,
        differences: Sequence[float],
        margin: float,
        *,
        steps: int,
        looks: int,
        most: int,
        fixed: bool,
        level: float = LEVEL,
    ) -> str:
        """Return, of an arm that seeds do not decide, how many would, and in what budget unless they are `fixed`."""
        count = seeds_needed(differences, margin, looks=looks, most=most, level=level)
        if count is None:
            return (
                f" As the seeds differ, not even {most} of them would decide: longer trainings, or another margin, may."
            )
        if fixed:
            return f" If the difference stays what it is, {count} seeds decide: search anew with --seeds {count}."
        trainings = _AT_ONCE * (count - len(differences))
        seconds = self.spent_s + trainings * self.pace.seconds(steps) / self.processes / SAFETY
        return (
            f" If the difference stays what it is, {count} seeds decide: --resume with a --budget of about"
            f" {as_option(seconds)}."
        )

    def of_more_arms(self, arms: int, *, steps: int, seeds: int | None, joining: int) -> str:
        """Return what budget so many arms, which it was too short for, would need besides."""
        seconds = (
            self.spent_s + needed(arms, pace=self.pace, steps=steps, seeds=seeds, joining=joining) / self.processes
        )
        return f" Trainings of {steps:,} steps need a --budget of about {as_option(seconds)}, with --resume."
