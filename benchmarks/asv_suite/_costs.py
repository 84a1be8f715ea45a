"""What the classes of this suite have in common. An underscore hides them from asv, which would run them as they are.

asv runs each benchmark at each point in a process of its own. The first that comes to a case measures it, all phases at
once and by fresh processes of the runner's own; the others find its rows in the folder of `setup_cache`, which is the
working directory of them all. So a case is set up once, asv's own process (its allocator, its threads) plays no part,
and asv gets values to judge, not times of a process that did other things, too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

from meprop_bench.errors import UserError
from meprop_bench.results.costs import COSTS
from meprop_bench.sweep.suite import Suite, absent, measured
from meprop_bench.workloads.case import Case

_ROOT = Path(__file__).resolve().parents[2]
"""Where names of users' models begin, as on the command line; asv runs in a folder of its own."""

# The checkout's preset, not the installed one: asv compares commits, and the grid has to be the same for all of them.
try:
    _SUITE = Suite(str(_ROOT / "meprop_bench/sweep/presets/suite.toml"))
except UserError as error:
    sys.exit(str(error))  # asv shows it as it is; of an exception it shows the traceback


def _track(name: str, workload: str = "") -> Callable[..., Any]:
    """Return the benchmark of a cost: samples for asv's own statistics, or one figure."""
    cost = COSTS[name]

    def track(self: _Case, *_: Any) -> Any:
        found = cost.of(self.row)
        return {"samples": found, "number": 1} if isinstance(found, list) else found

    track.__doc__ = cost.meaning
    track.unit = cost.unit_in(workload)
    track.type = cost.kind
    # asv throws a history away when this changes. By default it is a hash of the code, which says nothing here: what
    # is measured is the preset's and the runner's. Raise it when the same name comes to mean another figure.
    track.version = "1"
    return track


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
            if not grid.cases:  # another preset; asv wants one point at least, which is then skipped
                cls.params, cls.param_names = [["none"]], ["case"]

    def setup_cache(self) -> dict[Case, str]:
        with chdir(_ROOT):
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
        folder = Path.cwd() / case.case_id
        with chdir(_ROOT):
            rows, _ = measured(_SUITE.plan([case]), folder)
        for row in rows:
            if not row.passed:
                raise RuntimeError(row.error or f"wrong gradients: {row.check}")
        (self.row,) = (row for row in rows if row.phase == self.phase)


class _Phase(_Case):
    """A phase, as it is timed."""

    track_time = _track("time")
    track_ratio = _track("ratio")


class _Main(_Phase):
    """The phase that a workload is about, with what it takes of the machine."""

    track_flops = _track("flops")
    track_bytes = _track("bytes")
    track_peak_memory = _track("peak_memory")
    track_rss = _track("rss")
    track_gpu_idle = _track("gpu_idle")


class _Parity(_Case):
    """The accuracy of short training runs."""

    phase = "step"

    def __init_subclass__(cls, *, workload: str, **more: Any) -> None:
        super().__init_subclass__(workload=workload, **more)
        cls.track_accuracy_gap = _track("accuracy_gap", workload)
