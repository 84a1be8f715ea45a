"""Runs an experiment into its results folder: trainings side by side, then what is timed one by one, all saved at once.

    trainings   in worker processes of one thread each, as many as there are cores: a small model gains less from a
                second thread than a second model does. Seed by seed through all arms, so that an interrupted run has
                pairs to compare.
    cases       by `sweep.runner`, when no training is running: its processes have the machine to themselves.
    decodings   of what meSimp simplified, likewise: before and after, in interleaved pairs, by fresh processes that
                take turns.

A training that fails, or whose process dies, costs itself alone; it has a line that says why, and is tried again by the
next run. What is stored is never done again.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from meprop_bench.errors import UserError
from meprop_bench.measure.allocator import environment_of
from meprop_bench.measure.replicate import Asked, Worker, WorkerDied
from meprop_bench.measure.turn import turn
from meprop_bench.paper.decodings import Decoding, Decodings, sizes_of
from meprop_bench.paper.experiment import Arm, Experiment
from meprop_bench.paper.subjects import subject
from meprop_bench.paper.trainings import Trained, Trainings
from meprop_bench.results.axes import default_allocator
from meprop_bench.results.redact import one_line
from meprop_bench.results.store import Store, replace_file
from meprop_bench.sweep.deadline import Deadline
from meprop_bench.sweep.plan import Plan
from meprop_bench.sweep.team import CaseFailed, ask, ask_together

__all__ = [
    "COUNTS",
    "Step",
    "count_data",
    "decode_all",
    "missing",
    "plan_of",
    "slug",
    "start_worker",
    "take",
    "train_all",
]

COUNTS = "counts.json"

_PATIENCE_S = 24 * 3600.0
"""Seconds after which a silent training counts as hung: the largest of them at full scale takes hours."""


@dataclass(frozen=True)
class Step:
    """A training that is done, of so many, with the seconds that are left for the others."""

    done: int
    total: int
    arm: Arm
    trained: Trained
    left_s: float


def start_worker() -> Asked:
    """Start a process that trains on one thread."""
    argv = [sys.executable, "-m", "meprop_bench.paper.worker"]
    return Worker(argv, environment_of(default_allocator(), 1))


def missing(experiment: Experiment, trainings: Trainings) -> list[tuple[Arm, int]]:
    """Return what has to be trained yet, seed by seed through all arms."""
    return [
        (arm, seed)
        for seed in experiment.seeds
        for arm in experiment.distinct_arms
        if not trainings.done(arm.arm_id, seed)
    ]


def take(experiment: Experiment, store: Store, trainings: Trainings, known: Store) -> tuple[int, int]:
    """Take over what another results folder has of an experiment; return how many trainings, and how many timed cases.

    A training depends on its arm and its seed alone, so that tables which print the same row share it; decodings depend
    on the arm and its sizes, and go along.
    """
    wanted = [(arm.trained_alike, seed) for arm, seed in missing(experiment, trainings)]
    taken = trainings.take(Trainings(known.folder), wanted)
    environments = known.header["environments"]
    ids = {trained.environment_id for trained in taken}
    theirs, ours = Decodings(known.folder), Decodings(store.folder)
    for arm, sizes in _undecoded(experiment, trainings, ours):
        if (decoding := theirs.get(arm.arm_id, sizes)) is not None:
            ours.add(replace(decoding, origin=decoding.origin or known.folder.name))
            ids.add(decoding.environment_id)
    store.write_environment({each: environments[each] for each in ids & environments.keys()})
    return len(taken), store.take(known, [case.case_id for case in experiment.distinct_cases])


def train_all(
    experiment: Experiment,
    store: Store,
    trainings: Trainings,
    *,
    processes: int,
    device: str = "cpu",
    progress: Callable[[Step], None] = lambda _: None,
    start: Callable[[], Asked] = start_worker,
    now: Callable[[], float] = time.monotonic,
    deadline: Deadline | None = None,
) -> int:
    """Train what is missing, as far as a deadline lets it, and return how many trainings that left out.

    An interrupt passes through; what is done is in the folder.
    """
    todo = missing(experiment, trainings)
    if not todo:
        return 0
    crew = _Crew(experiment, store, trainings, todo, device, progress, start, now, deadline or Deadline())
    crew.run(min(processes, len(todo)))
    return crew.left_out


class _Crew:
    """Workers that share one queue, each driven by a thread of its own."""

    def __init__(
        self,
        experiment: Experiment,
        store: Store,
        trainings: Trainings,
        todo: Sequence[tuple[Arm, int]],
        device: str,
        progress: Callable[[Step], None],
        start: Callable[[], Asked],
        now: Callable[[], float],
        deadline: Deadline,
    ) -> None:
        self._store, self._trainings, self._device, self._deadline = store, trainings, device, deadline
        self.left_out = 0
        self._progress, self._start, self._now = progress, start, now
        self._todo = deque(todo)
        self._total = len(experiment.distinct_arms) * len(experiment.seeds)
        self._begun, self._done_now, self._first = now(), 0, len(todo)
        self._lock = threading.Lock()
        self._workers: list[Asked] = []
        self._failure: BaseException | None = None
        self._stopped = False

    def run(self, count: int) -> None:
        threads = [threading.Thread(target=self._drive, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():  # a join without a limit would not be interrupted on every platform
                    thread.join(0.2)
        finally:
            with self._lock:
                self._stopped = True
                self._todo.clear()
                workers = list(self._workers)
            for worker in workers:
                worker.close()
        if self._failure is not None:
            raise self._failure

    def _drive(self) -> None:
        try:
            worker: Asked | None = None
            while (task := self._next()) is not None:
                worker = worker or self._hired()
                if self._train(worker, *task):
                    continue
                worker.close()
                worker = None
            if worker is not None:
                worker.close()
        except BaseException as error:  # noqa: BLE001  it is raised again by the thread that waits
            with self._lock:
                self._failure = self._failure or error
                self._todo.clear()

    def _next(self) -> tuple[Arm, int] | None:
        with self._lock:
            if self._todo and not self._deadline.allows():
                self.left_out += len(self._todo)
                self._todo.clear()
            return self._todo.popleft() if self._todo else None

    def _hired(self) -> Asked:
        worker = self._start()
        with self._lock:
            self._workers.append(worker)
        try:
            told = worker.request({"do": "hello", "threads": 1, "device": self._device}, _PATIENCE_S)
        except WorkerDied as died:
            raise UserError(f"a training process {died.reason}") from None
        if "error" in told:
            raise UserError(one_line(str(told["error"])))
        with self._lock:
            self._store.write_environment({told["environment_id"]: told["environment"]})
        return worker

    def _train(self, worker: Asked, arm: Arm, seed: int) -> bool:
        """Train, and save what comes of it; False when the worker is dead."""
        alive, begun = True, self._now()
        try:
            asked = {"do": "train", "arm": arm.to_json(), "seed": seed, "device": self._device}
            answer = worker.request(asked, _PATIENCE_S)
        except WorkerDied as died:
            answer, alive = {"error": f"its process {died.reason}"}, False
        with self._lock:
            if not alive and self._stopped:
                return False  # closed by an interrupt: this training was not tried to its end
            failed = answer.get("error")
            trained = (
                Trained.from_json(answer)
                if failed is None
                else Trained(arm_id=arm.arm_id, seed=seed, error=one_line(str(failed)))
            )
            self._trainings.append(trained)
            self._deadline.took(self._now() - begun)
            self._done_now += 1
            left = self._first - self._done_now
            left_s = (self._now() - self._begun) / self._done_now * left
            self._progress(Step(self._total - left, self._total, arm, trained, left_s))
        return alive


def _undecoded(
    experiment: Experiment, trainings: Trainings, decodings: Decodings
) -> list[tuple[Arm, Mapping[str, int]]]:
    """Return the arms that meSimp has simplified, with their sizes, whose decoding is not timed yet."""
    simplified = [arm for arm in experiment.distinct_arms if arm.setting.method == "mesimp"]
    sizes = [(arm, sizes_of(trainings.of(arm.arm_id, experiment.seeds))) for arm in simplified]
    return [(arm, found) for arm, found in sizes if found and decodings.get(arm.arm_id, found) is None]


def decode_all(
    experiment: Experiment,
    store: Store,
    trainings: Trainings,
    *,
    device: str = "cpu",
    tell: Callable[[str], object] = lambda _: None,
    start: Callable[[], Asked] = start_worker,
    now: Callable[[], float] = time.monotonic,
    deadline: Deadline | None = None,
) -> None:
    """Time the decoding of what meSimp simplified, before and after; tell a line for each, and for what fails.

    Nothing else may be timed or trained meanwhile, so this is to be called when the trainings are over.
    """
    decodings, deadline = Decodings(store.folder), deadline or Deadline()
    for arm, sizes in _undecoded(experiment, trainings, decodings):
        if not deadline.allows():
            tell(f"the deadline left no time for the decoding of {arm.label}")
            continue
        begun = now()
        try:
            with turn(device):
                decoding = _decoding(experiment, store, arm, sizes, device, start)
        except (WorkerDied, CaseFailed) as failed:
            tell(f"the decoding of {arm.label} was not timed: {one_line(str(failed))}")
            continue
        finally:
            deadline.took(now() - begun)
        decodings.add(decoding)
        tell(f"decoding by {arm.label}: {decoding.speedup.estimate:.2f}x with {decoding.fewer:.1f}x fewer products")


def _decoding(
    experiment: Experiment,
    store: Store,
    arm: Arm,
    sizes: Mapping[str, int],
    device: str,
    start: Callable[[], Asked],
) -> Decoding:
    with ExitStack() as stack:
        workers = [start() for _ in range(experiment.processes)]
        for worker in workers:
            stack.callback(worker.close)
        told = ask_together(workers, [{"do": "hello", "threads": 1, "device": device}] * len(workers))
        store.write_environment({told[0]["environment_id"]: told[0]["environment"]})
        message = {"do": "cut", "arm": arm.to_json(), "sizes": dict(sizes), "device": device}
        before, after = ask_together(workers, [message] * len(workers))[0]["multiplications"]
        seconds = experiment.budget / len(workers)
        asked = [{"do": "decode", "seconds": seconds, "seed": seed} for seed in range(len(workers))]
        runs = [ask(worker, message)["pairs"] for worker, message in zip(workers, asked, strict=True)]
    pairs = tuple(tuple((b, a) for b, a in each) for each in runs)
    where = told[0]["environment_id"], told[0]["environment"].get("git_revision")
    return Decoding(arm.arm_id, sizes, (before, after), pairs, *where)


def plan_of(experiment: Experiment) -> Plan | None:
    """Return the sweep of the timed cases, or None without any."""
    if not experiment.distinct_cases:
        return None
    return Plan(
        name=slug(experiment),
        cases=experiment.distinct_cases,
        checks=("gradients",),
        budget=experiment.budget,
        processes=experiment.processes,
        keep_processes=experiment.scale == "smoke",
        utilization=False,
    )


def count_data(experiment: Experiment, store: Store, *, start: Callable[[], Asked] = start_worker) -> None:
    """Count the data of the parts that are about their sizes, and store that."""
    if not experiment.counted or (store.folder / COUNTS).exists():
        return
    counts: dict[str, Any] = {}
    worker = start()
    try:
        for part in experiment.table.parts:
            if part.name in experiment.counted and (source := subject(part.task).source) is not None:
                answer = worker.request({"do": "count", "source": source}, _PATIENCE_S)
                if "error" in answer:
                    raise UserError(one_line(str(answer["error"])))
                counts[part.task] = answer
    except WorkerDied as died:
        raise UserError(f"the process that counts {died.reason}") from None
    finally:
        worker.close()
    replace_file(store.folder / COUNTS, json.dumps(counts, indent=2) + "\n")


def slug(experiment: Experiment) -> str:
    """Return what its folder is called, behind date and machine."""
    return f"paper-{experiment.table.table_id.replace(':', '-')}-{experiment.scale}"
