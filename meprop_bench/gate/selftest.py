"""What the gate can promise on this machine: how often it cries wolf, and how small a slowdown it sees.

    measure    the head against itself (A/A), in pairs of processes as always, each with as many neighbours as the gate
               takes; next to the plain blocks there are some in which the head's backward pass is really held back by
               3 and 5% (`sweep.blocks`)
    try        one run of the gate, replayed on what was measured: pairs of processes are drawn without replacement, in
               random order, and looked at as the gate would have looked, until each case has its verdict or the budget
               would be spent (`budget`: what a case is decided without is there for the others)
    A/A        no case is slowed: each `fail` is a false alarm
    slowed     one case is slowed and the others are not, since Holm's correction makes it hard just then

What is resampled, and what not. Every value was measured, the slowed ones, too; nothing is scaled or simulated. Tries
draw from the same pairs of processes, so they are not independent; it is said how many tries the pairs are enough for
without sharing any. A rate of false alarms over many tries is thus about this machine at this hour. It is honest
about noise between pairs of processes; an hour with another neighbour may be worse.

The least slowdown that is seen in 95% of the tries is computed from the spread of the pairs' log ratios, the pairs that
a budget allows, the last look's share of alpha and the number of figures that are judged at once
(`evidence.detectable`). The least margin that this machine can decide is tried out: the first of `TRIED_MARGINS` at
which all times of identical code pass in 95% of the runs.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, Unpack

import numpy as np

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.gate.budget import CaseBudget
from meprop_bench.gate.case_records import PairRecord, judged_records
from meprop_bench.gate.decide import judge, small_part, undecided
from meprop_bench.gate.evidence import detectable
from meprop_bench.gate.judgement import VERDICTS, Quantity
from meprop_bench.gate.looks import Looks
from meprop_bench.gate.revisions import SLICE_S, Hooks, Rounds
from meprop_bench.gate.series import Series
from meprop_bench.gate.settings import Settings
from meprop_bench.gate.targets import Measurable, Targets
from meprop_bench.gate.worktree import Checkout
from meprop_bench.stats import CANNOT_TELL, Verdict, median, process_medians, too_wide
from meprop_bench.sweep.plan import Plan

__all__ = ["SLOWDOWNS", "TRIED_MARGINS", "CasePromise", "Promise", "as_text", "check"]

SLOWDOWNS = (0.03, 0.05)
TRIED_MARGINS = (0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.045, 0.05, 0.06, 0.075, 0.1, 0.15, 0.2)
"""Of times, from which the least is sought that identical code passes."""

_SLICE_S = SLICE_S * (1 + len(SLOWDOWNS))
"""Seconds of set-ups for a case in a round: for as many neighbours with each slowdown as the gate has without one."""

_BUDGETS = 30

_GOAL = 0.95
"""Share of the tries in which identical code is to pass, and in which a slowdown of the margin or more is to fail. What
lies in between may go either way."""
_FALSE_ALARMS = 1 / 200


@dataclass(frozen=True)
class CasePromise:
    """What the tries say of one case."""

    case: str
    pairs: int  # of processes, that were measured
    affordable: int  # pairs of a try at most, of those in which it was slowed
    spread: float  # standard deviation of the pairs' log ratios of the backward pass, without a slowdown
    detectable: float  # the least slowdown that is seen in 95% of the tries, relative
    tries: Mapping[float, tuple[int, int, int]]  # no slowdown (0.0), and each -> tries, of which failed, inconclusive
    seen: Mapping[float, float]  # slowdown -> what the medians say it was, relative


@dataclass(frozen=True)
class Promise:
    """What a self-test found, case by case; the gate's margin and budget in seconds; how many seconds it took."""

    cases: tuple[CasePromise, ...]
    margin: float
    budget: float
    seconds: float
    least_margin: float | None  # the first of `TRIED_MARGINS` at which all times of identical code pass in 95% of runs
    clean: tuple[int, int]  # runs on identical code, and how many of them passed in all cases at once
    environment: Mapping[str, Any] = field(default_factory=dict)  # of the machine

    def total(self, slowdown: float) -> tuple[int, int, int]:
        """Return tries, failed and inconclusive of all cases."""
        tries, failed, unsure = map(sum, zip(*(case.tries[slowdown] for case in self.cases), strict=True))
        return tries, failed, unsure

    def has_goal(self, slowdown: float) -> bool:
        """Whether the slowdown is one that must not pass."""
        return slowdown >= self.margin

    @property
    def met(self) -> bool:
        """Whether false alarms are at most 1 in 200, and 95% of the runs on identical code pass, and of the large
        slowdowns of each case fail.
        """
        tries, alarms, _ = self.total(0.0)
        runs, passed = self.clean
        caught = [case.tries[slowdown] for case in self.cases for slowdown in SLOWDOWNS if self.has_goal(slowdown)]
        return (
            alarms <= tries * _FALSE_ALARMS
            and passed >= _GOAL * runs
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
    Measuring takes so many seconds, thirty budgets of a case if None, 1800 s by default, and at least two rounds;
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
        replay.least_margin(tries),
        replay.clean(),
        rounds.environment,
    )


