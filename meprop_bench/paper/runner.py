"""Runs an experiment into its results folder: trainings side by side, then what is timed one by one, all saved at once.

    trainings   in worker processes of one thread each, as many as there are cores: a small model gains less from a
                second thread than a second model does. Seed by seed through all arms, so that an interrupted run has
                pairs to compare.
    cases       by `sweep.runner`, when no training is running: its processes have the machine to themselves.
    decodings   of what meSimp simplified, likewise: before and after, in interleaved pairs, by one fresh process after
                the other.

A training that fails, or whose process dies, costs itself alone; it has a line that says why, and is tried again by the
next run. What is stored is never done again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.measure.allocator import environment_of
from meprop_bench.measure.lock import device_lock
from meprop_bench.measure.pool import Pool
from meprop_bench.measure.worker import WorkerError, WorkerLike, WorkerLost
from meprop_bench.paper.experiment import Experiment, PaperArm
from meprop_bench.paper.records import COUNTS, Decoding, Decodings, TrainedArm, Trainings, sizes_of
from meprop_bench.paper.shard import ALL, Assignment
from meprop_bench.paper.subjects import subject
from meprop_bench.results.axes import default_allocator
from meprop_bench.results.redact import one_line
from meprop_bench.results.store import Store, replace_file
from meprop_bench.sweep.deadline import Deadline
from meprop_bench.sweep.plan import Plan
from meprop_bench.sweep.worker import start_worker

__all__ = [
    "TrainingDone", "count_data", "decode_all", "missing", "plan_of", "slug", "start_training", "take", "train_all",
]  # fmt: skip

_PATIENCE_S = 24 * 3600.0
"""Seconds after which a silent training counts as hung: the largest of them at full scale takes hours."""


@dataclass(frozen=True)
class TrainingDone:
    """A training that is done, of so many, with the seconds that are left for the others."""

    done: int
    total: int
    arm: PaperArm
    trained: TrainedArm
    left_s: float


def start_training() -> WorkerLike:
    """Start a process of one thread."""
    return start_worker(environment_of(default_allocator(), 1))


def missing(experiment: Experiment, trainings: Trainings, own: Assignment = ALL) -> list[tuple[PaperArm, int]]:
    """Return what has to be trained here yet, seed by seed through all arms."""
    return [job for job in _trainings(experiment, own) if not trainings.done(job[0].arm_id, job[1])]


def _trainings(experiment: Experiment, own: Assignment) -> list[tuple[PaperArm, int]]:
    return [(arm, seed) for seed in experiment.seeds for arm in experiment.distinct_arms if own.trains(arm, seed)]


def take(
    experiment: Experiment, store: Store, trainings: Trainings, known: Store, own: Assignment = ALL
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Take over what another results folder has of an experiment; return how many trainings, of how many, and how many
    timed cases.

    A training depends on its arm and its seed alone, so that tables which print the same row share it; decodings depend
    on the arm and its sizes, and go along.
    """
    wanted = [(arm.trained_alike, seed) for arm, seed in missing(experiment, trainings, own)]
    taken = trainings.take(Trainings(known.folder), wanted)
    environments = known.header["environments"]
    ids = {trained.environment_id for trained in taken}
    theirs, ours = Decodings(known.folder), Decodings(store.folder)
    for arm, sizes in _undecoded(experiment, trainings, ours, own):
        if (decoding := theirs.get(arm.arm_id, sizes)) is not None:
            ours.add(replace(decoding, origin=decoding.origin or known.folder.name))
            ids.add(decoding.environment_id)
    store.write_environment({each: environments[each] for each in ids & environments.keys()})
    cases = [case.case_id for case in own.cases(experiment.distinct_cases)]
    return (len(taken), len(_trainings(experiment, own))), (store.take(known, cases), len(cases))


def train_all(
    experiment: Experiment,
    store: Store,
    trainings: Trainings,
    *,
    processes: int,
    device: str = "cpu",
    progress: Callable[[TrainingDone], None] = lambda _: None,
    start: Callable[[], WorkerLike] = start_training,
    now: Callable[[], float] = time.monotonic,
    deadline: Deadline | None = None,
    own: Assignment = ALL,
) -> int:
    """Train what is missing, as far as a deadline lets it, and return how many trainings that left out.

    An interrupt passes through; what is done is in the folder.
    """
    todo = missing(experiment, trainings, own)
    if not todo:
        return 0
    deadline, begun, begun_at = deadline or Deadline(), now(), dict[tuple[str, int], float]()
    total = len(_trainings(experiment, own))

    def jobs() -> Iterator[tuple[PaperArm, int]]:
        for job in todo:
            if not deadline.allows():
                return
            begun_at[job[0].arm_id, job[1]] = now()
            yield job

    def request(job: tuple[PaperArm, int]) -> tuple[str, Mapping[str, Any]]:
        arm, seed = job
        return "train_arm", {"arm": arm.to_json(), "seed": seed, "device": device}

    done = 0
    with Pool.of(start, min(processes, len(todo)), _PATIENCE_S) as pool:
        try:
            _hello(pool, store, device)
        except WorkerError as error:
            raise UserError(one_line(error.sentence("a training process"))) from None
        for (arm, seed), answer in pool.share(jobs(), request):
            if isinstance(answer, WorkerLost):
                gone = f"the machines that train are gone after {total - len(todo) + done} of {total} trainings"
                raise UserError(f"{gone}; continue with the same command and --resume", ExitCode.INTERRUPTED)
            if isinstance(answer, WorkerError):
                trained = TrainedArm(arm_id=arm.arm_id, seed=seed, error=one_line(answer.sentence("its process")))
            else:
                if (environment := answer.pop("environment", None)) is not None:  # it ran on another machine
                    store.write_environment({answer["environment_id"]: environment})
                trained = TrainedArm.from_json(answer)
            trainings.append(trained)
            deadline.took(now() - begun_at[arm.arm_id, seed])
            done += 1
            left = len(todo) - done
            progress(TrainingDone(total - left, total, arm, trained, (now() - begun) / done * left))
    return len(todo) - done


