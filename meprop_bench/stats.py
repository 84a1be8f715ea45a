"""Statistics that survive a noisy machine: medians, paired ratios, intervals, verdicts.

The problem. Two timings of identical code differ by about 3% from one process to the next (memory layout, which pages
the kernel handed out, what the neighbours do), yet only by about 0.3% between two neighbouring values of one process.
Pooling all values as if they were independent therefore gives intervals that are ten times too narrow, and comparing
two blocks that ran one after the other cries wolf half of the time (reports/METHODOLOGY.md).

The estimator. Process i (a *run*) gives pairs (b_ij, m_ij) of baseline and method seconds, back to back in random
order:

    r_i = median_j log(b_ij / m_ij)         one figure for each process; outliers and slow drift cancel in the pair
    speedup = exp(mean_i r_i)
    interval = exp(mean_i r_i  ±  t(p-1) * sd_i(r_i) / sqrt(p))     p processes, Student's t with p - 1 degrees

The process is the unit of replication: more pairs sharpen r_i, only more processes narrow the interval. The
trade-off: two processes give honest but very wide intervals (t = 12.7); five to eight are the useful range. One
process gives no interval at all (its bounds are NaN, null in a report) rather than a wrong one.

Nothing here imports torch; `scipy.special` is loaded when a quantile is asked for (`scipy.stats` would cost seconds).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "Interval",
    "Verdict",
    "geometric_mean",
    "iqr",
    "mean_difference",
    "median",
    "non_inferiority",
    "paired_ratio",
]

Verdict = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence bounds, in one unit; NaN bounds say that there was nothing to judge by."""

    estimate: float
    low: float
    high: float

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


def median(values: Iterable[float]) -> float:
    """Return the middle value; ValueError when there is none."""
    ordered = list(values)
    if not ordered:
        raise ValueError("median of no values")
    return float(statistics.median(ordered))


def iqr(values: Iterable[float]) -> float:
    """Return the interquartile range, in the values' unit (linear interpolation, as numpy's); 0 for one value."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("interquartile range of no values")
    if len(ordered) == 1:
        return 0.0
    lower, _, upper = statistics.quantiles(ordered, n=4, method="inclusive")
    return float(upper - lower)


def geometric_mean(values: Iterable[float]) -> float:
    """Return the mean that fits ratios: 2x and 0.5x average to 1x. ValueError unless every value is positive."""
    ratios = list(values)
    if not ratios or not all(value > 0 for value in ratios):
        raise ValueError(f"the geometric mean needs positive values, got {ratios!r}")
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios))


def paired_ratio(runs: Sequence[Sequence[tuple[float, float]]], confidence: float = 0.95) -> Interval:
    """Return the speed-up baseline / method with its interval over processes.

    Args:
        runs: for each process its pairs `(baseline_s, method_s)`, both in seconds and positive.
        confidence: two-sided, in (0, 1).

    Raises:
        ValueError: no run, a run without pairs, or a time that is not positive and finite.

    """
    if not runs or not all(runs):
        raise ValueError("a ratio needs at least one run, and one pair in each run")
    logs = [median(_log_ratio(*pair) for pair in run) for run in runs]
    interval = _t_interval(logs, confidence)
    return Interval(math.exp(interval.estimate), math.exp(interval.low), math.exp(interval.high))


def mean_difference(pairs: Sequence[tuple[float, float]], confidence: float = 0.95) -> Interval:
    """Return the mean of method - baseline, in the values' unit, with its interval over the pairs.

    Args:
        pairs: `(baseline, method)`, one pair for each seed, which share that seed and its batches.
        confidence: two-sided, in (0, 1).

    """
    if not pairs:
        raise ValueError("a difference needs at least one pair")
    return _t_interval([method - baseline for baseline, method in pairs], confidence)


def non_inferiority(interval: Interval, margin: float) -> Verdict:
    """Judge a difference (higher is better) against a stated margin.

    "pass" when even the lower bound is above -margin, "fail" when even the upper bound is below it, else
    "inconclusive": absence of evidence passes nothing, and neither does an interval that does not exist.
    """
    if not (margin >= 0 and math.isfinite(margin)):
        raise ValueError(f"the margin is a number of at least 0, got {margin!r}")
    if interval.low > -margin:
        return "pass"
    if interval.high < -margin:
        return "fail"
    return "inconclusive"


def _log_ratio(baseline_s: float, method_s: float) -> float:
    if not (0 < baseline_s < math.inf and 0 < method_s < math.inf):
        raise ValueError(f"times are positive and finite seconds, got the pair {(baseline_s, method_s)!r}")
    return math.log(baseline_s) - math.log(method_s)


def _t_interval(values: Sequence[float], confidence: float) -> Interval:
    """Student's t interval for the mean of independent `values`."""
    if not 0 < confidence < 1:
        raise ValueError(f"the confidence lies between 0 and 1, got {confidence!r}")
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, math.nan, math.nan)
    from scipy.special import stdtrit

    half = float(stdtrit(count - 1, (1 + confidence) / 2)) * statistics.stdev(values, mean) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)
