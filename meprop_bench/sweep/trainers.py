"""Processes that train side by side, each one training after the other, from checkpoints that a kill leaves behind.

    train    {recipe, seed, checkpoint}    ->  the figure (`sweep.accuracy`), what was trained, and what a reader should
                                               know of the data

A small model gains less from a second thread than two models do from a core each. The checkpoints of the trainings that
are in hand lie in the results folder, so that the next run goes on with them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from meprop_bench.errors import UserError
from meprop_bench.measure.pool import Pool
from meprop_bench.measure.worker import Message, WorkerError, WorkerLike
from meprop_bench.results.store import Store
from meprop_bench.sweep.accuracy import figure
from meprop_bench.sweep.worker import WorkerSession
from meprop_bench.tasks.recipe import Recipe

__all__ = ["Trainers", "TrainingJob"]

_LONGEST_S = 7 * 24 * 3600.0
"""Seconds after which a silent training counts as hung: a week, since only its owner knows how long it may take."""

Job = TypeVar("Job")


class TrainingJob(NamedTuple):
    """What to train; `name` tells its files from those of others."""

    recipe: Recipe
    seed: int
    name: str

    def files(self, store: Store) -> tuple[Path, Path]:
        """Return its checkpoint, and what says how much of it is done: they are there while it is in hand."""
        checkpoint = store.folder / "checkpoints" / f"{self.name}-{self.seed}.pt"
        return checkpoint, checkpoint.with_suffix(".progress")

    def share(self, store: Store) -> float:
        """Return how much of it is done, 0 where it has not begun: no process is ever waited for."""
        with suppress(OSError, ValueError):
            return float(self.files(store)[1].read_text())
        return 0.0

    def forget(self, store: Store) -> None:
        """Remove its files."""
        for path in self.files(store):
            path.unlink(missing_ok=True)


class Trainers:
    """The processes; close them (or use `with`).

    Args:
        start: starts one.
        count: how many of them, at least 1.
        store: the results folder.
        device, threads: of each training.

    Raises:
        UserError: none can be started, or there is no place for checkpoints.

    """

    def __init__(
        self, start: Callable[[], WorkerLike], count: int, store: Store, *, device: str, threads: int = 1
    ) -> None:
        self._store, self._folder = store, store.folder / "checkpoints"
        try:
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {self._folder}: {error.strerror}; choose another --out") from None
        self._pool = Pool.of(start, count, _LONGEST_S)
        try:
            self.hello, *_ = self._pool.hello(threads=threads, device=device, kernels=False).values()
        except BaseException as error:
            self.close()
            if not isinstance(error, WorkerError):
                raise
            raise UserError(f"nothing can be trained: {error.sentence('a training process')}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; what is in hand is left at its checkpoint."""
        self._pool.close()
        with suppress(OSError):
            self._folder.rmdir()

    def share(
        self, jobs: Iterator[Job], training: Callable[[Job], TrainingJob], idle: Callable[[], object]
    ) -> Iterator[tuple[Job, Message | WorkerError]]:
        """Train what jobs ask for, each by the process that is free; as `Pool.share`."""

        def request(job: Job) -> tuple[str, Mapping[str, Any]]:
            wanted = training(job)
            return "train", {
                "recipe": wanted.recipe.to_json(),
                "seed": wanted.seed,
                "checkpoint": str(wanted.files(self._store)[0]),
            }

        return self._pool.share(jobs, request, idle=idle)


def train(session: WorkerSession, recipe: Mapping[str, Any], seed: int, checkpoint: str) -> Mapping[str, Any]:
    """Answer a worker's request: train from one seed, or go on where the checkpoint is."""
    from meprop_bench.tasks.run import run

    wanted = Recipe(**recipe)
    key = json.dumps([wanted.task, dict(wanted.options), wanted.world_size])
    if session.loaded.keys() != {key}:
        session.loaded = {key: wanted.load()}  # one at a time: data are large
    task, path = session.loaded[key], Path(checkpoint)

    def note(found: Any) -> None:
        path.with_suffix(".progress").write_text(f"{found.step / found.steps:.4f}")

    found = run(task, wanted, seed, checkpoint=path, progress=note)
    return {
        "figure": figure(wanted, found),
        "metric": task.metric,
        "percent": task.percent,
        "steps": found.steps,
        "seconds": found.seconds,
        "options": dict(task.options),
        "data_published": task.data_published,
        "notes": list(task.notes),
    }
