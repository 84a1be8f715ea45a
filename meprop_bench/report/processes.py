"""What a row's raw values say, in words: the speed-up and the times of each fresh process, and the pairs themselves."""

from __future__ import annotations

import math

from meprop_bench.report.cells import ABSENT, digits, seconds
from meprop_bench.results.schema import Row

__all__ = ["pairs", "speedups", "times"]


def speedups(row: Row) -> str:
    """Return the speed-up of each process, lowest first, and over how many pairs: `5.01, 5.12, 5.20 (60 pairs)`."""
    if row.measurement is None:
        return ABSENT
    runs = row.measurement.judged_runs
    # Of an even number of ratios the middle is that of their logarithms, as in the speed-up itself.
    found = sorted(_middle([dense / sparse for dense, sparse in run], geometric=True) for run in runs)
    return f"{', '.join(map(digits, found))} ({sum(map(len, runs))} pairs)"


def times(row: Row, side: int) -> str:
    """Return the median time of each process: of dense (0) or sparse (1), in the order of the processes."""
    runs = row.measurement.judged_runs if row.measurement else ()
    return ", ".join(seconds(_middle([pair[side] for pair in run])) for run in runs)


def pairs(row: Row, most: int) -> str:
    """Return the first pairs, dense / sparse, and how many there are where these are not all."""
    every = [pair for run in row.measurement.runs for pair in run] if row.measurement else []
    shown = ", ".join(f"{seconds(dense)} / {seconds(sparse)}" for dense, sparse in every[:most])
    return shown + f", … ({len(every)} pairs)" * (len(every) > most)


def _middle(values: list[float], *, geometric: bool = False) -> float:
    """Return the median; `statistics.median` takes four times as long, which counts where there are many rows."""
    values.sort()
    half = len(values) // 2
    if len(values) % 2:
        return values[half]
    low, high = values[half - 1], values[half]
    return math.sqrt(low * high) if geometric else (low + high) / 2
