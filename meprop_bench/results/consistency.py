"""A row's figures against its own raw values: what contradicts itself is no result, whoever wrote it.

Each figure that follows from what is beside it is computed again and held against what is stored:

    median_s, baseline_median_s, speedup and its interval, processes     from values_s, baseline_values_s, run_lengths
    efficiency                                                           floor_s / median_s
    parity.difference, its interval and verdict                          from the accuracies of its seeds
    power_w, energy_per_step_j                                           of one energy

JSON keeps a float to its last digit, so that what this package wrote comes out alike; the tolerance is for another
machine's `exp` and quantiles. What is null was not measured, and contradicts nothing. An efficiency may be above 1: the
peaks behind a floor are measured, too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from meprop_bench.results.axes import AXES
from meprop_bench.stats import mean_difference, non_inferiority

if TYPE_CHECKING:
    from meprop_bench.results.schema import Parity, Row, Utilization

__all__ = ["FAR", "check_parity", "check_row", "check_utilization"]

_TOLERANCE = 1e-6
"""Relative; of points of accuracy absolute."""

FAR = 10.0
"""How far a speed-up may be from the ratio of the medians, where there are no values to hold it against: the median of
ratios is not the ratio of medians, but neither is it another order of magnitude. And how far a time may be below its
floor, which was measured as well."""

_NAMES = (
    *("case_id", "kernel", "phase", "git_revision", "environment_id"),
    *(axis.stored for axis in AXES.values() if str in axis.bases),
)
_NUMBERS = (
    *("median_s", "values_s", "baseline_median_s", "baseline_values_s", "run_lengths", "speedup", "speedup_low"),
    *("speedup_high", "floor_s", "efficiency", "peak_memory_bytes", "process_peak_bytes", "utilization", "parity"),
)
"""Fields that a case has only if it ran."""

_WATCHED = ("gpu_utilization", "cpu_utilization", "power_w", "energy_per_step_j")
"""Fields that a row takes out of the method's `utilization`."""


def check_row(row: Row) -> None:
    """Raise ValueError for a row that contradicts itself."""
    for name in _NAMES:
        value = getattr(row, name)
        if value is not None and not value.isprintable():
            raise ValueError(f"{name} is {value[:60]!r}, and holds what cannot be printed")
    _check_outcome(row)
    _check_values(row)
    _check_interval(row)
    _check_efficiency(row)
    for side in (row.utilization, row.baseline_utilization):
        if side is not None:
            check_utilization(side)
    for name in _WATCHED if row.utilization is not None else ():
        _same(name, getattr(row, name), getattr(row.utilization, name), "its utilization has")
    if row.parity is not None:
        check_parity(row.parity)


def _check_outcome(row: Row) -> None:
    if row.speedup is not None and not row.passed:
        raise ValueError(f"a speed-up for a case that failed: check {row.check!r}, error {row.error!r}")
    if row.error is not None and (numbers := [name for name in _NUMBERS if getattr(row, name) is not None]):
        raise ValueError(f"{numbers[0]} in a row that holds an error")


def _check_values(row: Row) -> None:
    values, baseline, lengths = row.values_s, row.baseline_values_s, row.run_lengths
    if values is None or baseline is None or lengths is None:
        if any(part is not None for part in (values, baseline, lengths)):
            raise ValueError("values_s, baseline_values_s and run_lengths come together or not at all")
        return
    if not len(values) == len(baseline) == sum(lengths) or not values:
        raise ValueError(
            f"{len(values)} values, {len(baseline)} baseline values and run_lengths {list(lengths)[:8]} do not pair up"
        )
    if row.disturbed is not None and len(row.disturbed) != len(values):
        raise ValueError(f"{len(row.disturbed)} marks of disturbed pairs for {len(values)} values")
    found = row.measurement
    assert found is not None
    _same("processes", row.processes, found.processes, "run_lengths say")
    _same("median_s", row.median_s, found.median_s, "the values have")
    _same("baseline_median_s", row.baseline_median_s, found.baseline_median_s, "the values have")
    if row.speedup is None:
        return
    interval = found.speedup
    _same("speedup", row.speedup, interval.estimate, "the values have")
    _same("speedup_low", row.speedup_low, interval.low, "the values have")
    _same("speedup_high", row.speedup_high, interval.high, "the values have")


def _check_interval(row: Row) -> None:
    speedup, low, high = row.speedup, row.speedup_low, row.speedup_high
    if (low is None) != (high is None):
        raise ValueError("speedup_low and speedup_high come together or not at all")
    if low is not None and high is not None and (speedup is None or not low <= speedup <= high):
        raise ValueError(f"speedup {speedup} is not in its interval [{low}, {high}]")
    if row.converged and low is None:
        raise ValueError("converged without an interval that could be narrow enough")
    if speedup is not None and row.median_s is not None and row.baseline_median_s is not None:
        ratio = row.baseline_median_s / row.median_s
        if row.values_s is None and not ratio / FAR <= speedup <= ratio * FAR:
            raise ValueError(f"speedup is {speedup:.6g}, but the medians have {ratio:.6g}")


def _check_efficiency(row: Row) -> None:
    if row.efficiency is None:
        return
    if row.floor_s is None or row.median_s is None:
        raise ValueError("an efficiency without the floor and the median that it is made of")
    _same("efficiency", row.efficiency, row.floor_s / row.median_s, "floor_s / median_s is")
    if row.efficiency > FAR:
        raise ValueError(f"efficiency is {row.efficiency:.6g}: a floor is no such multiple of what was measured")


def check_utilization(found: Utilization) -> None:
    """Raise ValueError where power and energy are not those of one loop."""
    if found.power_w is not None and found.energy_per_step_j is not None:
        energy_j = found.power_w * found.seconds
        _same("energy_per_step_j", found.energy_per_step_j, energy_j / found.iterations, "power_w has")


def check_parity(parity: Parity) -> None:
    """Raise ValueError for a comparison that its own accuracies contradict."""
    if not len(parity.seeds) == len(parity.baseline) == len(parity.method) or not parity.seeds:
        counts = f"{len(parity.seeds)} seeds, {len(parity.baseline)} baseline and {len(parity.method)} method figures"
        raise ValueError(f"parity: {counts} do not fit")
    if len(set(parity.seeds)) < len(parity.seeds):
        raise ValueError("parity: a seed is there twice")
    found = mean_difference(list(zip(parity.baseline, parity.method, strict=True)))
    for name, own in (("difference", found.estimate), ("low", found.low), ("high", found.high)):
        _same(f"parity.{name}", getattr(parity, name), own, "its accuracies have", floor=1.0)
    if parity.verdict != (verdict := non_inferiority(found, parity.margin)):
        raise ValueError(f"parity.verdict is {parity.verdict!r}, but its accuracies have {verdict!r}")


def _same(name: str, told: float | None, found: float | None, source: str, *, floor: float = 0.0) -> None:
    """Raise ValueError for a figure that is not the one found; None is no figure, and NaN finds none."""
    if told is None:
        return
    if found is None or math.isnan(found):
        raise ValueError(f"{name} is {told:.6g}, but {source} none")
    if not abs(told - found) <= _TOLERANCE * max(abs(found), floor):
        raise ValueError(f"{name} is {told:.6g}, but {source} {found:.6g}")
