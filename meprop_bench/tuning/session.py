"""What a search is asked, and who does its work: a question; a machine, a journal and a budget.

machine = Processes(...)                      times steps and trains (`processes`); a fake one in tests
session = Session(machine, Journal(folder), Budget(1200.0))
session.measure(arms, budget)                 -> session.timings
session.train(jobs, budget)                   -> session.journal
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from meprop_bench.durations import duration
from meprop_bench.errors import UserError
from meprop_bench.stats import LEVEL
from meprop_bench.tuning.arms import Arm
from meprop_bench.tuning.budget import Budget
from meprop_bench.tuning.halving import Pace
from meprop_bench.tuning.journal import Job, Journal, Trained
from meprop_bench.tuning.timing import Costs, Timing

__all__ = ["Machine", "Question", "Session"]

_TRIES = 4


@dataclass(frozen=True)
class Question:
    """What is asked; `UserError` for a margin, steps or seeds that are none."""

    arms: tuple[Arm, ...]
    margin: float | None = None  # that may be lost; None for `MARGIN` points, or percent of dense's figure
    metric: str = "accuracy"
    percent: bool = True  # whether it is a percentage
    steps: int | None = None  # of a training in full length; None for what the budget allows, at most the whole
    seeds: int | None = None  # of the last judgement; None for what the budget allows
    schedules: bool = True  # try a k that moves, too
    variants: bool = True  # try to leave small layers dense, and k by layer, too
    level: float = LEVEL  # chance of error of all verdicts together

    def __post_init__(self) -> None:
        if self.margin is not None and not 0 <= self.margin < math.inf:
            raise UserError(f"margin must be a number of at least 0, not {self.margin:g}")
        for name, least in (("steps", 1), ("seeds", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} must be at least {least}, not {value}")


class Machine(Protocol):
    """What a search has measured and trained for it."""

    processes: int
    """Trainings that run side by side."""

    @property
    def stages(self) -> Mapping[str, float]:
        """What has been waited for -> its seconds."""
        ...

    def costs(self) -> Costs:
        """Measure what a training takes besides its steps, and list the layers."""
        ...

    def measure(self, arms: Sequence[Arm], budget: Budget) -> Mapping[Arm, Timing]:
        """Time the steps of arms, those first that stand first; what would not be done in time is missing."""
        ...

    def train(self, jobs: Iterator[Job], budget: Budget) -> Iterator[tuple[Job, Trained]]:
        """Train side by side; a job is drawn when a process is free. What is not done when the budget ends is not
        given, and goes on another time.
        """
        ...


class Session:
    """A machine, a journal and a budget: timings and trainings that are stored as they come."""

    def __init__(
        self,
        machine: Machine,
        journal: Journal,
        budget: Budget,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.machine, self.journal, self.budget, self._progress = machine, journal, budget, progress
        self._before = journal.spent_s
        self.timings: dict[Arm, Timing] = {}
        self.left_out: dict[str, None] = {}

    @property
    def spent_s(self) -> float:
        """Seconds that were spent, in earlier runs, too."""
        return self._before + self.budget.spent_s

    @property
    def timed(self) -> int:
        """How many arms have a time that says something, or none for good."""
        return sum(not found.unsure for found in self.timings.values())

    def say(self, line: str) -> None:
        """Report where the search is."""
        self._progress(line)

    def save(self) -> None:
        """Write what was settled and spent."""
        self.journal.spent_s = self.spent_s
        self.journal.save()

    def costs(self) -> Costs:
        """Return what the task costs besides its steps, measured once."""
        stored = self.journal.settled.get("costs")
        if stored is None:
            found = self.machine.costs()
            self.journal.settle(costs=asdict(found))
            return found
        return Costs.from_json(stored)

    def measure(self, arms: Sequence[Arm], budget: Budget, *, wanted: bool = True) -> None:
        """Time these arms, as far as there is time, once more where that was too uncertain; those that are wanted are
        missed where there is no time.
        """
        todo = [arm for arm in dict.fromkeys(arms) if arm not in self.timings or self.timings[arm].unsure]
        if not todo:
            return
        self.timings |= self.machine.measure(todo, budget)
        self.save()
        for arm in todo if wanted else ():
            name = f"the step of {arm.label}"
            if arm in self.timings:
                self.left_out.pop(name, None)
            else:
                self.left_out[name] = None

    def insist(self, arms: Sequence[Arm], budget: Budget) -> None:
        """Time these arms some more times while there is no time of any arm."""
        for _ in range(_TRIES):
            if all(found.failed is not None for found in self.timings.values()):
                self.measure(arms, budget)

    def train(self, jobs: Sequence[Job], budget: Budget) -> None:
        """Train what is not trained yet, and nothing that would overrun the budget."""
        todo = [job for job in dict.fromkeys(jobs) if job not in self.journal.trainings]

        def those_in_time() -> Iterator[Job]:
            for job in todo:
                if not budget.allows(self._expected_s(job)):
                    return
                yield job

        for job, trained in self.machine.train(those_in_time(), budget):
            found = trained.sound()
            if job.arm is None and found.figure is None:  # not stored: it is tried again when the search goes on
                raise UserError(f"dense training failed: {found.failed}")
            self.journal.add(job, found)
            self.save()
            left = f" ({duration(self.budget.left_s)} left)" if math.isfinite(self.budget.left_s) else ""
            self.say(f"{job.label}: {found.failed or f'{found.figure:.4g}'}{left}")
        for job in jobs:
            if job in self.journal.trainings:
                self.left_out.pop(job.label, None)
            else:
                self.left_out[job.label] = None

    def pace(self) -> Pace | None:
        """Return how long trainings took so far; None where there was none."""
        all_done = self.journal.trainings.items()
        done = [(job.steps, found.steps_s, found.seconds) for job, found in all_done if found.failed is None]
        return Pace.of(done) if done else None

    def _expected_s(self, job: Job) -> float:
        pace = self.pace()
        return 0.0 if pace is None else pace.seconds(job.steps)
