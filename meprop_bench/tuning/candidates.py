"""The arms of a search and their times: what gains anything, and the variants of what gains most.

    timed      the arms of the question, and of the fastest ones variants that are compiled or leave small layers dense,
               and those whose k moves
    gaining    those of them whose step gains anything
    by_layer   variants of the most promising one with k by layer, when trainings have shown which that is

What is out is a finding, with its reason.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from meprop_bench.stats import Interval
from meprop_bench.tuning.arms import Arm, by_layer, first_of_each, leaving, scheduled
from meprop_bench.tuning.budget import Budget
from meprop_bench.tuning.judge import ArmResult, Standing
from meprop_bench.tuning.outlook import TIMES, TIMES_LATE
from meprop_bench.tuning.session import Question, Session
from meprop_bench.tuning.timing import Costs, VirtualClock, of_schedule

__all__ = ["BY_LAYER", "LEAST", "Candidates"]

LEAST = 1.02
"""Speed-up of training below which an arm is not worth its trouble, nor to be told from noise."""
_MOST_VARIED = 2
"""Arms of which variants are timed that leave layers dense, or are compiled."""
BY_LAYER, _MOST_BY_LAYER = 0.1, 3
"""Share of the time that is left for timing variants of k by layer, and how many there are at most."""
_ONE_GO_S = 90.0
"""Seconds for all timings below which all arms are timed at once: each start of the processes takes seconds."""


class Candidates:
    """The arms of one search.

    Args:
        session: the machine, the journal and the budget.
        question: what is asked.

    """

    def __init__(self, session: Session, question: Question) -> None:
        self._session, self._question = session, question
        self.findings: dict[Arm, ArmResult] = {}
        """What was found of each arm."""

    def timed(self, costs: Costs, before: Sequence[Arm] = ()) -> list[Arm]:
        """Time the arms, what follows from them, and those that joined before; return those that were timed."""
        session, question = self._session, self._question
        budget = session.budget.part(TIMES)
        constant = [arm for arm in question.arms if arm.constant]
        first = first_of_each(constant)
        session.measure(first, session.budget.part(0.0), wanted=False)  # what is stored
        if budget.left_s < _ONE_GO_S and not any(arm in session.timings for arm in first):
            first = []
        session.measure(first, budget)
        clock = self.clock(costs)
        slow = {arm.group: arm for arm in first if clock is not None and self._is_slow(arm, clock)}
        todo = [arm for arm in constant if arm.group not in slow or arm in first]
        session.measure(todo, budget)
        session.insist(todo, session.budget.part(TIMES_LATE))  # where others measured, or kept the machine busy
        for arm in constant:
            if arm not in todo:
                self.out(arm, "slow", f"even k = {slow[arm.group].k:.3g} gains nothing")
        if (clock := self.clock(costs)) is not None:
            moving = self._moving(todo, clock)
            todo = [*(self._varied(todo, clock, costs, budget) if question.variants else todo), *moving]
        session.measure(before, budget)
        todo = list(dict.fromkeys([*todo, *before]))
        for arm in todo:
            self._without_time(arm)
        if untimed := sum(arm not in session.timings for arm in todo):
            session.say(f"the budget left no time for the steps of {untimed} of {len(todo)} arms")
        if clock is not None:
            self._replace_by_uniform([arm for arm in before if arm not in self.findings], clock)
        return [arm for arm in todo if arm not in self.findings]

    def clock(self, costs: Costs) -> VirtualClock | None:
        """Return what tells virtual time; None where no step was timed."""
        if (stored := self._session.journal.settled.get("dense_s")) is not None:
            return VirtualClock(stored, costs)
        dense = [found.dense_s for found in self._session.timings.values() if found.failed is None]
        return VirtualClock(statistics.median(dense), costs) if dense else None

    def gain(self, arm: Arm, clock: VirtualClock) -> Interval | None:
        """Return how much faster training by an arm is; None where its step has no time."""
        found = self._session.timings.get(arm)
        return None if found is None or found.failed is not None else clock.gain(found.speedup)

    def _is_slow(self, arm: Arm, clock: VirtualClock) -> bool:
        """Whether even the upper bound is below what is worth its trouble."""
        gain = self.gain(arm, clock)
        return gain is not None and (gain.high if gain.bounded else gain.estimate) < LEAST

    def _useful(self, arms: Sequence[Arm], clock: VirtualClock) -> list[Arm]:
        """Return the arms whose step gains something, the fastest first."""
        found = [arm for arm in arms if (gain := self.gain(arm, clock)) is not None and gain.estimate >= LEAST]
        return sorted(found, key=lambda arm: -self._estimate(arm, clock))

    def _moving(self, constant: Sequence[Arm], clock: VirtualClock) -> list[Arm]:
        """Return arms whose k moves: those that were asked for, and those of the group that gains most, between the k
        that gain anything.
        """
        found = [arm for arm in self._question.arms if not arm.constant]
        useful = self._useful(constant, clock)
        if self._question.schedules and useful:
            found += scheduled([arm for arm in useful if arm.group == useful[0].group])
        found = list(dict.fromkeys(found))
        for arm in found:
            derived = of_schedule(arm, self._session.timings)
            if derived is not None:
                self._session.timings[arm] = derived
        return found

    def _varied(self, arms: list[Arm], clock: VirtualClock, costs: Costs, budget: Budget) -> list[Arm]:
        """Time variants of the fastest arms: compiled, where the dense side is, and with small layers left dense.

        Return the arms, each variant that is as fast in the place of its arm: it trains alike, or nearer to dense.
        """
        place: dict[Arm, Arm] = {}
        for arm in self._useful(arms, clock)[:_MOST_VARIED]:
            best = arm
            if self._session.timings[arm].compiled and arm.gradient == "dense":
                best = self._faster(best, [replace(best, compiled=True)], clock, budget)
            best = self._faster(best, leaving(best, costs.layers), clock, budget)
            if best != arm:
                self.out(arm, "replaced", f"as fast is {best.label}")
                place[arm] = best
        return [place.get(arm, arm) for arm in arms]

    def _faster(self, arm: Arm, variants: Sequence[Arm], clock: VirtualClock, budget: Budget) -> Arm:
        """Return the variant that is as fast as an arm, or else the arm."""
        self._session.measure(variants, budget, wanted=False)
        fast = self._useful(variants, clock)[:1]
        return fast[0] if fast and self._estimate(fast[0], clock) >= self._estimate(arm, clock) else arm

    def _estimate(self, arm: Arm, clock: VirtualClock) -> float:
        gain = self.gain(arm, clock)
        assert gain is not None
        return gain.estimate

    def _without_time(self, arm: Arm) -> None:
        """Note the arm for which there is no time, or that computes something else; all others go on."""
        found = self._session.timings.get(arm)
        if found is None:
            self.findings[arm] = ArmResult(arm, "left out", "its step is not timed")
        elif found.failed is not None:
            self.out(arm, "left out" if found.unsure else "failed", found.failed)

    def gaining(self, candidates: Sequence[Arm], clock: VirtualClock) -> list[Arm]:
        """Return the arms whose step gains something, the fastest first."""
        alive = self._useful(candidates, clock)
        for arm in candidates:
            if arm not in alive:
                self.out(arm, "slow", "no gain is seen in its step", gain=self.gain(arm, clock))
        return alive

    def out(self, arm: Arm, standing: Standing, reason: str, **more: Any) -> None:
        """Note, and say, that an arm is out, and why."""
        found = self._session.timings.get(arm)
        self.findings[arm] = replace(ArmResult(arm, standing, reason, found), **more)
        self._session.say(f"{arm.label}: {standing}, {reason}")

    def joining(self, costs: Costs) -> int:
        """Return how many variants of k by layer there may be."""
        free = sum(layer.converted and layer.k is None for layer in costs.layers)
        ks: dict[object, set[float]] = {}
        for arm in self._question.arms:
            ks.setdefault(arm.family, set()).add(arm.k)
        return _MOST_BY_LAYER if self._question.variants and free > 1 and max(map(len, ks.values())) > 1 else 0

    def variants(self, alive: Sequence[Arm], clock: VirtualClock) -> list[Arm]:
        """Return variants with k by layer of the first arm that has some: those that promise most come first."""
        if self._session.budget.left_s < _ONE_GO_S:
            return []
        useful = [arm for arm in self._useful([*self._session.timings], clock) if arm.constant and not arm.ks]
        for arm in alive:
            ks = [each.k for each in useful if each.family == arm.family]
            if found := by_layer(arm, ks, clock.costs.layers):
                return found[:_MOST_BY_LAYER]
        return []

    def by_layer(self, wanted: Sequence[Arm], alive: Sequence[Arm], clock: VirtualClock) -> tuple[list[Arm], list[Arm]]:
        """Time variants with k by layer; return those that were, and of these those that are worth a training.

        One that is no faster than its larger k in all layers is not: that is nearer to dense.
        """
        session = self._session
        session.measure(wanted, session.budget.part(BY_LAYER), wanted=False)
        timed = [arm for arm in wanted if arm in session.timings]
        new = [arm for arm in timed if arm not in self.findings and arm not in alive]
        for arm in new:
            self._without_time(arm)
        useful = self.gaining([arm for arm in new if arm not in self.findings], clock)
        self._replace_by_uniform(useful, clock)
        return timed, [arm for arm in useful if arm not in self.findings]

    def _replace_by_uniform(self, arms: Sequence[Arm], clock: VirtualClock) -> None:
        """Leave out arms with k by layer that are no faster than with their larger k in all layers."""
        for arm in arms:
            uniform = replace(arm, k=max(k for _, k in arm.ks), ks=())
            known = self.gain(uniform, clock)
            if known is not None and known.estimate >= self._estimate(arm, clock):
                self.out(arm, "replaced", f"as fast is {uniform.label}", gain=self.gain(arm, clock))
