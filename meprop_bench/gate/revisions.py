"""Two revisions, measured against each other: pairs of fresh processes, each of which runs its own revision's code.

    round     a fresh process for base and one for head; in each, case by case: set up, check, then set-ups again
    set-up    both draw the case's memory anew, then take some blocks in turns and in random order (`turns`); a block of
              base and the head's next to it are one pair of values
    block     a few milliseconds of one case in one process: one value a phase
    again     rounds with the cases that are not decided yet, until there are none or their budgets are spent

What the machine does (frequency, neighbours) cancels between two blocks next to each other, as far as it lasts longer
than they do. Where the memory lies, and on which core a thread runs, does not. So both processes are bound to the same
cores, thread by thread (`asking`), and a case is set up anew many times within a process. The pair of processes
stays the unit of replication: its median log ratio over all neighbours is one value. Some of what differs is the
process's own: medians over some 700 neighbours of the backward pass of a small layer spread by 2 to 4% between pairs of
processes, where the neighbours alone would leave 1 to 1.6%; those of the forward pass by 0.5%, as the neighbours would.

A revision is told of a case what differs from the defaults, so that an older one can be asked for all that it knows. A
figure that base has and head has no longer is shown without the head's, and `decide` cannot pass it.

The device is held while a case is measured (`measure.turn`), so that two runs do not measure each other. Against what
else the machine does there are turns, marks (`tally`) and, where all that is not enough, a note.

Faults cost their case alone. A worker that dies takes its round of the case along, and the others go on with a fresh
pair of processes; the second time, the case is given up. A case that base can do and head cannot (its check fails, it
raises, it dies) has failed; one that base cannot do is not comparable, and only noted.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.gate.asking import Fault, ask, ask_both, cores_of, start_worker
from meprop_bench.gate.case_records import SIDES, Blocks, CaseRecords, Record, Side, record_of
from meprop_bench.gate.facts import accuracies, exact_figures, timed_phases, times_alone
from meprop_bench.gate.series import Series
from meprop_bench.gate.turns import Turns
from meprop_bench.gate.worktree import PACKAGE, Checkout
from meprop_bench.measure.replicate import Asked
from meprop_bench.measure.turn import turn
from meprop_bench.results.schema import PASSED
from meprop_bench.sweep.plan import Plan
from meprop_bench.sweep.worker import PROTOCOL
from meprop_bench.workloads.case import Case

__all__ = ["SLICE_S", "Hold", "Measured", "Progress", "Rounds", "measure"]

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

Hold: TypeAlias = Callable[[str, Callable[[int | None], object]], AbstractContextManager[None]]
"""Keeps other runs from measuring on a device; told what to call before it waits, as `measure.turn.turn` is."""


@dataclass(frozen=True)
class Progress:
    """Where a comparison is.

    Attributes:
        stage: "waiting" (for another run to give the device back), "preparing", "starting", "checking", "measuring" or
            "training".
        round: from 1; 0 while preparing.
        case: the one in hand, or None.
        left: cases that are not decided yet.
        total: all cases.
        spent_s: seconds since the beginning.
        budget_s: seconds at most.

    """

    stage: str
    round: int
    case: Case | None
    left: int
    total: int
    spent_s: float
    budget_s: float


@dataclass(frozen=True)
class Measured:
    """What a comparison found.

    Attributes:
        series: the figures of all cases that can be compared.
        notes: what a reader should know, one line each.
        environment: the machine's, as the head's worker tells it.
        rounds: pairs of processes at most for a case.
        seconds: how long it took.

    """

    series: tuple[Series, ...]
    notes: tuple[str, ...]
    environment: Mapping[str, Any]
    rounds: int
    seconds: float


def measure(
    plan: Plan,
    base: Checkout,
    head: Checkout,
    *,
    undecided: Callable[[Sequence[Series]], Collection[str]],
    progress: Callable[[Progress], None] = lambda _: None,
    start: Callable[[Checkout, Case], Asked] = start_worker,
    hold: Hold = turn,
    now: Callable[[], float] = time.monotonic,
) -> Measured:
    """Measure the cases of a plan until each is decided or has spent its budget.

    Args:
        plan: the cases; `budget`, seconds for each, all included; `processes`, the least rounds; whether and how the
            accuracy is compared.
        base: what is compared with.
        head: what is judged.
        undecided: given all figures so far, the labels of the cases that more rounds could still decide.
        progress: told of each stage.
        start: starts a worker.
        hold: keeps other runs from measuring on a device.
        now: wall seconds.

    Raises:
        UserError: a revision that does not start (exit code 3 for the base, 2 for the head), or that does not know the
            gate's protocol (3), or a base that can do none of the cases (3).

    """
    begun = now()
    rounds = Rounds(plan, base, head, progress=progress, start=start, hold=hold, now=now)
    rounds.prepare()
    todo = list(plan.cases)
    while todo:
        rounds.once(todo)
        waiting = undecided(rounds.series())
        todo = [
            case
            for case in todo
            if (tally := rounds.tallies[case]).open
            and (tally.rounds < plan.processes or case.label in waiting)
            and tally.spent_s + tally.spent_s / tally.rounds <= plan.budget
        ]
    if all(tally.missing for tally in rounds.tallies.values()):
        first = next(iter(rounds.tallies.values()))
        raise UserError(
            f"the base, {base.name}, can do none of the cases; {first.case.label}: {first.missing}",
            ExitCode.NOT_COMPARABLE,
        )
    return Measured(
        tuple(rounds.series()),
        tuple(rounds.notes()),
        rounds.environment,
        max(tally.rounds for tally in rounds.tallies.values()),
        now() - begun,
    )


class Rounds:
    """Rounds of process pairs, and what they gave.

    Args:
        plan: as `measure` has it.
        base: what is compared with.
        head: what is judged.
        slowdowns: shares by which the head's backward pass is held back, in turns; the self-test gives some.
        slice_s: seconds of set-ups for a case in a round.
        progress: told of each stage.
        start: starts a worker.
        hold: keeps other runs from measuring on a device.
        now: wall seconds.

    """

    def __init__(
        self,
        plan: Plan,
        base: Checkout,
        head: Checkout,
        *,
        slowdowns: Sequence[float] = (0.0,),
        slice_s: float = SLICE_S,
        progress: Callable[[Progress], None] = lambda _: None,
        start: Callable[[Checkout, Case], Asked] = start_worker,
        hold: Hold = turn,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan, self._checkouts = plan, {"base": base, "head": head}
        self._slowdowns, self._slice_s = tuple(slowdowns), slice_s
        self._progress, self._start, self._hold, self._now = progress, start, hold, now
        self._rng = random.Random(plan.seed)
        self._begun = now()
        self._round = 0
        self._left = len(plan.cases)
        self.tallies = {case: CaseRecords(case) for case in plan.cases}
        self.environment: Mapping[str, Any] = {}

    def prepare(self) -> None:
        """Start both revisions once: what they compile and keep is there for all that follow, and costs no case."""
        first = self._plan.cases[0]
        with self._turn(first):
            self._tell("preparing", None)
            with self._workers(first) as workers:
                self._greet(workers, first)

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
        """Return all figures so far."""
        return [replace(series, most=self._most(tally)) for tally in self.tallies.values() for series in tally.series()]

    def _most(self, tally: CaseRecords) -> int:
        """Return the pairs of processes that a case's budget allows, going by those that there were."""
        return int(self._plan.budget * tally.rounds / tally.spent_s) if tally.spent_s > 0 else 0

    def notes(self) -> list[str]:
        """Return what a reader should know."""
        lines = [note for checkout in self._checkouts.values() for note in checkout.notes]
        return lines + [line for tally in self.tallies.values() for line in tally.remarks()]

    @contextmanager
    def _turn(self, case: Case) -> Iterator[None]:
        """Have the device to ourselves: two runs side by side would each measure the other."""
        with self._hold(case.device, lambda _: self._tell("waiting", case)):
            yield

    def _serve(self, group: list[Case]) -> list[Case]:
        """Measure the cases in one pair of processes; return those that are left over because one of the two died."""
        with ExitStack() as stack:
            with self._turn(group[0]):
                begun = self._now()
                self._tell("starting", None)
                workers = stack.enter_context(self._workers(group[0]))
                self._greet(workers, group[0])
                started = (self._now() - begun) / len(group)
            for index, case in enumerate(group):
                with self._turn(case):
                    if self._lost(self.tallies[case], workers, started):
                        return group[index + 1 :]
        return []

    def _lost(self, tally: CaseRecords, workers: Mapping[Side, Asked], started: float) -> bool:
        """Measure a case; return whether that cost one of the processes. What it waited for its turn is not its own."""
        before = self._now()
        try:
            self._take(tally, workers)
        except Fault as fault:
            _settle(tally, fault)
            return fault.fatal
        else:
            return False
        finally:
            tally.rounds += 1
            tally.spent_s += started + self._now() - before

    @contextmanager
    def _workers(self, case: Case) -> Iterator[Mapping[Side, Asked]]:
        """Start a fresh process for each side, and end them whatever happens."""
        workers: dict[Side, Asked] = {}
        try:
            # Who comes first finds another machine: more free memory in large pages, for one.
            for side in self._rng.sample(SIDES, 2):
                workers[side] = self._start(self._checkouts[side], case)
            yield workers
        finally:
            for worker in workers.values():
                worker.close()

    def _greet(self, workers: Mapping[Side, Asked], case: Case) -> None:
        """Have both import what takes seconds, and see that each runs its own code and speaks our protocol."""
        try:
            hello = {"do": "hello", "threads": case.threads, "device": case.device, "pin": bool(cores_of(case))}
            answers = ask_both(workers, hello)
        except Fault as fault:
            name = self._checkouts[fault.side].name
            raise UserError(
                f"the {fault.side}, {name}, does not start: {fault.reason}",
                ExitCode.NOT_COMPARABLE if fault.side == "base" else ExitCode.USAGE,
            ) from None
        for side in SIDES:
            answer, checkout = answers[side], self._checkouts[side]
            if (spoken := answer.get("protocol")) != PROTOCOL:
                knows = "no protocol of the gate" if spoken is None else f"protocol {spoken}, not {PROTOCOL}"
                raise UserError(
                    f"the {side}, {checkout.name}, cannot be compared: its worker knows {knows}; choose a revision"
                    f" that does",
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

    def _take(self, tally: CaseRecords, workers: Mapping[Side, Asked]) -> None:
        """Take one slice of a case, and at the first time the figures that have no noise."""
        case = tally.case
        self._tell("checking", case)
        setup = ask_both(workers, {"do": "setup", "case": case.told()})
        checks = {}
        for side in self._rng.sample(SIDES, 2):  # one after the other: loops are calibrated
            checks[side] = ask(side, workers[side], {"do": "check", "warm_s": _WARM_S})
            if (found := checks[side]["check"]) != PASSED:
                raise Fault(side, f"its gradients are wrong: {found}", fatal=False)
        phases, alone = timed_phases(setup)
        dense_loops, tally.loops = (max(checks[side]["side_loops"][index] for side in SIDES) for index in (0, 1))
        self._tell("measuring", case)
        turns = Turns(workers, {"baseline": dense_loops, "method": tally.loops}, self._rng)
        taken = self._slice(turns, phases)
        if not tally.facts:
            tally.facts = exact_figures(case, workers, setup) | times_alone(turns, alone)
            kernels = [setup[side].get("kernel") for side in SIDES]
            if kernels[0] != kernels[1]:
                tally.notes.append(f"the base runs the kernel {kernels[0]}, the head {kernels[1]}")
            if case.workload == "mlp" and "accuracy" in self._plan.checks:
                self._tell("training", case)
                tally.accuracy = accuracies(case, workers, self._plan)
        for slowdown, record in taken.items():
            tally.records.setdefault(slowdown, []).append(record)

    def _slice(self, turns: Turns, phases: Sequence[str]) -> dict[float, Record]:
        """Set the case up again and again for a slice of time, and take neighbours with each slowdown."""
        taken: dict[float, list[list[Blocks]]] = {slowdown: [] for slowdown in self._slowdowns}
        dense: list[Blocks] = []
        begun, dense_s, setups, count = self._now(), 0.0, 0, _FEWEST
        while (spent := self._now() - begun) < self._slice_s or setups < _LEAST_SETUPS:
            turns.again()
            before = self._now()
            for slowdown, blocks in turns.take("method", count, self._slowdowns).items():
                taken[slowdown].append(blocks)
            each_s = (self._now() - before) / count
            count = max(_FEWEST, min(_MOST, int(_SETUP_S / max(each_s, 1e-6))))
            setups += 1
            if dense_s <= _DENSE_SHARE * spent:
                before = self._now()
                dense += turns.take("baseline", 1)[0.0]
                dense_s += self._now() - before
        return {slowdown: record_of(setups, dense, phases) for slowdown, setups in taken.items()}

    def _tell(self, stage: str, case: Case | None) -> None:
        total = len(self._plan.cases)
        self._progress(
            Progress(stage, self._round, case, self._left, total, self._now() - self._begun, self._plan.budget * total)
        )


def _settle(tally: CaseRecords, fault: Fault) -> None:
    """Decide what a fault means for its case."""
    if fault.fatal:
        tally.faults[fault.side].append(fault.reason)
        if len(tally.faults[fault.side]) < _MOST_FAULTS:
            return
    if fault.side == "base":
        tally.missing = fault.reason
    else:
        tally.failure = fault.reason
