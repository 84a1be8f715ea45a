"""Two revisions, measured against each other: pairs of fresh processes, each of which runs its own revision's code.

    round     a fresh process for base and one for head; in each, case by case: set up, check, then set-ups again
    set-up    both draw the case's memory anew, then some blocks of base and head, in turns and in random order; the two
              medians are one pair of values
    block     a few milliseconds of one case in one process: iterations that are not timed, then one value a phase
    again     rounds with the cases that are not decided yet, until there are none or their budgets are spent

What the machine does (frequency, neighbours) changes in seconds and cancels between two neighbouring blocks. Where the
memory lies does not: two processes with the same code differ by some percent, however often they are asked. Most of
that is not the process's, though. Six processes with three set-ups each, a layer of 784 x 500 at B = 50, two threads,
blocks in turns: medians of the backward pass spread by 4.4% (dense: 8.8%) between the set-ups of one process, and the
processes' means by 1.9% (dense: 5.2%), which is what three set-ups leave of 4.4%. So a case is set up anew many times
within a process, a few blocks each, which narrows the interval as new processes would, at a thirtieth of their price.
The pair of processes stays the unit of replication (its median log ratio over the set-ups is one value), since nothing
proves that a process has no part of its own.

Nothing of a revision is imported here: a worker is `python -P -m meprop_bench.sweep.worker` with the revision's folder
before everything else on Python's path, and says which folder its package came from. Both use this interpreter with
its torch, so what differs is the project's own code. Blocks of both processes alternate; torch's idle threads spin for
about a millisecond after a block, so the next one begins with a lead-in of more than that.

Faults cost their case alone. A worker that dies takes its round of the case along, and the others go on with a fresh
pair of processes; the second time, the case is given up. A case that base can do and head cannot (its check fails, it
raises, it dies) has failed; one that base cannot do is not comparable, and only noted.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.gate.series import Series
from meprop_bench.gate.worktree import PACKAGE, Checkout
from meprop_bench.measure.allocator import environment_of
from meprop_bench.measure.measurement import Measurement
from meprop_bench.measure.replicate import Worker, WorkerDied
from meprop_bench.results.schema import PASSED
from meprop_bench.stats import median
from meprop_bench.sweep.plan import Plan
from meprop_bench.sweep.worker import PROTOCOL
from meprop_bench.workloads.case import Case

__all__ = ["SLICE_S", "Measured", "Progress", "Record", "Rounds", "Tally", "measure", "start_worker"]

SLICE_S = 2.5
"""Seconds of set-ups for a case in a round; starting a pair of processes takes about as long on two cores."""

_LEAST_SETUPS = 3
_BLOCKS = 3
"""Of each side after a set-up: their median is far sharper than set-ups differ."""
_LEAD_S = 0.003
_WARM_S = 0.02

_DENSE_SHARE = 0.2
"""Of the time, for blocks of the dense side, of which the ratio sparse/dense needs a rough median only."""

_MOST_FAULTS = 2
_PATIENCE_S = 600.0

_TIMED = ("forward", "backward", "update", "step")
_RATIOS = ("backward", "step")

Side: TypeAlias = Literal["base", "head"]
_SIDES: tuple[Side, Side] = ("base", "head")
_Pair: TypeAlias = Mapping[Side, Mapping[str, Any]]
"""A block of each side, as the workers answered."""


class Asked(Protocol):
    """What is needed of a worker."""

    def request(self, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """Return the answer; raises `WorkerDied` when there is none."""

    def close(self) -> None:
        """End it."""


def start_worker(checkout: Checkout, case: Case) -> Asked:
    """Start a fresh process that runs the checkout's code, with a case's threads and allocator."""
    path = os.pathsep.join(filter(None, (str(checkout.folder), os.environ.get("PYTHONPATH"))))
    env = {
        **environment_of(case.allocator, case.threads),
        "PYTHONPATH": path,
        # It keeps bytecode by path and time of change, which are the same for every revision in a slot.
        "PYTHONPYCACHEPREFIX": None,
    }
    return Worker([sys.executable, "-P", "-m", f"{PACKAGE}.sweep.worker"], env)


@dataclass(frozen=True)
class Progress:
    """Where a comparison is.

    Attributes:
        stage: "preparing", "starting", "checking", "measuring" or "training".
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
class Record:
    """What one pair of processes gave for one case, under one injected slowdown (usually none).

    Attributes:
        pairs: phase -> for each set-up the medians (base, head) of the sparsified side, seconds.
        disturbed: after which set-ups the machine disturbed all blocks; None where nobody could tell. Where it
            disturbed some of them, the median is over the others.
        dense: phase -> the medians (base, head) of the dense side, seconds.

    """

    pairs: Mapping[str, tuple[tuple[float, float], ...]]
    disturbed: tuple[bool, ...] | None
    dense: Mapping[str, tuple[float, float]]


