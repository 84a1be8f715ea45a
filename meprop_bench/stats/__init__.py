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

The process is the unit of replication: more pairs sharpen r_i, only more processes narrow the interval. Two processes
give honest but very wide intervals (t = 12.7); five to eight are the useful range. One process gives no interval at
all (its bounds are NaN, null in a report) rather than a wrong one.

Two results that were measured apart share no pairs: their r_i are compared as independent samples, with the variance of
each (Welch, `independent_ratio`). What happened to the machine between the two is then in the difference of *times*,
and no interval knows of it; a change of the speed-up, a ratio within each, is nearly free of it.

Judging. Whatever is decided here or elsewhere (speed-ups, comparisons, the gate, parity) rests on three rules: an
interval lies clear of a bound or it does not (`clear_of`), Student's t of an `Estimate` gives intervals and p-values,
none of a single value, and many p-values at once go through Holm's step-down (`holm`), or every twentieth identical
case is a discovery. Over C cases the summary is the geometric mean, exp(mean_c mean_i r_ci), whose interval says how
well these C cases are measured, not how other cases would fare. "Not significant" is a result: that the interval holds
1, not that the two are equal.

Nothing here imports torch; `scipy.special` is loaded when a quantile is asked for (`scipy.stats` would cost seconds).
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Self

__all__ = [
    "CANNOT_TELL",
    "LEVEL",
    "Alternative",
    "Estimate",
    "Interval",
    "Runs",
    "Samples",
    "Verdict",
    "amdahl",
    "clear_of",
    "geometric_mean_ratio",
    "holm",
    "independent_estimate",
    "independent_p_value",
    "independent_ratio",
    "iqr",
    "mean_difference",
    "mean_interval",
    "mean_of_logs",
    "median",
    "non_inferiority",
    "paired_ratio",
    "plus_minus",
    "process_interval",
    "process_medians",
    "ratio_p_value",
    "spread_percent",
    "too_wide",
    "values_to_clear",
]

_LARGEST_LOG = math.log(sys.float_info.max)

Verdict = Literal["pass", "fail", "inconclusive"]
Alternative = Literal["differs", "below", "above"]

Runs = Sequence[Sequence[tuple[float, float]]]
"""For each process its pairs `(baseline_s, method_s)`, seconds."""

Samples = Sequence[Sequence[float]]
"""For each process its values, without pairs."""

LEVEL = 0.05
"""Chance, two-sided, of calling different what is equal, in all that one report judges at once."""

CANNOT_TELL = "cannot tell"
"""What stands for a figure whose interval is too wide for it to be one."""

_USEFUL = 2.0
"""Factor on either side of a ratio within which an interval leaves it a meaning: beyond, half or twice the figure is as
likely as the figure, and one would do as well to guess. A fourfold span decides nothing that anybody asks."""
_WIDEST = (_USEFUL - 1 / _USEFUL) / 2
"""The same as a relative half-width, ±75%: that of the interval [x / 2, 2 x]."""


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
        return cls(mean, math.sqrt(_variance(values, mean) / count), count - 1)

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
        from scipy.special import stdtr

        distance = self.value - null
        # Identical processes, as on a fake clock, leave no doubt.
        certain = math.copysign(math.inf, distance) if distance else 0.0
        t = distance / self.error if self.error > 0 else certain
        if alternative == "differs":
            return min(1.0, 2 * float(stdtr(self.degrees, -abs(t))))
        return float(stdtr(self.degrees, t if alternative == "below" else -t))


@lru_cache(maxsize=1024)
def _quantile(degrees: float, probability: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))


def clear_of(low: Any, high: Any, bound: Any) -> tuple[Any, Any]:
    """Return whether an interval lies wholly above a bound, and whether wholly below it; NaN does neither.

    All that is judged here is judged by this: an interval that holds the bound says neither. Of numbers, or of arrays.
    """
    return low > bound, high < bound


def too_wide(half_width: float | None) -> bool:
    """Whether a relative half-width (0.02 is ±2%) leaves a figure without a meaning; without an interval it is not."""
    return half_width is not None and half_width > _WIDEST  # NaN compares false


def amdahl(whole: float, part: float) -> float:
    """Return how many times as fast a whole is at most, however little this part of it takes (Amdahl's law)."""
    return whole / (whole - part) if part < whole else math.inf


def plus_minus(half_width: float, digits: str = ".1%") -> str:
    """Return a relative half-width as in `±2.0%`, or `cannot tell` where it is too wide."""
    return CANNOT_TELL if too_wide(half_width) else f"±{half_width:{digits}}"


def spread_percent(share: float) -> str:
    """Return a spread between ratios as in `12%`; beyond a fourfold one, how much it is says nothing any more."""
    most = _USEFUL**2 - 1
    return f"{share:.0%}" if share <= most else f"more than {most:.0%}"


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


def _ratio_estimate(runs: Runs) -> Estimate:
    """Return the log of the speed-up baseline / method; runs are as in `process_medians`."""
    return Estimate.of(process_medians(runs))


def paired_ratio(runs: Runs, confidence: float = 0.95) -> Interval:
    """Return the speed-up baseline / method with its two-sided interval; runs are as in `process_medians`."""
    return _ratio_estimate(runs).ratio(confidence)


def ratio_p_value(runs: Runs, bound: float = 1.0, alternative: Alternative = "differs") -> float:
    """Return the p-value of "the speed-up is `bound`", NaN for a single process; runs as in `paired_ratio`.

    A small one speaks for the alternative: the speed-up "differs" from the bound, or lies "below" it (1 - margin, to
    prove a slowdown beyond a margin) or "above" it.
    """
    if not 0 < bound < math.inf:
        raise ValueError(f"the bound of a ratio is positive and finite, got {bound!r}")
    return _ratio_estimate(runs).p_value(math.log(bound), alternative)


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


