"""What the gate can promise on this machine: how often it cries wolf, and how small a slowdown it sees.

    measure    the head against itself (A/A), in pairs of processes as always, each with as many neighbours as the gate
               takes; next to the plain blocks there are some in which the head's backward pass is really held back by
               5 and 10% (`sweep.blocks`)
    try        one run of the gate, replayed on what was measured: pairs of processes are drawn without replacement, in
               random order, and looked at as the gate would have looked, until each case has its verdict or would have
               spent its budget
    A/A        no case is slowed: each `fail` is a false alarm
    slowed     one case is slowed and the others are not, since Holm's correction makes it hard just then

What is resampled, and what not. Every value was measured, the slowed ones, too; nothing is scaled or simulated. Tries
draw from the same pairs of processes, so they are not independent; it is said how many tries the pairs are enough for
without sharing any. A rate of false alarms over many tries is thus about this machine at this hour. It is honest
about noise between pairs of processes; an hour with another neighbour may be worse.

The least slowdown that is seen nine times of ten is computed from the spread s of the pairs' log ratios: margin plus
(t(n - 1; 1 - alpha w / m) + t(n - 1; 0.9)) s / sqrt(n) for the n pairs that a budget allows, the last look's share w of
alpha and m figures that are judged at once.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Unpack

import numpy as np

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.gate.case_records import Record
from meprop_bench.gate.decide import judge, undecided
from meprop_bench.gate.evidence import detectable
from meprop_bench.gate.judgement import VERDICTS
from meprop_bench.gate.looks import Looks
from meprop_bench.gate.revisions import SLICE_S, Hooks, Rounds
from meprop_bench.gate.series import Series
from meprop_bench.gate.settings import Settings
from meprop_bench.gate.targets import Measurable, Targets
from meprop_bench.gate.worktree import Checkout
from meprop_bench.stats import Verdict, process_medians
from meprop_bench.sweep.plan import Plan

__all__ = ["SLOWDOWNS", "CasePromise", "Promise", "as_text", "check"]

SLOWDOWNS = (0.05, 0.10)

_SLICE_S = SLICE_S * (1 + len(SLOWDOWNS))
"""Seconds of set-ups for a case in a round: for as many neighbours with each slowdown as the gate has without one."""

_BUDGETS = 20

_GOAL = 0.90
"""Share of the tries in which identical code is to pass, and in which a slowdown of twice the margin is to fail. One of
the margin itself must not fail often, and what lies in between may go either way."""
_FALSE_ALARMS = 1 / 200


@dataclass(frozen=True)
class CasePromise:
    """What the tries say of one case."""

    case: str
    pairs: int  # of processes, that were measured
    affordable: int  # pairs of a try at most: what the budget, or the settings, allow
    spread: float  # standard deviation of the pairs' log ratios of the backward pass, without a slowdown
    detectable: float  # the least slowdown that is seen nine times of ten, relative
    tries: Mapping[float, tuple[int, int, int]]  # no slowdown (0.0), and each -> tries, of which failed, inconclusive
    seen: Mapping[float, float]  # slowdown -> what the medians say it was, relative


@dataclass(frozen=True)
class Promise:
    """What a self-test found, case by case; the gate's margin and budget in seconds; how many seconds it took."""

    cases: tuple[CasePromise, ...]
    margin: float
    budget: float
    seconds: float

    def total(self, slowdown: float) -> tuple[int, int, int]:
        """Return tries, failed and inconclusive of all cases."""
        tries, failed, unsure = map(sum, zip(*(case.tries[slowdown] for case in self.cases), strict=True))
        return tries, failed, unsure

    def has_goal(self, slowdown: float) -> bool:
        """Whether the slowdown is far enough beyond the margin to be caught."""
        return slowdown >= 2 * self.margin

    @property
    def met(self) -> bool:
        """Whether false alarms are at most 1 in 200, and 90% of identical code passes and of large slowdowns fail."""
        tries, alarms, unsure = self.total(0.0)
        caught = [self.total(slowdown) for slowdown in SLOWDOWNS if self.has_goal(slowdown)]
        return (
            alarms <= tries * _FALSE_ALARMS
            and tries - alarms - unsure >= _GOAL * tries
            and all(failed >= _GOAL * count for count, failed, _ in caught)
        )

    @property
    def exit_code(self) -> ExitCode:
        """0 when the targets are met here, else 4: the noise hides what the gate should see."""
        return ExitCode.OK if self.met else ExitCode.INCONCLUSIVE


