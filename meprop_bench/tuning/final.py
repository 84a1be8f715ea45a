"""The last judgement of a pass: the arms that are left and their opponents, from seeds that nothing was chosen by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from meprop_bench.tuning.arms import Arm
from meprop_bench.tuning.candidates import Candidates
from meprop_bench.tuning.halving import HalvingPlan, chance, expected
from meprop_bench.tuning.journal import Job
from meprop_bench.tuning.judge import judged
from meprop_bench.tuning.session import Question, Session
from meprop_bench.tuning.timing import VirtualClock

__all__ = ["FEWEST_SEEDS", "MOST_SEEDS", "Final"]

FEWEST_SEEDS, MOST_SEEDS = 3, 32


class Final:
    """The judgement of one pass.

    Args:
        session: the machine, the journal and the budget.
        question: what is asked.
        candidates: where the findings go.
        passes: what was settled of each pass, this one last; this adds its looks.
        clock: of the dense side.
        plan: of the trainings.
        promise: arm -> the steps it was trained, and what it is expected to save.
        margin: how much of the metric may be lost, by what is known of it.

    """

    def __init__(
        self,
        session: Session,
        question: Question,
        candidates: Candidates,
        *,
        passes: list[dict[str, Any]],
        clock: VirtualClock,
        plan: HalvingPlan,
        promise: Mapping[Arm, tuple[int, float]],
        margin: Callable[[], float],
    ) -> None:
        self._session, self._question, self._candidates, self._journal = session, question, candidates, session.journal
        self._passes, self._clock, self._plan, self._promise, self._margin = passes, clock, plan, promise, margin

    def judge(self, finalists: Sequence[Arm]) -> None:
        """Judge arms from fresh seeds; while none passes, those that others were preferred to, too, or more seeds.

        A look is an arm and a number of seeds. Each has half of the chance of error that those before it left, so that
        all of them together stay within it, however many there are.
        """
        *before, this = self._passes
        stored, earlier = this.get("looks"), sum(len(each["looks"]) for each in before)
        looks = [(arm, len(self._plan.seeds)) for arm in finalists]
        if stored:  # else the budget ended before any look, and none has had its chance of error
            looks = [(Arm.from_json(look["arm"]), look["seeds"]) for look in stored]
        if not looks:
            self._settle(looks)
        begun, first = 0, True
        while begun < len(looks):
            trained = len(self._journal.trainings)
            self._train_for(looks[begun:])
            for place in range(begun, len(looks)):
                arm, seeds = looks[place]
                self._judge(arm, self._plan.seed(seeds), earlier + place + 1)
                # Cut off by the budget, it was a look at fewer; one at none leaves its chance of error to others.
                looks[place] = arm, min(seeds, self._candidates.findings[arm].seeds)
            looks = [look for look in looks if look[1]]
            begun = len(looks)
            if any(self._candidates.findings[arm].standing == "pass" for arm, _ in looks):
                self._settle(looks)
                return
            if first or len(self._journal.trainings) > trained:  # or nothing more can be trained
                looks += self._next()
            first = False
            self._settle(looks)

    def _settle(self, looks: Sequence[tuple[Arm, int]]) -> None:
        self._passes[-1]["looks"] = [{"arm": arm.to_json(), "seeds": seeds} for arm, seeds in looks]
        self._journal.save()

    def _next(self) -> list[tuple[Arm, int]]:
        """Return the look that is expected to save most, if there is time for one."""
        session, found = self._session, []
        if len(self._passes) == 1 and any(each.untimed for each in self._candidates.findings.values()):
            return []  # the next pass times them before more is spent on those that were timed
        pace = session.pace()
        if pace is None or not session.budget.allows(
            3 * FEWEST_SEEDS * pace.seconds(self._plan.steps) / session.machine.processes
        ):
            return []
        for arm, finding in self._candidates.findings.items():
            if finding.standing == "inconclusive" and self._question.seeds is None and finding.seeds < MOST_SEEDS:
                assert finding.gain is not None
                seen = self._journal.differences(arm, self._plan.steps, self._plan.seed(finding.seeds))
                value = expected(finding.gain.estimate, chance(seen, self._margin()))
                found.append(((self._plan.steps, value), (arm, 2 * finding.seeds)))
            elif finding.standing in ("outranked", "left out") and arm in self._promise:
                found.append((self._promise[arm], (arm, len(self._plan.seeds))))
        return [max(found, key=lambda each: each[0])[1]] if found else []

    def _train_for(self, looks: Sequence[tuple[Arm, int]]) -> None:
        """Train what these looks look at, seed by seed, so that those that are done are pairs."""
        jobs = []
        for seed in self._plan.seed(max(seeds for _, seeds in looks)):
            jobs.append(Job(None, seed, self._plan.steps))
            for arm, seeds in looks:
                if seed in self._plan.seed(seeds):
                    jobs += [Job(arm, seed, self._plan.steps), Job(None, seed, self._opponent(arm))]
        self._session.train(jobs, self._session.budget)

    def _opponent(self, arm: Arm) -> int:
        return self._clock.opponent(self._plan.steps, self._session.timings[arm].speedup.estimate)

    def _judge(self, arm: Arm, seeds: tuple[int, ...], place: int) -> None:
        if (reason := self._journal.failure(arm)) is not None:
            self._candidates.out(arm, "failed", f"its training failed: {reason}")
            return
        gain = self._candidates.gain(arm, self._clock)
        assert gain is not None
        # Up to the first seed that the budget left without one of both pairs: whoever judges again sees the same.
        pairs = [
            [self._journal.differences(arm, self._plan.steps, (seed,), steps) for steps in (None, self._opponent(arm))]
            for seed in seeds
        ]
        seeds = seeds[: next((place for place, both in enumerate(pairs) if not all(both)), len(seeds))]
        self._candidates.findings[arm] = judged(
            arm,
            self._session.timings[arm],
            gain,
            margin=self._margin(),
            confidence=1 - self._question.level / 2**place,
            steps=self._plan.steps,
            dense_steps=self._opponent(arm),
            equal_steps=self._journal.differences(arm, self._plan.steps, seeds),
            equal_time=self._journal.differences(arm, self._plan.steps, seeds, self._opponent(arm)),
        )
