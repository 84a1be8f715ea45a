"""Schedules of k: how many neurons the backward pass selects, as a function of the training step.

    constant   k(t) = k
    linear     k(t) = start + (end - start) · t / steps                      0 ≤ t ≤ steps, and k(t) = end after that
    cosine     k(t) = end + (start - end) · (1 + cos(π t / steps)) / 2       flat at both ends

k is a count or a ratio, as everywhere, and so is every value of its schedule; counts are rounded half up. The papers
keep k constant. The trade-off: few neurons make steps cheap, many make them exact, and which of the two training needs
more may change as it goes on.

A schedule is a function of the step and has no state, so training is resumed by starting at a later step.
`KScheduler` puts the values into the layers of a model: one schedule for all, or one for each pattern of names. It
relies on what layers of `meprop_bench.nn` have in common, a `k` that may be set between steps, and on no class.
Setting k costs next to nothing. A compiled model compiles again when the k of a linear layer or a convolution changes
for the first time, and not at later changes (see `nn.sparsified`).

    scheduler = KScheduler(model, {"encoder.*": Linear(0.5, 0.06, steps=10_000), "*": Constant(0.06)})
    for step, batch in enumerate(stream):
        scheduler.start_step(step)
        ...
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from numbers import Integral
from typing import Any, Protocol, runtime_checkable

from torch import nn

from meprop_bench.ops import check_k

__all__ = ["Constant", "Cosine", "HasK", "KScheduler", "Linear", "Schedule", "sparsified_layers"]


class Schedule(Protocol):
    """A function from the training step to k."""

    def __call__(self, step: int) -> float:
        """Return k for a step, counted from 0: an int >= 1, or a ratio in (0, 1]."""
        ...


@dataclass(frozen=True)
class Constant:
    """The same k in every step, a count or a ratio; ValueError for one that is neither."""

    k: float

    def __post_init__(self) -> None:
        check_k(self.k)

    def __call__(self, step: int) -> float:
        """Return k."""
        return self.k


@dataclass(frozen=True)
class _Transition(ABC):
    """From k = start at step 0 to k = end at step `steps`, and there from then on.

    ValueError for a k that is neither a count nor a ratio, for one of each, or for fewer steps than 1.
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        check_k(self.start)
        check_k(self.end)
        if isinstance(self.start, Integral) != isinstance(self.end, Integral):
            raise ValueError(
                f"start and end must both be counts (int) or both ratios (float), not {self.start!r} and {self.end!r}"
            )
        if isinstance(self.steps, bool) or not isinstance(self.steps, Integral) or self.steps < 1:
            raise ValueError(f"steps must be an int of at least 1, not {self.steps!r}")

    def __call__(self, step: int) -> float:
        """Return k for a step, counted from 0."""
        if step >= self.steps:
            return self.end
        k = self.start + (self.end - self.start) * self._progress(max(step, 0) / self.steps)
        return math.floor(k + 0.5) if isinstance(self.start, Integral) else k

    @abstractmethod
    def _progress(self, time: float) -> float:
        """Return how much of the way from start to end is done at a time in [0, 1)."""


class Linear(_Transition):
    """k moves from start to end by equal amounts."""

    def _progress(self, time: float) -> float:
        return time


class Cosine(_Transition):
    """k moves from start to end along half a cosine: slowly at both ends."""

    def _progress(self, time: float) -> float:
        return (1 - math.cos(math.pi * time)) / 2


@runtime_checkable
class HasK(Protocol):
    """What a layer with a sparsified backward pass shows: a k that may be set at any time, and `configure`."""

    k: float

    def configure(self, *, k: float) -> Any:
        """Set the method, of which k is a part."""
        ...


def sparsified_layers(model: nn.Module) -> dict[str, HasK]:
    """Return the layers of `model` that have a k, by qualified name, the first where there are several.

    ValueError if there is none.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, HasK)}
    if not layers:
        raise ValueError(f"no layer of {type(model).__name__} has a k: convert some with meprop_bench.nn.convert first")
    return layers


class KScheduler:
    """Sets k of a model's layers at each step.

    Args:
        model: any module; its layers with a k are looked up here, once.
        schedules: one schedule for all of them, or a mapping from patterns of qualified names to schedules. Patterns
            are those of shells (`encoder.*`, `*.lstm`, a name itself), `*` matches dots, too, and the first that
            matches a layer counts. A layer that none matches keeps its k.

    Raises:
        ValueError: no layer has a k, or a pattern decides for none (a misspelt name, or earlier patterns take all).

    """

    def __init__(self, model: nn.Module, schedules: Schedule | Mapping[str, Schedule]) -> None:
        if not isinstance(schedules, Mapping):
            schedules = {"*": schedules}
        layers = sparsified_layers(model)
        self.layers: dict[str, HasK] = {}
        """The layers under a schedule, by qualified name."""
        self.schedules: dict[str, Schedule] = {}
        """The schedule of each of them."""
        unused = set(schedules)
        for name, layer in layers.items():
            pattern = next((pattern for pattern in schedules if fnmatchcase(name, pattern)), None)
            if pattern is not None:
                unused.discard(pattern)
                self.layers[name] = layer
                self.schedules[name] = schedules[pattern]
        if unused:
            raise ValueError(
                f"no layer is left for the pattern {min(unused)!r}: the layers with a k are {', '.join(layers)}"
            )

    def start_step(self, step: int) -> None:
        """Set k of all layers under a schedule for a training step, counted from 0."""
        for name, layer in self.layers.items():
            layer.k = self.schedules[name](step)
