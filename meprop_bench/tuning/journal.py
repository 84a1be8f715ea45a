"""What a search has found so far, in its results folder: a kill costs what was in hand, and nothing that was done.

    measurements.jsonl, environment.json    the timed steps, as every measurement is stored (`results.store`)
    trainings.jsonl                         a line for each training that is done
    tune.json                               what was settled on the way, and the seconds that were spent

A search is a function of these and of its arguments: run again, it takes what is here and goes on with what is not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from meprop_bench.errors import UserError
from meprop_bench.results.incoming import checked, parsed, refused
from meprop_bench.results.lines import Lines, append_lines, cut
from meprop_bench.results.store import replace_file
from meprop_bench.tuning.arms import Arm

__all__ = ["SETTLED", "TRAININGS", "Job", "Journal", "Trained", "line_of"]

TRAININGS, SETTLED = "trainings.jsonl", "tune.json"


@dataclass(frozen=True)
class Job:
    """A training: an arm, or dense (None), from one seed, so many steps long, its schedules fitted to them."""

    arm: Arm | None
    seed: int
    steps: int

    @property
    def label(self) -> str:
        """Its name on one line."""
        return f"{'dense' if self.arm is None else self.arm.label}, {self.steps} steps, seed {self.seed}"


@dataclass(frozen=True)
class Trained:
    """What came of a training."""

    figure: float | None  # the metric at its end, higher is better; None where there is none
    seconds: float  # that the training took, with all that belongs to it
    steps_s: float  # of these, those in steps
    failed: str | None = None  # why there is no figure

    def sound(self) -> Trained:
        """Return it with its figure, or, where that is not finite, with why there is none."""
        if self.figure is None or math.isfinite(self.figure):
            return self
        return replace(self, figure=None, failed=f"its metric became {self.figure}")


@dataclass
class _Line:
    seed: int
    steps: int
    figure: float | None
    seconds: float
    steps_s: float
    arm: dict[str, Any] | None = None
    failed: str | None = None


@dataclass
class _Settled:
    spent_s: float
    found: dict[str, Any]


class Journal:
    """Trainings by job, and what was settled; in a folder, which is read alone unless `write`, or in memory (None).

    Raises:
        UserError: a file is damaged, or cannot be written.

    """

    def __init__(self, folder: Path | None = None, *, write: bool = True) -> None:
        self.folder = folder if write else None
        self.trainings: dict[Job, Trained] = {}
        self.settled: dict[str, Any] = {}
        self.spent_s = 0.0
        if folder is not None:
            self._load(folder)

    def add(self, job: Job, trained: Trained) -> None:
        """Add a training; it is on the disk when this returns."""
        trained = trained.sound()
        self.trainings[job] = trained
        if self.folder is None:
            return
        append_lines(self.folder / TRAININGS, [line_of(job, trained)])

    def settle(self, **found: Any) -> None:
        """Add what was settled, anything that JSON has, by name."""
        self.settled |= found
        self.save()

    def save(self) -> None:
        """Write what was settled and the seconds spent."""
        if self.folder is not None:
            record = {"spent_s": round(self.spent_s, 3), "found": self.settled}
            replace_file(self.folder / SETTLED, json.dumps(record, indent=1, allow_nan=False) + "\n")

    def figure(self, arm: Arm | None, seed: int, steps: int) -> float | None:
        """Return the metric of a training that is done; None of one that is not, or failed."""
        found = self.trainings.get(Job(arm, seed, steps))
        return None if found is None else found.figure

    def dense(self, steps: int | None = None) -> list[float]:
        """Return the metrics of all dense trainings of so many steps, or of the longest that there are."""
        done: dict[int, list[float]] = {}
        for job, found in self.trainings.items():
            if job.arm is None and found.figure is not None:
                done.setdefault(job.steps, []).append(found.figure)
        return done.get(max(done, default=0) if steps is None else steps, [])

    def differences(self, arm: Arm, steps: int, seeds: tuple[int, ...], dense_steps: int | None = None) -> list[float]:
        """Return arm minus dense of each seed of which both are done.

        Dense has as many steps, unless it is said how many it has.
        """
        sides = (
            (self.figure(None, seed, steps if dense_steps is None else dense_steps), self.figure(arm, seed, steps))
            for seed in seeds
        )
        return [method - dense for dense, method in sides if dense is not None and method is not None]

    def failure(self, arm: Arm | None) -> str | None:
        """Return why a training of an arm failed; None if none has."""
        return next((done.failed for job, done in self.trainings.items() if job.arm == arm and done.failed), None)

    def _load(self, folder: Path) -> None:
        trainings, settled = folder / TRAININGS, folder / SETTLED
        if trainings.exists():
            stored = Lines(trainings)
            for number, line in enumerate(chain.from_iterable(stored), 1):
                where = f"{folder.name}/{TRAININGS} line {number}"
                job, trained = _sound(where, partial(_read, line))
                self.trainings[job] = trained
            if stored.torn and self.folder is not None:  # that training is done again
                cut(trainings, stored.size)
        if settled.exists():
            state = _sound(f"{folder.name}/{SETTLED}", lambda: checked(parsed(settled.read_bytes()), _Settled))
            self.spent_s, self.settled = state.spent_s, state.found


def line_of(job: Job, trained: Trained, **more: str) -> bytes:
    """Return the line of a training, with what else is said of it."""
    record: dict[str, Any] = {"seed": job.seed, "steps": job.steps, "figure": trained.figure}
    record |= {"seconds": round(trained.seconds, 4), "steps_s": round(trained.steps_s, 4)}
    if job.arm is not None:
        record["arm"] = job.arm.to_json()
    if trained.failed is not None:
        record["failed"] = trained.failed
    return json.dumps(record | more, allow_nan=False).encode()


def _read(line: bytes) -> tuple[Job, Trained]:
    found = checked(parsed(line), _Line)
    arm = None if found.arm is None else Arm.from_json(found.arm)
    return Job(arm, found.seed, found.steps), Trained(found.figure, found.seconds, found.steps_s, found.failed)


_Read = TypeVar("_Read")


def _sound(where: str, read: Callable[[], _Read]) -> _Read:
    try:
        return read()
    except (UserError, ValueError, TypeError) as error:
        raise refused(where, error, "delete the line, or the folder, and search again") from None
