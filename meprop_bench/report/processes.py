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
    found = sorted(map(math.exp, row.measurement.log_medians))
    return f"{', '.join(map(digits, found))} ({row.measurement.judged_pairs} pairs)"


def times(row: Row, side: int) -> str:
    """Return the median time of each process: of dense (0) or sparse (1), in the order of the processes."""
    runs = row.measurement.judged_runs if row.measurement else ()
    return ", ".join(seconds(_middle([pair[side] for pair in run])) for run in runs)


def pairs(row: Row, most: int) -> str:
    """Return the first pairs, dense / sparse, and how many there are where these are not all."""
    every = [pair for run in row.measurement.runs for pair in run] if row.measurement else []
    shown = ", ".join(f"{seconds(dense)} / {seconds(sparse)}" for dense, sparse in every[:most])
    return shown + f", … ({len(every)} pairs)" * (len(every) > most)


def _middle(values: list[float]) -> float:
    """Return the median; `statistics.median` takes four times as long, which counts where there are many rows."""
    values.sort()
    half = len(values) // 2
    if len(values) % 2:
        return values[half]
    return (values[half - 1] + values[half]) / 2
