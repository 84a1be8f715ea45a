"""What a series says of the change, as three numbers: an estimate, its standard error and its degrees of freedom.

    change               scale    estimate                     standard error                     degrees
    pairs of processes   log      mean_i r_i                   sd(r_i) / sqrt(p)                  p - 1
    seeds (accuracy)     points   mean_i (base_i - head_i)     sd / sqrt(seeds)                   seeds - 1
    own processes        log      difference of mean logs      Welch: sqrt(v_b + v_h)             Satterthwaite's
    one process          log      log of the medians' ratio    Price and Bonett, and the noise    Satterthwaite's
                                                               between processes
    summaries            log      log of the medians' ratio    their own, relative                Satterthwaite's

with r_i = median_j log(head_ij / base_ij) of pair i. Student's t makes an interval and a p-value of them, one rule for
all (`decide`).

The values of one process are skewed and have outliers, so their medians are compared; a median's standard error comes
from two order statistics of the logs, without an assumption about the distribution (R. M. Price and D. G. Bonett,
"Distribution-free confidence intervals for difference and ratio of medians", Journal of Statistical Computation and
Simulation 72, 2002). That interval says how well *this process* is known. The next one of the same code is elsewhere by
some percent (`settings.process_noise`), which no number of values of one process can show: its variance is added.

All of it is computed for all series at once: a file may hold a million.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from meprop_bench.gate.series import Side, Summary
from meprop_bench.stats import Runs, median

__all__ = ["Evidence", "log_ratios", "of_medians", "of_processes", "of_values"]

Array: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """Estimates of many changes.

    Attributes:
        estimate: of each change: the log of head / base, or points lost.
        error: its standard error; NaN where there is nothing to tell it by.
        degrees: its degrees of freedom; infinite where the error is known.

    """

    estimate: Array
    error: Array
    degrees: Array

    def half_width(self, level: float | Array) -> Array:
        """Return the one-sided half of the interval at an error of `level` on a side."""
        from scipy.special import stdtrit

        with np.errstate(invalid="ignore"):
            half: Array = -stdtrit(self.degrees, np.broadcast_to(level, self.degrees.shape)) * self.error
        return np.where(self.error == 0, 0.0, half)

    def above(self, bound: Array) -> Array:
        """Return the p-values of "the change is at most `bound`"; NaN without an error."""
        from scipy.special import stdtr

        with np.errstate(invalid="ignore", divide="ignore"):
            t = (self.estimate - bound) / self.error
        # Without any spread there is no doubt, as on a fake clock or of equal sizes.
        t = np.where(self.error == 0, np.where(self.estimate > bound, np.inf, -np.inf), t)
        found: Array = stdtr(self.degrees, -t)
        return found


def log_ratios(runs: Runs) -> list[float]:
    """Return r_i, the median log(head / base) of each pair of processes."""
    return [median(math.log(head) - math.log(base) for base, head in run) for run in runs]


def of_values(values: Sequence[float]) -> tuple[float, float, float]:
    """Return estimate, error and degrees of the mean of independent values."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan, math.nan
    return mean, statistics.stdev(values, mean) / math.sqrt(len(values)), len(values) - 1.0


def of_processes(base: Sequence[Side], head: Sequence[Side]) -> Evidence:
    """Return the ratios of sides whose values come from a process each."""
    return _difference(_log_means(base), _log_means(head), 0.0)


def of_medians(base: Sequence[Side], head: Sequence[Side], noise: float) -> Evidence:
    """Return the ratios of sides whose values come from one process each; `noise` is that between processes."""
    return _difference(_log_medians(base), _log_medians(head), noise)


_Moments: TypeAlias = tuple[Array, Array, Array]
"""Location on the log scale, the variance of it, and how many values."""


def _difference(base: _Moments, head: _Moments, noise: float) -> Evidence:
    variance = base[1] + head[1] + noise**2
    with np.errstate(invalid="ignore", divide="ignore"):
        degrees = variance**2 / (base[1] ** 2 / (base[2] - 1) + head[1] ** 2 / (head[2] - 1))
    degrees = np.where(np.isnan(degrees) & ~np.isnan(variance), np.inf, degrees)  # no variance but the known one
    return Evidence(head[0] - base[0], np.sqrt(variance), degrees)


def _log_means(sides: Sequence[Side]) -> _Moments:
    logs, starts, counts = _flat(sides)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.add.reduceat(logs, starts) / counts
        spread = np.add.reduceat((logs - np.repeat(mean, counts)) ** 2, starts)
        variance = np.where(counts > 1, spread / (counts - 1) / counts, np.nan)
    return _with_summaries(sides, mean, variance, counts)


def _log_medians(sides: Sequence[Side]) -> _Moments:
    logs, starts, counts = _flat(sides)
    logs = logs[np.lexsort((logs, np.repeat(np.arange(len(counts)), counts)))]
    middle = (logs[starts + (counts - 1) // 2] + logs[starts + counts // 2]) / 2
    # Price and Bonett: between the c-th value from below and that from above lie 2 z standard errors of the median.
    from scipy.special import bdtr, ndtri

    sizes, place = np.unique(counts, return_inverse=True)
    rank = np.maximum(1, np.round((sizes + 1) / 2 - np.sqrt(sizes))).astype(int)
    with np.errstate(invalid="ignore", divide="ignore"):
        z = ndtri(1 - bdtr(rank - 1, sizes, 0.5))
        width = logs[starts + counts - rank[place]] - logs[starts + rank[place] - 1]
        variance = np.where(counts > 1, (width / (2 * z[place])) ** 2, np.nan)
    return _with_summaries(sides, middle, variance, counts)


def _flat(sides: Sequence[Side]) -> tuple[Array, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the logs of all values in one array, and where each side begins and how many it has."""
    tuples = [(side.median,) if isinstance(side, Summary) else side for side in sides]
    counts = np.fromiter(map(len, tuples), np.int64, len(tuples))
    values: Iterable[float] = chain.from_iterable(tuples)
    logs = np.log(np.fromiter(values, np.float64, int(counts.sum())))
    return logs, np.cumsum(counts) - counts, counts


def _with_summaries(sides: Sequence[Side], location: Array, variance: Array, counts: npt.NDArray[Any]) -> _Moments:
    sizes = counts.astype(np.float64)
    for place, side in enumerate(sides):
        if isinstance(side, Summary):
            variance[place] = (side.error / side.median) ** 2
            sizes[place] = side.count
    return location, variance, sizes
