"""The roofline: how fast each side computes, against what its operations per byte allow on this machine.

    y = operations / second        at most   min(peak rate, bandwidth × x)
    x = operations / byte          both from the definition of the method: the least that must be moved

Dense products lie far to the right, under the flat roof of the arithmetic. Sparsifying takes operations away and leaves
the bytes (dW is written in full, unless its gradient is rows), so that points move left, towards the slope: there the
memory bounds them, and a smaller k gains no more. The distance to the roof above a point is what is left to gain; a
speed-up is not to be seen here, since the sparse side does less.

The roofs are measured (`measure.peaks`): one slope for main memory, one for the fastest cache. A point between them
works on data that partly stay in a cache.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from meprop_bench.measure.peaks import Peaks
from meprop_bench.report.cells import quantity
from meprop_bench.report.floors import peaks_of
from meprop_bench.report.plots import COLOURS, MARKERS, STYLE, Plot, as_svg, grouped
from meprop_bench.results.schema import Row, Side

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["rooflines"]

_PHASES = ("linear-backward", "backward")
"""What the method is about; of a workload that has both, the first."""

_DENSE = "#444444"


def rooflines(rows: Sequence[Row], peaks: Mapping[str, Any]) -> list[Plot]:
    """Draw a roofline for each device, dtype, threads and allocator whose peaks are known; needs matplotlib."""
    import matplotlib as mpl

    drawn: list[Plot] = []
    with mpl.rc_context(STYLE):
        for found in grouped(_main(rows), lambda row: (row.device, row.dtype, row.threads, row.allocator)):
            machine = peaks_of(found[0], peaks)
            if machine is not None and found[0].dtype in machine.flops_per_s:
                drawn.append(_roofline(found, machine, len(drawn)))
    return drawn


def _main(rows: Sequence[Row]) -> list[Row]:
    """Return the row of each case that is about the method, where it passed and both its sides were counted."""
    chosen = []
    for case in grouped(rows, lambda row: (row.case_id,)):
        phases = {row.phase: row for row in case if row.passed and _point(row.dense) and _point(row.sparse)}
        chosen += [phases[phase] for phase in _PHASES if phase in phases][:1]
    return chosen


def _point(side: Side) -> tuple[float, float] | None:
    """Return operations per byte, and operations a second."""
    flops, nbytes, median_s = side.flops, side.bytes, side.median_s
    return (flops / nbytes, flops / median_s) if flops and nbytes and median_s else None


def _roofline(rows: list[Row], machine: Peaks, number: int) -> Plot:
    from matplotlib.figure import Figure

    first = rows[0]
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.set_yscale("log")
    points = [point for row in rows for side in (row.dense, row.sparse) if (point := _point(side))]
    _roofs(axes, machine, first.dtype, [x for x, _ in points])
    dense = [point for row in rows if (point := _point(row.dense))]
    axes.plot(*zip(*dense, strict=True), color=_DENSE, marker="x", markersize=6, linestyle="", label="dense")
    for index, series in enumerate(grouped(rows, _series)):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        label: str | None = ", ".join(map(str, _series(series[0])))
        for shape in grouped(series, lambda row: (row.workload, row.batch, row.in_features, row.out_features)):
            ordered = sorted(shape, key=lambda row: row.k)
            found = [point for row in ordered if (point := _point(row.sparse))]
            style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4.5, "linewidth": 0.8}
            axes.plot(*zip(*found, strict=True), label=label, **style)
            label = None
    _labels(axes)
    axes.set_title(_title(first))
    axes.grid(linewidth=0.4, color="#DDDDDD")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    caption = (
        f"Roofline of the backward passes ({_title(first)}): the measured roofs, and each case's dense and sparse side;"
        " lines join the k of one shape."
    )
    return Plot(_name(first, number), caption, as_svg(figure))


def _labels(axes: Axes) -> None:
    """Label both axes with plain numbers: an exponent would be typeset as mathematics, which is switched off."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: quantity(value)))
    axes.set_xlabel("operations per byte that must be moved")
    axes.set_ylabel("operations a second")


def _roofs(axes: Axes, machine: Peaks, dtype: str, xs: Sequence[float]) -> None:
    """Draw the flat roof and the two slopes, from left of all points to right of them and of the corners."""
    peak = machine.flops_per_s[dtype]
    memory, cache = machine.bandwidth[-1][1], max(rate for _, rate in machine.bandwidth)
    left, right = min(*xs, peak / cache) / 2, max(*xs, peak / memory) * 2
    slopes = ((cache, "fastest cache", "--"), (memory, "main memory", "-"))
    for rate, name, line in slopes:
        corner = peak / rate
        label = f"{name}, {quantity(rate)}B/s"
        axes.plot([left, corner], [rate * left, peak], color="black", linewidth=1.1, linestyle=line, label=label)
    label = f"arithmetic, {quantity(peak)}FLOP/s"
    axes.plot([peak / cache, right], [peak, peak], color="black", linewidth=1.6, label=label)


def _series(row: Row) -> tuple[object, ...]:
    kernel = (row.kernel_requested,) if row.kernel_requested != "auto" else ()
    return (row.method, f"{row.gradient} gradient", *kernel)


def _title(row: Row) -> str:
    threads = f"{row.threads} threads" if row.threads != 1 else "1 thread"
    return f"{row.device}, {threads}, {row.dtype}, {row.allocator} allocator"


def _name(row: Row, number: int) -> str:
    words = re.sub(r"[^A-Za-z0-9]+", "-", f"{row.device}-{row.dtype}-{row.threads}-{row.allocator}")
    return f"roofline-{number + 1}-{words[:60]}.svg"