def check(
    plan: Plan | Targets,
    first: Checkout,
    second: Checkout,
    settings: Settings,
    *,
    seconds: float | None = None,
    tries: int = 60,
    **hooks: Unpack[Hooks],
) -> Promise:
    """Measure A/A and slowed blocks for some time, then replay the gate on them.

    The cases of the plan have a phase "backward"; `first` and `second` are the head, each in a folder of its own.
    Measuring takes so many seconds, twenty budgets of a case if None, 1800 s by default, and at least two rounds;
    replaying takes some more. There are so many tries of the gate for no slowdown, and for each slowdown as many of
    each case. Raises `UserError` where a case failed in A/A.
    """
    seconds = _BUDGETS * settings.budget if seconds is None else seconds
    # Accuracy and counts have no noise to find out about.
    plan = replace(plan, checks=("gradients",), budget=seconds / len(plan.cases))
    rounds = Rounds(plan, first, second, slowdowns=(0.0, *SLOWDOWNS), slice_s=_SLICE_S, **hooks)
    rounds.prepare()
    before, made = rounds.seconds, 0
    while made < 2 or (rounds.seconds - before) * (1 + 1 / made) <= seconds:
        rounds.once(plan.cases)
        made += 1
        if broken := next((records for records in rounds.cases.values() if not records.open), None):
            reason = broken.failure or broken.missing
            raise UserError(f"{broken.case.label} cannot be measured: {reason}", ExitCode.NOTHING_MEASURED)
    replay = _Replay(rounds, settings, random.Random(plan.seed))
    return Promise(
        tuple(replay.promise(case, tries) for case in plan.cases),
        settings.usual_margin("time"),
        settings.budget,
        rounds.seconds,
    )


class _Replay:
    """Runs of the gate on what was measured."""

    def __init__(self, rounds: Rounds, settings: Settings, rng: random.Random) -> None:
        self._cases, self._settings, self._rng = rounds.cases, settings, rng
        self._looks = Looks.within(settings.pairs)
        self._affordable = {case: self._afford(case) for case in self._cases}
        self._clean: list[dict[Measurable, str]] = []
        records = {case: own.records[0.0] for case, own in self._cases.items()}
        self._family = len(self._series(records, dict.fromkeys(records)))

    def promise(self, case: Measurable, tries: int) -> CasePromise:
        """Say what the tries say of a case."""
        while len(self._clean) < tries:
            self._clean.append(self._try({}))
        found = {0.0: _count([verdicts[case] for verdicts in self._clean])}
        for slowdown in SLOWDOWNS:
            found[slowdown] = _count([self._try({case: slowdown})[case] for _ in range(tries)])
        records, pairs = self._cases[case].records, self._affordable[case]
        spread = statistics.stdev(_logs(records[0.0]))
        # What the last look finds among all figures that are judged at once (Holm's first step).
        least = detectable(
            np.array([spread / math.sqrt(pairs)]),
            np.array([float(pairs)]),
            np.log1p([self._settings.usual_margin("time")]),
            self._settings.alpha * self._looks.weights[-1] / self._family,
        )
        return CasePromise(
            case=case.label,
            pairs=len(records[0.0]),
            affordable=pairs,
            spread=spread,
            detectable=least.item(),
            tries=found,
            seen={slowdown: math.expm1(statistics.fmean(_logs(records[slowdown]))) for slowdown in SLOWDOWNS},
        )

    def _afford(self, case: Measurable) -> int:
        """Return the pairs that the budget of a case allows, at the gate's own slices."""
        own = self._cases[case]
        besides_s = own.spent_s / own.rounds - _SLICE_S
        within = int(self._settings.budget / (SLICE_S + max(besides_s, 0.0)))
        return max(2, min(self._settings.pairs, within, len(own.records[0.0])))

    def _try(self, slowed: Mapping[Measurable, float]) -> dict[Measurable, str]:
        """Run the gate once, and return each case's verdict."""
        drawn = {
            case: self._rng.sample(own.records[slowed.get(case, 0.0)], self._affordable[case])
            for case, own in self._cases.items()
        }
        counts = dict.fromkeys(drawn, 0)
        waiting = set(drawn)
        while waiting:
            for case in waiting:
                planned = min((c for c in self._looks.counts if c > counts[case]), default=self._affordable[case])
                counts[case] = min(planned, self._affordable[case])
            labels = undecided(self._series(drawn, counts), self._settings, self._looks)
            waiting = {case for case in waiting if case.label in labels and counts[case] < self._affordable[case]}
        verdicts: dict[str, list[Verdict]] = {case.label: [] for case in drawn}
        for one in judge(self._series(drawn, counts), self._settings, self._looks):
            verdicts[one.case] += [] if one.report_only else [one.verdict]
        return {case: min(verdicts[case.label] or ["pass"], key=VERDICTS.index) for case in drawn}

    def _series(
        self, drawn: Mapping[Measurable, Sequence[Record]], counts: Mapping[Measurable, int | None]
    ) -> list[Series]:
        return [
            series
            for case, records in drawn.items()
            for series in self._cases[case].series(records[: counts[case]])
            if series.pairs is not None
        ]


