"""What the asv suite and the pytest-benchmark suite share: a preset as a grid of readable parameters, the part of it
that is run, and the rows of a case.

    preset  ->  Grid of a workload     names (method, k, hidden, batch, device, ...) x values; a point is a case or none
            ->  chosen                 a seeded part of the grid (all of it with MEPROP_BENCH_SUITE=all)
    case    ->  absent                 why this machine cannot measure it, or None
            ->  measured               its rows, from the runner that the command line has

Neither suite times anything itself. What they show are the runner's values: interleaved pairs of fresh processes,
which have the case's threads and allocator from their start, by CUDA events where the device is one. So whatever
process asv or pytest runs in, and whatever its environment, the figures are those of the command line.

The part that is run by default is drawn from each stratum (workload, method, device, data) by a hash of each point's
parameters and a seed: it is the same on every machine, and a case that is added to the preset leaves the choice of
all others alone but for the one that it may displace.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meprop_bench.errors import UserError
from meprop_bench.measure.environment import machine_slug
from meprop_bench.results.axes import AXES, WITHOUT_K, device_name
from meprop_bench.results.schema import Row
from meprop_bench.results.store import Store
from meprop_bench.sweep.feasible import check_feasible
from meprop_bench.sweep.plan import Plan, Preset, load_preset, plan_preset
from meprop_bench.sweep.runner import Runner, SweepProgress
from meprop_bench.workloads.case import Case

__all__ = ["PRESET", "SWITCH", "Grid", "Suite", "absent", "measured"]

SWITCH = "MEPROP_BENCH_SUITE"
"""Environment variable: unset or "part" for the seeded part, "all" for all cases of the preset."""

PRESET = "MEPROP_BENCH_SUITE_PRESET"
"""Environment variable: another preset than the suites', a name or a path."""

_ALWAYS = ("method", "k", "hidden", "batch", "device")
"""Parameters of every grid, but those that the workload has not. Another axis becomes one where its cases differ, or
one is what needs a word: a history of what it was before must not go on as this."""

_PLAIN = ("method", "device", "data", "model")
"""Parameters whose values say what they are."""

_IN_DEVICE = ("device", "threads")
"""Axes that the parameter `device` says together: cpu:2 (threads), cuda:0 (number)."""

_SHARE = 3
"""One in this many cases of a stratum is run by default."""

_PARTS = ("part", "all")


@dataclass(frozen=True)
class Grid:
    """The cases of one workload, each at the point of its parameters."""

    names: tuple[str, ...]  # of the parameters
    values: tuple[tuple[Any, ...], ...]  # of each parameter, in the preset's order
    cases: Mapping[tuple[Any, ...], Case]  # point -> case; a product of `values` has points without one

    @classmethod
    def of(cls, cases: Sequence[Case]) -> Grid:
        """Lay cases of one workload out.

        Raises:
            UserError: two of them have the same parameters, as only CUDA cases with other threads can.

        """
        bare = bool(cases) and all(case.method in WITHOUT_K for case in cases)
        always = [axis for axis in _ALWAYS if _has(axis, cases) and not (bare and axis == "k")]
        if cases and _has("model", cases):  # or another model would go on with the history of this one
            always.insert(0, "model")
        names = (
            *always,
            *(axis for axis in AXES if axis not in (*always, *_ALWAYS, *_IN_DEVICE) and _differ(axis, cases)),
        )
        points: dict[tuple[Any, ...], Case] = {}
        for case in cases:
            if (point := tuple(_parameter(name, case) for name in names)) in points:
                raise UserError(f"two cases of the preset are {case.label}: give a sweep on CUDA one number of threads")
            points[point] = case
        columns = zip(*points, strict=True) if points else [()] * len(names)
        return cls(names, tuple(tuple(dict.fromkeys(column)) for column in columns), points)

    def label(self, case: Case) -> str:
        """Return the parameters of a case on one line: unified-k10-hidden512-batch50-cpu:2."""
        words = (_parameter(name, case) for name in self.names)
        return "-".join(
            str(word) if name in _PLAIN else f"{name}{word}" for name, word in zip(self.names, words, strict=True)
        )


