"""Two revisions, measured against each other: pairs of fresh processes, each of which runs its own revision's code.

    round     a fresh process for base and one for head; in each, case by case: set up, check, then set-ups again
    set-up    both draw the case's memory anew, then take some blocks, interleaved and in random order (`processes`);
              a block of base and the head's next to it are one pair of values
    block     a few milliseconds of one case in one process: one value a phase
    again     rounds with the cases that are not decided yet, until there are none or the budget is spent (`budget`)

What the machine does (frequency, neighbours) cancels between two blocks next to each other, as far as it lasts longer
than they do; what remains is marked, and noted (`case_records`). Where the memory lies, and on which core a thread
runs, does not cancel. So both processes are bound to the same cores, thread by thread (`processes`), and a case is set
up anew many times within a process. The pair of processes stays the unit of replication: its median log ratio over all
neighbours is one value. Some of what differs is the process's own: medians over some 700 neighbours of the backward
pass of a small layer spread by 2 to 4% between pairs of processes, where the neighbours alone would leave 1 to 1.6%;
those of the forward pass by 0.5%, as the neighbours would.

A revision gets of a case what differs from the defaults, so that an older one can be asked for all that it knows. A
figure that base has and head has no longer is shown without the head's, and `decide` cannot pass it. What goes wrong
costs its case alone (`faults`), and each process has to run its own revision's code (`own_code`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict, Unpack

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.gate.budget import CaseBudget
from meprop_bench.gate.case_records import SIDES, Blocks, CaseRecords, PairRecord, Side, record_of
from meprop_bench.gate.faults import settle
from meprop_bench.gate.judgement import Judgement
from meprop_bench.gate.own_code import borrowed, check_origins, greet, sparsified
from meprop_bench.gate.processes import (
    Interleaving,
    StartRevision,
    accuracies,
    exact_figures,
    loops_of,
    process_pair,
    request,
    start_revision,
    timed_phases,
    times_alone,
)
from meprop_bench.gate.series import Series
from meprop_bench.gate.targets import Measurable, MeasurementPlan
from meprop_bench.gate.worktree import Checkout
from meprop_bench.measure.lock import DeviceLock, device_lock
from meprop_bench.measure.pool import Pool
from meprop_bench.measure.worker import WorkerDied, WorkerError, WorkerFailed, WorkerRefused
from meprop_bench.results.axes import OWN, TRANSFORMER
from meprop_bench.results.schema import PASSED
from meprop_bench.sweep.function_case import FunctionCase

__all__ = ["SLICE_S", "GateProgress", "Hooks", "Measured", "Rounds", "measure"]

SLICE_S = 1.5
"""Seconds of set-ups for a case in a round. A pair of processes takes some 2 s to start, and 0.3 to 2 s for a case to
be set up and checked (two vCPUs of an AMD EPYC). Longer slices, and so fewer pairs, know each process better and their
spread less well: from 1.5 to 2.5 s it is the same to a twentieth (docs/gate.md)."""

_LEAST_SETUPS = 3
_MOST_SLICES = 7
"""Slices after which there are no more set-ups, however few there were: a case may take seconds for each value."""
_SETUP_S = 0.25
"""Seconds for the blocks of one set-up; setting a small layer up takes 0.01 s, a perceptron 0.06. Set-ups of one
process differ by less than their blocks (docs/log, 2026-11-21), so a few of them do."""
_FEWEST, _MOST = 3, 64
"""Neighbours of a set-up."""
_WARM_S = 0.02

_DENSE_SHARE = 0.2
"""Of the time, for blocks of the dense side, of which the ratio sparse/dense needs a rough median only."""

_LEARNING = ("mlp", TRANSFORMER, OWN)
"""Workloads whose accuracies are compared: short trainings of the others say little (their methods decide late)."""


@dataclass(frozen=True)
class GateProgress:
    """Where a comparison is."""

    stage: str  # "waiting" (for another run to give the device back), or what is done: "preparing", "starting", ...
    round: int  # from 1; 0 while preparing
    case: Measurable | None  # the one in hand
    left: int  # cases that are not decided yet
    total: int
    spent_s: float
    budget_s: float  # at most


class Hooks(TypedDict, total=False):
    """What a test, or who watches, puts in place of the usual."""

    progress: Callable[[GateProgress], None]
    """Called at each stage."""
    start: StartRevision
    lock: DeviceLock
    """Keeps other runs from measuring on a device."""
    now: Callable[[], float]
    """Wall seconds."""


@dataclass(frozen=True)
class Measured:
    """What a comparison found."""

    series: tuple[Series, ...]  # the figures of all cases that can be compared
    general: tuple[str, ...]  # what a reader should know of all of it, one line each
    environment: Mapping[str, Any]  # of the machine, as the head's worker tells it
    rounds: int  # pairs of processes at most for a case
    lacking: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    """Label of a case that the base cannot do -> why, and whether that is because it is new; of `cases` in all."""
    cases: int = 0
    remarks: tuple[tuple[str, str], ...] = ()  # labels of cases, and what a reader should know of them

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know, one line each: of all of it, then of each case."""
        return (*self.general, *(f"{case}: {line}" for case, line in self.remarks))

    @property
    def incomparable(self) -> tuple[str, ...]:
        """Labels of the cases that the base has and cannot do; of all where it has none of them."""
        none = len(self.lacking) == self.cases
        return tuple(label for label, (_, new) in self.lacking.items() if none or not new)

    def check_base(self, name: str) -> None:
        """Refuse a base that can do nothing of what was measured; `UserError`."""
        if self.lacking and len(self.lacking) == self.cases:
            label, (reason, _) = next(iter(self.lacking.items()))
            raise UserError(f"the base, {name}, can do none of the cases; {label}: {reason}", ExitCode.NOT_COMPARABLE)

    def open_cases(self, judgements: Iterable[Judgement]) -> tuple[tuple[str, ...], int]:
        """Return the incomparable cases, and how many figures stay open as nothing was measured of them: no share of
        inconclusive ones that is allowed covers these. What the settings only report is neither.
        """
        unjudged = {one.case for one in self.series if one.unjudged and one.decides}
        lines = [one for one in judgements if one.case in unjudged]
        reported = {one.case for one in lines if one.report_only}
        return tuple(case for case in self.incomparable if case not in reported), len(lines) - len(reported)


