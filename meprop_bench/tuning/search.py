"""The search: times first, then trainings, then a last judgement on fresh seeds, all within a budget.

    times     each arm's step beside dense. The smallest k of a method comes first: where it gains nothing, no k does
              (30% of the budget)
    rungs     trainings in halves (`halving`), dense once for all arms
    final     the last two arms and their opponents, from seeds that nothing was chosen by (`judge`); then others, while
              none passes
    again     with trainings of at least twice the steps, while none passes and there is time: what is behind after few
              steps may be ahead after many

What it needs of the machine is a `session.Machine`, so that all of it is tested without one. All decisions follow from
what the journal has: a search that was ended goes on as if it had not been.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.report.quality import Quality
from meprop_bench.results.schema import WHOLE
from meprop_bench.stats import LEVEL, Interval, mean_interval
from meprop_bench.sweep.accuracy import MARGIN
from meprop_bench.tuning.arms import Arm, by_layer, first_of_each, scheduled
from meprop_bench.tuning.budget import Budget
from meprop_bench.tuning.halving import Pace, Plan, Rung, chance, choose, expected, hopeless, planned
from meprop_bench.tuning.journal import Job
from meprop_bench.tuning.judge import Decision, Finding, Metric, Standing, decide, judged
from meprop_bench.tuning.session import Question, Session
from meprop_bench.tuning.timing import Clock, Costs, of_schedule

__all__ = ["LEAST", "Answer", "Search"]

LEAST = 1.02
"""Speed-up of training below which an arm is not worth its trouble, nor to be told from noise."""
_TIMES, _TIMES_LATE = 0.3, 0.6
_MOST_VARIED = 2
"""Arms of which variants by layer are timed."""
_FEWEST_SEEDS, _MOST_SEEDS = 3, 32
_PROBE_S = 3.0
_PROBE = (5, 100)
"""Seconds, and least and most steps, of dense trainings that say how long one takes, one for each process."""
_LONGER, _MOST_PASSES, _PASS_S = 2, 8, 20.0
"""Factor of the steps, number of passes, and seconds that are left, for another pass."""
_ONE_GO_S = 90.0
"""Seconds for all timings below which all arms are timed in one go: each start of the processes takes seconds."""


@dataclass(frozen=True)
class Answer:
    """What came of a search."""

    decision: Decision
    findings: tuple[Finding, ...]  # one for each arm
    metric: Metric
    clock: Clock | None  # None where no step could be timed
    plan: Plan | None
    left_out: tuple[str, ...]  # what the budget left no time for


class Search:
    """One search, from what a journal holds to an answer.

    Args:
        session: the machine, the journal and the budget.
        question: what is asked.

    """

    def __init__(self, session: Session, question: Question) -> None:
        self._session, self._question, self._journal = session, question, session.journal
        self._findings: dict[Arm, Finding] = {}
        self._promise: dict[Arm, tuple[int, float]] = {}  # steps it was trained, and what it is expected to save

    def run(self) -> Answer:
        """Search; an interrupt passes through, and what is done is stored.

        Raises:
            UserError: dense training fails, or nothing could be measured at all.

        """
        costs = self._session.costs()
        for number in range(_MOST_PASSES):
            answer = self._pass(number, costs)
            if not self._again(number, answer, costs):
                break
        self._session.save()
        if answer.clock is None:
            failed = [each.reason for each in answer.findings if each.standing == "failed"]
            why = (
                f"no arm could be timed: {failed[0]}"
                if failed
                else "the budget ended before a step was timed: give more"
            )
            raise UserError(why, ExitCode.NOTHING_MEASURED)
        return answer

    def _pass(self, number: int, costs: Costs) -> Answer:
        """Time what is not timed yet, train, and judge; what was found in an earlier pass is found anew."""
        session = self._session
        self._findings.clear()
        self._promise.clear()
        candidates = self._timed(costs)
        clock, plan = self._clock(costs), None
        if clock is not None:
            self._journal.settle(dense_s=clock.dense_s)
            alive = self._gaining(candidates, clock)
            plan = self._plan(number, len(alive), clock) if alive else None
            if plan is not None:
                self._final(number, self._finalists(number, alive, clock, plan), clock, plan)
            for arm in alive:
                if arm not in self._findings:
                    self._out(arm, "left out", "not trained", gain=self._gain(arm, clock))
        findings = tuple(self._findings.values())
        metric = self._metric(plan.steps if plan else None)
        decision = decide(findings, metric, costs.layers)
        return Answer(decision, findings, metric, clock, plan, tuple(session.left_out))

    def _again(self, number: int, answer: Answer, costs: Costs) -> bool:
        """Whether there is another pass: there was one already, or nothing passed yet and there is time for trainings
        of twice the steps, or to time what was not timed.
        """
        if len(self._passes) > number + 1:
            return True
        pace, plan = self._session.pace(), answer.plan
        if answer.decision.kind == "take" or not self._session.budget.allows(_PASS_S) or answer.clock is None:
            return False
        if any(each.timing is None and each.standing == "left out" for each in answer.findings):
            return True
        if pace is None or plan is None or self._question.steps is not None or plan.steps >= costs.whole:
            return False
        arms = sum(each.gain is not None and each.standing != "slow" for each in answer.findings)
        return self._planned(arms, pace, costs).steps >= _LONGER * plan.steps

    @property
    def _passes(self) -> list[dict[str, Any]]:
        """What was settled of each pass: its plan, and its looks."""
        found: list[dict[str, Any]] = self._journal.settled.setdefault("passes", [])
        return found

    def _metric(self, steps: int | None) -> Metric:
        """Return what is compared of trainings of these steps, and how much of it may be lost."""
        question = self._question
        dense = self._journal.dense(steps)
        scale = WHOLE if question.percent else abs(math.fsum(dense) / len(dense)) if dense else 1.0
        margin = MARGIN / WHOLE * scale if question.margin is None else question.margin
        return Metric(question.metric, margin, Quality(question.percent, scale))

    def _timed(self, costs: Costs) -> list[Arm]:
        """Time the arms, and what follows from them; return those that were timed."""
        session, question = self._session, self._question
        budget = session.budget.part(_TIMES)
        constant = [arm for arm in question.arms if arm.constant]
        first = first_of_each(constant) if budget.left_s >= _ONE_GO_S else []
        session.measure(first, budget)
        clock = self._clock(costs)
        slow = {arm.group: arm for arm in first if clock is not None and self._is_slow(arm, clock)}
        todo = [arm for arm in constant if arm.group not in slow or arm in first]
        session.measure(todo, budget)
        if not session.timings:  # another run measured for as long: the share that is left is for it, too
            session.measure(todo, session.budget.part(_TIMES_LATE))
        for arm in constant:
            if arm not in todo:
                self._out(arm, "slow", f"even k = {slow[arm.group].k:.3g} gains nothing")
        if (clock := self._clock(costs)) is not None:
            moving = self._moving(todo, clock)
            todo = [*(self._varied(todo, clock, costs, budget) if question.variants else todo), *moving]
        for arm in todo:
            self._without_time(arm)
        return [arm for arm in todo if arm not in self._findings]

    def _clock(self, costs: Costs) -> Clock | None:
        if (stored := self._journal.settled.get("dense_s")) is not None:
            return Clock(stored, costs)
        dense = [found.dense_s for found in self._session.timings.values() if found.failed is None]
        return Clock(statistics.median(dense), costs) if dense else None

    def _gain(self, arm: Arm, clock: Clock) -> Interval | None:
        found = self._session.timings.get(arm)
        return None if found is None or found.failed is not None else clock.gain(found.speedup)

    def _is_slow(self, arm: Arm, clock: Clock) -> bool:
        """Whether even the upper bound is below what is worth its trouble."""
        gain = self._gain(arm, clock)
        return gain is not None and (gain.high if gain.bounded else gain.estimate) < LEAST

    def _useful(self, arms: Sequence[Arm], clock: Clock) -> list[Arm]:
        """Return the arms whose step gains something, the fastest first."""
        found = [arm for arm in arms if (gain := self._gain(arm, clock)) is not None and gain.estimate >= LEAST]
        return sorted(found, key=lambda arm: -self._estimate(arm, clock))

    def _moving(self, constant: Sequence[Arm], clock: Clock) -> list[Arm]:
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

    def _varied(self, arms: list[Arm], clock: Clock, costs: Costs, budget: Budget) -> list[Arm]:
        """Time variants of the fastest arms: compiled, where the dense side is, and with small layers left dense.

        Return the arms, each variant that is as fast in the place of its arm: it trains alike, or nearer to dense.
        """
        place: dict[Arm, Arm] = {}
        for arm in self._useful(arms, clock)[:_MOST_VARIED]:
            best = arm
            baseline = self._session.timings[arm].baseline or ""
            if baseline.startswith("compiled") and arm.gradient == "dense":
                best = self._faster(best, [replace(best, compiled=True)], clock, budget)
            best = self._faster(best, by_layer(best, costs.layers), clock, budget)
            if best != arm:
                self._out(arm, "replaced", f"as fast is {best.label}")
                place[arm] = best
        return [place.get(arm, arm) for arm in arms]

    def _faster(self, arm: Arm, variants: Sequence[Arm], clock: Clock, budget: Budget) -> Arm:
        """Return the variant that is as fast as an arm, or else the arm."""
        self._session.measure(variants, budget, wanted=False)
        fast = self._useful(variants, clock)[:1]
        return fast[0] if fast and self._estimate(fast[0], clock) >= self._estimate(arm, clock) else arm

    def _estimate(self, arm: Arm, clock: Clock) -> float:
        gain = self._gain(arm, clock)
        assert gain is not None
        return gain.estimate

    def _out(self, arm: Arm, standing: Standing, reason: str, **more: Any) -> None:
        found = self._session.timings.get(arm)
        self._findings[arm] = replace(Finding(arm, standing, reason, found), **more)
        self._session.say(f"{arm.label}: {standing}, {reason}")

    def _without_time(self, arm: Arm) -> None:
        """Note the arm for which there is no time, or that computes something else; all others go on."""
        found = self._session.timings.get(arm)
        if found is None:
            self._out(arm, "left out", "its step is not timed")
        elif found.failed is not None:
            self._out(arm, "left out" if found.unsure else "failed", found.failed)

    def _gaining(self, candidates: Sequence[Arm], clock: Clock) -> list[Arm]:
        """Return the arms whose step gains something, the fastest first."""
        alive = self._useful(candidates, clock)
        for arm in candidates:
            if arm not in alive:
                self._out(arm, "slow", "no gain is seen in its step", gain=self._gain(arm, clock))
        return alive

    def _plan(self, number: int, arms: int, clock: Clock) -> Plan | None:
        """Return what will be trained: settled once, since it depends on the time that is left."""
        if number < len(self._passes):
            stored = self._passes[number]["plan"]
            rungs = tuple(Rung(**{**rung, "seeds": tuple(rung["seeds"])}) for rung in stored["rungs"])
            return Plan(**{**stored, "rungs": rungs, "seeds": tuple(stored["seeds"])})
        session, costs = self._session, clock.costs
        probe = min(costs.whole, max(_PROBE[0], min(_PROBE[1], int(_PROBE_S / clock.step_s()))))
        session.train([Job(None, 1 + process, probe) for process in range(session.machine.processes)], session.budget)
        pace = session.pace()
        if pace is None:
            return None
        plan = self._planned(arms, pace, costs)
        if number:
            before = self._passes[number - 1]["plan"]
            if plan.steps < _LONGER * before["steps"]:  # for arms that were not timed: as long, and from as many seeds
                plan = self._planned(arms, pace, costs, before["steps"], len(before["seeds"]))
        self._passes.append({"plan": asdict(plan)})
        self._journal.save()
        session.say(f"trainings of {plan.steps:,} steps, the last ones from {len(plan.seeds)} seeds")
        return plan

    def _planned(self, arms: int, pace: Pace, costs: Costs, steps: int | None = None, seeds: int | None = None) -> Plan:
        seconds = self._session.budget.left_s * self._session.machine.processes
        sizes = {"steps": self._question.steps or steps, "seeds": self._question.seeds or seeds}
        return planned(arms, seconds=seconds, pace=pace, whole=costs.whole, **sizes)

    def _finalists(self, number: int, alive: list[Arm], clock: Clock, plan: Plan) -> list[Arm]:
        """Return the arms to be judged, in this order, chosen on the rungs; settled once, as fresh seeds follow."""
        begun = "looks" in self._passes[number]
        budget = None if begun else self._session.budget.part(min(1.0, plan.screening * 1.1))
        for rung in plan.rungs:
            alive = self._rung(rung, alive, clock, plan, budget)
        return alive

    def _rung(self, rung: Rung, alive: list[Arm], clock: Clock, plan: Plan, budget: Budget | None) -> list[Arm]:
        """Train a rung, and return the arms that go on."""
        steps = rung.steps(plan.steps)
        if len(alive) <= rung.survivors:
            return alive
        if budget is not None:
            jobs = [Job(arm, seed, steps) for seed in rung.seeds for arm in (None, *alive)]
            self._session.train(jobs, budget)
        candidates, margin = {}, self._metric(steps).margin
        for arm in alive:
            gain = self._gain(arm, clock)
            assert gain is not None
            differences = self._journal.differences(arm, steps, rung.seeds)
            seen = mean_interval(differences) if differences else None
            known: dict[str, Any] = {"gain": gain, "steps": steps, "seeds": len(differences), "equal_steps": seen}
            if (reason := self._journal.failure(arm)) is not None:
                self._out(arm, "failed", f"its training failed: {reason}", **known)
            elif seen is not None and hopeless(seen, margin):
                self._out(arm, "hopeless", f"loses more than {margin:.4g} in {steps:,} steps", **known)
            else:
                candidates[arm] = (gain.estimate, chance(differences, margin), known)
        for arm, (speed, within, _) in candidates.items():
            self._promise[arm] = (steps, expected(speed, within))
        going_on = choose({arm: found[:2] for arm, found in candidates.items()}, rung.survivors)
        for arm, (_, _, known) in candidates.items():
            if arm not in going_on:
                self._out(arm, "outranked", "others promise more", **known)
        return going_on

    def _final(self, number: int, finalists: list[Arm], clock: Clock, plan: Plan) -> None:
        """Judge arms from fresh seeds; while none passes, those that others were preferred to, too, or more seeds.

        A look is an arm and a number of seeds. Each has half of the chance of error that those before it left, so that
        all of them together stay within it, however many there are.
        """
        passes = self._passes
        stored, earlier = passes[number].get("looks"), sum(len(each["looks"]) for each in passes[:number])
        looks = [(arm, len(plan.seeds)) for arm in finalists]
        if stored is not None:
            looks = [(Arm.from_json(look["arm"]), look["seeds"]) for look in stored]
        if not looks:
            self._settle(number, looks)
        begun, first = 0, True
        while begun < len(looks):
            before = len(self._journal.trainings)
            self._train_for(looks[begun:], clock, plan)
            for place in range(begun, len(looks)):
                arm, seeds = looks[place]
                self._judge(arm, plan.seed(seeds), earlier + place + 1, clock, plan)
                # Cut off by the budget, it was a look at fewer; one at none leaves its chance of error to others.
                looks[place] = arm, min(seeds, self._findings[arm].seeds)
            looks = [look for look in looks if look[1]]
            begun = len(looks)
            if any(self._findings[arm].standing == "pass" for arm, _ in looks):
                self._settle(number, looks)
                return
            if first or len(self._journal.trainings) > before:  # or nothing more can be trained
                looks += self._next(plan)
            first = False
            self._settle(number, looks)

    def _settle(self, number: int, looks: Sequence[tuple[Arm, int]]) -> None:
        self._passes[number]["looks"] = [{"arm": arm.to_json(), "seeds": seeds} for arm, seeds in looks]
        self._journal.save()

    def _next(self, plan: Plan) -> list[tuple[Arm, int]]:
        """Return the look that is expected to save most, if there is time for one."""
        session, found = self._session, []
        pace = session.pace()
        if pace is None or not session.budget.allows(
            3 * _FEWEST_SEEDS * pace.seconds(plan.steps) / session.machine.processes
        ):
            return []
        for arm, finding in self._findings.items():
            if finding.standing == "inconclusive" and self._question.seeds is None and finding.seeds < _MOST_SEEDS:
                assert finding.gain is not None
                seen = self._journal.differences(arm, plan.steps, plan.seed(finding.seeds))
                value = expected(finding.gain.estimate, chance(seen, self._metric(plan.steps).margin))
                found.append(((plan.steps, value), (arm, 2 * finding.seeds)))
            elif finding.standing in ("outranked", "left out") and arm in self._promise:
                found.append((self._promise[arm], (arm, len(plan.seeds))))
        return [max(found, key=lambda each: each[0])[1]] if found else []

    def _train_for(self, looks: Sequence[tuple[Arm, int]], clock: Clock, plan: Plan) -> None:
        """Train what these looks look at, seed by seed, so that those that are done are pairs."""
        jobs = []
        for seed in plan.seed(max(seeds for _, seeds in looks)):
            jobs.append(Job(None, seed, plan.steps))
            for arm, seeds in looks:
                if seed in plan.seed(seeds):
                    jobs += [Job(arm, seed, plan.steps), Job(None, seed, self._opponent(arm, clock, plan))]
        self._session.train(jobs, self._session.budget)

    def _opponent(self, arm: Arm, clock: Clock, plan: Plan) -> int:
        return clock.opponent(plan.steps, self._session.timings[arm].speedup.estimate)

    def _judge(self, arm: Arm, seeds: tuple[int, ...], place: int, clock: Clock, plan: Plan) -> None:
        if (reason := self._journal.failure(arm)) is not None:
            self._out(arm, "failed", f"its training failed: {reason}")
            return
        timing, gain, opponent = self._session.timings[arm], self._gain(arm, clock), self._opponent(arm, clock, plan)
        assert gain is not None
        self._findings[arm] = judged(
            arm,
            timing,
            gain,
            margin=self._metric(plan.steps).margin,
            confidence=1 - LEVEL / 2**place,
            steps=plan.steps,
            dense_steps=opponent,
            equal_steps=self._journal.differences(arm, plan.steps, seeds),
            equal_time=self._journal.differences(arm, plan.steps, seeds, opponent),
        )
