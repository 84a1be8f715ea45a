"""What this machine allows, and what it did: predicted and measured savings, utilisation and energy.

*Savings.* Operations and bytes that the method spares, what the machine's floors make of them, and what was measured:

    operations, bytes   dense / sparse, counted from the definitions            what an ideal machine would gain
    at the floors       dense floor / sparse floor                              what this one could gain
    measured            dense time / sparse time                                what it did gain

The three differ for known reasons: the floors because memory, not arithmetic, bounds one side of them; the measured
figure because neither side reaches its floor. A sparse side far from its floor is where there is something to do.

*Utilisation.* What the machine did while each side ran steadily, a line for each case that was watched. A column
appears when some case has its figure, so that on a CPU there is none of a GPU, and without a meter none of energy; why
is said below the table, once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

from meprop_bench.measure.peaks import Peaks, peaks_key
from meprop_bench.report.cells import ABSENT, Cell, joules, memory, pair, percent, plain_speedup, ratio
from meprop_bench.report.sections import AXES, WORDS, Section, axis_cells, by_phase, phase_order, varying
from meprop_bench.results.schema import Row, Side, Utilization

__all__ = ["peaks_of", "saving_sections", "savings", "utilization_section"]

_SAVING_REMARK = (
    "How much less the method needs than dense: operations and least bytes from its definition, the ratio of the floors"
    " that they give on this machine, and what was measured. Bound by: what makes the floor, dense → sparse where they"
    " differ. Efficiency: floor / measured, dense → sparse; above 100% the machine was faster than its measured peaks."
)
_SAVINGS = ("operations", "bytes", "at the floors", "measured", "efficiency", "bound by")
_ENVIRONMENT = "environment"
"""An axis that has its column where the speed-ups are; here it would be the widest."""


def peaks_of(row: Row, peaks: Mapping[str, Any]) -> Peaks | None:
    """Return the machine's peaks for a row from those of a results folder, or of several by their titles."""
    if row.threads is None:
        return None
    key = peaks_key(row.device, row.dtype, row.threads)
    found = [own for own in (peaks, *peaks.values()) if isinstance(own, Mapping) and key in own]
    try:
        read = [Peaks.from_json(own[key]) for own in found]
    except (KeyError, TypeError, ValueError):  # a folder written by hand, or by another version
        return None
    return reduce(Peaks.merged, read) if read else None


def saving_sections(rows: Sequence[Row], peaks: Mapping[str, Any]) -> list[Section]:
    """Return the tables of predicted against measured savings, one for each workload and allocator.

    Phases that the method leaves as they are do not appear, and what is the same in all lines of a table is said once
    above it.
    """
    kinds: dict[tuple[str, str], list[Row]] = {}
    machines: dict[tuple[str, str, int | None], Peaks | None] = {}
    for row in filter(_spares, rows):
        kinds.setdefault((row.workload, row.allocator), []).append(row)
        if (key := (row.device, row.dtype, row.threads)) not in machines:
            machines[key] = peaks_of(row, peaks)
    remarks = (_SAVING_REMARK, *("",) * len(kinds))
    return [_saving_section(found, machines, remark) for found, remark in zip(kinds.values(), remarks, strict=False)]


def _saving_section(
    rows: Sequence[Row], machines: Mapping[tuple[str, str, int | None], Peaks | None], remark: str
) -> Section:
    axes, constants = varying(rows)
    axes = [name for name in axes if name != _ENVIRONMENT]
    cells = ((row, _saving_cells(row, machines[row.device, row.dtype, row.threads])) for row in rows)
    found = {id(row): dict(zip(_SAVINGS, own, strict=True)) for row, own in cells}
    bounds = {figures["bound by"].text for figures in found.values()}
    shown = [name for name in _SAVINGS if name != "bound by" or len(bounds) > 1]
    if "bound by" not in shown:
        constants = "; ".join(filter(None, (constants, f"bound by {bounds.pop()}" if bounds != {ABSENT} else "")))

    keys = axis_cells(axes)

    def line(row: Row) -> tuple[Cell, ...]:
        return (*keys(row), *(found[id(row)][name] for name in shown))

    return Section(
        title=f"Predicted against measured saving: {rows[0].workload}, {rows[0].allocator} allocator",
        constants=constants,
        columns=(*axes, *shown),
        groups=by_phase(rows, line),
        remark=remark,
        left=WORDS | {"bound by"},
        keys=frozenset(axes),
        drop=("bound by", "efficiency", "bytes"),
    )


def _spares(row: Row) -> bool:
    sparse, dense = row.sparse, row.dense
    known = sparse.flops is not None and dense.flops is not None and row.speedup is not None
    return known and (sparse.flops, sparse.bytes) != (dense.flops, dense.bytes)


