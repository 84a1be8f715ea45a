"""Runs a plan: case by case in fresh processes, round by round until the interval is narrow enough. Of a case there is
a row for each phase, or one that says why there is none, saved at once.

    lock      no other run of this machine measures on the device meanwhile (`measure.lock`)
    start     the processes start together, import and set the case up side by side; nothing is timed meanwhile. The
              first time in a run one of them goes first, so that kernels are compiled once and found by the others
    baseline  where the best dense side is asked for, the first process finds it, alone; all others take the same one
    check     one after the other they check the case's gradients; one that fails is not timed at all
    rounds    the processes measure in random order; exactly one runs at any time, the others sleep in a system call
    stop      when every phase's interval is within the target, or the next round would overrun the case's budget
    last      one process, alone: its memory, and then the machine under a steady load (`measure.memory`,
              `measure.utilization`); neither falls into what was timed

The processes are the replicates: each draws its own memory layout, and the interval is over their medians, so that
more rounds sharpen each median and show drift, while the width has a limit that only more processes move. Stopping at
the first narrow interval makes intervals a little too narrow on average; at least `_LEAST_ROUNDS` rounds bound that.

With `keep_processes` the processes serve every case that shares device, threads and allocator, since starting five of
them takes ten seconds on two cores. They are still fresh for the sweep; what an earlier case left in their heaps is
the same for both sides.

A worker that dies or runs out of memory costs its case alone, which gets a row that says so; so does a case that its
kernel refuses or that does not fit into a GPU, and the processes go on with the next one. Cases that a deadline
leaves out have no row, so that a resumed run measures them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from meprop_bench.measure.lock import DeviceLock, device_lock, waiting_for
from meprop_bench.measure.machine import state
from meprop_bench.measure.notes import Note
from meprop_bench.measure.paired import Measurement
from meprop_bench.measure.peaks import PeaksCache
from meprop_bench.measure.pool import Pool
from meprop_bench.measure.worker import WorkerError, WorkerLike, WorkerOutOfMemory, WorkerRefused
from meprop_bench.results.axes import default_threads
from meprop_bench.results.schema import PASSED, Parity, Row
from meprop_bench.results.store import Store
from meprop_bench.sweep.accuracy import OF_RANKS, Accuracies, SeedFigures
from meprop_bench.sweep.deadline import Deadline
from meprop_bench.sweep.dense_sides import DenseSides
from meprop_bench.sweep.peaks import MachinePeaks
from meprop_bench.sweep.plan import Plan, process_of
from meprop_bench.sweep.rows import Answers, case_rows, failed_row, told_apart
from meprop_bench.sweep.worker import start_for
from meprop_bench.workloads.case import Case

__all__ = ["Runner", "SweepProgress", "usual_s"]

_LEAST_ROUNDS = 2
_SLICES = 6
"""Rounds that a budget is cut into: each process is spread over the whole time, and pauses stay rare."""

_WARM_S = 0.02
"""Seconds of single iterations before the loops are calibrated, for each side."""

_CHOICE = 1 / 20
"""Share of a case's budget for each comparison of two dense sides, before the first case of their work."""

_ACCURACY_S = 3600.0
"""Seconds after which a silent training counts as hung."""

_STEADY_S = 2.0
"""Seconds for which each side is watched: NVML's utilisation looks back up to 1 s."""


@dataclass(frozen=True)
class SweepProgress:
    """Where a run of a plan is."""

    done: int  # cases finished, those of an earlier run included
    total: int  # cases of the plan
    case: Case  # in hand
    stage: str  # it is in: "waiting for process 123" (another run), "starting", "compiling", "checking", ..., "done"
    half_widths: Mapping[str, float]  # phase -> relative half-width of its interval so far; empty at first
    left_s: float  # until the plan is done, estimated, or until the deadline
    rows: tuple[Row, ...] = ()  # of the case, once it is done
    waits: bool = False  # for another run, which measures on its device