_Pairs: TypeAlias = Sequence[Sequence[Series]]
"""Of a case under one slowdown, pair of processes by pair of processes its figures, each with one value: its median."""


class _Replay:
    """Runs of the gate on what was measured."""

    def __init__(self, rounds: Rounds, settings: Settings, rng: random.Random) -> None:
        self._cases, self._settings, self._rng = rounds.cases, settings, rng
        self._looks, self._measured = Looks.within(settings.pairs), rounds.budget
        self._pairs: dict[tuple[Measurable, float], _Pairs] = {
            (case, slowdown): [_condensed(own.series([record])) for record in judged_records(records)]
            for case, own in self._cases.items()
            for slowdown, records in own.records.items()
        }
        self._clean: list[dict[Measurable, str]] = []
        self._family = sum(len(self._pairs[case, 0.0][0]) for case in self._cases)

    def promise(self, case: Measurable, tries: int) -> CasePromise:
        """Say what the tries say of a case."""
        while len(self._clean) < tries:
            self._clean.append(self._try({})[0])
        found, pairs = {0.0: _count([verdicts[case] for verdicts in self._clean])}, 2
        for slowdown in SLOWDOWNS:
            slowed = [self._try({case: slowdown}) for _ in range(tries)]
            found[slowdown] = _count([verdicts[case] for verdicts, _ in slowed])
            pairs = max(pairs, *(counts[case] for _, counts in slowed))
        records = self._cases[case].records
        spread = statistics.stdev(_logs(judged_records(records[0.0])))
        margin, (_, weight) = self._settings.usual_margin("time"), self._looks.taken(pairs, last=True)[-1]
        least = detectable(
            np.array([spread / math.sqrt(pairs)]),
            np.array([float(pairs)]),
            np.log1p([small_part(margin)]),
            np.log1p([margin]),
            (self._settings.alarm * weight / self._family, self._settings.alpha * weight),
        )
        return CasePromise(
            case=case.label,
            pairs=len(records[0.0]),
            affordable=pairs,
            spread=spread,
            detectable=least.item(),
            tries=found,
            seen={
                slowdown: math.expm1(statistics.fmean(_logs(judged_records(records[slowdown]))))
                for slowdown in SLOWDOWNS
            },
        )

    def clean(self) -> tuple[int, int]:
        """Return how many runs on identical code there were, and how many passed in all cases."""
        return len(self._clean), sum(set(verdicts.values()) == {"pass"} for verdicts in self._clean)

    def least_margin(self, tries: int) -> float | None:
        """Return the least of `TRIED_MARGINS` at which all times of identical code pass in 95% of the runs."""
        for margin in TRIED_MARGINS:
            settings = replace(self._settings, margin=margin, margins={})
            runs = [self._try({}, settings, "time")[0] for _ in range(tries)]
            if sum(set(verdicts.values()) == {"pass"} for verdicts in runs) >= _GOAL * tries:
                return margin
        return None

    def _try(
        self, slowed: Mapping[Measurable, float], settings: Settings | None = None, quantity: Quantity | None = None
    ) -> tuple[dict[Measurable, str], dict[Measurable, int]]:
        """Run the gate once, and return each case's verdict and pairs; by other settings, or on one quantity alone."""
        settings = settings or self._settings
        drawn: dict[Measurable, _Pairs] = {}
        for case in self._cases:
            pairs = self._pairs[case, slowed.get(case, 0.0)]
            drawn[case] = self._rng.sample(pairs, min(settings.pairs, len(pairs)))
        counts = dict.fromkeys(drawn, 0)

        def series() -> list[Series]:
            every = (one for case, pairs in drawn.items() for one in _joined(pairs[: counts[case]]))
            return [one for one in every if quantity in (None, one.quantity)]

        budget = CaseBudget(self._settings.budget * len(drawn), self._measured.process_of)
        todo = list(drawn)
        while todo:
            for _ in {budget.process_of(case) for case in todo}:
                budget.started(median(self._measured.starts_s))
            for case in todo:
                budget.took(case, max(median(self._measured.own_s[case]) - _SLICE_S, 0.0) + SLICE_S)
                counts[case] += 1
            open_ones = {case for case in todo if counts[case] < len(drawn[case])}
            if any(counts[case] in self._looks.counts for case in todo):
                labels = undecided(series(), settings, self._looks)
                open_ones = {case for case in open_ones if case.label in labels}
            todo = budget.affords(case for case in todo if case in open_ones)
        verdicts: dict[str, list[Verdict]] = {case.label: [] for case in drawn}
        for one in judge(series(), settings, self._looks):
            verdicts[one.case] += [] if one.report_only else [one.verdict]
        return {case: min(verdicts[case.label] or ["pass"], key=VERDICTS.index) for case in drawn}, counts


