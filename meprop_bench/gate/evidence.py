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
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from meprop_bench.gate.block import Floats, Sides
from meprop_bench.stats import Runs, median

CAUGHT = 0.9
"""Probability at which a slowdown counts as one that is caught."""

__all__ = ["CAUGHT", "Evidence", "Moments", "log_ratios", "lower_rank", "of_values", "ratios"]


@dataclass(frozen=True)
class Evidence:
    """Estimates of many changes.

    Attributes:
        estimate: of each change: the log of head / base, or points lost.
        error: its standard error; NaN where there is nothing to tell it by.
        degrees: its degrees of freedom; infinite where the error is known.

    """

    estimate: Floats
    error: Floats
    degrees: Floats

    def half_width(self, level: float | Floats) -> Floats:
        """Return the one-sided half of the interval at an error of `level` on a side."""
        from scipy.special import stdtrit

        with np.errstate(invalid="ignore"):
            half: Floats = -stdtrit(self.degrees, np.broadcast_to(level, self.degrees.shape)) * self.error
        return np.where(self.error == 0, 0.0, half)

    def caught(self, bound: Floats, level: float | Floats) -> Floats:
        """Return the changes that would be found above a bound, at an error of `level`, with 90% probability."""
        return bound + self.half_width(level) + self.half_width(1 - CAUGHT)

    def above(self, bound: Floats) -> Floats:
        """Return the p-values of "the change is at most `bound`"; NaN without an error."""
        from scipy.special import stdtr

        with np.errstate(invalid="ignore", divide="ignore"):
            t = (self.estimate - bound) / self.error
        # Without any spread there is no doubt, as on a fake clock or of equal sizes.
        t = np.where(self.error == 0, np.where(self.estimate > bound, np.inf, -np.inf), t)
        found: Floats = stdtr(self.degrees, -t)
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


@dataclass(frozen=True)
class Moments:
    """What is known of one side of many figures.

    Attributes:
        middle: the median, in the figure's unit.
        location: where it is on the log scale: the mean of the logs, or their median.
        variance: of the location; NaN where nothing tells it.
        size: values that it is over.

    """

    middle: Floats
    location: Floats
    variance: Floats
    size: Floats

    @classmethod
    def of_processes(cls, sides: Sides) -> Moments:
        """Return them of sides whose values come from a process each."""
        found = cls._of_singles(sides)
        for places, values in sides.matrices():
            count = values.shape[1]
            found.middle[places] = _middle(np.sort(values, axis=1))
            logs = np.log(values)
            found.location[places] = mean = logs.sum(axis=1) / count
            if count > 1:
                found.variance[places] = ((logs - mean[:, None]) ** 2).sum(axis=1) / (count - 1) / count
        return found

    @classmethod
    def of_medians(cls, sides: Sides) -> Moments:
        """Return them of sides whose values come from one process each."""
        from scipy.special import bdtr, ndtri

        found = cls._of_singles(sides)
        for places, values in sides.matrices():
            count = values.shape[1]
            values.sort(axis=1)
            found.middle[places] = _middle(values)
            found.location[places] = (np.log(values[:, (count - 1) // 2]) + np.log(values[:, count // 2])) / 2
            if count > 1:
                # Price and Bonett: between the c-th value from below and that from above lie 2 z standard errors.
                rank = lower_rank(count)
                z = float(ndtri(1 - bdtr(rank - 1, count, 0.5)))
                width = np.log(values[:, count - rank]) - np.log(values[:, rank - 1])
                found.variance[places] = (width / (2 * z)) ** 2
        return found

    @classmethod
    def _of_singles(cls, sides: Sides) -> Moments:
        """Return them as they are where each side is a single value or a summary."""
        middle = sides.firsts
        variance = np.full(len(sides), np.nan)
        summaries = np.flatnonzero(sides.summarised)
        with np.errstate(over="ignore"):
            variance[summaries] = (sides.values[sides.starts[summaries] + 1] / middle[summaries]) ** 2
        return cls(middle, np.log(middle), variance, sides.sizes)


def ratios(base: Moments, head: Moments, noise: float = 0.0) -> Evidence:
    """Return the ratios head / base (Welch, Satterthwaite); `noise` is what a process has, where each side has one."""
    variance = base.variance + head.variance + noise**2
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        degrees = variance**2 / (base.variance**2 / (base.size - 1) + head.variance**2 / (head.size - 1))
    degrees = np.where(np.isnan(degrees) & ~np.isnan(variance), np.inf, degrees)  # no variance but the known one
    return Evidence(head.location - base.location, np.sqrt(variance), degrees)


def lower_rank(count: int) -> int:
    """Return which of `count` values from below, and from above, bound the interval of their median."""
    return max(1, round((count + 1) / 2 - math.sqrt(count)))


def _middle(ordered: Floats) -> Floats:
    """Return the median of each line, whose values rise."""
    count = ordered.shape[1]
    with np.errstate(over="ignore"):
        found: Floats = (ordered[:, (count - 1) // 2] + ordered[:, count // 2]) / 2
    return found
