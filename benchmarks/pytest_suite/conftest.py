"""The pytest-benchmark suite: the preset `suite`, a test for each phase of a case.

All cases that are left after `-k` and the like are measured when the first test asks for one, by the command line's
runner: in fresh processes that serve one case after the other, each checked before it is timed. A test then enters its
phase's values into pytest-benchmark (`testing.entries`); the row's other figures go to `extra_info`. With
--benchmark-disable nothing is timed: each test checks its case and runs it once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from meprop_bench.errors import UserError
from meprop_bench.measure.environment import collect
from meprop_bench.results.axes import AXES
from meprop_bench.results.redact import without_paths
from meprop_bench.results.schema import PASSED, Parity, Row
from meprop_bench.sweep.accuracy import Accuracies
from meprop_bench.sweep.runner import SweepProgress
from meprop_bench.sweep.suite import Suite, absent, measured
from meprop_bench.testing.entries import enter
from meprop_bench.workloads.case import Case


@cache
def suite() -> Suite:
    """Return the preset; a wrong word in the environment is one line of pytest's, not a traceback."""
    try:
        return Suite(str(Path(__file__).parents[2] / "meprop_bench/sweep/presets/suite.toml"))
    except UserError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_configure() -> None:
    """Load the preset before anything is collected."""
    suite()


_EXTRA = frozenset({
    "case_id", "kernel", *(axis.stored for axis in AXES.values()), "phase", "baseline_median_s", "speedup",
    "speedup_low", "speedup_high", "converged", "processes", "floor_s", "efficiency", "flops", "bytes",
    "peak_memory_bytes", "process_peak_bytes", "gpu_utilization", "cpu_utilization", "energy_per_step_j", "check",
    "environment_id", "notes",
})  # fmt: skip
"""Fields of a row that `extra_info` has: its axes, and the figures that are not raw."""


CASES: dict[str, Case] = {}
"""Label -> case, of all that were collected."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for a `case` and a `phase` gets those of its module; for a `case` alone, all that learn data,
    and models where the preset compares qualities.
    """
    if "case" not in metafunc.fixturenames:
        return
    if "phase" not in metafunc.fixturenames:
        learning = [
            f"{workload} {label}"
            for workload in suite().workloads
            for label, case in _chosen(workload).items()
            if case.data is not None or (case.model is not None and "accuracy" in suite().plan([case]).checks)
        ]
        metafunc.parametrize("case", learning, ids=[name.replace(" ", "-") for name in learning], indirect=True)
        return
    workload = metafunc.module.WORKLOAD
    both = [
        pytest.param(
            f"{workload} {label}",
            phase,
            id=f"{label}-{phase}",
            marks=pytest.mark.benchmark(group=_group(case, phase)),
        )
        for label, case in _chosen(workload).items()
        for phase in metafunc.module.PHASES
    ]
    metafunc.parametrize(("case", "phase"), both, indirect=["case"])


def _chosen(workload: str) -> dict[str, Case]:
    """Return the cases of a workload that are run, by their labels, and have `CASES` know them."""
    grid = suite().grid(workload)
    cases = {grid.label(case): case for case in grid.cases.values() if case in suite().chosen}
    CASES.update({f"{workload} {label}": case for label, case in cases.items()})
    return cases


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    """Turn the label that pytest-benchmark stores into the case."""
    return CASES[request.param]


def _group(case: Case, phase: str) -> str:
    if case.model is not None:
        return f"{case.workload} {case.model}: {phase}"
    shape = f"{case.data} h={case.out_features}" if case.data else f"{case.in_features}→{case.out_features}"
    return f"{case.workload} {shape} B={case.batch}: {phase}"


class Measured:
    """The rows of the session's cases."""

    def __init__(self, cases: Sequence[Case], say: Callable[[str], None]) -> None:
        self._cases, self._say = cases, say
        self._absent: Mapping[Case, str] | None = None
        self._rows: list[Row] | None = None
        self.environments: Mapping[str, Any] = {}
        plan = suite().plan(cases)
        self._accuracies = Accuracies(plan.accuracy_seeds, plan.accuracy_steps)

    def skip_absent(self, case: Case) -> None:
        """Skip the test if this machine cannot measure its case."""
        if self._absent is None:
            self._absent = absent(self._cases)
        if case in self._absent:
            pytest.skip(self._absent[case])

    def rows(self, case: Case) -> list[Row]:
        """Return a case's rows; the first call measures all cases."""
        self.skip_absent(case)
        if self._rows is None:
            todo = [each for each in self._cases if each not in (self._absent or {})]
            self._rows, self.environments = measured(suite().plan(todo), progress=self._show)
        return [row for row in self._rows if row.case_id == case.case_id]

    def parity(self, case: Case) -> Parity:
        """Return a case's accuracy comparison: from its rows if they are there, else trained in this process."""
        self.skip_absent(case)
        for row in self._rows or ():
            if row.case_id == case.case_id and row.parity:
                return row.parity
        return self._accuracies.compare(case)

    def _show(self, progress: SweepProgress) -> None:
        if progress.stage == "done":
            self._say(f"[{progress.done}/{progress.total}] {progress.case.label}, {progress.left_s:.0f} s left")


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest) -> Measured:
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def say(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{line}", end="", file=sys.stderr, flush=True)

    specs = (getattr(item, "callspec", None) for item in request.session.items)
    labels = dict.fromkeys(spec.params.get("case") for spec in specs if spec)
    found = Measured([CASES[label] for label in labels if label in CASES], say)  # a workload without cases has another
    request.config.stash[_MEASURED] = found
    return found


_MEASURED = pytest.StashKey[Measured]()


@pytest.fixture
def time(results: Measured, benchmark: Any) -> Callable[[Case, str], None]:
    """Return what a test of a phase does."""

    def go(case: Case, phase: str) -> None:
        if benchmark.disabled:
            results.skip_absent(case)
            run_once(case, benchmark)
            return
        rows = results.rows(case)
        for row in rows:
            assert row.passed, row.error or f"wrong gradients: {row.check}"
        (row,) = (row for row in rows if row.phase == phase)
        extra = {name: value for name, value in row.to_json().items() if name in _EXTRA}
        parities = [each.to_json()["parity"] for each in rows if each.parity]
        extra["parity"] = parities[0] if parities else None
        extra["row"] = row.to_json()  # what `meprop-bench report` and `gate` read
        enter(benchmark, row.measurement.values_s, extra)

    return go


def run_once(case: Case, benchmark: Any) -> None:
    """Check a case in this process and run its method once."""
    from meprop_bench import workloads
    from meprop_bench.measure.clock import clock_for

    prepared = workloads.setup(case)
    assert prepared.check() == PASSED
    benchmark(prepared.method, 1, clock_for(case.device))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Say what the machine and torch are; nothing that names the machine's owner, as results are shared."""
    machine_info.pop("node", None)
    found = collect("cpu", "default")
    keys = (
        "cpu_model",
        "cpu_physical_cores",
        "cpu_usable_cores",
        "memory_gib",
        "os",
        "torch",
        "numpy",
        "numba",
        "blas",
    )
    machine_info["meprop_bench"] = {key: found[key] for key in keys}


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Add the environments that `extra_info` names, as the measuring processes saw them, and what was typed."""
    output_json["command"] = without_paths(" ".join(["pytest", *map(str, config.invocation_params.args)]))
    if found := config.stash.get(_MEASURED, None):
        output_json["environments"] = dict(found.environments)
