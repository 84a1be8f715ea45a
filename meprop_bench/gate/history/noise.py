"""What the last runs of a suite say of its next one: of each figure the level and the spread, and what all share.

    log x_tf = level_f(t) + shift_t + noise_tf        run t, figure f

The level may step (`stats.steps`). The shift is what the whole run has in common: the machine is warmer, a neighbour is
busy, the kernel is another. It is the median over the benchmarks of the median over each one's figures, so that one
benchmark with a thousand parameters does not pass for the machine; where there are fewer than `_BENCHMARKS`, nobody can
tell the one from the other, and it is taken to be 0. A run that is noisier as a whole has a wider spread in all its
figures, by the same factor (`unrest`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from meprop_bench.gate.series import Floats, Integers
from meprop_bench.stats.steps import levels

__all__ = ["LEAST", "Expected", "benchmark_of", "benchmarks_of", "common_shift", "expected", "newest", "unrest"]

LEAST = 8
"""Runs from which a spread is known well enough to judge by: to a quarter."""
_BENCHMARKS = 12
_MEDIAN_VARIANCE = np.pi / 2
"""Of a median of normal values, in that of their mean."""
_NORMAL_MEDIAN = 0.6745

_PARAMETERS = re.compile(r"[(\[]")


@dataclass(frozen=True)
class Expected:
    """What each figure of the next run should be, on the log scale; NaN (0 of counts) where the history is too short.

    Arrays are (figures,), but for the shifts.
    """

    level: Floats
    spread: Floats  # standard deviation of one run about its level
    error: Floats  # of the next run about the level as it is known
    beyond: Floats  # how far above their level these runs lie, but for a single one
    farthest: Floats  # how far that one does
    degrees: Integers  # of freedom of the spread
    usual: Floats  # how far the values behind one run's median disagree: the middle one of these runs
    runs: Integers  # that have the figure, of those that were looked at
    shifts: Floats  # (runs,): what each of these had in common


def benchmarks_of(cases: Sequence[str]) -> Integers:
    """Return a number for each case, the same for those of one benchmark."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(benchmark_of(case), len(numbers)) for case in cases], np.int64)


def benchmark_of(case: str) -> str:
    """Return the benchmark of a case: its name up to the parameters."""
    return _PARAMETERS.split(case, maxsplit=1)[0]


def newest(logs: Floats, window: int) -> Floats:
    """Return of each figure its newest values, (window or fewer, figures), the newest last; NaN comes first."""
    order = np.argsort(np.isfinite(logs), axis=0, kind="stable")[-window:]
    return np.take_along_axis(logs, order, axis=0)


def expected(
    logs: Floats, benchmarks: Integers, window: int, disagreement: npt.NDArray[np.floating] | None = None
) -> Expected:
    """Return what the runs (runs, figures), the newest last, say of the next; NaN is what a run does not have.

    `disagreement` is that of the values behind each; without it they agree.
    """
    count = logs.shape[1]
    shifts = np.array([common_shift(row, benchmarks) or 0.0 for row in logs - _middle(logs)])
    last = newest(logs - shifts[:, None], window)
    runs = np.isfinite(last).sum(axis=0)
    level, spread, beyond, farthest, since = (np.full(count, np.nan) for _ in range(5))
    degrees = np.zeros(count, np.int64)
    for size in np.unique(runs[runs >= LEAST]).tolist():
        own = np.flatnonzero(runs == size)
        found = levels(last[-size:, own])
        level[own], spread[own], beyond[own] = found.level, found.spread, found.beyond
        farthest[own], since[own], degrees[own] = found.farthest, found.count, found.degrees
    error = spread * np.sqrt(1 + _MEDIAN_VARIANCE / since)
    usual = np.zeros(count)
    if disagreement is not None and (some := np.flatnonzero(runs)).size:
        apart: Floats = np.where(np.isfinite(logs), disagreement, np.nan)[:, some].astype(np.float64)
        usual[some] = np.nanmedian(newest(apart, window), axis=0)
    return Expected(level, spread, error, beyond, farthest, degrees, usual, runs, shifts)


def common_shift(distances: Floats, benchmarks: Integers) -> float | None:
    """Return what all figures of a run have in common, from the distance of each to what it should be; None where
    nobody can tell.
    """
    known = np.isfinite(distances)
    own, values = benchmarks[known], distances[known]
    if not len(own):
        return None
    order = np.lexsort((values, own))
    own, values = own[order], values[order]
    starts = np.flatnonzero(np.r_[True, own[1:] != own[:-1]])
    sizes = np.diff(np.r_[starts, len(own)])
    if len(starts) < _BENCHMARKS:
        return None
    medians = (values[starts + (sizes - 1) // 2] + values[starts + sizes // 2]) / 2
    return float(np.median(medians))


def unrest(distances: Floats, errors: Floats) -> float:
    """Return by how much a run's figures lie farther from their levels than they use to, at least 1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.abs(distances) / errors
    known = relative[np.isfinite(relative)]
    return max(1.0, float(np.median(known)) / _NORMAL_MEDIAN) if len(known) >= _BENCHMARKS else 1.0


def _middle(logs: Floats) -> Floats:
    """Return the median of each figure; NaN of one that no run has."""
    found = np.full(logs.shape[1], np.nan)
    some = np.isfinite(logs).any(axis=0)
    found[some] = np.nanmedian(logs[:, some], axis=0)
    return found
