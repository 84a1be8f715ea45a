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
from dataclasses import fields
from typing import TYPE_CHECKING

from meprop_bench.results.incoming import MOST_PERCENT
from meprop_bench.stats import mean_difference, non_inferiority

if TYPE_CHECKING:
    from meprop_bench.results.schema import Flat, Parity, Row, Side, Utilization

__all__ = ["FAR", "TOLERANCE", "WATCHED", "check_row", "check_utilization"]

TOLERANCE = 1e-6
"""Relative; of a difference in quality to what it is seen against (`Parity.scale`), 100 for percentages."""

FAR = 10.0
"""How far a speed-up may be from the ratio of the medians, where there are no values to hold it against: the median of
ratios is not the ratio of medians, but neither is it another order of magnitude. And how far a time may be below its
floor, which was measured as well."""

WATCHED = ("gpu_utilization", "cpu_utilization", "power_w", "energy_per_step_j")
"""Fields of the method's `Utilization` that a stored row repeats, and whose absence `Row.unavailable` explains."""


def check_row(row: Row, flat: Flat) -> None:
    """Raise ValueError for a row that contradicts itself, or what is stored beside its structures."""
    texts = {name: value for name, value in vars(row).items() if type(value) is str}
    if not "".join(texts.values()).isprintable():
        name, text = next(item for item in texts.items() if not item[1].isprintable())
        raise ValueError(f"{name} is {text[:60]!r}, and holds what cannot be printed")
    _check_outcome(row)
    if row.measurement is not None:
        _check_values(row, flat)
    _check_interval(row)
    _check_efficiency(row.sparse, flat.efficiency)
    for side in (row.sparse, row.dense):
        if side.utilization is not None:
            check_utilization(side.utilization)
    if (watched := row.sparse.utilization) is not None:
        for name in WATCHED:
            _same(name, getattr(flat, name), getattr(watched, name), "its utilization has")
    if row.parity is not None:
        _check_parity(row.parity)


def _check_outcome(row: Row) -> None:
    if row.speedup is not None and not row.passed:
        raise ValueError(f"a speed-up for a case that failed: check {row.check!r}, error {row.error!r}")
    if row.error is None:
        return
    found = {"values_s": row.measurement, "parity": row.parity}
    found |= {spec.name: getattr(row.sparse, spec.name) for spec in fields(row.sparse)}
    found |= {f"baseline_{spec.name}": getattr(row.dense, spec.name) for spec in fields(row.dense)}
    if numbers := [name for name, value in found.items() if value is not None]:
        raise ValueError(f"{numbers[0]} in a row that holds an error")


def _check_values(row: Row, flat: Flat) -> None:
    found = row.measurement
    assert found is not None
    _same("processes", flat.processes, found.processes, "run_lengths say")
    _same("median_s", row.sparse.median_s, found.median_s, "the values have")
    _same("baseline_median_s", row.dense.median_s, found.baseline_median_s, "the values have")
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
    if speedup is not None and row.sparse.median_s is not None and row.dense.median_s is not None:
        ratio = row.dense.median_s / row.sparse.median_s
        if row.measurement is None and not ratio / FAR <= speedup <= ratio * FAR:
            raise ValueError(f"speedup is {speedup:.6g}, but the medians have {ratio:.6g}")


def _check_efficiency(side: Side, stored: float | None) -> None:
    if stored is None:
        return
    if side.efficiency is None:
        raise ValueError("an efficiency without the floor and the median that it is made of")
    _same("efficiency", stored, side.efficiency, "floor_s / median_s is")
    if stored > FAR:
        raise ValueError(f"efficiency is {stored:.6g}: a floor is no such multiple of what was measured")


def check_utilization(found: Utilization) -> None:
    """Raise ValueError where power and energy are not those of one loop."""
    if found.power_w is not None and found.energy_per_step_j is not None:
        energy_j = found.power_w * found.seconds
        _same("energy_per_step_j", found.energy_per_step_j, energy_j / found.iterations, "power_w has")


def _check_parity(parity: Parity) -> None:
    """Raise ValueError for a comparison that its own accuracies contradict."""
    if not len(parity.seeds) == len(parity.baseline) == len(parity.method) or not parity.seeds:
        counts = f"{len(parity.seeds)} seeds, {len(parity.baseline)} baseline and {len(parity.method)} method figures"
        raise ValueError(f"parity: {counts} do not fit")
    if len(set(parity.seeds)) < len(parity.seeds):
        raise ValueError("parity: a seed is there twice")
    for name in ("baseline", "method") if parity.percent else ():
        if wrong := [each for each in getattr(parity, name) if not 0 <= each <= MOST_PERCENT]:
            raise ValueError(f"parity.{name} holds {wrong[0]:.6g}, which is no percentage")
    found = mean_difference(list(zip(parity.baseline, parity.method, strict=True)))
    least = 1.0 if parity.percent else parity.scale
    for name, own in (("difference", found.estimate), ("low", found.low), ("high", found.high)):
        _same(f"parity.{name}", getattr(parity, name), own, "its accuracies have", least=least)
    if parity.verdict != (verdict := non_inferiority(found, parity.margin)):
        raise ValueError(f"parity.verdict is {parity.verdict!r}, but its accuracies have {verdict!r}")


def _same(name: str, stored: float | None, found: float | None, source: str, *, least: float = 0.0) -> None:
    """Raise ValueError for a figure that is not the one found; None is no figure, and NaN finds none."""
    if stored is None:
        return
    if found is None or math.isnan(found):
        raise ValueError(f"{name} is {stored:.6g}, but {source} none")
    if not abs(stored - found) <= TOLERANCE * max(abs(found), least):
        raise ValueError(f"{name} is {stored:.6g}, but {source} {found:.6g}")
