"""The roofline: how fast each side computes, against what its operations per byte allow on this machine.

    y = operations / second        at most   min(peak rate, bandwidth × x)
    x = operations / byte          both from the definition of the method: the least that must be moved

Dense products lie far to the right, under the flat roof of the arithmetic. Sparsifying takes operations away and leaves
the bytes (dW is written in full, unless its gradient is rows), so that points move left, towards the slope: there the
memory bounds them, and a smaller k gains no more. The distance to the roof above a point is what is left to gain; a
speed-up is not to be seen here, since the sparse side does less. The roofs are measured (`measure.peaks`): one slope
for main memory, one for the fastest cache. A point between them works on data that partly stay in a cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from meprop_bench.measure.peaks import Peaks
from meprop_bench.report.cells import counted, quantity, shape
from meprop_bench.report.machine import peaks_of
from meprop_bench.report.plots.grouping import grouped
from meprop_bench.report.plots.svg import COLOURS, MARKERS, PALETTE, Picture, Plot, log_ticks, name_of
from meprop_bench.results.schema import Row, Side

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["rooflines"]

_OF_METHOD = ("linear-backward", "backward")
"""What the method is about; of a workload that has both, the first."""
_MOST_SERIES = 6
_MOST_POINTS = 60


def rooflines(rows: Sequence[Row], peaks: Mapping[str, Any], most: int) -> tuple[list[Plot], int]:
    """Draw up to `most`, one for each device, dtype, threads and allocator of known peaks, and count the rest."""
    found = []
    for own in grouped(_main(rows), lambda row: (row.device, row.dtype, row.threads, row.allocator)):
        machine = peaks_of(own[0], peaks)
        if machine is not None and own[0].dtype in machine.flops_per_s:
            found.append((own, machine))
    return [_drawn(own, machine) for own, machine in found[:most]], max(0, len(found) - most)


def _main(rows: Sequence[Row]) -> list[Row]:
    """Return the row of each case that is about the method, where it passed and both its sides were counted."""
    chosen = []
    for case in grouped(rows, lambda row: row.case_id):
        phases = {row.phase: row for row in case if row.passed and _point(row.dense) and _point(row.sparse)}
        chosen += [phases[phase] for phase in _OF_METHOD if phase in phases][:1]
    return chosen


def _point(side: Side) -> tuple[float, float] | None:
    """Return operations per byte, and operations a second."""
    flops, nbytes, median_s = side.flops, side.bytes, side.median_s
    return (flops / nbytes, flops / median_s) if flops and nbytes and median_s else None


def _drawn(rows: list[Row], machine: Peaks) -> Plot:
    first, shown = rows[0], rows[:_MOST_POINTS]
    picture = Picture("side", "of", "operations per byte", "operations a second", "of the floor")
    axes = picture.axes
    axes.set_xscale("log")
    axes.set_yscale("log")
    points = [point for row in shown for side in (row.dense, row.sparse) if (point := _point(side))]
    _roofs(axes, machine, first.dtype, [x for x, _ in points])
    dense = [point for row in shown if (point := _point(row.dense))]
    axes.plot(
        *zip(*dense, strict=True), color=PALETTE["quiet"][0], marker="x", markersize=6, linestyle="", label="dense"
    )
    for row in {point: row for row in shown if (point := _point(row.dense))}.values():
        _say(picture, row, row.dense, "dense")
    for index, series in enumerate(grouped(shown, _series)[:_MOST_SERIES]):
        label: str | None = ", ".join(map(str, _series(series[0])))
        for of_shape in grouped(series, lambda row: (row.workload, row.batch, row.in_features, row.out_features)):
            ordered = sorted(of_shape, key=lambda row: row.k)
            found = [point for row in ordered if (point := _point(row.sparse))]
            style: dict[str, Any] = {"color": COLOURS[index], "marker": MARKERS[index], "markersize": 5, "linewidth": 1}
            axes.plot(*zip(*found, strict=True), label=label, **style)
            label = None
            for row in ordered:
                _say(picture, row, row.sparse, f"{row.method}, k={row.k:g}")
    _labels(axes)
    constant = _constant(first)
    cut = f" The first {len(shown)} of {len(rows)} cases." if len(rows) > len(shown) else ""
    return picture.plot(
        name_of("roofline", constant),
        "roofline",
        "Roofline of the backward passes",
        constant,
        f"Roofline of the backward passes ({constant}): the measured roofs, and each case's dense and sparse side;"
        f" lines join the k of one shape.",
        cut=cut,
        height=210,
        choices={"of": constant},
    )


def _say(picture: Picture, row: Row, side: Side, name: str) -> None:
    if (point := _point(side)) is not None:
        efficiency = "–" if side.efficiency is None else f"{100 * side.efficiency:.0f}%"
        picture.point(*point, name, f"{row.workload} {shape(row)}", f"{point[0]:.3g}", quantity(point[1]), efficiency)


def _labels(axes: Axes) -> None:
    """Label both axes with plain numbers: an exponent would be typeset as mathematics, which is switched off."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(LogLocator(numticks=7))
    axes.yaxis.set_major_locator(log_ticks(*axes.get_ylim()))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: quantity(value)))
    axes.set_xlabel("operations per byte that must be moved")
    axes.set_ylabel("operations a second")
    axes.grid(linewidth=0.5)
    axes.set_axisbelow(True)


def _roofs(axes: Axes, machine: Peaks, dtype: str, xs: Sequence[float]) -> None:
    """Draw the flat roof and the two slopes, from left of all points to right of them and of the corners."""
    peak = machine.flops_per_s[dtype]
    memory, cache = machine.bandwidth[-1][1], max(rate for _, rate in machine.bandwidth)
    left, right = min(*xs, peak / cache) / 2, max(*xs, peak / memory) * 2
    ink = PALETTE["ink"][0]
    for rate, name, line in ((cache, "fastest cache", "--"), (memory, "main memory", "-")):
        corner = peak / rate
        label = f"{name}, {quantity(rate)}B/s"
        axes.plot([left, corner], [rate * left, peak], color=ink, linewidth=1.1, linestyle=line, label=label)
    label = f"arithmetic, {quantity(peak)}FLOP/s"
    axes.plot([peak / cache, right], [peak, peak], color=ink, linewidth=1.6, label=label)


def _series(row: Row) -> tuple[object, ...]:
    kernel = (row.kernel_requested,) if row.kernel_requested != "auto" else ()
    return (row.method, f"{row.gradient} gradient", *kernel)


def _constant(row: Row) -> str:
    return f"{row.device}, {counted(row.threads or 0, 'thread')}, {row.dtype}, {row.allocator} allocator"