@dataclass
class Tally:
    """All that is known of one case.

    Attributes:
        records: slowdown -> its records, one for each pair of processes.
        loops: iterations behind a value.
        facts: figures without noise: (name, unit) -> (base, head).
        accuracy: one value for each seed, (base, head); None where nothing was trained.
        faults: side -> why its process died, each time.
        failure: why the head cannot do what the base does; empty if it can.
        missing: why the base cannot be compared with; empty if it can.
        spent_s: seconds spent on the case, its share of starting processes included.
        rounds: pairs of processes that were started for it.

    """

    case: Case
    records: dict[float, list[Record]] = field(default_factory=dict)
    loops: int = 1
    facts: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    accuracy: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    faults: dict[Side, list[str]] = field(default_factory=lambda: {"base": [], "head": []})
    failure: str = ""
    missing: str = ""
    spent_s: float = 0.0
    rounds: int = 0

    @property
    def open(self) -> bool:
        """Whether it can be measured on."""
        return not (self.failure or self.missing)

    def series(self, records: Sequence[Record] | None = None) -> list[Series]:
        """Return its figures.

        Args:
            records: others than those without a slowdown, for the self-test.

        """
        label = self.case.label
        if self.missing:
            return []
        if self.failure:
            return [
                Series(case=label, figure="correctness check", quantity="count", unit="1", failure=self.failure),
            ]
        records = self.records.get(0.0, []) if records is None else records
        found = _timed(label, records, self.loops) if records else []
        for (name, unit), (base, head) in self.facts.items():
            quantity: Any = "memory" if name.startswith("peak memory") else "count"
            found.append(Series(case=label, figure=name, quantity=quantity, unit=unit, base=(base,), head=(head,)))
        if self.accuracy is not None:
            base_values, head_values = self.accuracy
            found.append(
                Series(
                    case=label,
                    figure="accuracy",
                    quantity="accuracy",
                    unit="points",
                    base=base_values,
                    head=head_values,
                    own_processes=True,
                )
            )
        return found


