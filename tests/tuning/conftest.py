"""A machine whose truths are known, with a clock of its own, for tests of searches."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest

from meprop_bench.stats import Interval
from meprop_bench.tuning.arms import Arm, Layer
from meprop_bench.tuning.budget import Budget
from meprop_bench.tuning.journal import Job, Trained
from meprop_bench.tuning.timing import Costs, Timing

DENSE_S = 0.01


class FakeMachine:
    """Arms are as fast and as good as two functions say; measuring and training move the clock."""

    def __init__(
        self,
        speed: Callable[[Arm], float],
        quality: Callable[[Arm | None, int], float],
        *,
        noise: float = 0.1,
        processes: int = 2,
        layers: tuple[Layer, ...] = (),
        batch_s: float = 0.0,
        whole: int = 1000,
        measure_s: float = 3.0,
    ) -> None:
        self.speed, self.quality, self.noise = speed, quality, noise
        self.processes, self.measure_s = processes, measure_s
        self._costs = Costs(batch_s, 0.0, 100, whole, layers)
        self.compiled = False  # the dense side
        self.uncompiled_s: float | None = None
        self.busy_s = 0.0  # until then no time says anything
        self.stages: dict[str, float] = {}
        self.salt = ""  # of the noise
        self.time = 0.0
        self.events = 0
        self.stop_at: int | None = None  # the event at which Ctrl-C is pressed
        self.trained: list[Job] = []
        self.stored: dict[Arm, Timing] = {}  # as a results folder has it

    def now(self) -> float:
        return self.time

    def _event(self) -> None:
        self.events += 1
        if self.events == self.stop_at:
            raise KeyboardInterrupt

    def costs(self) -> Costs:
        self._event()
        return self._costs

    def measure(self, arms: Sequence[Arm], budget: Budget) -> Mapping[Arm, Timing]:
        for arm in arms:
            if arm in self.stored and not self.stored[arm].unsure:
                continue
            if not budget.allows(self.measure_s):
                break
            self._event()
            self.time += self.measure_s
            speed = self.speed(arm)
            ratio = Interval(speed, speed * 0.98, speed * 1.02)
            timing = Timing(ratio, DENSE_S, compiled=self.compiled, uncompiled_s=self.uncompiled_s)
            if self.time < self.busy_s:
                self.stored[arm] = Timing.without("too uncertain (±120%)", unsure=True)
                continue
            self.stored[arm] = Timing.without("check failed: dW differs") if speed <= 0 else timing
        return {arm: self.stored[arm] for arm in arms if arm in self.stored}

    def train(self, jobs: Iterator[Job], budget: Budget) -> Iterator[tuple[Job, Trained]]:
        for job in jobs:
            seconds = 0.2 + job.steps * DENSE_S
            self._event()
            if budget.left_s < seconds / self.processes:  # cut off at the end of the budget
                self.time += budget.left_s
                return
            self.time += seconds / self.processes
            self.trained.append(job)
            yield job, Trained(self.figure(job), seconds, job.steps * DENSE_S)

    def figure(self, job: Job) -> float:
        rng = random.Random(f"{self.salt} {job.seed}")  # dense and arm share what their seed gives them
        shared = rng.gauss(0, 1)
        own = random.Random(f"{self.salt} {job.seed} {job.steps} {job.arm and job.arm.key}").gauss(0, self.noise)
        return self.quality(job.arm, job.steps) + shared + own


def learning(loss: Callable[[Arm], float], slope: float = 0.0) -> Callable[[Arm | None, int], float]:
    """Return qualities: dense learns with the steps by `slope` for each factor of two, an arm loses so much."""

    def quality(arm: Arm | None, steps: int) -> float:
        return 90 + slope * math.log2(steps) - (0.0 if arm is None else loss(arm))

    return quality


@pytest.fixture
def fake() -> type[FakeMachine]:
    return FakeMachine


@pytest.fixture
def learns() -> Callable[..., Callable[[Arm | None, int], float]]:
    return learning
