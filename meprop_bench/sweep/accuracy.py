"""Does the accuracy hold? What every comparison with dense training is made of: in `speedup`, `parity` and the suites.

    trained(recipe, seeds)             the figure of each seed, trained here
    judged(task, pairs, margin, …)     the paired difference over seeds, its interval and its verdict

Both sides of a pair have the same seed, hence the same initial weights and batches. The figure is the papers': the
metric on the test set where the development set's was best. Of a training that is cut at so many steps it is the
development metric at its *end*, as the best of a few evaluations would favour the noisier side: a short run says
whether the method learns about as fast as dense training in the beginning, and not where both end up.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meprop_bench.results.metric import Of, QualityMetric
from meprop_bench.results.schema import WHOLE, Parity
from meprop_bench.stats import mean_difference, non_inferiority
from meprop_bench.tasks.build import is_model
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.workloads.case import Case, recipe_of

if TYPE_CHECKING:
    from meprop_bench.tasks.run import TrainingResult

__all__ = ["MARGIN", "OF_RANKS", "Accuracies", "SeedFigures", "figure", "figure_name", "judged", "trained"]

MARGIN = 0.5
"""Points that a method may lose and still pass, if nothing else is said; of a metric that is no percentage, percent of
dense's own figure."""
OF_RANKS = "its accuracy is that of one process, which computes what the ranks would"
"""What a reader has to know of a comparison for several ranks."""


@dataclass(frozen=True)
class SeedFigures:
    """What trainings from some seeds came to."""

    metric: str
    percent: bool  # whether they are percentages
    of: Mapping[int, float]  # seed -> its figure


Train = Callable[[bool], SeedFigures]
"""Trains one side of a case (`sparsified` or not)."""


def figure(recipe: Recipe, result: TrainingResult) -> float:
    """Return what is compared of a training."""
    return result.final_dev if _at_end(recipe) else result.test_at_best


def figure_name(recipe: Recipe, metric: str) -> str:
    """Return what `figure` is, in words."""
    of: Of = "own" if is_model(recipe.task) else "development" if _at_end(recipe) else "test"
    return QualityMetric(metric, of).text


def _at_end(recipe: Recipe) -> bool:
    """Whether the figure is that of the end: of what was cut there, and where there is no set apart to choose by."""
    return recipe.steps is not None or is_model(recipe.task)


def trained(recipe: Recipe, seeds: Sequence[int]) -> SeedFigures:
    """Train from each seed, in this process.

    Raises:
        UserError: the recipe does not fit its task: fewer steps, say, than meAct needs to fix its neurons and go on.

    """
    from meprop_bench.tasks.run import run

    task = recipe.load()
    found = {seed: figure(recipe, run(task, recipe, seed, at_end=_at_end(recipe))) for seed in seeds}
    return SeedFigures(task.metric, task.percent, found)


def judged(
    task: str,
    pairs: Mapping[int, tuple[float, float]],
    *,
    steps: int,
    metric: str,
    percent: bool = True,
    margin: float | None = None,
) -> Parity:
    """Return the comparison of a recipe with its dense side, over seed -> figures of dense and of it.

    The task is what was learnt, the steps are those of a training, the metric is what the figures are, `percent`
    whether these are percentages, the margin what may be lost of them: by default `MARGIN`.
    """
    difference = mean_difference(list(pairs.values()))
    baseline = tuple(dense for dense, _ in pairs.values())
    if margin is None:
        margin = MARGIN if percent else MARGIN / WHOLE * abs(math.fsum(baseline) / len(baseline))
    return Parity(
        task=task,
        metric=metric,
        percent=percent,
        seeds=tuple(pairs),
        steps=steps,
        baseline=baseline,
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
        self._trained: dict[str, SeedFigures] = {}

    def compare(self, case: Case, train: Train | None = None) -> Parity:
        """Return the comparison for a case, training only what has not been trained yet: here, if nobody else does."""
        recipe = recipe_of(case, self.steps)
        # The method first: it may be refused, and the dense side would have been trained for nothing.
        method, dense = self._of(recipe, train), self._of(recipe.dense(), train)
        pairs = {seed: (dense.of[seed], method.of[seed]) for seed in self.seeds}
        of_task = dense.metric == "accuracy" and dense.percent and not is_model(recipe.task)  # as stored rows have it
        metric = QualityMetric("accuracy", "sweep").text if of_task else figure_name(recipe, dense.metric)
        return judged(recipe.task, pairs, steps=self.steps, metric=metric, percent=dense.percent)

    def _of(self, recipe: Recipe, train: Train | None) -> SeedFigures:
        # Kernel and layout of the gradient change the cost of a training and, but for rounding, nothing of its result.
        key = json.dumps({**recipe.to_json(), "gradient": "", "kernel": ""}, sort_keys=True)
        if key not in self._trained:
            if train is None:
                self._trained[key] = trained(recipe, self.seeds)
            else:
                self._trained[key] = train(recipe != recipe.dense())
        return self._trained[key]