def _condensed(figures: Sequence[Series]) -> Sequence[Series]:
    """Return the figures of one pair of processes, each with its medians for values: that is all that is judged."""
    found = []
    for one in figures:
        if one.pairs is not None:
            base = median(base for base, _ in one.pairs[0])
            (log,) = process_medians(one.pairs)
            found.append(replace(one, pairs=(((base, base * math.exp(-log)),),)))
    return found


def _joined(pairs: _Pairs) -> Iterator[Series]:
    """Yield the figures over some pairs of processes."""
    for of_each in zip(*pairs, strict=True):
        yield replace(of_each[0], pairs=tuple(run for one in of_each for run in one.pairs or ()))


def _count(verdicts: Sequence[str]) -> tuple[int, int, int]:
    return len(verdicts), verdicts.count("fail"), verdicts.count("inconclusive")


def _logs(records: Sequence[PairRecord]) -> list[float]:
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
            f"    pairs spread by {case.spread:.2%}; the least slowdown seen in 95% of the tries: "
            + (CANNOT_TELL if too_wide(case.detectable) else f"{case.detectable:.1%}"),
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
            runs, passed = promise.clean
            lines.append(
                f"    {_name(slowdown)} {passed} of {runs} runs passed in all cases ({passed / runs:.1%}; target at"
                f" least {_GOAL:.0%})"
            )
    least = promise.least_margin
    lines += [
        "",
        f"The least margin at which all times of identical code pass in {_GOAL:.0%} of the runs here: {least:.1%}, of"
        " those tried."
        if least is not None
        else f"No margin up to {TRIED_MARGINS[-1]:.0%} passes all times of identical code in {_GOAL:.0%} of the runs.",
        "Every value was measured; tries are drawn from the same pairs of processes without replacement, so they share"
        " pairs and are not independent.",
        "The targets are met on this machine."
        if promise.met
        else "The targets are not met on this machine: raise the margin, or the budget and the pairs.",
    ]
    return "\n".join(lines) + "\n"


def _name(slowdown: float) -> str:
    return "no slowdown:" if slowdown == 0 else f"+{slowdown:.0%}:"
