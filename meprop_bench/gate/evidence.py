"""What a figure's values say of its change, as three numbers: an estimate, its standard error and degrees of freedom.

    change               scale    estimate                     standard error                     degrees
    pairs of processes   log      mean_i r_i                   sd(r_i) / sqrt(p)                  p - 1
    seeds (accuracy)     points   mean_i (base_i - head_i)     sd / sqrt(seeds)                   seeds - 1
    counts               log      between the extreme ratios   none: half their distance          infinite
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
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from meprop_bench.gate.series import MEDIAN_ERROR, NORMAL_IQR, Flags, Floats, Sides
from meprop_bench.stats import student

__all__ = ["Estimates", "detectable", "disagreement", "lower_rank", "medians", "unpaired"]

_CAUGHT = 0.95
"""Probability at which a slowdown counts as one that is caught."""
_MEMORY_NOISE = 0.005
"""Standard deviation that a single size is taken to have, relative: what a few pages or an arena more amount to."""

Level: TypeAlias = float | Floats


@dataclass(frozen=True)
class Estimates:
    """Estimates of many changes, in arrays of one shape."""

    estimate: Floats  # of each change: the log of head / base, or points lost
    error: Floats  # its standard error; NaN where there is nothing to tell it by
    degrees: Floats  # of freedom; infinite where the error is known

    def half_width(self, level: Level) -> Floats:
        """Return the one-sided half of the interval at an error of `level` on a side."""
        with np.errstate(invalid="ignore"):
            half: Floats = -student.quantile(self.degrees, np.broadcast_to(level, self.degrees.shape)) * self.error
        return np.where(self.error == 0, 0.0, half)

    def above(self, bound: Floats) -> Floats:
        """Return the p-values of "the change is at most `bound`"; NaN without an error."""
        with np.errstate(invalid="ignore", divide="ignore"):
            t = (self.estimate - bound) / self.error
        # Without any spread there is no doubt, as on a fake clock or of equal sizes.
        t = np.where(self.error == 0, np.where(self.estimate > bound, np.inf, -np.inf), t)
        return student.below(self.degrees, -t)


def detectable(error: Floats, pairs: Floats, small: Floats, bound: Floats, levels: tuple[Level, Level]) -> Floats:
    """Return the slowdowns, relative, that would be found with 95% probability: a loss of more than `small` certain,
    and one of `bound` not ruled out (log scale).

    `error` are the standard errors of log ratios over some pairs of processes, `levels` the one-sided errors of the two
    claims.
    """
    found = Estimates(error, error, pairs - 1.0)
    certain, ruled_out = levels
    above = np.maximum(small + found.half_width(certain), bound - found.half_width(ruled_out))
    return np.expm1(above + found.half_width(1 - _CAUGHT))


@dataclass(frozen=True)
class _Moments:
    """What is known of one side of many figures: the median, where the side is on the log scale (the mean of the logs,
    or their median), the variance of that, NaN where nothing tells it, and how many values it is over.
    """

    middle: Floats
    location: Floats
    variance: Floats
    size: Floats

    @classmethod
    def of(cls, sides: Sides, *, processes: bool) -> _Moments:
        """Return them; `processes`: each value comes from a process of its own, not all of a side from one."""
        # As they are where each side is a single value or a summary.
        middle, variance = sides.firsts, np.full(len(sides), np.nan)
        summaries = np.flatnonzero(sides.summarised)
        with np.errstate(over="ignore"):
            variance[summaries] = (sides.values[sides.starts[summaries] + 1] / middle[summaries]) ** 2
        location = np.log(middle)
        for places, values in sides.matrices():
            ordered = np.sort(values, axis=1)
            count = values.shape[1]
            low, high = ordered[:, (count - 1) // 2], ordered[:, count // 2]
            with np.errstate(over="ignore"):
                middle[places] = (low + high) / 2
            if processes:
                logs = np.log(values)
                location[places] = mean = logs.sum(axis=1) / count
                if count > 1:
                    variance[places] = ((logs - mean[:, None]) ** 2).sum(axis=1) / (count - 1) / count
            else:
                location[places] = (np.log(low) + np.log(high)) / 2
                if count > 1:
                    variance[places] = _of_median(ordered)
        return cls(middle, location, variance, sides.sizes)


def medians(sides: Sides) -> Floats:
    """Return the median of each side."""
    found = sides.firsts
    for places, values in sides.matrices():
        found[places] = np.median(values, axis=1)
    return found


def disagreement(sides: Sides, processes: Flags) -> Floats:
    """Return by how much the values behind each median disagree, on the log scale: half the distance of the quartiles.

    Where asv ran a benchmark in two processes and one was disturbed, the quartiles lie in the two, and the undisturbed
    one is so much below the median. `processes`: where each value has a process of its own, the median of n of them is
    better known than one by sqrt(n). Of a summary it follows from the median's error; 0 where nothing tells it.
    """
    found = np.zeros(len(sides))
    first = sides.starts[sides.summarised]
    median, error, count = (sides.values[first + part] for part in range(3))
    with np.errstate(divide="ignore", invalid="ignore"):
        half = NORMAL_IQR / 2 / MEDIAN_ERROR * np.sqrt(count) * error / median
    found[sides.summarised] = np.where(np.isfinite(half), half, 0.0)
    for places, values in sides.matrices():
        low, high = np.quantile(values, (0.25, 0.75), axis=1)
        positive = low > 0
        found[places[positive]] = np.log(high[positive] / low[positive]) / 2
        found[places] /= np.where(processes[places], math.sqrt(values.shape[1]), 1.0)
    return found


def _of_median(ordered: Floats) -> Floats:
    """Return the variance of each line's median log; lines rise."""
    from scipy.special import bdtr, ndtri

    # Price and Bonett: between the c-th value from below and that from above lie 2 z standard errors.
    count = ordered.shape[1]
    rank = lower_rank(count)
    z = float(ndtri(1 - bdtr(rank - 1, count, 0.5)))
    width = np.log(ordered[:, count - rank]) - np.log(ordered[:, rank - 1])
    found: Floats = (width / (2 * z)) ** 2
    return found


def lower_rank(count: int) -> int:
    """Return which of `count` values from below, and from above, bound the interval of their median."""
    return max(1, round((count + 1) / 2 - math.sqrt(count)))


def unpaired(
    base: Sides, head: Sides, processes: bool, memory: Flags | bool, noise: float
) -> tuple[Floats, Floats, Floats]:
    """Return what sides that were not taken together say of head / base, and the medians of both.

    The first is (figures, 5): estimate, error, degrees of freedom, 1, and the smaller size. `processes`: each value is
    of a process of its own; for those of one process, `noise` is the standard deviation between processes, of log
    ratios. `memory`: which figures are sizes.
    """
    first, second = (_Moments.of(sides, processes=processes) for sides in (base, head))
    variance = first.variance + second.variance + (0.0 if processes else noise) ** 2
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        degrees = variance**2 / (first.variance**2 / (first.size - 1) + second.variance**2 / (second.size - 1))
    degrees = np.where(np.isnan(degrees) & ~np.isnan(variance), np.inf, degrees)  # no variance but the known one
    error = np.sqrt(variance)
    # Sizes do not differ from process to process as times do, and a file has but one of each.
    single = memory & np.isnan(error)
    error, degrees = np.where(single, _MEMORY_NOISE, error), np.where(single, np.inf, degrees)
    size = np.minimum(first.size, second.size)
    looks = np.stack((second.location - first.location, error, degrees, np.ones(len(base)), size), axis=-1)
    return looks, first.middle, second.middle
