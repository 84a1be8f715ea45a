"""The accuracy comparison of a sweep: once for each distinct training, the dense side shared by all methods that it
fits.

Kernel, allocator, threads and the layout of the gradient change the cost of training and, but for rounding, nothing
of its result; so they are not part of what makes a training distinct.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from meprop_bench.results.schema import Parity
from meprop_bench.stats import mean_difference, non_inferiority
from meprop_bench.workloads.case import Case

__all__ = ["MARGIN", "Accuracies"]

MARGIN = 0.5
"""Points of accuracy that a method may lose and still pass."""

Train = Callable[[bool], Mapping[int, float]]
"""Trains one side (`sparsified` or not) and returns seed -> accuracy in percent."""


class Accuracies:
    """What has been trained in this sweep.

    Args:
        seeds: training runs of each side.
        steps: training steps of each.

    """

    def __init__(self, seeds: int, steps: int) -> None:
        self.seeds = tuple(range(1, seeds + 1))
        self.steps = steps
        self._trained: dict[tuple[Any, ...], list[float]] = {}

    def compare(self, case: Case, train: Train) -> Parity:
        """Return the comparison for a case, training only what has not been trained yet."""
        # The method first: it may be refused, and the dense side would have been trained for nothing.
        method, baseline = (self._of(case, sparsified, train) for sparsified in (True, False))
        difference = mean_difference(list(zip(baseline, method, strict=True)))
        assert case.data is not None
        return Parity(
            task=case.data,
            seeds=self.seeds,
            steps=self.steps,
            baseline=tuple(baseline),
            method=tuple(method),
            difference=difference.estimate,
            low=difference.low,
            high=difference.high,
            margin=MARGIN,
            verdict=non_inferiority(difference, MARGIN),
        )

    def _of(self, case: Case, sparsified: bool, train: Train) -> list[float]:
        key: tuple[Any, ...] = (case.data, case.batch, case.out_features, case.layers, case.optimizer, case.device)
        if sparsified:
            key += (case.method, case.k, case.rate, case.share)
        if key not in self._trained:
            found = train(sparsified)
            self._trained[key] = [found[seed] for seed in self.seeds]
        return self._trained[key]
