"""Two revisions, measured against each other: pairs of fresh processes, each of which runs its own revision's code.

    round     a fresh process for base and one for head; in each, case by case: set up, check, then set-ups again
    set-up    both draw the case's memory anew, then take some blocks, interleaved and in random order (`processes`);
              a block of base and the head's next to it are one pair of values
    block     a few milliseconds of one case in one process: one value a phase
    again     rounds with the cases that are not decided yet, until there are none or their budgets are spent

What the machine does (frequency, neighbours) cancels between two blocks next to each other, as far as it lasts longer
than they do; what remains is marked, and noted (`case_records`). Where the memory lies, and on which core a thread
runs, does not cancel. So both processes are bound to the same cores, thread by thread (`processes`), and a case is set
up anew many times within a process. The pair of processes stays the unit of replication: its median log ratio over all
neighbours is one value. Some of what differs is the process's own: medians over some 700 neighbours of the backward
pass of a small layer spread by 2 to 4% between pairs of processes, where the neighbours alone would leave 1 to 1.6%;
those of the forward pass by 0.5%, as the neighbours would.

A revision gets of a case what differs from the defaults, so that an older one can be asked for all that it knows. A
figure that base has and head has no longer is shown without the head's, and `decide` cannot pass it.

Faults cost their case alone. A worker that dies takes its round of the case along, and the others go on with a fresh
pair of processes; the second time, the case is given up. A case that base can do and head cannot (its check fails, it
raises, it dies) has failed; one that base cannot do is not comparable, and only noted.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.gate.case_records import SIDES, Blocks, CaseRecords, Record, Side, record_of
from meprop_bench.gate.processes import (
    Interleaving,
    StartRevision,
    accuracies,
    cores_of,
    exact_figures,
    process_pair,
    start_revision,
    timed_phases,
    times_alone,
)
from meprop_bench.gate.series import Series
from meprop_bench.gate.worktree import PACKAGE, Checkout
from meprop_bench.measure.lock import DeviceLock, device_lock
from meprop_bench.measure.pool import Pool
from meprop_bench.measure.worker import WorkerDied, WorkerError, WorkerFailed, WorkerRefused
from meprop_bench.results.axes import OWN, TRANSFORMER
from meprop_bench.results.schema import PASSED
from meprop_bench.sweep.plan import Plan
from meprop_bench.sweep.worker import PROTOCOL
from meprop_bench.workloads.case import Case

__all__ = ["SLICE_S", "GateProgress", "Hooks", "Measured", "Rounds", "measure"]

SLICE_S = 2.5
"""Seconds of set-ups for a case in a round; starting a pair of processes takes about as long on two cores."""

_LEAST_SETUPS = 3
_SETUP_S = 0.1
"""Seconds for the blocks of one set-up; setting a small layer up takes a tenth of it."""
_FEWEST, _MOST = 3, 64
"""Neighbours of a set-up."""
_WARM_S = 0.02

_DENSE_SHARE = 0.2
"""Of the time, for blocks of the dense side, of which the ratio sparse/dense needs a rough median only."""

_MOST_FAULTS = 2

_LEARNING = ("mlp", TRANSFORMER, OWN)
"""Workloads whose accuracies are compared: short trainings of the others say little (their methods decide late)."""


@dataclass(frozen=True)
class GateProgress:
    """Where a comparison is."""

    stage: str  # "waiting" (for another run to give the device back), or what is done: "preparing", "starting", ...
    round: int  # from 1; 0 while preparing
    case: Case | None  # the one in hand
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
    notes: tuple[str, ...]  # what a reader should know, one line each
    environment: Mapping[str, Any]  # of the machine, as the head's worker tells it
    rounds: int  # pairs of processes at most for a case


def measure(
    plan: Plan,
    base: Checkout,
    head: Checkout,
    *,
    undecided: Callable[[Sequence[Series]], Collection[str]],
    **hooks: Unpack[Hooks],
) -> Measured:
    """Measure the cases of a plan until each is decided or has spent its budget.

    The plan says the cases, the seconds for each, all included (`budget`), the least rounds (`processes`), and whether
    and how the accuracy is compared. `undecided` is given all figures so far, and returns the labels of the cases that
    more rounds could still decide.

    Raises:
        UserError: a revision that does not start (exit code 3 for the base, 2 for the head), or that does not know the
            gate's protocol (3), or a base that can do none of the cases (3).

    """
    rounds = Rounds(plan, base, head, **hooks)
    rounds.prepare()
    todo = list(plan.cases)
    while todo:
        rounds.once(todo)
        waiting = undecided(rounds.series())
        todo = [
            case
            for case in todo
            if (known := rounds.cases[case]).open
            and (known.rounds < plan.processes or case.label in waiting)
            and known.spent_s + known.spent_s / known.rounds <= plan.budget
        ]
    if all(known.missing for known in rounds.cases.values()):
        first = next(iter(rounds.cases.values()))
        raise UserError(
            f"the base, {base.name}, can do none of the cases; {first.case.label}: {first.missing}",
            ExitCode.NOT_COMPARABLE,
        )
    return Measured(
        tuple(rounds.series()),
        tuple(rounds.notes()),
        rounds.environment,
        max(known.rounds for known in rounds.cases.values()),
    )


class Rounds:
    """Rounds of process pairs, and what they gave; arguments as `measure` has them.

    The self-test gives `slowdowns`, shares by which the head's backward pass is held back, interleaved, and `slice_s`,
    seconds of set-ups for a case in a round.
    """

    def __init__(
        self,
        plan: Plan,
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
        self.environment: Mapping[str, Any] = {}

    def prepare(self) -> None:
        """Start both revisions once: what they compile and keep is there for all that follow, and costs no case."""
        first = self._plan.cases[0]
        with self._device(first), ExitStack() as stack:
            self._notify("preparing", None)
            self._processes(first, stack)

    def once(self, cases: Iterable[Case]) -> None:
        """Measure each of the cases in one more pair of fresh processes."""
        todo = list(cases)
        self._round, self._left = self._round + 1, len(todo)
        groups: dict[tuple[object, ...], list[Case]] = {}
        for case in self._rng.sample(todo, len(todo)):
            groups.setdefault((case.threads, case.device, case.allocator), []).append(case)
        for group in groups.values():
            rest = group
            while rest:
                rest = self._serve(rest)

    def series(self) -> list[Series]:
        """Return all figures so far; the pairs that a budget allows go by those that there were."""
        found = []
        for known in self.cases.values():
            most = int(self._plan.budget * known.rounds / known.spent_s) if known.spent_s > 0 else 0
            found += [replace(series, most=most) for series in known.series()]
        return found

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return self._now() - self._begun

    def notes(self) -> list[str]:
        """Return what a reader should know."""
        lines = [note for checkout in self._checkouts.values() for note in checkout.notes]
        return lines + [line for known in self.cases.values() for line in known.remarks()]

    def _device(self, case: Case) -> AbstractContextManager[None]:
        """Have the device to ourselves: two runs side by side would each measure the other."""
        return self._lock(case.device, lambda _: self._notify("waiting", case))

    def _serve(self, group: list[Case]) -> list[Case]:
        """Measure the cases in one pair of processes; return those that are left over because one of the two died."""
        with ExitStack() as stack:
            with self._device(group[0]):
                begun = self._now()
                self._notify("starting", None)
                pool = self._processes(group[0], stack)
                started = (self._now() - begun) / len(group)
            for index, case in enumerate(group):
                with self._device(case):
                    if self._lost(self.cases[case], pool, started):
                        return group[index + 1 :]
        return []

    def _lost(self, known: CaseRecords, pool: Pool[Side], started: float) -> bool:
        """Measure a case; return whether that cost one of the processes. What it waited for the device is not its own.

        Where both sides failed, base's error counts, and it may be the head's process that is gone.
        """
        before = self._now()
        try:
            self._take(known, pool)
        except WorkerError as error:
            _settle(known, error)
            return pool.lost or isinstance(error, WorkerDied)
        else:
            return False
        finally:
            known.rounds += 1
            known.spent_s += started + self._now() - before

    def _processes(self, case: Case, stack: ExitStack) -> Pool[Side]:
        """Return a pair that has imported what takes seconds, each its own code, which speaks our protocol."""
        pool = stack.enter_context(process_pair(self._checkouts, case, self._start, self._rng))
        try:
            answers = pool.hello(threads=case.threads, device=case.device, pin=bool(cores_of(case)))
        except WorkerError as error:
            side: Side = error.worker
            raise UserError(
                f"the {side}, {self._checkouts[side].name}, does not start: {error}",
                ExitCode.NOT_COMPARABLE if side == "base" else ExitCode.USAGE,
            ) from None
        for side in SIDES:
            answer, checkout = answers[side], self._checkouts[side]
            if (spoken := answer.get("protocol")) != PROTOCOL:
                knows = "no protocol of the gate" if spoken is None else f"protocol {spoken}, not {PROTOCOL}"
                raise UserError(
                    f"the {side}, {checkout.name}, cannot be compared: its worker knows {knows}; choose a revision that"
                    " does",
                    ExitCode.NOT_COMPARABLE,
                )
            wanted, found = checkout.folder / PACKAGE, Path(answer["package"])
            if found.resolve() != wanted.resolve():
                raise UserError(
                    f"the {side}, {checkout.name}, ran the package in {found} instead of its own: unset what puts it"
                    " first on Python's path",
                    ExitCode.NOT_COMPARABLE,
                )
        self.environment = answers["head"]["environment"]
        return pool

    def _take(self, known: CaseRecords, pool: Pool[Side]) -> None:
        """Take one slice of a case, and at the first time the figures that have no noise."""
        case = known.case
        self._notify("checking", case)
        setup = pool.ask_all("setup", case=case.changed())
        checks = {}
        for side in self._rng.sample(SIDES, 2):  # one after the other: loops are calibrated
            checks[side] = pool.ask(side, "check", warm_s=_WARM_S)
            if (found := checks[side]["check"]) != PASSED:
                raise WorkerFailed(f"its gradients are wrong: {found}", side, "check")
        phases, alone = timed_phases(setup)
        dense_loops, known.loops = (max(checks[side]["side_loops"][index] for side in SIDES) for index in (0, 1))
        self._notify("measuring", case)
        interleaving = Interleaving(pool, {"baseline": dense_loops, "method": known.loops}, self._rng)
        taken = self._slice(interleaving, phases)
        if not known.facts:
            known.facts = exact_figures(case, pool, setup) | times_alone(interleaving, alone)
            kernels = [setup[side].get("kernel") for side in SIDES]
            if kernels[0] != kernels[1]:
                known.notes.append(f"the base runs the kernel {kernels[0]}, the head {kernels[1]}")
            if case.workload in _LEARNING and "accuracy" in self._plan.checks:
                self._notify("training", case)
                try:
                    known.accuracy, known.percent = accuracies(case, pool, self._plan)
                except WorkerRefused as refused:
                    if refused.worker != "base":  # the base can do it
                        raise
                    known.notes.append(f"its accuracy is not compared: {refused}")
        for slowdown, record in taken.items():
            known.records.setdefault(slowdown, []).append(record)

    def _slice(self, interleaving: Interleaving, phases: Sequence[str]) -> dict[float, Record]:
        """Set the case up again and again for a slice of time, and take neighbours with each slowdown."""
        taken: dict[float, list[list[Blocks]]] = {slowdown: [] for slowdown in self._slowdowns}
        dense: list[Blocks] = []
        begun, dense_s, setups, count = self._now(), 0.0, 0, _FEWEST
        while (spent := self._now() - begun) < self._slice_s or setups < _LEAST_SETUPS:
            interleaving.again()
            before = self._now()
            for slowdown, blocks in interleaving.take("method", count, self._slowdowns).items():
                taken[slowdown].append(blocks)
            each_s = (self._now() - before) / count
            count = max(_FEWEST, min(_MOST, int(_SETUP_S / max(each_s, 1e-6))))
            setups += 1
            if dense_s <= _DENSE_SHARE * spent:
                before = self._now()
                dense += interleaving.take("baseline", 1)[0.0]
                dense_s += self._now() - before
        return {slowdown: record_of(setups, dense, phases) for slowdown, setups in taken.items()}

    def _notify(self, stage: str, case: Case | None) -> None:
        total = len(self._plan.cases)
        budget_s = self._plan.budget * total
        self._progress(GateProgress(stage, self._round, case, self._left, total, self.seconds, budget_s))


def _settle(known: CaseRecords, error: WorkerError) -> None:
    """Decide what an error means for its case."""
    side: Side = error.worker
    if isinstance(error, WorkerDied):
        known.faults[side].append(error.reason)
        if len(known.faults[side]) < _MOST_FAULTS:
            return
    if side == "base":
        known.missing = str(error)
    else:
        known.failure = str(error)
