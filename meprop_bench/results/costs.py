"""A row as costs, for tools that take every rise for a regression: asv knows no "higher is better".

    speed-up     ->  ratio         method / dense time of the same pairs: below 1 it pays
    accuracy     ->  accuracy_gap  points lost; of a quality that is no percentage, percent of dense's own figure
    utilisation  ->  gpu_idle      100 - utilisation

Times and ratios are samples, so that the tool's own statistics have something to work on; the other costs are one
figure. Samples are those pairs that the row's speed-up is taken over (`Measurement.judged_runs`), thinned out evenly:
a tool that takes values of one process as independent gains nothing from thousands of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from meprop_bench.results.axes import OWN, TRANSFORMER
from meprop_bench.results.schema import Row
from meprop_bench.stats import Runs

__all__ = ["COSTS", "MOST_SAMPLES", "Tracked", "judged_pairs"]

MOST_SAMPLES = 99
"""Samples of a cost; evenly spaced ones if there are more."""


@dataclass(frozen=True)
class Tracked:
    """One cost of a row."""

    # how asv shows it: "time" and "memory" with prefixes of their units, "track" as the number that it is
    kind: Literal["time", "memory", "track"]
    unit: str  # in words
    of: Callable[[Row], list[float] | float]  # the samples of a row, or its one figure; NaN where the row has none
    meaning: str  # one line
    otherwise: str = ""  # its unit in workloads whose quality may be no percentage

    def unit_in(self, workload: str) -> str:
        """Return the unit that it has in a workload."""
        return self.otherwise if self.otherwise and workload in (TRANSFORMER, OWN) else self.unit


def judged_pairs(row: Row) -> Runs:
    """Return the pairs `(baseline_s, method_s)` that the row's speed-up is taken over, process by process.

    ValueError for a row without values, as that of a case which failed.
    """
    if row.measurement is None:
        raise ValueError(f"the row of case {row.case_id}, phase {row.phase}, holds no values")
    return row.measurement.judged_runs


def _thinned(values: list[float]) -> list[float]:
    return values[:: math.ceil(len(values) / MOST_SAMPLES)]


def _times(row: Row) -> list[float]:
    return _thinned([method_s for run in judged_pairs(row) for _, method_s in run])


def _ratios(row: Row) -> list[float]:
    return _thinned([method_s / baseline_s for run in judged_pairs(row) for baseline_s, method_s in run])


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _gap(row: Row) -> float:
    return math.nan if row.parity is None else 0 - row.parity.relative


def _of_method(name: str) -> Callable[[Row], float]:
    """Return what gives a figure of the sparse side."""
    return lambda row: _or_nan(getattr(row.sparse, name))


def _idle(row: Row) -> float:
    return 100 - _or_nan(getattr(row.sparse.utilization, "gpu_utilization", None))


COSTS: Mapping[str, Tracked] = {
    "time": Tracked("time", "seconds", _times, "One iteration of the phase by the method."),
    "ratio": Tracked(
        "track", "method / dense time", _ratios, "Method / dense time of the same pairs: below 1 it pays."
    ),
    "flops": Tracked("track", "operations", _of_method("flops"), "What the method must compute."),
    "bytes": Tracked("memory", "bytes", _of_method("bytes"), "What the method must move at least."),
    "peak_memory": Tracked(
        "memory", "bytes", _of_method("peak_memory_bytes"), "Tensors on top of what the phase starts with."
    ),
    "rss": Tracked(
        "memory", "bytes", _of_method("process_peak_bytes"), "Largest resident set of the measuring process."
    ),
    "gpu_idle": Tracked(
        "track", "% of the time without a kernel", _idle, "100 - utilisation of the GPU over a steady loop."
    ),
    "accuracy_gap": Tracked(
        "track",
        "points of accuracy lost",
        _gap,
        "Dense - method after short training runs from the same seeds.",
        otherwise="quality lost: points of a percentage, else % of dense's",
    ),
}
"""Name -> what it is. A row that has none of a cost gives NaN."""