def _count(verdicts: Sequence[str]) -> tuple[int, int, int]:
    return len(verdicts), verdicts.count("fail"), verdicts.count("inconclusive")


def _logs(records: Sequence[Record]) -> list[float]:
    """Return log(head / base) of each pair of processes."""
    phase = "backward" if "backward" in records[0].pairs else next(iter(records[0].pairs))
    return [-ratio for ratio in process_medians([record.pairs[phase] for record in records])]


def as_text(promise: Promise) -> str:
    """Return what the gate can promise here, for a terminal and for a log alike."""
    lines = [
        f"Self-test: {promise.seconds:.0f} s of measuring and replaying; margin {promise.margin:.1%}, budget "
        f"{promise.budget:.0f} s for a case.",
        "",
    ]
    for case in promise.cases:
        lines += [
            f"{case.case}: {case.pairs} pairs of processes, at most {case.affordable} in a try (enough for"
            f" {case.pairs // case.affordable} tries that share none)",
            f"    pairs spread by {case.spread:.2%}; the least slowdown seen nine times of ten is"
            f" {case.detectable:.1%}",
        ]
        for slowdown, (count, failed, unsure) in case.tries.items():
            what = "false alarms" if slowdown == 0 else f"caught (measured as {case.seen[slowdown]:+.1%})"
            lines.append(f"    {_name(slowdown)} {failed} of {count} {what}, {unsure} inconclusive")
    lines += ["", "In all:"]
    for slowdown in (0.0, *SLOWDOWNS):
        count, failed, unsure = promise.total(slowdown)
        goal = "at most 1 in 200" if slowdown == 0 else f"at least {_GOAL:.0%}"
        what = "false alarms" if slowdown == 0 else "caught"
        share = f"{failed / count:.1%}" + (f"; target {goal}" if slowdown == 0 or promise.has_goal(slowdown) else "")
        lines.append(f"    {_name(slowdown)} {failed} of {count} {what} ({share}), {unsure} inconclusive")
        if slowdown == 0:
            passed = count - failed - unsure
            lines.append(
                f"    {_name(slowdown)} {passed} of {count} passed ({passed / count:.1%}; target at least {_GOAL:.0%})"
            )
    lines += [
        "",
        "Every value was measured; tries are drawn from the same pairs of processes without replacement, so they share"
        " pairs and are not independent.",
        "The targets are met on this machine."
        if promise.met
        else "The targets are not met on this machine: raise the margin, or the budget and the pairs.",
    ]
    return "\n".join(lines) + "\n"


def _name(slowdown: float) -> str:
    return "no slowdown:" if slowdown == 0 else f"+{slowdown:.0%}:"