class Suite:
    """A preset, as the suites run it.

    Args:
        preset: a name, or the path of a TOML file; `MEPROP_BENCH_SUITE_PRESET` in the environment takes its place.
        part: "part" or "all"; by default what the environment variable `MEPROP_BENCH_SUITE` says, else "part".
        seed: of the part.

    Raises:
        UserError: there is no such preset or part.

    """

    def __init__(self, preset: str, *, part: str | None = None, seed: int = 0) -> None:
        part = part or os.environ.get(SWITCH) or "part"
        if part not in _PARTS:
            raise UserError(f"{SWITCH} is {part!r}: set it to {' or '.join(_PARTS)}, or leave it out")
        self._preset: Preset = load_preset(os.environ.get(PRESET) or preset)
        self.cases: tuple[Case, ...] = plan_preset(self._preset).cases
        self.chosen: tuple[Case, ...] = self.cases if part == "all" else _part(self.cases, seed)

    @property
    def workloads(self) -> tuple[str, ...]:
        """Those that the preset has cases of."""
        return tuple(dict.fromkeys(case.workload for case in self.cases))

    def grid(self, workload: str) -> Grid:
        """Return the grid of a workload; one without points if the preset has no case of it."""
        return Grid.of([case for case in self.cases if case.workload == workload])

    def plan(self, cases: Iterable[Case]) -> Plan:
        """Return the plan that measures some of the cases as the preset says; a GPU is watched, too."""
        cases = tuple(cases)
        watched = self._preset.settings.get("utilization", True) or any(case.device != "cpu" for case in cases)
        return Plan(**{**self._preset.settings, "utilization": watched, "cases": cases})


def absent(cases: Iterable[Case]) -> dict[Case, str]:
    """Return why this machine cannot measure a case (device, cores, allocator, data), for those that it cannot.

    Each thing is looked for once, as torch has to be loaded to see a GPU.
    """
    found: dict[Case, str] = {}
    for own in _by(cases, lambda case: (case.device, case.threads, case.allocator, case.data)).values():
        try:
            check_feasible(own[:1])
        except UserError as error:
            found |= dict.fromkeys(own, str(error))
    return found


def measured(
    plan: Plan, folder: Path | None = None, progress: Callable[[SweepProgress], None] = lambda _: None
) -> tuple[list[Row], Mapping[str, Any]]:
    """Return the rows of a plan, measuring what is not measured yet, and the environments they were measured in.

    The results stay in the folder for the next call; by default nowhere.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="meprop-bench-") as temporary:
            return measured(plan, Path(temporary), progress)
    with Store.begun(folder, plan.name, machine_slug(), f"suite {plan.name}", plan.to_json()) as store:
        Runner(plan, store, progress=progress).run()
        return store.rows(), store.header["environments"]


def _part(cases: Sequence[Case], seed: int) -> tuple[Case, ...]:
    grids = {workload: Grid.of(list(own)) for workload, own in _by(cases, lambda case: case.workload).items()}

    def rank(case: Case) -> str:
        return hashlib.sha256(f"{seed} {case.workload} {grids[case.workload].label(case)}".encode()).hexdigest()

    strata = _by(cases, lambda case: (case.workload, case.method, device_name(case), case.data))
    drawn = {case for own in strata.values() for case in sorted(own, key=rank)[: math.ceil(len(own) / _SHARE)]}
    return tuple(case for case in cases if case in drawn)


def _by(cases: Iterable[Case], key: Callable[[Case], Any]) -> dict[Any, list[Case]]:
    groups: dict[Any, list[Case]] = {}
    for case in cases:
        groups.setdefault(key(case), []).append(case)
    return groups


def _has(axis: str, cases: Sequence[Case]) -> bool:
    return all(AXES[axis].of(case.workload) for case in cases)


def _differ(axis: str, cases: Sequence[Case]) -> bool:
    if axis == "in-features" and (
        any(case.data is not None for case in cases) or all(case.in_features == case.out_features for case in cases)
    ):
        return False  # it follows from the data, or from the size
    values = {getattr(case, AXES[axis].field) for case in cases}
    return axis != "workload" and (len(values) > 1 or not values.isdisjoint(AXES[axis].explicit))


def _parameter(name: str, case: Case) -> Any:
    return device_name(case) if name == "device" else getattr(case, AXES[name].field)
