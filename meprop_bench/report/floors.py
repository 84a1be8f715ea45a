"""What was to be expected: operations and bytes that the method spares, what the machine's floors make of them, and
what was measured.

    operations, bytes   dense / sparse, counted from the definitions            what an ideal machine would gain
    at the floors       dense floor / sparse floor                              what this one could gain
    measured            dense time / sparse time                                what it did gain

The three differ for known reasons: the floors because memory, not arithmetic, bounds one side of them; the measured
figure because neither side reaches its floor. A sparse side far from its floor is where there is something to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

from meprop_bench.measure.peaks import Peaks, peaks_key
from meprop_bench.report.cells import ABSENT, Cell, pair, ratio
from meprop_bench.report.sections import AXES, WORDS, Section, phase_order, varying
from meprop_bench.results.schema import Row

__all__ = ["peaks_of", "saving_section"]

_REMARK = (
    "How much less the method needs than dense: operations and least bytes from its definition, the ratio of the floors"
    " that they give on this machine, and what was measured. Bound by: what makes the floor, dense → sparse."
    " Efficiency: floor / measured, dense → sparse; above 100% the machine was faster than its measured peaks."
)
_OWN: dict[str, Callable[[Row], str]] = {"workload": lambda row: row.workload, "allocator": lambda row: row.allocator}


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


def saving_section(rows: Sequence[Row], peaks: Mapping[str, Any]) -> Section | None:
    """Return the table of predicted against measured savings; None where nothing was counted or spared.

    Phases that the method leaves as they are do not appear.
    """
    counted = sorted((row for row in rows if _spares(row)), key=lambda row: phase_order(row.phase))
    if not counted:
        return None
    axes, constants = varying(counted)
    own = [name for name, axis in _OWN.items() if len({axis(row) for row in counted}) > 1]
    heads = {**{name: _OWN[name] for name in own}, **{name: AXES[name] for name in axes}}
    phases = dict.fromkeys(row.phase for row in counted)

    def line(row: Row) -> tuple[Cell, ...]:
        return tuple(Cell(axis(row)) for axis in heads.values()) + _figures(row, peaks_of(row, peaks))

    return Section(
        title="Predicted against measured saving",
        constants=constants,
        columns=(*heads, "operations", "bytes", "at the floors", "measured", "efficiency", "bound by"),
        groups=tuple(tuple(line(row) for row in counted if row.phase == phase) for phase in phases),
        remark=_REMARK,
        left=WORDS | set(_OWN) | {"bound by"},
    )


def _spares(row: Row) -> bool:
    known = row.flops is not None and row.baseline_flops is not None and row.speedup is not None
    return known and (row.flops, row.bytes) != (row.baseline_flops, row.baseline_bytes)


def _figures(row: Row, peaks: Peaks | None) -> tuple[Cell, ...]:
    ratios = (
        (row.baseline_flops, row.flops),
        (row.baseline_bytes, row.bytes),
        (row.baseline_floor_s, row.floor_s),
    )
    efficiencies = (_share(row.baseline_floor_s, row.baseline_median_s), _share(row.floor_s, row.median_s))
    return (
        *(Cell(ratio(dense / sparse) if dense and sparse else ABSENT) for dense, sparse in ratios),
        Cell(ABSENT if row.speedup is None else ratio(row.speedup)),
        Cell(pair(*efficiencies)),
        Cell(pair(*(_bound(side, row, peaks) for side in ("baseline_", "")))),
    )


def _share(floor_s: float | None, median_s: float | None) -> str:
    return f"{100 * floor_s / median_s:.0f}%" if floor_s is not None and median_s else ABSENT


def _bound(side: str, row: Row, peaks: Peaks | None) -> str:
    flops, nbytes = getattr(row, f"{side}flops"), getattr(row, f"{side}bytes")
    if peaks is None or flops is None or nbytes is None or row.dtype not in peaks.flops_per_s:
        return ABSENT
    return peaks.bound(flops, nbytes, row.dtype)