def geometric_mean_ratio(cases: Sequence[Runs], confidence: float = 0.95, *, same_processes: bool = False) -> Interval:
    """Return the geometric mean of the cases' speed-ups, with its two-sided interval over the processes.

    With `same_processes` the i-th run of every case came from the same process, so that their errors are not
    independent. Without it the cases' variances add up, with Welch's and Satterthwaite's degrees of freedom.
    """
    return mean_of_logs([process_medians(runs) for runs in cases], confidence, same_processes=same_processes)


def mean_of_logs(
    logs: Sequence[Sequence[float]], confidence: float = 0.95, *, same_processes: bool = False
) -> Interval:
    """Return what `geometric_mean_ratio` does, of cases whose `process_medians` are known already."""
    if not logs:
        raise ValueError("a geometric mean needs at least one case")
    if same_processes:
        return Estimate.of(_joint(logs)).ratio(confidence)
    mean = math.fsum(math.fsum(case) / len(case) for case in logs) / len(logs)
    return _welch(mean, logs, len(logs)).ratio(confidence)


def independent_ratio(
    cases: Sequence[tuple[Samples, Samples]], confidence: float = 0.95, *, same_processes: bool = False
) -> Interval:
    """Return the geometric mean over the cases of first / second, two samples without pairs, with its interval.

    A case has the values of both sides, process by process, all positive; with `same_processes` the i-th process of
    every case, within a side, is the same one.

    Raises:
        ValueError: no case, no process, a process without values, a value that is not positive and finite, or
            `same_processes` and cases that differ in their number.

    Source: B. L. Welch, "The generalization of Student's problem when several different population variances are
    involved", Biometrika 34 (1947).

    """
    return independent_estimate(cases, same_processes=same_processes).ratio(confidence)


def process_interval(samples: Samples, confidence: float = 0.95) -> Interval:
    """Return a typical value, exp of the mean of the processes' median logs, with its interval over the processes.

    Raises `ValueError` for no process, a process without values, or a value that is not positive and finite.
    """
    return Estimate.of(_log_medians(samples)).ratio(confidence)


def independent_p_value(first: Samples, second: Samples) -> float:
    """Return the two-sided p-value of "first / second is 1" (Welch); NaN where a side has a single process."""
    return independent_estimate([(first, second)]).p_value()


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
    from scipy.special import stdtrit

    counts = np.arange(2, most + 1)
    quantiles = stdtrit(counts - 1, 0.975) + stdtrit(counts - 1, power)
    mean = math.fsum(values) / len(values)
    enough = quantiles * statistics.stdev(values, mean) < abs(mean - bound) * np.sqrt(counts)
    return int(counts[enough.argmax()]) if enough.any() else None


def independent_estimate(cases: Sequence[tuple[Samples, Samples]], *, same_processes: bool = False) -> Estimate:
    """Return the mean log ratio over the cases; they are as in `independent_ratio`."""
    if not cases:
        raise ValueError("a ratio needs at least one case")
    sides = [[_log_medians(case[side]) for case in cases] for side in (0, 1)]
    mean = math.fsum(
        sign * math.fsum(logs) / len(logs) for sign, side in zip((1, -1), sides, strict=True) for logs in side
    ) / len(cases)
    if same_processes:
        return _welch(mean, [_joint(side) for side in sides], 1)
    return _welch(mean, [logs for side in sides for logs in side], len(cases))


def _joint(cases: Sequence[Sequence[float]]) -> list[float]:
    """Return one figure for each process, its mean over the cases, whose errors are not independent."""
    if len({len(case) for case in cases}) > 1:
        raise ValueError(f"the cases differ in their processes: {[len(case) for case in cases]}")
    return [math.fsum(of) / len(of) for of in zip(*cases, strict=True)]


def _welch(mean: float, samples: Sequence[Sequence[float]], parts: int) -> Estimate:
    """Return an estimate to which the mean of each of independent samples, divided by `parts`, adds its variance."""
    if min(map(len, samples)) == 1:
        return Estimate(mean, math.nan, 0)
    means = [math.fsum(values) / len(values) for values in samples]
    shares = [
        (_variance(values, own) / len(values) / parts**2, len(values) - 1)
        for values, own in zip(samples, means, strict=True)
    ]
    variance = math.fsum(share for share, _ in shares)
    if variance == 0:
        return Estimate(mean, 0.0, 1)
    return Estimate(mean, math.sqrt(variance), variance**2 / math.fsum(share**2 / own for share, own in shares))


def _variance(values: Sequence[float], mean: float) -> float:
    """Return the variance of a sample, 0 where all its values are one (`statistics.variance` adds fractions up)."""
    if min(values) == max(values):
        return 0.0
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def _log_medians(values: Samples) -> list[float]:
    if not values or not all(values):
        raise ValueError("a ratio needs at least one process on each side, and one value in each process")
    if wrong := [value for own in values for value in own if not 0 < value < math.inf]:
        raise ValueError(f"values are positive and finite, got {wrong[0]!r}")
    return [median(map(math.log, own)) for own in values]


def _log_ratio(baseline_s: float, method_s: float) -> float:
    if not (0 < baseline_s < math.inf and 0 < method_s < math.inf):
        raise ValueError(f"times are positive and finite seconds, got the pair {(baseline_s, method_s)!r}")
    return math.log(baseline_s) - math.log(method_s)


def _exponential(interval: Interval) -> Interval:
    return Interval(*map(_exp, (interval.estimate, interval.low, interval.high)))


def _exp(value: float) -> float:
    """As `math.exp`, but infinite where that overflows: two processes that disagree have intervals as wide as that."""
    return math.inf if value > _LARGEST_LOG else math.exp(value)
