"""What was to be expected: operations and bytes that the method spares, what the machine's floors make of them, and
what was measured.

    operations, bytes   dense / sparse, counted from the definitions            what an ideal machine would gain
    at the floors       dense floor / sparse floor                              what this one could gain
    measured            dense time / sparse time                                what it did gain

The three differ for known reasons: the floors because memory, not arithmetic, bounds one side of them; the measured
figure because neither side reaches its floor. A sparse side far from its floor is where there is something to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

from meprop_bench.measure.peaks import Peaks, peaks_key
from meprop_bench.report.cells import ABSENT, Cell, pair, plain_speedup, ratio
from meprop_bench.report.sections import AXES, WORDS, Section, by_phase, varying
from meprop_bench.results.schema import Row, Side, select

__all__ = ["peaks_of", "saving_sections", "savings"]

_REMARK = (
    "How much less the method needs than dense: operations and least bytes from its definition, the ratio of the floors"
    " that they give on this machine, and what was measured. Bound by: what makes the floor, dense → sparse where they"
    " differ. Efficiency: floor / measured, dense → sparse; above 100% the machine was faster than its measured peaks."
)
_FIGURES = ("operations", "bytes", "at the floors", "measured", "efficiency", "bound by")
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
    counted = [row for row in rows if _spares(row)]
    kinds = dict.fromkeys((row.workload, row.allocator) for row in counted)
    return [
        _section(select(counted, workload=workload, allocator=allocator), peaks, _REMARK if first else "")
        for first, (workload, allocator) in zip((True, *(False,) * len(kinds)), kinds, strict=False)
    ]


def _section(rows: Sequence[Row], peaks: Mapping[str, Any], remark: str) -> Section:
    axes, constants = varying(rows)
    axes = [name for name in axes if name != _ENVIRONMENT]
    found = {id(row): dict(zip(_FIGURES, _figures(row, peaks_of(row, peaks)), strict=True)) for row in rows}
    bounds = {figures["bound by"].text for figures in found.values()}
    shown = [name for name in _FIGURES if name != "bound by" or len(bounds) > 1]
    if "bound by" not in shown:
        constants = "; ".join(filter(None, (constants, f"bound by {bounds.pop()}" if bounds != {ABSENT} else "")))

    def line(row: Row) -> tuple[Cell, ...]:
        return (*(Cell(AXES[name](row)) for name in axes), *(found[id(row)][name] for name in shown))

    return Section(
        title=f"Predicted against measured saving: {rows[0].workload}, {rows[0].allocator} allocator",
        constants=constants,
        columns=(*axes, *shown),
        groups=by_phase(rows, line),
        remark=remark,
        left=WORDS | {"bound by"},
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


def _figures(row: Row, peaks: Peaks | None) -> tuple[Cell, ...]:
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