def _timed(label: str, records: Sequence[Record], loops: int) -> list[Series]:
    found = []
    marks = None if any(r.disturbed is None for r in records) else tuple(r.disturbed or () for r in records)
    for phase in records[0].pairs:
        runs = tuple(record.pairs[phase] for record in records)
        judged = Measurement(phase, runs, loops, marks).judged_runs
        found.append(Series(case=label, figure=phase, quantity="time", unit="s", pairs=judged))
        if phase in _RATIOS and all(phase in record.dense for record in records):
            medians = [(median(b for b, _ in run), median(h for _, h in run)) for run in judged]
            ratios = tuple(
                ((base / record.dense[phase][0], head / record.dense[phase][1]),)
                for (base, head), record in zip(medians, records, strict=True)
            )
            found.append(Series(case=label, figure=f"sparse/dense {phase}", quantity="ratio", unit="1", pairs=ratios))
    return found


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
        now: wall seconds.

    Raises:
        UserError: a revision that does not start (exit code 3 for the base, 2 for the head), or that does not know the
            gate's protocol (3), or a base that can do none of the cases (3).

    """
    begun = now()
    rounds = Rounds(plan, base, head, progress=progress, start=start, now=now)
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


class _Fault(Exception):
    """One side could not do what it was asked; `fatal` says that its process is gone."""

    def __init__(self, side: Side, reason: str, *, fatal: bool) -> None:
        super().__init__(reason)
        self.side, self.reason, self.fatal = side, reason, fatal


class Rounds:
    """Rounds of process pairs, and what they gave.

    Args:
        plan: as `measure` has it.
        base: what is compared with.
        head: what is judged.
        slowdowns: shares by which the head's backward pass is held back, in turns; the self-test gives some.
        slice_s: seconds of pairs for a case in a round, for each slowdown.
        progress: told of each stage.
        start: starts a worker.
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
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan, self._checkouts = plan, {"base": base, "head": head}
        self._slowdowns, self._slice_s = tuple(slowdowns), slice_s
        self._progress, self._start, self._now = progress, start, now
        self._rng = random.Random(plan.seed)
        self._begun = now()
        self._round = 0
        self._left = len(plan.cases)
        self.tallies = {case: Tally(case) for case in plan.cases}
        self.environment: Mapping[str, Any] = {}

    def prepare(self) -> None:
        """Start both revisions once: what they compile and keep is there for all that follow, and costs no case."""
        first = self._plan.cases[0]
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
        return [series for tally in self.tallies.values() for series in tally.series()]

    def notes(self) -> list[str]:
        """Return what a reader should know."""
        lines = [note for checkout in self._checkouts.values() for note in checkout.notes]
        for tally in self.tallies.values():
            if tally.missing:
                lines.append(f"{tally.case.label}: not comparable, the base cannot do it: {tally.missing}")
            elif tally.open:
                lines += [
                    f"{tally.case.label}: a process of the {side} {reason}; another pair took its place"
                    for side, reasons in tally.faults.items()
                    for reason in reasons
                ]
        return lines

    def _serve(self, group: list[Case]) -> list[Case]:
        """Measure the cases in one pair of processes; return those that are left over because one of the two died."""
        begun = self._now()
        self._tell("starting", None)
        with self._workers(group[0]) as workers:
            self._greet(workers, group[0])
            started = (self._now() - begun) / len(group)
            for index, case in enumerate(group):
                tally, before = self.tallies[case], self._now()
                try:
                    self._take(tally, workers)
                    tally.rounds += 1
                except _Fault as fault:
                    tally.rounds += 1
                    _settle(tally, fault)
                    if fault.fatal:
                        return group[index + 1 :]
                finally:
                    tally.spent_s += started + self._now() - before
        return []

    @contextmanager
    def _workers(self, case: Case) -> Iterator[Mapping[Side, Asked]]:
        """Start a fresh process for each side, and end them whatever happens."""
        workers: dict[Side, Asked] = {}
        try:
            for side in _SIDES:
                workers[side] = self._start(self._checkouts[side], case)
            yield workers
        finally:
            for worker in workers.values():
                worker.close()

    def _greet(self, workers: Mapping[Side, Asked], case: Case) -> None:
        """Have both import what takes seconds, and see that each runs its own code and speaks our protocol."""
        try:
            answers = _ask_both(workers, {"do": "hello", "threads": case.threads, "device": case.device})
        except _Fault as fault:
            name = self._checkouts[fault.side].name
            raise UserError(
                f"the {fault.side}, {name}, does not start: {fault.reason}",
                ExitCode.NOT_COMPARABLE if fault.side == "base" else ExitCode.USAGE,
            ) from None
        for side in _SIDES:
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

    def _take(self, tally: Tally, workers: Mapping[Side, Asked]) -> None:
        """Take one slice of a case, and at the first time the figures that have no noise."""
        case = tally.case
        self._tell("checking", case)
        setup = _ask_both(workers, {"do": "setup", "case": case.to_json()})
        checks = {}
        for side in _SIDES:  # one after the other: loops are calibrated
            checks[side] = _ask(side, workers[side], {"do": "check", "warm_s": _WARM_S})
            if (found := checks[side]["check"]) != PASSED:
                raise _Fault(side, f"its gradients are wrong: {found}", fatal=False)
        phases = [
            phase for phase in setup["head"]["phases"] if phase in _TIMED and phase in setup["base"]["phases"]
        ] or [phase for phase in setup["head"]["phases"] if phase in setup["base"]["phases"]]
        dense_loops, tally.loops = (max(checks[side]["side_loops"][index] for side in _SIDES) for index in (0, 1))
        self._tell("measuring", case)
        taken = self._slice(workers, phases, tally.loops, dense_loops)
        if not tally.facts:
            tally.facts = self._facts(case, workers, setup)
            if case.workload == "mlp" and "accuracy" in self._plan.checks:
                tally.accuracy = self._accuracy(case, workers)
        for slowdown, record in taken.items():
            tally.records.setdefault(slowdown, []).append(record)

    def _slice(
        self, workers: Mapping[Side, Asked], phases: Sequence[str], loops: int, dense_loops: int
    ) -> dict[float, Record]:
        """Set the case up again and again for a slice of time, and take blocks with each slowdown, in turns."""
        taken: dict[float, list[list[_Pair]]] = {slowdown: [] for slowdown in self._slowdowns}
        dense: list[_Pair] = []
        begun, dense_s, setups = self._now(), 0.0, 0
        while (spent := self._now() - begun) < self._slice_s * len(self._slowdowns) or setups < _LEAST_SETUPS:
            _ask_both(workers, *({"do": "again", "seed": self._rng.getrandbits(32)} for _ in _SIDES))
            setups += 1
            blocks: dict[float, list[_Pair]] = {slowdown: [] for slowdown in self._slowdowns}
            for slowdown in self._rng.sample(self._slowdowns * _BLOCKS, _BLOCKS * len(self._slowdowns)):
                blocks[slowdown].append(self._pair(workers, "method", loops, slowdown))
            for slowdown, pairs in blocks.items():
                taken[slowdown].append(pairs)
            if dense_s <= _DENSE_SHARE * spent:
                before = self._now()
                dense.append(self._pair(workers, "baseline", dense_loops, 0.0))
                dense_s += self._now() - before
        return {slowdown: _record(setups, dense, phases) for slowdown, setups in taken.items()}

    def _pair(self, workers: Mapping[Side, Asked], which: str, loops: int, slowdown: float) -> _Pair:
        found: dict[Side, dict[str, Any]] = {}
        for side in self._rng.sample(_SIDES, 2):
            message: dict[str, Any] = {"do": "block", "side": which, "loops": loops, "lead_s": _LEAD_S}
            if slowdown and side == "head":
                message["slowdown"] = slowdown
            found[side] = _ask(side, workers[side], message)
        return found

    def _facts(
        self, case: Case, workers: Mapping[Side, Asked], setup: Mapping[Side, Mapping[str, Any]]
    ) -> dict[tuple[str, str], tuple[float, float]]:
        """Return the figures without noise that both sides have."""
        each: dict[Side, dict[tuple[str, str], float]] = {}
        for side in _SIDES:
            each[side] = found = {}
            for phase, (_, (flops, moved)) in setup[side]["costs"].items():
                found[f"flops {phase}", "1"] = flops
                found[f"bytes {phase}", "B"] = moved
            for phase, count in _ask(side, workers[side], {"do": "count"})["operators"].items():
                found[f"operators {phase}", "1"] = count
            for phase, (_, weight) in _ask(side, workers[side], {"do": "memory", "device": case.device})[
                "weights"
            ].items():
                found[f"peak memory {phase}", "B"] = weight["tensor_bytes"]
        return {key: (each["base"][key], value) for key, value in each["head"].items() if key in each["base"]}

    def _accuracy(self, case: Case, workers: Mapping[Side, Asked]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Train the sparsified side of both revisions from the same seeds; nothing is timed meanwhile."""
        self._tell("training", case)
        seeds = list(range(1, self._plan.accuracy_seeds + 1))
        message = {
            "do": "accuracy",
            "case": case.to_json(),
            "sparsified": True,
            "seeds": seeds,
            "steps": self._plan.accuracy_steps,
        }
        answers = _ask_both(workers, message)
        base, head = (tuple(float(dict(answers[side]["accuracies"])[seed]) for seed in seeds) for side in _SIDES)
        return base, head

    def _tell(self, stage: str, case: Case | None) -> None:
        total = len(self._plan.cases)
        self._progress(
            Progress(stage, self._round, case, self._left, total, self._now() - self._begun, self._plan.budget * total)
        )


def _settle(tally: Tally, fault: _Fault) -> None:
    """Decide what a fault means for its case."""
    if fault.fatal:
        tally.faults[fault.side].append(fault.reason)
        if len(tally.faults[fault.side]) < _MOST_FAULTS:
            return
    if fault.side == "base":
        tally.missing = fault.reason
    else:
        tally.failure = fault.reason


def _record(setups: Sequence[Sequence[_Pair]], dense: Sequence[_Pair], phases: Sequence[str]) -> Record:
    marks = [[_disturbed(pair) for pair in pairs] for pairs in setups]
    known = not any(mark is None for of_one in marks for mark in of_one)
    kept = [
        [pair for pair, mark in zip(pairs, of_one, strict=True) if not mark] or pairs
        for pairs, of_one in zip(setups, marks, strict=True)
    ]
    return Record(
        {phase: tuple(_medians(pairs, phase) for pairs in kept) for phase in phases},
        tuple(all(of_one) for of_one in marks) if known else None,
        {phase: _medians(dense, phase) for phase in phases},
    )


def _disturbed(pair: _Pair) -> bool | None:
    marks = [pair[side]["disturbed"] for side in _SIDES]
    return None if None in marks else any(marks)


def _medians(pairs: Sequence[_Pair], phase: str) -> tuple[float, float]:
    base, head = (median(pair[side]["values"][phase] for pair in pairs) for side in _SIDES)
    return base, head


def _ask(side: Side, worker: Asked, message: Mapping[str, Any]) -> dict[str, Any]:
    try:
        answer = worker.request(message, _PATIENCE_S)
    except WorkerDied as died:
        raise _Fault(side, died.reason, fatal=True) from None
    if "error" in answer:
        kind = "out of memory: " if answer.get("kind") == "out-of-memory" else ""
        raise _Fault(side, f"{kind}{answer['error']}", fatal=False)
    return answer


def _ask_both(workers: Mapping[Side, Asked], *messages: Mapping[str, Any]) -> dict[Side, dict[str, Any]]:
    """Ask both at once, the same or each its own; of two faults the base's counts."""
    pool = ThreadPoolExecutor(len(_SIDES))
    try:
        asked = {
            side: pool.submit(_ask, side, workers[side], messages[index % len(messages)])
            for index, side in enumerate(_SIDES)
        }
        return {side: asked[side].result() for side in _SIDES}
    finally:
        # Not waiting: after an interrupt the workers are closed next, and that is what ends the other request.
        pool.shutdown(wait=False, cancel_futures=True)
