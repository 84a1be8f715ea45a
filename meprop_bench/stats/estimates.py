"""Values with their error, and what Student's t makes of them: means with intervals, and p-values.

A speed-up's values are the medians of its processes, on the log scale (`process_medians`).
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Self

from meprop_bench.stats import student

__all__ = [
    "Alternative", "Estimate", "Interval", "Runs", "clear_of", "iqr", "mean_difference", "mean_interval", "median",
    "process_medians", "variance",
]  # fmt: skip

Alternative = Literal["differs", "below", "above"]

Runs = Sequence[Sequence[tuple[float, float]]]
"""For each process its pairs `(baseline_s, method_s)`, seconds."""

_LARGEST_LOG = math.log(sys.float_info.max)


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence bounds, in one unit; NaN bounds say that there was nothing to judge by."""

    estimate: float
    low: float
    high: float

    @classmethod
    def of(cls, estimate: float, low: float | None, high: float | None) -> Interval:
        """Return one whose bounds are None where there are none."""
        return cls(estimate, math.nan if low is None else low, math.nan if high is None else high)

    @property
    def half_width(self) -> float:
        """Half the interval, relative to the estimate (0.02 is ±2%); NaN without bounds, infinite around a zero."""
        half = (self.high - self.low) / 2
        if self.estimate == 0:
            return math.nan if math.isnan(half) else (0.0 if half == 0 else math.inf)
        return half / abs(self.estimate)

    @property
    def bounded(self) -> bool:
        """Whether there is an interval at all."""
        return not (math.isnan(self.low) or math.isnan(self.high))

    def significant(self, null: float = 1.0) -> bool | None:
        """Whether the interval leaves out `null` (1 for a ratio, 0 for a difference); None where there is none."""
        return any(clear_of(self.low, self.high, null)) if self.bounded else None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What Student's t makes intervals and p-values of; the standard error is NaN where nothing tells it."""

    value: float
    error: float
    degrees: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Return the mean of independent values, one for each process or seed; a single one has no error."""
        count = len(values)
        mean = math.fsum(values) / count
        if count == 1:
            return cls(mean, math.nan, 0)
        return cls(mean, math.sqrt(variance(values, mean) / count), count - 1)

    def interval(self, confidence: float) -> Interval:
        """Return it with two-sided bounds."""
        if not 0 < confidence < 1:
            raise ValueError(f"the confidence lies between 0 and 1, got {confidence!r}")
        if math.isnan(self.error):
            return Interval(self.value, math.nan, math.nan)
        half = _quantile(self.degrees, (1 + confidence) / 2) * self.error
        return Interval(self.value, self.value - half, self.value + half)

    def ratio(self, confidence: float = 0.95) -> Interval:
        """Return exp of it, with its bounds: of the log of a ratio, that ratio."""
        return _exponential(self.interval(confidence))

    def p_value(self, null: float = 0.0, alternative: Alternative = "differs") -> float:
        """Return the p-value of "it is `null`"; NaN without an error."""
        if math.isnan(self.error):
            return math.nan
        distance = self.value - null
        # Identical processes, as on a fake clock, leave no doubt.
        certain = math.copysign(math.inf, distance) if distance else 0.0
        t = distance / self.error if self.error > 0 else certain
        if alternative == "differs":
            return min(1.0, 2 * float(student.below(self.degrees, -abs(t))))
        return float(student.below(self.degrees, t if alternative == "below" else -t))


@lru_cache(maxsize=1024)
def _quantile(degrees: float, probability: float) -> float:
    return float(student.quantile(degrees, probability))


def process_medians(runs: Runs) -> list[float]:
    """Return r_i, the median of log(baseline / method) of each process.

    Raises `ValueError` for no run, a run without pairs, or a time that is not positive and finite.
    """
    if not runs or not all(runs):
        raise ValueError("a ratio needs at least one run, and one pair in each run")
    return [_median_log_ratio(run) for run in runs]


def _median_log_ratio(run: Sequence[tuple[float, float]]) -> float:
    """Return the median of log(baseline / method); only of the ratios in the middle a logarithm is taken."""
    ratios = sorted([one / other for one, other in run if 0 < one < math.inf > other > 0])
    if len(ratios) < len(run) or not 0 < ratios[0] <= ratios[-1] < math.inf:
        return median(_log_ratio(*pair) for pair in run)  # which refuses a pair, or has a ratio beyond any float
    half = len(ratios) // 2
    middle = math.log(ratios[half])
    return middle if len(ratios) % 2 else (math.log(ratios[half - 1]) + middle) / 2


def _log_ratio(baseline_s: float, method_s: float) -> float:
    if not (0 < baseline_s < math.inf and 0 < method_s < math.inf):
        raise ValueError(f"times are positive and finite seconds, got the pair {(baseline_s, method_s)!r}")
    return math.log(baseline_s) - math.log(method_s)


def clear_of(low: Any, high: Any, bound: Any) -> tuple[Any, Any]:
    """Return whether an interval lies wholly above a bound, and whether wholly below it; NaN does neither.

    All that is judged here is judged by this: an interval that holds the bound says neither. Of numbers, or of arrays.
    """
    return low > bound, high < bound


def median(values: Iterable[float]) -> float:
    """Return the middle value; ValueError when there is none."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("median of no values")
    half = len(ordered) // 2
    return float(ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2)


def iqr(values: Iterable[float]) -> float:
    """Return the interquartile range, in the values' unit (linear interpolation, as numpy's); 0 for one value."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("interquartile range of no values")
    if len(ordered) == 1:
        return 0.0
    lower, _, upper = statistics.quantiles(ordered, n=4, method="inclusive")
    return float(upper - lower)


def mean_difference(pairs: Sequence[tuple[float, float]], confidence: float = 0.95) -> Interval:
    """Return the mean of method - baseline, in the values' unit, over pairs `(baseline, method)`, one for each seed."""
    if not pairs:
        raise ValueError("a difference needs at least one pair")
    return mean_interval([method - baseline for baseline, method in pairs], confidence)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the mean of independent values, one for each process, with its interval, in their unit."""
    if not values:
        raise ValueError("a mean needs at least one value")
    return Estimate.of(values).interval(confidence)


def variance(values: Sequence[float], mean: float) -> float:
    """Return the variance of a sample, 0 where all its values are one (`statistics.variance` adds fractions up)."""
    if min(values) == max(values):
        return 0.0
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def _exponential(interval: Interval) -> Interval:
    return Interval(*map(_exp, (interval.estimate, interval.low, interval.high)))


def _exp(value: float) -> float:
    """As `math.exp`, but infinite where that overflows: two processes that disagree have intervals as wide as that."""
    return math.inf if value > _LARGEST_LOG else math.exp(value)