class Runner:
    """One run of a plan into a results folder; cases that it holds already are left out.

    Args:
        plan: what to measure.
        store: where the rows go.
        progress: called at each stage.
        start: starts a process for a case.
        now: wall seconds.
        state: describes the machine's state, for a number of threads.
        lock: keeps other runs from measuring on a device.
        cache: the machine's peaks from earlier runs.
        deadline: by when it has to end; `left_out` then has the cases that it left no time for.
        dense_sides: those of another run, which this one continues.
        again: ids of cases that are measured although they have rows, which the new ones replace.

    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        *,
        progress: Callable[[SweepProgress], None] = lambda _: None,
        start: Callable[[Case], WorkerLike] = start_for,
        now: Callable[[], float] = time.monotonic,
        state: Callable[[int], Mapping[str, Any]] = state,
        lock: DeviceLock = device_lock,
        cache: PeaksCache | None = None,
        deadline: Deadline | None = None,
        dense_sides: DenseSides | None = None,
        again: Collection[str] = (),
    ) -> None:
        self._plan, self._store, self._progress, self._start, self._now = plan, store, progress, start, now
        self._state, self._lock, self._deadline, self._again = state, lock, deadline or Deadline(), again
        self.left_out: tuple[Case, ...] = ()
        self._compiled: set[str] = set()
        self._dense_sides = dense_sides or DenseSides(store, plan.budget * _CHOICE, random.Random(plan.seed))
        self._machine = MachinePeaks(cache, store=store)
        self._rng = random.Random(plan.seed)
        self._accuracies = Accuracies(plan.accuracy_seeds, plan.accuracy_steps)
        self._pool: Pool[int] | None = None
        self._pool_of: tuple[object, ...] = ()
        self._environment_id = "unknown"
        self._revision: str | None = None
        self._spent: list[float] = []
        self._done = 0

    def run(self) -> None:
        """Measure what is not measured yet. An interrupt passes through; what is done is in the store."""
        finished = self._store.done_case_ids().difference(self._again)
        todo = [case for case in self._plan.order if case.case_id not in finished]
        self._done = len(self._plan.cases) - len(todo)
        if todo:
            self._store.write_state(self._state(max(case.threads for case in todo)))
        try:
            for place, case in enumerate(todo):
                if (rows := self.measure(case)) is None:
                    self.left_out = tuple(todo[place:])
                    return
                self._store.append(rows)
                self._done += 1
                self._notify(case, "done", rows=tuple(rows))
        finally:
            self.close()

    def measure(self, case: Case) -> list[Row] | None:
        """Return the rows of one case, when its device is free, without storing them; None: no time is left for it.

        Processes that serve the next case, too, live until this is closed.
        """
        with self._lock(case.device, partial(self._wait, case)):
            if not self._deadline.allows():
                return None
            started = self._now()
            found = self._measured(case)
            taken_s = self._now() - started
        self._spent.append(taken_s)
        self._deadline.took(taken_s)
        return [replace(row, elapsed_s=taken_s, git_revision=self._revision) for row in found]

    def close(self) -> None:
        """End the processes; idempotent."""
        if self._pool is not None:
            pool, self._pool = self._pool, None
            pool.close()

    def _measured(self, case: Case) -> list[Row]:
        """Measure a case; a fault is a row. Its processes serve the next one where they are as they were."""
        try:
            return self._measure(case)
        except WorkerError as error:
            sound = isinstance(error, WorkerRefused) or (isinstance(error, WorkerOutOfMemory) and case.device != "cpu")
            if not sound or (self._pool is not None and self._pool.lost):
                self.close()
            return [failed_row(case, error.sentence("a measuring process"), self._environment_id)]
        finally:
            if not self._plan.keep_processes:
                self.close()

    def _measure(self, case: Case) -> list[Row]:
        self._notify(case, "starting")
        pool = self._processes(case)
        peaks = self._machine.of(case, self._environment_id, pool)
        at = partial(self._notify, case)
        chosen, untried = self._dense_sides.of(case, self._environment_id, pool, at)
        compiled = case.compile == "on" or bool(chosen and chosen.compiled)
        self._notify(case, "compiling" if compiled else "checking")
        # Whatever is compiled, the first one compiles for all.
        one_first = self._is_new(case.workload) or compiled
        wanted: dict[str, Any] = {"case": case.to_json(), "baseline": chosen and chosen.to_json()}
        setup, *_ = pool.ask_all("setup", one_first=one_first, **wanted).values()
        if compiled:
            self._notify(case, "checking")
        checks = pool.ask_each("check", warm_s=_WARM_S)
        if wrong := [check["check"] for check in checks if check["check"] != PASSED]:
            return [failed_row(case, None, self._environment_id, check=wrong[0])]
        measurements, notes = self._rounds(case, pool, setup["phases"], max(check["loops"] for check in checks))
        peaks = self._machine.unbeaten(peaks, case, self._environment_id, pool, setup["costs"], measurements)
        measurements, hidden = told_apart(measurements)
        notes += hidden
        memory = pool.ask(0, "memory", device=case.device)["weights"]
        wire = pool.ask(0, "wire") if case.world_size > 1 else None
        parity = self._parity(case, pool)
        utilization = self._utilization(case, pool)
        notes += untried
        if self._plan.keep_processes:
            notes.insert(0, Note.of("shared-processes"))
        if isinstance(parity, str):
            notes.append(Note(parity))
        elif parity is not None and case.world_size > 1:
            notes.append(Note(OF_RANKS))
        return case_rows(
            case, setup, measurements, peaks=peaks, memory=memory, utilization=utilization,
            parity=parity if isinstance(parity, Parity) else None, environment_id=self._environment_id,
            target=self._plan.target, notes=notes, wire=wire,
        )  # fmt: skip

    def _rounds(
        self, case: Case, pool: Pool[int], phases: Sequence[str], loops: int
    ) -> tuple[list[Measurement], list[Note]]:
        """Return what was measured of each phase, and what the machine did meanwhile."""
        answers = Answers()
        slice_s = self._plan.budget / _SLICES / len(pool)
        started = self._now()
        rounds = 0
        while True:
            begun = self._now()
            for index in self._rng.sample(range(len(pool)), len(pool)):
                seed = self._rng.getrandbits(32)
                wanted = {"seconds": slice_s, "least_pairs": 1, "loops": loops, "seed": seed}
                answers.add(index, pool.ask(index, "measure", **wanted))
            rounds += 1
            found = [answers.measurement(phase, loops) for phase in phases]
            widths = {measurement.phase: measurement.speedup.half_width for measurement in found}
            now = self._now()
            self._notify(case, "measuring", widths, max(0.0, self._plan.budget - (now - started)))
            spent = now - started + (now - begun) > self._plan.budget
            if rounds >= _LEAST_ROUNDS and (
                spent or all(measurement.converged(self._plan.target) for measurement in found)
            ):
                return found, answers.notes

    def _parity(self, case: Case, pool: Pool[int]) -> Parity | str | None:
        """Compare the accuracies of what learns something, or say why not.

        Nothing is timed now, so the seeds train side by side, each on one thread.
        """
        wanted = "accuracy" in self._plan.checks or case.case_id in self._plan.compared
        if not (case.data or case.model) or not wanted:
            return None
        self._notify(case, "training")
        count = min(len(pool), default_threads()) if case.device == "cpu" else 1
        seeds = self._accuracies.seeds
        shares = {index: {"seeds": share} for index in range(count) if (share := seeds[index::count])}

        def train(sparsified: bool) -> SeedFigures:
            wanted: dict[str, Any] = {"case": case.to_json(), "sparsified": sparsified, "steps": self._accuracies.steps}
            answers = list(pool.ask_all("accuracy", each=shares, timeout=_ACCURACY_S, **wanted).values())
            found = {seed: float(value) for answer in answers for seed, value in answer["accuracies"]}
            return SeedFigures(answers[0]["metric"], answers[0]["percent"], found)

        try:
            return self._accuracies.compare(case, train)
        except WorkerRefused as refused:
            return f"its accuracy is not compared: {refused}"

    def _utilization(self, case: Case, pool: Pool[int]) -> Mapping[str, Any] | str:
        """Watch the machine under a steady load; what goes wrong costs these figures alone, and is returned instead."""
        if not self._plan.utilization and case.case_id not in self._plan.watched:
            return "not asked for (utilization is off)"
        if case.caches == "cold":
            return "a steady loop has warm caches"
        if case.world_size > 1:
            return "several processes are not watched"
        self._notify(case, "watching")
        try:
            return pool.ask(0, "utilization", device=case.device, seconds=_STEADY_S)
        except WorkerError as error:
            self.close()
            return error.sentence("the process that was watched")

    def _processes(self, case: Case) -> Pool[int]:
        """Return the processes for a case, all of them past their imports."""
        if self._pool is None or self._pool_of != process_of(case):
            self.close()
            self._pool, self._pool_of = Pool.of(partial(self._start, case), self._plan.processes), process_of(case)
            wanted: dict[str, Any] = {"threads": case.threads, "device": case.device, "pin": self._plan.pin}
            hello, *_ = self._pool.hello(one_first=self._is_new("imports"), **wanted).values()
            self._environment_id = hello["environment_id"]
            self._revision = hello["environment"].get("git_revision")
            self._store.write_environment({self._environment_id: hello["environment"]})
        return self._pool

    def _is_new(self, what: str) -> bool:
        """Whether this run meets something for the first time that may have to be compiled."""
        new = what not in self._compiled
        self._compiled.add(what)
        return new

    def _wait(self, case: Case, holder: int | None) -> None:
        self._notify(case, waiting_for(holder), waits=True)

    def _notify(
        self,
        case: Case,
        stage: str,
        half_widths: Mapping[str, float] | None = None,
        case_left_s: float | None = None,
        rows: tuple[Row, ...] = (),
        waits: bool = False,
    ) -> None:
        plan = self._plan
        after = len(plan.cases) - self._done - (stage != "done")
        usual = usual_s(plan, self._spent)
        own = 0.0 if stage == "done" else usual if case_left_s is None else case_left_s
        left_s = max(0.0, min(after * usual + own, self._deadline.left_s))
        found = SweepProgress(self._done, len(plan.cases), case, stage, half_widths or {}, left_s, rows, waits)
        self._progress(found)


def usual_s(plan: Plan, spent: Sequence[float]) -> float:
    """Return the seconds that a case takes: as those before it, and the first one as the plan says."""
    if spent:
        return sum(spent) / len(spent)
    return plan.budget + (2 if plan.keep_processes else 10) + (2 * _STEADY_S if plan.utilization else 0)