def savings(row: Row) -> tuple[float | None, float | None, float | None]:
    """Return dense / sparse of operations, bytes and floors, None for what was not counted or is not spared at all."""
    flops, nbytes, floors = (
        dense / sparse if (dense := getattr(row.dense, name)) and (sparse := getattr(row.sparse, name)) else None
        for name in ("flops", "bytes", "floor_s")
    )
    return flops, nbytes, floors


def _saving_cells(row: Row, peaks: Peaks | None) -> tuple[Cell, ...]:
    sides = (row.dense, row.sparse)
    shares = (ABSENT if side.efficiency is None else f"{100 * side.efficiency:.0f}%" for side in sides)
    return (
        *(Cell(ABSENT if found is None else ratio(found)) for found in savings(row)),
        Cell(plain_speedup(row)),
        Cell(pair(*shares)),
        Cell(" → ".join(dict.fromkeys(_bound(side, row.dtype, peaks) for side in sides))),
    )


def _bound(side: Side, dtype: str, peaks: Peaks | None) -> str:
    if peaks is None or side.flops is None or side.bytes is None or dtype not in peaks.flops_per_s:
        return ABSENT
    return peaks.bound(side.flops, side.bytes, dtype)


_WATCHED_REMARK = (
    "Dense → sparse, each watched for seconds of a steady loop after the timing. CPU: time of the process in percent of"
    " one core (threads that spin while they wait count); others: everything else on the machine. GPU: the time in"
    " which some kernel ran. Page faults and energy are for one iteration of the phase; energy is that of the device,"
    " idle power included."
)


def _throttled(reasons: tuple[str, ...] | None) -> str:
    return ABSENT if reasons is None else " + ".join(reasons) or "no"


_OWN: dict[str, Callable[[Row], str]] = {"workload": lambda row: row.workload, "allocator": lambda row: row.allocator}
_WATCHED: dict[str, Callable[[Utilization], str]] = {
    "CPU": lambda side: percent(side.cpu_utilization),
    "others": lambda side: percent(side.others_cpu_utilization),
    "page faults": lambda side: ABSENT if side.page_faults is None else f"{side.page_faults / side.iterations:.3g}",
    "GPU": lambda side: percent(side.gpu_utilization),
    "SMs": lambda side: percent(side.sm_utilization),
    "tensor cores": lambda side: percent(side.tensor_utilization),
    "DRAM": lambda side: percent(side.dram_utilization),
    "SM clock": lambda side: ABSENT if side.sm_clock_mhz is None else f"{side.sm_clock_mhz:.0f} MHz",
    "throttled": lambda side: _throttled(side.throttle_reasons),
    "resident": lambda side: memory(side.rss_bytes),
    "power": lambda side: ABSENT if side.power_w is None else f"{side.power_w:.0f} W",
    "energy": lambda side: joules(side.energy_per_step_j),
}
_EXPLAINED = {
    "gpu_utilization": "GPU utilisation",
    "cpu_utilization": "CPU utilisation",
    "power_w": "power",
    "energy_per_step_j": "energy",
}
_OBVIOUS = "the device is the CPU"


def utilization_section(rows: Sequence[Row]) -> Section | None:
    """Return the table of what was watched, one line for each case; None if none was."""
    watched = [row for row in rows if row.sparse.utilization is not None]
    watched.sort(key=lambda row: phase_order(row.phase))  # so that reasons stand in the order of the lines
    if not watched:
        return None
    axes, constants = varying(watched)
    own = [name for name, axis in _OWN.items() if len({axis(row) for row in watched}) > 1]
    figures = [name for name in _WATCHED if any(_figure(row, name) != ABSENT for row in watched)]
    heads = {**{name: _OWN[name] for name in own}, **{name: AXES[name] for name in axes}}

    def line(row: Row) -> tuple[Cell, ...]:
        return tuple(Cell(axis(row)) for axis in heads.values()) + tuple(Cell(_figure(row, name)) for name in figures)

    return Section(
        title="Utilisation and energy",
        constants=constants,
        columns=(*heads, *figures),
        groups=by_phase(watched, line),
        remark=_WATCHED_REMARK,
        footnotes=_reasons(watched),
        left=WORDS | set(_OWN),
        keys=frozenset(heads),
        drop=("throttled", "resident", "page faults", "others"),
    )


def _figure(row: Row, name: str) -> str:
    figure = _WATCHED[name]
    sides = (row.dense.utilization, row.sparse.utilization)
    return pair(*(ABSENT if side is None else figure(side) for side in sides))


def _reasons(rows: Sequence[Row]) -> tuple[str, ...]:
    """Say once why a figure is missing, with all the figures that it is the reason of."""
    missing: dict[str, list[str]] = {}
    for row in rows:
        for name, word in _EXPLAINED.items():
            reason = row.unavailable.get(name, _OBVIOUS)
            if reason != _OBVIOUS and word not in missing.setdefault(reason, []):
                missing[reason].append(word)
    return tuple(f"No {' and '.join(words)}: {reason}." for reason, words in missing.items())