def measure(
    plan: MeasurementPlan,
    base: Checkout,
    head: Checkout,
    *,
    undecided: Callable[[Sequence[Series]], Collection[str]],
    slice_s: float = SLICE_S,
    shared: bool = False,
    **hooks: Unpack[Hooks],
) -> Measured:
    """Measure the cases of a plan until each is decided or the budget is spent.

    The plan says the cases, the seconds for each on average, all included (`budget`), the least rounds (`processes`),
    and whether and how the accuracy is compared. `undecided` is given all figures so far, and returns the labels of the
    cases that more rounds could still decide. `slice_s` is how long a case is set up again and again in a round.
    `shared`: others measure other cases, so that a base that can do none of these may be one all the same.

    Raises:
        UserError: a revision that does not start (exit code 3 for the base, 2 for the head), or that does not know the
            gate's protocol (3), a base that can do none of the cases (3), or a case that neither has (2).

    """
    rounds = Rounds(plan, base, head, slice_s=slice_s, **hooks)
    rounds.prepare()
    todo = list(plan.cases)
    while todo:
        rounds.once(todo)
        waiting = undecided(rounds.series())
        todo = rounds.budget.affords(
            case
            for case in todo
            if (known := rounds.cases[case]).open and (known.rounds < plan.processes or case.label in waiting)
        )
    found = Measured(
        tuple(rounds.series()),
        tuple(rounds.general_notes()),
        rounds.environment,
        max(known.rounds for known in rounds.cases.values()),
        {known.case.label: (known.missing, known.new) for known in rounds.cases.values() if known.missing},
        len(rounds.cases),
        tuple((known.case.label, line) for known in rounds.cases.values() for line in known.remarks()),
    )
    if base.project is None and not shared:
        found.check_base(base.name)
    return found


