"""Does the accuracy hold? What every comparison with dense training is made of: in `speedup`, `parity` and the suites.

    trained(recipe, seeds)             seed -> its figure, trained here
    judged(recipe, pairs, margin, …)   the paired difference over seeds, its interval and its verdict

Both sides of a pair have the same seed, hence the same initial weights and batches. The figure is the papers': the
metric on the test set where the development set's was best. Of a training that is cut at so many steps it is the
development metric at its *end*, as the best of a few evaluations would favour the noisier side: a short run says
whether the method learns about as fast as dense training in the beginning, and not where both end up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from meprop_bench.results.schema import Parity
from meprop_bench.stats import mean_difference, non_inferiority
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.workloads.case import Case, recipe_of

if TYPE_CHECKING:
    from meprop_bench.tasks.run import Result

__all__ = ["MARGIN", "Accuracies", "figure", "judged", "trained"]

MARGIN = 0.5
"""Points of the metric that a method may lose and still pass, if nothing else is said."""

Train = Callable[[bool], Mapping[int, float]]
"""Trains one side of a case (`sparsified` or not) and returns seed -> figure."""


def figure(recipe: Recipe, result: Result) -> float:
    """Return what is compared of a training, in percent."""
    return result.test_at_best if recipe.steps is None else result.final_dev


def trained(recipe: Recipe, seeds: Sequence[int]) -> dict[int, float]:
    """Train from each seed, in this process.

    Raises:
        UserError: the recipe does not fit its task: fewer steps, say, than meAct needs to fix its neurons and go on.

    """
    from meprop_bench.tasks.run import run

    task = recipe.load()
    return {seed: figure(recipe, run(task, recipe, seed)) for seed in seeds}


def judged(
    recipe: Recipe, pairs: Mapping[int, tuple[float, float]], *, steps: int, metric: str, margin: float = MARGIN
) -> Parity:
    """Return the comparison of a recipe with its dense side, over seed -> figures of dense and of it, in percent.

    The steps are those of a training, the metric is what the figures are, the margin the points that may be lost.
    """
    difference = mean_difference(list(pairs.values()))
    return Parity(
        task=recipe.task,
        metric=metric,
        seeds=tuple(pairs),
        steps=steps,
        baseline=tuple(dense for dense, _ in pairs.values()),
        method=tuple(sparse for _, sparse in pairs.values()),
        difference=difference.estimate,
        low=difference.low,
        high=difference.high,
        margin=margin,
        verdict=non_inferiority(difference, margin),
    )


class Accuracies:
    """What has been trained in a sweep, by so many seeds and steps: each distinct training once, the dense side for all
    methods that it fits.
    """

    def __init__(self, seeds: int, steps: int) -> None:
        self.seeds = tuple(range(1, seeds + 1))
        self.steps = steps
        self._trained: dict[str, Mapping[int, float]] = {}

    def compare(self, case: Case, train: Train | None = None) -> Parity:
        """Return the comparison for a case, training only what has not been trained yet: here, if nobody else does."""
        recipe = recipe_of(case, self.steps)
        # The method first: it may be refused, and the dense side would have been trained for nothing.
        sides = [self._of(each, train) for each in (recipe, recipe.dense())]
        pairs = {seed: (sides[1][seed], sides[0][seed]) for seed in self.seeds}
        return judged(recipe, pairs, steps=self.steps, metric="accuracy_percent")

    def _of(self, recipe: Recipe, train: Train | None) -> Mapping[int, float]:
        # Kernel and layout of the gradient change the cost of a training and, but for rounding, nothing of its result.
        key = json.dumps({**recipe.to_json(), "gradient": "", "kernel": ""}, sort_keys=True)
        if key not in self._trained:
            self._trained[key] = trained(recipe, self.seeds) if train is None else train(recipe != recipe.dense())
        return self._trained[key]
