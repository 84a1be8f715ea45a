"""The search: times first, then trainings, then a last judgement on fresh seeds, all within a budget.

    times     each arm's step beside dense. The smallest k of a method comes first: where it gains nothing, no k does
              (30% of the budget)
    rungs     trainings in halves (`halving`), dense once for all arms; after the first of them the most promising arm
              gets variants whose k is smaller in some layers
    final     the last two arms and their opponents, from seeds that nothing was chosen by (`final`); then others, while
              none passes
    again     with trainings of at least twice the steps, while none passes and there is time, of as many arms as that
              allows: what is behind after few steps may be ahead after many

What it needs of the machine is a `session.Machine`, so that all of it is tested without one. All decisions follow from
what the journal has: a search that was ended goes on as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from meprop_bench.report.quality import Quality
from meprop_bench.results.schema import WHOLE
from meprop_bench.stats import mean_interval
from meprop_bench.sweep.accuracy import MARGIN
from meprop_bench.tuning.arms import Arm
from meprop_bench.tuning.budget import Budget
from meprop_bench.tuning.candidates import BY_LAYER, Candidates
from meprop_bench.tuning.final import FEWEST_SEEDS, MOST_SEEDS, Final
from meprop_bench.tuning.halving import (
    HalvingPlan,
    Pace,
    Rung,
    chance,
    choose,
    enough,
    expected,
    hopeless,
    needed,
    planned,
)
from meprop_bench.tuning.journal import Job
from meprop_bench.tuning.judge import ArmResult, Decision, Metric, decide
from meprop_bench.tuning.outlook import TIMES, Outlook, first_pace, nothing_timed
from meprop_bench.tuning.session import Question, Session
from meprop_bench.tuning.timing import Costs, VirtualClock

__all__ = ["Answer", "Search"]

_PROBE_S = 3.0
_PROBE = (5, 100)
"""Seconds, and least and most steps, of dense trainings that say how long one takes, one for each process."""
_LONGER, _MOST_PASSES, _PASS_S = 2, 8, 20.0
"""Factor of the steps, number of passes, and seconds that are left, for another pass."""
_NEVER_AGAIN = ("slow", "failed", "replaced")
"""Standings of arms that longer trainings make no better."""


def _nearest(findings: Sequence[ArmResult], count: int) -> list[Arm]:
    """Return the arms that lost least, in what was trained of them."""
    found = sorted(findings, key=lambda each: -each.equal_steps.estimate if each.equal_steps else math.inf)
    return [each.arm for each in found[:count]]


@dataclass(frozen=True)
class Answer:
    """What came of a search."""

    decision: Decision
    findings: tuple[ArmResult, ...]  # one for each arm
    metric: Metric
    clock: VirtualClock | None  # None where no step could be timed
    plan: HalvingPlan | None
    left_out: tuple[str, ...]  # what the budget left no time for


class Search:
    """One search, from what a journal holds to an answer.

    Args:
        session: the machine, the journal and the budget.
        question: what is asked.

    """

    def __init__(self, session: Session, question: Question) -> None:
        self._session, self._question, self._journal = session, question, session.journal
        self._candidates = Candidates(session, question)
        self._promise: dict[Arm, tuple[int, float]] = {}  # steps it was trained, and what it is expected to save
        self._warned = False
        self._timed_more = True  # whether the last pass timed what those before it had not
        self._only: list[Arm] | None = None  # the arms of the next pass, where there is no time for all

    def run(self) -> Answer:
        """Search; an interrupt passes through, and what is done is stored.

        Raises:
            UserError: dense training fails, or nothing could be measured at all.

        """
        return self.timed(self.found())

    def timed(self, answer: Answer) -> Answer:
        """Return an answer; `UserError` where no arm could be timed."""
        if answer.clock is None:
            untimed = any(each.untimed for each in answer.findings)
            raise nothing_timed(self._session.timings.values(), self._session.machine.stages, untimed=untimed)
        return answer

    def found(self) -> Answer:
        """Search; likewise, but for an answer without a clock where no arm could be timed."""
        costs = self._session.costs()
        if not self._passes and (pace := first_pace(costs)) is not None:
            self._warn(self._arms_expected(), pace, costs, timing=TIMES)
        for number in range(_MOST_PASSES):
            answer = self._pass(number, costs)
            if not self._again(number, answer, costs):
                break
        self._session.save()
        return answer

    def _pass(self, number: int, costs: Costs) -> Answer:
        """Time what is not timed yet, train, and judge; what was found in an earlier pass is found anew."""
        session, before = self._session, dict(self._candidates.findings)
        self._candidates.findings.clear()
        self._promise.clear()
        known = session.timed
        candidates = self._candidates.timed(costs, self._joined_before(number))
        self._timed_more = not number or session.timed > known
        clock, plan = self._candidates.clock(costs), None
        if clock is not None:
            self._journal.settle(dense_s=clock.dense_s)
            alive = self._candidates.gaining(candidates, clock)
            if (only := self._arms_of(number)) is not None:
                self._candidates.findings |= {arm: before[arm] for arm in alive if arm not in only and arm in before}
                alive = [arm for arm in alive if arm in only]
            plan = self._plan(number, len(alive), clock) if alive else None
            if plan is not None:
                finalists = self._finalists(number, alive, clock, plan)
                Final(
                    session, self._question, self._candidates, passes=self._passes[: number + 1], clock=clock,
                    plan=plan, promise=self._promise, margin=partial(self._margin, plan.steps),
                ).judge(finalists)  # fmt: skip
            for arm in alive:
                if arm not in self._candidates.findings:
                    self._candidates.out(arm, "left out", "not trained", gain=self._candidates.gain(arm, clock))
        findings = tuple(self._candidates.findings.values())
        metric = self._metric(plan.steps if plan else None)
        decision = decide(findings, metric, costs.layers, lambda found: self._more(found, findings, plan, costs))
        return Answer(decision, findings, metric, clock, plan, tuple(session.left_out))

    def _again(self, number: int, answer: Answer, costs: Costs) -> bool:
        """Whether there is another pass: there was one already, or nothing passed yet and there is time for trainings
        of twice the steps, of fewer arms if need be, or to time what was not timed.
        """
        self._only = None
        if len(self._passes) > number + 1:
            return True
        pace, plan = self._session.pace(), answer.plan
        if answer.decision.kind == "take" or not self._session.budget.allows(_PASS_S) or answer.clock is None:
            return False
        untimed = any(each.untimed for each in answer.findings)
        if untimed and self._timed_more:  # else it would judge the same arms once more, and nothing else
            return True
        if pace is None or plan is None or self._question.steps is not None:
            return False
        gaining = [each for each in answer.findings if each.gain is not None and each.standing not in _NEVER_AGAIN]
        for count in range(len(gaining), 0, -1):
            if self._allows(count, pace, costs, _LONGER * plan.steps):
                self._only = _nearest(gaining, count)
                return True
        return False

    def _arms_of(self, number: int) -> list[Arm] | None:
        """Return the arms of a pass, settled once; None of one for all that gain anything."""
        if number < len(self._passes):
            stored = self._passes[number].get("only")
            return None if stored is None else [Arm.from_json(arm) for arm in stored]
        return self._only

    @property
    def _passes(self) -> list[dict[str, Any]]:
        """What was settled of each pass: its plan, and its looks."""
        found: list[dict[str, Any]] = self._journal.settled.setdefault("passes", [])
        return found

    def _metric(self, steps: int | None) -> Metric:
        """Return what is compared of trainings of these steps, and how much of it may be lost."""
        question = self._question
        dense = self._journal.dense(steps) or self._journal.dense()
        scale = WHOLE if question.percent else abs(math.fsum(dense) / len(dense)) if dense else 1.0
        margin = MARGIN / WHOLE * scale if question.margin is None else question.margin
        return Metric(question.metric, margin, Quality(question.percent, scale))

    def _margin(self, steps: int) -> float:
        return self._metric(steps).margin

    def _plan(self, number: int, arms: int, clock: VirtualClock) -> HalvingPlan | None:
        """Return what will be trained: settled once, since it depends on the time that is left."""
        if number < len(self._passes):
            stored = self._passes[number]["plan"]
            return HalvingPlan.from_json(stored)
        session, costs = self._session, clock.costs
        probe = min(costs.whole, max(_PROBE[0], min(_PROBE[1], int(_PROBE_S / clock.step_s()))))
        session.train([Job(None, 1 + process, probe) for process in range(session.machine.processes)], session.budget)
        pace = session.pace()
        if pace is None:
            return None
        plan = self._planned(arms, pace, costs)
        if not number:
            self._warn(arms, pace, costs)
        if number:
            before = self._passes[number - 1]["plan"]
            longer = _LONGER * before["steps"]
            if plan.steps < longer and self._question.steps is None and self._allows(arms, pace, costs, longer):
                plan = self._planned(arms, pace, costs, longer)
            if plan.steps >= longer:  # the arms were chosen by the seeds of before, too
                first = 1 + max(self._last_seed(each) for each in self._passes)
                plan = replace(plan, seeds=tuple(range(first, first + len(plan.seeds))))
            else:  # for arms that were not timed: as long, and from as many seeds
                plan = self._planned(arms, pace, costs, before["steps"], len(before["seeds"]))
        only = {} if self._only is None else {"only": [arm.to_json() for arm in self._only]}
        self._passes.append({"plan": asdict(plan), **only})
        self._journal.save()
        session.say(f"trainings of {plan.steps:,} steps, the last ones from {len(plan.seeds)} seeds")
        return plan

    @staticmethod
    def _last_seed(settled: Mapping[str, Any]) -> int:
        """Return the last seed that arms were judged by in a pass."""
        planned = settled["plan"]["seeds"]
        most = max((look["seeds"] for look in settled.get("looks", ())), default=0)
        return int(planned[0]) + max(len(planned), most) - 1

    def _planned(
        self, arms: int, pace: Pace, costs: Costs, steps: int | None = None, seeds: int | None = None
    ) -> HalvingPlan:
        joining = self._candidates.joining(costs)
        sizes = {"steps": self._question.steps or steps, "seeds": self._question.seeds or seeds}
        return planned(arms, seconds=self._left_s(joining), pace=pace, whole=costs.whole, joining=joining, **sizes)

    def _allows(self, arms: int, pace: Pace, costs: Costs, steps: int) -> bool:
        """Whether there is time for trainings of so many steps, no more than whole ones, from few seeds if need be."""
        if steps > costs.whole:
            return False
        joining, seeds = self._candidates.joining(costs), self._question.seeds or FEWEST_SEEDS
        return needed(arms, pace=pace, steps=steps, seeds=seeds, joining=joining) <= self._left_s(joining)

    def _left_s(self, joining: int) -> float:
        """Return the seconds that are left for trainings, of all processes together."""
        return self._session.budget.left_s * self._session.machine.processes * (1 - BY_LAYER * bool(joining))

    def _finalists(self, number: int, alive: list[Arm], clock: VirtualClock, plan: HalvingPlan) -> list[Arm]:
        """Return the arms to be judged, in this order, chosen on the rungs; settled once, as fresh seeds follow."""
        begun = "looks" in self._passes[number]
        share = plan.screening * 1.1 + BY_LAYER * bool(plan.joining)
        budget = None if begun else self._session.budget.part(min(1.0, share))
        for place, rung in enumerate(plan.rungs):
            alive = self._rung(rung, alive, clock, plan, budget)
            if place == 0 and plan.joining:
                alive += self._joined(number, alive, clock)
        return alive

    def _joined(self, number: int, alive: Sequence[Arm], clock: VirtualClock) -> list[Arm]:
        """Return the variants with k by layer that join: settled once they are timed, as what is trained follows."""
        settled = self._passes[number]
        stored = settled.get("by_layer")
        if stored is None and "looks" in settled:  # there was no time for any
            return []
        wanted = self._candidates.variants(alive, clock) if stored is None else map(Arm.from_json, stored)
        timed, found = self._candidates.by_layer(list(wanted), alive, clock)
        if stored is None and timed:
            settled["by_layer"] = [arm.to_json() for arm in timed]
            self._journal.save()
        return found

    def _joined_before(self, number: int) -> list[Arm]:
        """Return those that joined in earlier passes."""
        return [Arm.from_json(arm) for each in self._passes[:number] for arm in each.get("by_layer", ())]

    def _arms_expected(self) -> int:
        question = self._question
        return len(question.arms) + 2 * question.schedules

    def _outlook(self, pace: Pace, costs: Costs) -> Outlook:
        return Outlook(self._session.machine.processes, self._session.spent_s, pace, costs)

    def _warn(self, arms: int, pace: Pace, costs: Costs, *, timing: float = 0.0) -> None:
        """Say once, before it is spent, that the budget is too short to say much."""
        question = self._question
        line = self._outlook(pace, costs).of_plan(
            arms,
            steps=question.steps,
            seeds=question.seeds,
            joining=self._candidates.joining(costs),
            left_s=self._session.budget.left_s,
            timing=timing,
        )
        if line is not None and not self._warned:
            self._warned = True
            self._session.say(line)

    def _more(
        self, found: ArmResult | None, findings: Sequence[ArmResult], plan: HalvingPlan | None, costs: Costs
    ) -> str:
        """Return the sentence that says what would decide."""
        question, pace = self._question, self._session.pace() or first_pace(costs)
        if pace is None:
            return " A larger --budget with --resume may decide."
        outlook = self._outlook(pace, costs)
        if found is None or plan is None:
            judged = sum(each.standing not in ("slow", "failed", "replaced") for each in findings)
            steps = question.steps or max(plan.steps if plan else 0, enough(costs.whole))
            joining = self._candidates.joining(costs)
            return outlook.of_more_arms(judged, steps=steps, seeds=question.seeds, joining=joining)
        looks = sum(len(each.get("looks", ())) for each in self._passes)
        seen = self._journal.differences(found.arm, plan.steps, plan.seed(found.seeds))
        margin = self._margin(plan.steps)
        return outlook.of_more_seeds(
            seen, margin, steps=plan.steps, looks=looks, most=2 * MOST_SEEDS - 1,
            fixed=question.seeds is not None, level=question.level,
        )  # fmt: skip

    def _rung(
        self, rung: Rung, alive: list[Arm], clock: VirtualClock, plan: HalvingPlan, budget: Budget | None
    ) -> list[Arm]:
        """Train a rung, and return the arms that go on."""
        steps = rung.steps(plan.steps)
        if len(alive) <= rung.survivors:
            return alive
        if budget is not None:
            jobs = [Job(arm, seed, steps) for seed in rung.seeds for arm in (None, *alive)]
            self._session.train(jobs, budget)
        candidates, margin = {}, self._margin(steps)
        for arm in alive:
            gain = self._candidates.gain(arm, clock)
            assert gain is not None
            differences = self._journal.differences(arm, steps, rung.seeds)
            seen = mean_interval(differences) if differences else None
            known: dict[str, Any] = {"gain": gain, "steps": steps, "seeds": len(differences), "equal_steps": seen}
            if (reason := self._journal.failure(arm)) is not None:
                self._candidates.out(arm, "failed", f"its training failed: {reason}", **known)
            elif seen is not None and hopeless(seen, margin):
                self._candidates.out(arm, "hopeless", f"loses more than {margin:.4g} in {steps:,} steps", **known)
            else:
                candidates[arm] = (gain.estimate, chance(differences, margin), known)
        for arm, (speed, within, _) in candidates.items():
            self._promise[arm] = (steps, expected(speed, within))
        going_on = choose({arm: found[:2] for arm, found in candidates.items()}, rung.survivors)
        for arm, (_, _, known) in candidates.items():
            if arm not in going_on:
                self._candidates.out(arm, "outranked", "others promise more", **known)
        return going_on
