"""The rules by which anything is judged: many p-values at once, a difference against a margin, how many values do."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

from meprop_bench.stats import student
from meprop_bench.stats.estimates import Interval, clear_of

__all__ = ["LEVEL", "Verdict", "holm", "non_inferiority", "values_to_clear"]

Verdict = Literal["pass", "fail", "inconclusive"]

LEVEL = 0.05
"""Chance, two-sided, of calling different what is equal, in all that one report judges at once."""


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values, in the order given: reject where one is at most the level.

    A p-value that is NaN stays NaN, yet counts among those judged at once: leaving it out would lower the others'.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6
    (1979).
    """
    import numpy as np

    every = np.asarray(p_values, np.float64)
    unknown = np.isnan(every)
    if (wrong := every[~(unknown | ((every >= 0) & (every <= 1)))]).size:
        raise ValueError(f"a p-value lies between 0 and 1, got {float(wrong[0])!r}")
    order = np.argsort(every)[: every.size - int(unknown.sum())]  # NaN comes last
    steps = np.minimum(1.0, (every.size - np.arange(order.size)) * every[order])
    adjusted = np.full(every.size, math.nan)
    adjusted[order] = np.maximum.accumulate(steps)
    found: list[float] = adjusted.tolist()
    return found


def non_inferiority(interval: Interval, margin: float) -> Verdict:
    """Judge a difference (higher is better) against a stated margin.

    "pass" when even the lower bound is above -margin, "fail" when even the upper bound is below it, else
    "inconclusive": absence of evidence passes nothing, and neither does an interval that does not exist.
    """
    if not (margin >= 0 and math.isfinite(margin)):
        raise ValueError(f"the margin is a number of at least 0, got {margin!r}")
    lost, safe = clear_of(-interval.high, -interval.low, margin)
    return "fail" if lost else "pass" if safe else "inconclusive"


def values_to_clear(values: Sequence[float], bound: float, power: float = 0.8, most: int = 1000) -> int | None:
    """Return of how many independent values the 95% interval clears a bound with this probability.

    It is taken that mean and standard deviation stay what they are in these values. None: of more than `most`, or there
    is nothing to tell by (a single value, or none).

    Source: J. Cohen, "Statistical Power Analysis for the Behavioral Sciences" (1988), by two quantiles of Student's t.
    """
    if len(values) < 2:
        return None
    import numpy as np

    counts = np.arange(2, most + 1)
    quantiles = student.quantile(counts - 1, 0.975) + student.quantile(counts - 1, power)
    mean = math.fsum(values) / len(values)
    enough = quantiles * statistics.stdev(values, mean) < abs(mean - bound) * np.sqrt(counts)
    return int(counts[enough.argmax()]) if enough.any() else None