class Rounds:
    """Rounds of process pairs, and what they gave; arguments as `measure` has them.

    The self-test gives `slowdowns`, shares by which the head's backward pass is held back, interleaved, and `slice_s`,
    seconds of set-ups for a case in a round.
    """

    def __init__(
        self,
        plan: MeasurementPlan,
        base: Checkout,
        head: Checkout,
        *,
        slowdowns: Sequence[float] = (0.0,),
        slice_s: float = SLICE_S,
        progress: Callable[[GateProgress], None] = lambda _: None,
        start: StartRevision = start_revision,
        lock: DeviceLock = device_lock,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan = plan
        self._checkouts: dict[Side, Checkout] = {"base": base, "head": head}
        self._slowdowns, self._slice_s = tuple(slowdowns), slice_s
        self._progress, self._start, self._lock, self._now = progress, start, lock, now
        self._rng = random.Random(plan.seed)
        self._begun = now()
        self._round, self._left = 0, len(plan.cases)
        self.cases = {case: CaseRecords(case) for case in plan.cases}
        self.budget = CaseBudget(plan.budget * len(plan.cases), _process_of)
        self.environment: Mapping[str, Any] = {}
        self._borrowed: dict[Side, str] = {}

    def prepare(self) -> None:
        """Start both revisions once: what they compile and keep is there for all that follow, and costs no case."""
        for first in {isinstance(case, FunctionCase): case for case in reversed(self._plan.cases)}.values():
            with self._device(first), ExitStack() as stack:
                self._notify("preparing", None)
                self._processes(first, stack)

    def once(self, cases: Iterable[Measurable]) -> None:
        """Measure each of the cases in one more pair of fresh processes."""
        todo = list(cases)
        self._round, self._left = self._round + 1, len(todo)
        groups: dict[tuple[object, ...], list[Measurable]] = {}
        for case in self._rng.sample(todo, len(todo)):
            groups.setdefault(_process_of(case), []).append(case)
        for group in groups.values():
            rest = group
            while rest:
                rest = self._serve(rest)

    def series(self) -> list[Series]:
        """Return all figures so far; the pairs that a budget allows go by those that there were."""
        found = []
        for known in self.cases.values():
            most = self.budget.most_rounds(known.case)
            found += [replace(series, most=most) for series in known.series()]
        return found

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return self._now() - self._begun

    def general_notes(self) -> list[str]:
        """Return what a reader should know of all cases."""
        lines = [note for checkout in self._checkouts.values() for note in checkout.notes]
        return [*lines, *self._borrowed.values()]

    def _device(self, case: Measurable) -> AbstractContextManager[None]:
        """Have the device to ourselves: two runs side by side would each measure the other."""
        return self._lock(case.device, lambda _: self._notify("waiting", case))

    def _serve(self, group: list[Measurable]) -> list[Measurable]:
        """Measure the cases in one pair of processes; return those that are left over because one of the two died."""
        with ExitStack() as stack:
            with self._device(group[0]):
                begun = self._now()
                self._notify("starting", None)
                pool = self._processes(group[0], stack)
                self.budget.started(self._now() - begun)
            for index, case in enumerate(group):
                with self._device(case):
                    if self._lost(self.cases[case], pool):
                        return group[index + 1 :]
        return []

    def _lost(self, known: CaseRecords, pool: Pool[Side]) -> bool:
        """Measure a case; return whether that cost one of the processes. What it waited for the device is not its own.

        Where both sides failed, base's error counts, and it may be the head's process that is gone.
        """
        before = self._now()
        try:
            self._take(known, pool)
        except WorkerError as error:
            settle(known, error, pool, project=self._checkouts["base"].project is not None, warm_s=_WARM_S)
            return pool.lost or isinstance(error, WorkerDied)
        else:
            return False
        finally:
            known.rounds += 1
            self.budget.took(known.case, self._now() - before)

    def _processes(self, case: Measurable, stack: ExitStack) -> Pool[Side]:
        """Return a pair that has imported what takes seconds, each its own code, which speaks our protocol."""
        pool = stack.enter_context(process_pair(self._checkouts, case, self._start, self._rng))
        self.environment = greet(pool, self._checkouts, case)
        return pool

    def _take(self, known: CaseRecords, pool: Pool[Side]) -> None:
        """Take one slice of a case, and at the first time the figures that have no noise."""
        case = known.case
        self._notify("checking", case)
        setup = pool.ask_all(request(case, "setup"), case=case.changed())
        checks = {}
        for side in self._rng.sample(SIDES, 2):  # one after the other: loops are calibrated
            checks[side] = pool.ask(side, request(case, "check"), warm_s=_WARM_S)
            if (found := checks[side].get("check", PASSED)) != PASSED:
                raise WorkerFailed(f"its gradients are wrong: {found}", side, "check")
        if not known.records:
            check_origins(pool, self._checkouts)
            self._borrowed |= borrowed(pool, self._checkouts)
        phases, alone = timed_phases(setup)
        loops = loops_of(checks)
        known.loops = max(loops[side]["method"] for side in SIDES)
        slow = min(loops[side]["method"] for side in SIDES) == 1
        self._notify("measuring", case)
        interleaving = Interleaving(pool, loops, self._rng, again=request(case, "again"))
        taken = self._slice(interleaving, phases, fewest=1 if slow else _FEWEST, dense=sparsified(case))
        if not known.records:
            known.facts = exact_figures(case, pool, setup, operators=self._checkouts["head"].project is None)
            known.facts |= times_alone(interleaving, alone)
            known.notes = list(_remarks(setup, checks))
            self._compare_accuracies(known, pool)
        for slowdown, record in taken.items():
            known.records.setdefault(slowdown, []).append(record)

    def _compare_accuracies(self, known: CaseRecords, pool: Pool[Side]) -> None:
        case = known.case
        if isinstance(case, FunctionCase) or case.workload not in _LEARNING or "accuracy" not in self._plan.checks:
            return
        self._notify("training", case)
        try:
            known.accuracy, known.percent = accuracies(case, pool, self._plan)
        except WorkerRefused as refused:
            if refused.worker != "base":  # the base can do it
                raise
            known.notes.append(f"its accuracy is not compared: {refused}")

    def _slice(
        self, interleaving: Interleaving, phases: Sequence[str], *, fewest: int, dense: bool
    ) -> dict[float, PairRecord]:
        """Set the case up again and again for a slice of time, and take neighbours with each slowdown.

        There are `fewest` of them for a set-up at least, and some of the `dense` side for the ratio to it.
        """
        taken: dict[float, list[list[Blocks]]] = {slowdown: [] for slowdown in self._slowdowns}
        besides: list[Blocks] = []
        begun, dense_s, setups, count = self._now(), 0.0, 0, fewest
        while (spent := self._now() - begun) < self._slice_s or (
            setups < _LEAST_SETUPS and spent < _MOST_SLICES * self._slice_s
        ):
            interleaving.again()
            before = self._now()
            for slowdown, blocks in interleaving.take("method", count, self._slowdowns).items():
                taken[slowdown].append(blocks)
            each_s = (self._now() - before) / count
            count = max(fewest, min(_MOST, int(_SETUP_S / max(each_s, 1e-6))))
            setups += 1
            if dense and dense_s <= _DENSE_SHARE * spent:
                before = self._now()
                besides += interleaving.take("baseline", 1)[0.0]
                dense_s += self._now() - before
        return {slowdown: record_of(setups, besides, phases) for slowdown, setups in taken.items()}

    def _notify(self, stage: str, case: Measurable | None) -> None:
        total = len(self._plan.cases)
        self._progress(GateProgress(stage, self._round, case, self._left, total, self.seconds, self.budget.total_s))


def _process_of(case: Measurable) -> tuple[object, ...]:
    """Return what a case's processes are started with."""
    return isinstance(case, FunctionCase), case.threads, case.device, case.allocator


def _remarks(setup: Mapping[Side, Mapping[str, Any]], checks: Mapping[Side, Mapping[str, Any]]) -> Iterator[str]:
    """Yield what a reader should know of a case, as both sides have it."""
    kernels = [setup[side].get("kernel") for side in SIDES]
    if kernels[0] != kernels[1]:
        yield f"the base runs the kernel {kernels[0]}, the head {kernels[1]}"
    if any(checks[side].get("changed") for side in SIDES):
        yield (
            "it changes its arguments, so that each call finds what the last one left: have setup make them with"
            " each-call = true, if that is not meant"
        )
    if not all(checks[side].get("traced", True) for side in SIDES):
        yield "its peak memory is not measured, as a call takes too long for that"