def _hello(pool: Pool[int], store: Store, device: str) -> Mapping[str, Any]:
    """Have processes of one thread import what takes seconds, and store where they are."""
    hello, *_ = pool.hello(threads=1, device=device, kernels=False).values()
    store.write_environment({hello["environment_id"]: hello["environment"]})
    return hello


def _undecoded(
    experiment: Experiment, trainings: Trainings, decodings: Decodings, own: Assignment
) -> list[tuple[PaperArm, Mapping[str, int]]]:
    """Return the arms that meSimp has simplified, with their sizes, whose decoding is not timed yet."""
    simplified = [arm for arm in experiment.distinct_arms if arm.setting.method == "mesimp" and own.decodes(arm)]
    sizes = [(arm, sizes_of(trainings.of(arm.arm_id, experiment.seeds))) for arm in simplified]
    return [(arm, found) for arm, found in sizes if found and decodings.get(arm.arm_id, found) is None]


def decode_all(
    experiment: Experiment,
    store: Store,
    trainings: Trainings,
    *,
    device: str = "cpu",
    tell: Callable[[str], object] = lambda _: None,
    start: Callable[[], WorkerLike] = start_training,
    now: Callable[[], float] = time.monotonic,
    deadline: Deadline | None = None,
    own: Assignment = ALL,
    do: Callable[..., tuple[Decoding, Mapping[str, Any]]] = lambda function, *arguments: function(*arguments),
) -> None:
    """Time the decoding of what meSimp simplified, before and after; tell a line for each, and for what fails.

    Nothing else may be timed or trained meanwhile, so this is to be called when the trainings are over. `do` calls a
    function with its arguments: here, or on another machine, which it has to itself.
    """
    decodings, deadline = Decodings(store.folder), deadline or Deadline()
    for arm, sizes in _undecoded(experiment, trainings, decodings, own):
        if not deadline.allows():
            tell(f"the deadline left no time for the decoding of {arm.label}")
            continue
        begun = now()
        try:
            work = arm, sizes, device, experiment.processes, experiment.budget, start
            decoding, environment = do(_decoded, *work)
        except WorkerError as error:
            tell(f"the decoding of {arm.label} was not timed: {one_line(str(error))}")
            continue
        finally:
            deadline.took(now() - begun)
        store.write_environment({decoding.environment_id: environment})
        decodings.add(decoding)
        tell(f"decoding by {arm.label}: {decoding.speedup.estimate:.2f}x with {decoding.fewer:.1f}x fewer products")


def _decoded(
    arm: PaperArm, sizes: Mapping[str, int], device: str, processes: int, budget: float, start: Callable[[], WorkerLike]
) -> tuple[Decoding, Mapping[str, Any]]:
    """Return the decoding of one arm cut to these sizes, timed here for so many seconds, and the environment."""
    with device_lock(device), Pool.of(start, processes) as pool:
        hello, *_ = pool.hello(threads=1, device=device, kernels=False).values()
        answers = pool.ask_all("cut", arm=arm.to_json(), sizes=dict(sizes), device=device)
        seconds = budget / len(pool)
        runs = [pool.ask(index, "decode", seconds=seconds, seed=index)["pairs"] for index in range(len(pool))]
    before, after = answers[0]["multiplications"]
    pairs = tuple(tuple((b, a) for b, a in each) for each in runs)
    environment = hello["environment"]
    where = hello["environment_id"], environment.get("git_revision")
    return Decoding(arm.arm_id, dict(sizes), (before, after), pairs, *where), environment


def plan_of(experiment: Experiment, own: Assignment = ALL) -> Plan | None:
    """Return the sweep of the timed cases, or None without any."""
    if not (cases := own.cases(experiment.distinct_cases)):
        return None
    return Plan(
        name=slug(experiment),
        cases=cases,
        checks=("gradients",),
        budget=experiment.budget,
        processes=experiment.processes,
        keep_processes=experiment.scale == "smoke",
        utilization=False,
    )


def count_data(experiment: Experiment, store: Store, *, own: Assignment = ALL) -> None:
    """Count the data of the parts that are about their sizes, and store that."""
    counted = [part for part in experiment.counted if own.counts(part)]
    if not counted or (store.folder / COUNTS).exists():
        return
    counts: dict[str, Any] = {}
    with Pool.of(start_training, 1, _PATIENCE_S) as pool:
        for part in experiment.table.parts:
            if part.name in counted and (source := subject(part.task).source) is not None:
                try:
                    counts[part.task] = pool.ask(0, "examples", source=source)
                except WorkerError as error:
                    raise UserError(one_line(error.sentence("the process that counts"))) from None
    replace_file(store.folder / COUNTS, json.dumps(counts, indent=2) + "\n")


def slug(experiment: Experiment) -> str:
    """Return what its folder is called, behind date and machine."""
    return f"paper-{experiment.table.table_id.replace(':', '-')}-{experiment.scale}"
