"""Virtual time: how long a training takes on an idle machine, from a step that was measured once.

    seconds(n steps) = n · (step + batch + evaluation / evaluate_every)

The step is the paired one of `speedup`: dense and the arm interleaved in fresh processes, so that their ratio is known
to a few percent. What both sides spend besides, drawing a batch and evaluating, is measured once and the same for both:
it makes a method's gain smaller, and it counts.

So trainings can run side by side on a busy machine, and the same search gives the same answer again. What it leaves out
(caches that the evaluation cools, a processor that grows hot) a run by the real clock shows.

The honest opponent of an arm is dense training in the same seconds: `VirtualClock.opponent` says how many steps
these are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from meprop_bench.stats import Interval
from meprop_bench.tuning.arms import Arm, Layer

__all__ = ["Costs", "Timing", "VirtualClock", "of_schedule"]

_POINTS = 64
"""Of a schedule, between which the time is taken to be linear."""


@dataclass(frozen=True)
class Timing:
    """What was measured of one arm's step beside the dense one's; NaN everywhere, and `failed`, where nothing was."""

    speedup: Interval  # dense / arm, of interleaved pairs
    dense_s: float  # median of a dense step
    failed: str | None = None  # why there is none: a check that did not pass, a kernel that cannot do it
    unsure: bool = False  # whether that is only because the machine did something else
    case_id: str | None = None  # of the row with its raw values; None for one that follows from others
    baseline: str | None = None  # how the dense side was run, where that was chosen: "compiled, fused optimizer"
    compiled: bool = False  # whether it was compiled
    uncompiled_s: float | None = None  # seconds that there were to compile it, where they were too few

    @classmethod
    def without(cls, reason: str, *, unsure: bool = False) -> Self:
        """Return that of an arm that could not be timed, or computes something else."""
        return cls(Interval(math.nan, math.nan, math.nan), math.nan, reason, unsure)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object; what is not there is null."""
        figures = (self.speedup.estimate, self.speedup.low, self.speedup.high, self.dense_s)
        names = ("speedup", "low", "high", "dense_s")
        found: dict[str, Any] = {
            name: value if math.isfinite(value) else None for name, value in zip(names, figures, strict=True)
        }
        found |= {"failed": self.failed, "case_id": self.case_id, "baseline": self.baseline}
        found |= {"compiled": self.compiled, "uncompiled_s": self.uncompiled_s}
        return found | ({"unsure": True} if self.unsure else {})

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Return the timing of a JSON object; KeyError or TypeError for what is none."""
        if (failed := record["failed"]) is not None:
            return cls.without(failed, unsure=record.get("unsure", False))
        ratio = Interval.of(record["speedup"], record["low"], record["high"])
        names = ("dense_s", "case_id", "baseline", "compiled", "uncompiled_s")
        return cls(ratio, **{name: record[name] for name in names})


@dataclass(frozen=True)
class Costs:
    """What was measured of the task itself."""

    batch_s: float  # to draw a batch
    evaluation_s: float  # of the evaluations of an epoch
    per_epoch: int  # steps of an epoch
    whole: int  # steps of the whole training, as it was asked for
    layers: tuple[Layer, ...] = ()  # that can be converted
    step_s: float = 0.0  # of a dense step on one thread, from a few of them: a first guess; 0 if there is none

    @property
    def beside_s(self) -> float:
        """Seconds of each step that are not in the step."""
        return self.batch_s + self.evaluation_s / self.per_epoch

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Return the costs of a JSON object, which `dataclasses.asdict` makes."""
        return cls(**{**record, "layers": tuple(Layer(**layer) for layer in record["layers"])})


@dataclass(frozen=True)
class VirtualClock:
    """Tells virtual time."""

    dense_s: float  # of a dense step
    costs: Costs

    def step_s(self, speedup: float = 1.0) -> float:
        """Return the seconds of a step and what goes with it."""
        return self.dense_s / speedup + self.costs.beside_s

    def seconds(self, steps: int, speedup: float = 1.0) -> float:
        """Return the seconds of a training."""
        return steps * self.step_s(speedup)

    def steps(self, seconds: float, speedup: float = 1.0) -> int:
        """Return how many steps can be taken in these seconds; perhaps none."""
        return math.floor(seconds / self.step_s(speedup) * (1 + 1e-12))

    def opponent(self, steps: int, speedup: float) -> int:
        """Return the steps of dense training that take as long as so many of an arm, at least 1."""
        return max(1, round(steps * self.step_s(speedup) / self.step_s()))

    def gain(self, speedup: Interval) -> Interval:
        """Return how much faster training is, with all that goes with a step: nearer to 1 than the step alone."""
        return Interval(*(self.step_s() / self.step_s(each) for each in (speedup.estimate, speedup.low, speedup.high)))


def of_schedule(arm: Arm, timings: Mapping[Arm, Timing]) -> Timing | None:
    """Return the timing of an arm whose k moves, from those of its group whose k stays; None where these do not span
    its k.

    A step's time is taken as linear in k between two that were measured; the mean over the schedule is that of a
    training. So are the bounds, as if all errors were one: the interval is rather too wide.
    """
    assert arm.end is not None
    alike = {other: found for other, found in timings.items() if other.constant and other.group == arm.group}
    known = sorted(
        ((other.k, found) for other, found in alike.items() if found.failed is None), key=lambda each: each[0]
    )
    low, high = sorted((arm.k, arm.end))
    if len(known) < 2 or known[0][0] > low or known[-1][0] < high or isinstance(arm.k, int):
        return None
    bounds = [(each.speedup.estimate, each.speedup.low, each.speedup.high) for _, each in known]
    ks = [float(k) for k, _ in known]
    means = []
    for side in range(3):
        times = [1 / each[side] for each in bounds]  # in dense steps
        at = [_between(ks, times, _k_at(arm, (point + 0.5) / _POINTS)) for point in range(_POINTS)]
        means.append(_POINTS / math.fsum(at))
    return replace(known[0][1], speedup=Interval(*means), case_id=None)


def _k_at(arm: Arm, time: float) -> float:
    assert arm.end is not None
    done = time if arm.shape == "linear" else (1 - math.cos(math.pi * time)) / 2
    return arm.k + (arm.end - arm.k) * done


def _between(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """Return y at x, linear between the two points around it."""
    place = next((i for i in range(1, len(xs)) if xs[i] >= x), len(xs) - 1)
    left, right = xs[place - 1], xs[place]
    return ys[place - 1] + (ys[place] - ys[place - 1]) * (x - left) / (right - left)
