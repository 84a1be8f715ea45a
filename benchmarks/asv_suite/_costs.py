"""What the classes of this suite have in common. An underscore hides them from asv, which would run them as they are.

asv runs each benchmark at each point in a process of its own. The first that comes to a case measures it, all phases at
once and by fresh processes of the runner's own; the others find its rows in the folder of `setup_cache`, which is the
working directory of them all. So a case is set up once, asv's own process (its allocator, its threads) plays no part,
and asv gets values to judge, not times of a process that did other things, too.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from meprop_bench.measure.measurement import Measurement
from meprop_bench.results.schema import Row
from meprop_bench.sweep.suite import Suite, absent, measured
from meprop_bench.workloads.case import Case

# The checkout's preset, not the installed one: asv compares commits, and the grid has to be the same for all of them.
_SUITE = Suite(str(Path(__file__).parents[2] / "meprop_bench/sweep/presets/suite.toml"))

_MOST_SAMPLES = 99
"""Samples of a benchmark; evenly spaced ones if there are more."""


class _Case:
    """A class of benchmarks, whose parameters are the grid of its workload."""

    workload: str
    phase: str
    timeout = 900

    def __init_subclass__(cls, *, workload: str | None = None) -> None:
        if workload is not None:
            grid = _SUITE.grid(workload)
            cls.workload = workload
            cls.params, cls.param_names = [list(values) for values in grid.values], list(grid.names)

    def setup_cache(self) -> dict[Case, str]:
        return absent(_SUITE.cases)

    setup_cache.timeout = 300

    def setup(self, missing: dict[Case, str], *point: Any) -> None:
        case = _SUITE.grid(self.workload).cases.get(point)
        # Raised in `setup`, this error is asv's way to skip a parameter.
        if case is None:
            raise NotImplementedError("the preset has no such case")
        if case not in _SUITE.chosen:
            raise NotImplementedError("not in the part that is run by default: set MEPROP_BENCH_SUITE=all")
        if case in missing:
            raise NotImplementedError(missing[case])
        rows, _ = measured(_SUITE.plan([case]), Path.cwd() / case.case_id)
        for row in rows:
            if not row.passed:
                raise RuntimeError(row.error or f"wrong gradients: {row.check}")
        (self.row,) = (row for row in rows if row.phase == self.phase)


class _Phase(_Case):
    """A phase, as it is timed."""

    def track_time(self, *_: Any) -> dict[str, Any]:
        return _samples([method_s for run in _pairs(self.row) for _, method_s in run])

    track_time.type = "time"
    track_time.unit = "seconds"

    def track_ratio(self, *_: Any) -> dict[str, Any]:
        return _samples([method_s / baseline_s for run in _pairs(self.row) for baseline_s, method_s in run])

    track_ratio.unit = "method / dense time"


class _Main(_Phase):
    """The phase that a workload is about, with what it takes of the machine."""

    def track_flops(self, *_: Any) -> float:
        return _or_nan(self.row.flops)

    track_flops.unit = "operations"

    def track_bytes(self, *_: Any) -> float:
        return _or_nan(self.row.bytes)

    track_bytes.type = "memory"
    track_bytes.unit = "bytes"

    def track_peak_memory(self, *_: Any) -> float:
        return _or_nan(self.row.peak_memory_bytes)

    track_peak_memory.type = "memory"
    track_peak_memory.unit = "bytes"

    def track_rss(self, *_: Any) -> float:
        return _or_nan(self.row.process_peak_bytes)

    track_rss.type = "memory"
    track_rss.unit = "bytes"

    def track_gpu_idle(self, *_: Any) -> float:
        return 100 - _or_nan(self.row.gpu_utilization)

    track_gpu_idle.unit = "% of the time without a kernel"


class _Parity(_Case):
    """The accuracy of short training runs."""

    phase = "step"

    def track_accuracy_gap(self, *_: Any) -> float:
        return math.nan if self.row.parity is None else 0 - self.row.parity.difference

    track_accuracy_gap.unit = "points of accuracy lost"


def _pairs(row: Row) -> tuple[tuple[tuple[float, float], ...], ...]:
    found = Measurement.from_values(
        row.phase, row.baseline_values_s, row.values_s, row.run_lengths, row.loops, row.disturbed
    )
    return found.judged_runs


def _samples(values: list[float]) -> dict[str, Any]:
    step = math.ceil(len(values) / _MOST_SAMPLES)
    return {"samples": values[::step], "number": 1}


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
