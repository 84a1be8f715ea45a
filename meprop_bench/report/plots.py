"""The pictures of a report, as SVG.

1. Speed-up over k with intervals, beside what it cannot exceed (n/k, the share of the arithmetic that is left), what
   this machine's floor allows, and, for the shape that the paper measured, what the paper reports.
2. Where a step's time goes: forward, backward and update stacked, dense beside sparse.
3. The roofline: how fast each side computes, against what its operations per byte allow on this machine.

       y = operations / second        at most   min(peak rate, bandwidth × x)
       x = operations / byte          both from the definition of the method: the least that must be moved

   Dense products lie far to the right, under the flat roof of the arithmetic. Sparsifying takes operations away and
   leaves the bytes (dW is written in full, unless its gradient is rows), so that points move left, towards the slope:
   there the memory bounds them, and a smaller k gains no more. The distance to the roof above a point is what is left
   to gain; a speed-up is not to be seen here, since the sparse side does less. The roofs are measured
   (`measure.peaks`): one slope for main memory, one for the fastest cache. A point between them works on data that
   partly stay in a cache.
4. The learning curve of a training: the loss falling, the development metric rising, and where it was best.

A plot shows one device under one allocator, of the first two one shape; everything that is constant in it is in its
title. The colours are Okabe and Ito's, distinct to every kind of colour vision, and each series has a marker of its
own as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from meprop_bench.measure.peaks import Peaks
from meprop_bench.report.cells import IN_SHAPE, quantity, shape
from meprop_bench.report.machine import peaks_of
from meprop_bench.results.axes import AXES
from meprop_bench.results.schema import Row, Side

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "MARKERS", "STYLE", "Plot", "as_svg", "curve", "plots", "rooflines"]

# ICML 2017, table 7: backward time of the linear layer, batch 1024, 8192 -> 8192, unified, on a GTX 1080.
_PAPER_SHAPE = (1024, 8192, 8192)
_PAPER = {8: 36.8, 16: 33.6, 32: 27.5, 64: 21.4, 128: 14.5, 256: 8.0, 512: 4.4}

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
_STACK = {"forward": "#56B4E9", "backward": "#D55E00", "update": "#B8B8B8"}
STYLE: Any = {
    "svg.hashsalt": "meprop-bench",  # the same rows give the same bytes
    "text.parse_math": False,  # a $ in a name is a $
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
_MOST_BARS = 12
_MANY_SETTINGS = 8
"""From here on a setting with one case alone, as a sweep over sizes has many, gets no picture of its phases."""


@dataclass(frozen=True)
class Plot:
    """One picture: the file's name, what it shows in a sentence, and the SVG."""

    name: str
    caption: str
    svg: bytes


def plots(rows: Sequence[Row]) -> list[Plot]:
    """Draw every picture that the rows give; needs matplotlib (ImportError)."""
    import matplotlib as mpl

    drawn: list[Plot] = []
    with mpl.rc_context(STYLE):
        for found in grouped(rows, lambda row: (*_setting(row), row.phase)):
            timed = [row for row in found if row.speedup is not None]
            lines = [{row.k for row in series} for series in grouped(timed, _line)]
            if found[0].phase in ("backward", "linear-backward", "step") and any(len(ks) > 1 for ks in lines):
                drawn.append(_over_k(timed, len(drawn)))
        settings = grouped(rows, _setting)
        for found in settings:
            ordered = sorted(found, key=lambda row: (row.method, row.gradient, row.k))
            cases = [case for case in grouped(ordered, lambda row: (row.case_id,)) if _phases(case)]
            if len(cases) > (len(settings) > _MANY_SETTINGS):
                drawn.append(_stacked(cases[:_MOST_BARS], len(drawn)))
    return drawn


def grouped(rows: Sequence[Row], key: Callable[[Row], tuple[object, ...]]) -> list[list[Row]]:
    """Return the rows in groups of equal keys, in the order of their first rows."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.values())


# A plot is of one dense work, however it was launched: the other axes make lines of it.
_LINES = [axis for axis in AXES.values() if (not axis.dense or axis.came_later) and axis.field not in ("method", "k")]
_SETTING = [axis for axis in AXES.values() if axis.dense and not axis.came_later]
_IN_TITLE = (*IN_SHAPE, "workload", "device", "threads", "dtype", "allocator", "data")


def _setting(row: Row) -> tuple[object, ...]:
    return (*(getattr(row, axis.stored) for axis in _SETTING), row.environment_id)


def _title(row: Row) -> str:
    parts = [f"batch {shape(row)}", row.device, f"{row.threads} threads" if row.threads else "", row.dtype]
    others = [axis.said(row) for axis in _SETTING if axis.field not in _IN_TITLE]
    return ", ".join(filter(None, (*parts, f"{row.allocator} allocator", row.data, *others)))


def _over_k(rows: list[Row], number: int) -> Plot:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for index, series in enumerate(grouped(rows, _line)):
        _series(axes, sorted(series, key=lambda row: row.k), index)
    if any(row.sparse.floor_s for row in rows):
        axes.plot([], [], color="#777777", linewidth=1.1, linestyle=":", label="at the machine's floor")
    _bound(axes, rows)
    _paper(axes, rows)
    _scales(axes, sorted({row.k for row in rows}))
    first = rows[0]
    axes.set_ylabel(f"speed-up of the {first.phase} over dense")
    axes.set_title(_title(first))
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(handles)), key=lambda place: isinstance(handles[place], Line2D))  # measured ones first
    axes.legend(
        [handles[place] for place in order],
        [labels[place] for place in order],
        fontsize=8.5,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
    )
    caption = f"Speed-up of the {first.phase} over k ({first.workload}; {_title(first)}), with 95% intervals."
    name = f"{first.workload}-{first.phase}-{first.allocator}"
    return Plot(_name("speedup", name, number), caption, as_svg(figure))


def _scales(axes: Axes, ks: Sequence[float]) -> None:
    """Both axes logarithmic, labelled with plain numbers: halving k ought to double the speed-up, a straight line."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(ks)))
    axes.yaxis.set_major_locator(FixedLocator([a * 10**b for b in range(-3, 6) for a in (1, 2, 5)]))
    for axis, unit in ((axes.xaxis, ""), (axes.yaxis, "x")):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _, unit=unit: f"{value:g}{unit}"))
    axes.axhline(1, color="black", linewidth=0.8)
    axes.grid(axis="y", linewidth=0.4, color="#DDDDDD")
    axes.set_axisbelow(True)
    axes.set_xlabel("neurons kept, k" if any(isinstance(k, int) for k in ks) else "share of the neurons kept, k")


def _line(row: Row) -> tuple[str, ...]:
    """What makes a line of its own."""
    return (row.method, f"{row.gradient} gradient", *_way(row))


def _way(row: Row) -> list[str]:
    """How it was computed, launched and found in the caches, as far as that is not the usual way."""
    ways = [(axis, getattr(row, axis.stored)) for axis in _LINES if axis.field != "gradient"]
    return [
        value if isinstance(value, str) else f"{axis.option} {axis.text(value)}"
        for axis, value in ways
        if value not in (None, axis.default, axis.usual_in(row.workload))
    ]


def _series(axes: Axes, rows: list[Row], index: int) -> None:
    """One line with error bars, and dotted in the same colour what the machine's floor would allow."""
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    ks, values = [row.k for row in rows], [row.speedup or 0.0 for row in rows]
    ends = [(row.speedup_low or value, row.speedup_high or value) for row, value in zip(rows, values, strict=True)]
    spread = [
        [value - low for value, (low, _) in zip(values, ends, strict=True)],
        [high - value for value, (_, high) in zip(values, ends, strict=True)],
    ]
    style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4.5, "linewidth": 1.6, "capsize": 3}
    axes.errorbar(ks, values, yerr=spread, label=", ".join(_line(rows[0])), **style)
    times = [(row.k, row.dense.median_s, row.sparse.floor_s) for row in rows]
    floors = [(k, dense_s / floor_s) for k, dense_s, floor_s in times if dense_s and floor_s]
    if len(floors) > 1:
        axes.plot(*zip(*floors, strict=True), color=colour, linewidth=1.1, linestyle=":")


def _bound(axes: Axes, rows: list[Row]) -> None:
    """n/k: of n columns of dy, k are left (a linear layer alone; an mlp has dense layers as well)."""
    n = rows[0].out_features
    if rows[0].workload == "linear" and n is not None:
        ks = sorted({row.k for row in rows})
        bound = [n / k if isinstance(k, int) else 1 / k for k in ks]
        axes.plot(ks, bound, color="#777777", linewidth=1.1, linestyle="--", label="n/k, the arithmetic's bound")


def _paper(axes: Axes, rows: list[Row]) -> None:
    first = rows[0]
    if first.workload != "linear" or (first.batch, first.in_features, first.out_features) != _PAPER_SHAPE:
        return
    if any(row.method == "unified" for row in rows) and first.phase == "backward":
        style: dict[str, Any] = {"color": "black", "marker": "x", "markersize": 5, "linewidth": 1.0, "linestyle": "-."}
        axes.plot(list(_PAPER), list(_PAPER.values()), label="paper, unified, GTX 1080\n(ICML 2017, table 7)", **style)


def _phases(case: list[Row]) -> list[Row]:
    """The rows that add up to a step, if the case has several of them, timed on both sides."""
    found = {row.phase: row for row in case if row.sparse.median_s is not None and row.dense.median_s is not None}
    stack = [found[phase] for phase in _STACK if phase in found]
    return stack if len(stack) > 1 else []


def _stacked(cases: list[list[Row]], number: int) -> Plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.5 + 0.62 * len(cases)), layout="constrained")
    axes = figure.add_subplot()
    most = max(sum(row.dense.median_s or 0 for row in _phases(case)) for case in cases)
    unit, scale = ("s", 1.0) if most >= 1 else ("ms", 1e3) if most >= 1e-3 else ("µs", 1e6)
    ticks: list[tuple[float, str]] = []
    for index, case in enumerate(cases):
        first = case[0]
        words = [word for word in (first.gradient, *_way(first)) if word != "dense"]
        named = f"{first.method} k={first.k:g}" + (f" ({', '.join(words)})" if words else "")
        for offset, side in ((-0.2, "dense"), (0.2, named)):
            start = 0.0
            for row in _phases(case):
                seconds = row.side(side).median_s
                assert seconds is not None
                label = str(row.phase) if index == 0 and side == "dense" else None
                colour = _STACK[str(row.phase)]
                width = scale * seconds
                axes.barh(index + offset, width, 0.36, left=start, color=colour, edgecolor="white", label=label)
                start += width
            ticks.append((index + offset, side))
    axes.set_yticks([place for place, _ in ticks], [name for _, name in ticks])
    axes.invert_yaxis()
    axes.set_xlabel(f"median time of one iteration, {unit}")
    axes.set_title(_title(cases[0][0]), pad=24)
    axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), fontsize=8.5, borderaxespad=0.2)
    first = cases[0][0]
    caption = f"Where the time of a step goes, dense above sparse ({first.workload}; {_title(first)})."
    return Plot(_name("phases", f"{first.workload}-step-{first.allocator}", number), caption, as_svg(figure))


def _name(kind: str, words: str, number: int) -> str:
    """A file name from what is in the rows, which may hold anything printable."""
    return f"{kind}-{number + 1}-{re.sub(r'[^A-Za-z0-9]+', '-', words)[:60]}.svg"


def as_svg(figure: Figure) -> bytes:
    """Return the picture as SVG; the same picture gives the same bytes under `STYLE`."""
    target = BytesIO()
    figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    return target.getvalue()


_OF_METHOD = ("linear-backward", "backward")
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
        chosen += [phases[phase] for phase in _OF_METHOD if phase in phases][:1]
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
    for index, series in enumerate(grouped(rows, _roofline_series)):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        label: str | None = ", ".join(map(str, _roofline_series(series[0])))
        for of_shape in grouped(series, lambda row: (row.workload, row.batch, row.in_features, row.out_features)):
            ordered = sorted(of_shape, key=lambda row: row.k)
            found = [point for row in ordered if (point := _point(row.sparse))]
            style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4.5, "linewidth": 0.8}
            axes.plot(*zip(*found, strict=True), label=label, **style)
            label = None
    _labels(axes)
    axes.set_title(_roofline_title(first))
    axes.grid(linewidth=0.4, color="#DDDDDD")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    caption = (
        f"Roofline of the backward passes ({_roofline_title(first)}): the measured roofs, and each case's dense and"
        " sparse side; lines join the k of one shape."
    )
    name = f"{first.device}-{first.dtype}-{first.threads}-{first.allocator}"
    return Plot(_name("roofline", name, number), caption, as_svg(figure))


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


def _roofline_series(row: Row) -> tuple[object, ...]:
    kernel = (row.kernel_requested,) if row.kernel_requested != "auto" else ()
    return (row.method, f"{row.gradient} gradient", *kernel)


def _roofline_title(row: Row) -> str:
    threads = f"{row.threads} threads" if row.threads != 1 else "1 thread"
    return f"{row.device}, {threads}, {row.dtype}, {row.allocator} allocator"


def curve(history: Sequence[Mapping[str, Any]], title: str, metric: str, *, percent: bool = True) -> bytes:
    """Draw the learning curve of a training as SVG; needs matplotlib (ImportError).

    `history` are its evaluations, at least one, with "epoch", "loss" (None where it was not finite), "dev" and "test",
    which are of `metric`, a percentage or not.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    epochs = [found["epoch"] for found in history]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.4), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(epochs, [found["dev"] for found in history], color=COLOURS[0], marker="o", markersize=3, label="dev")
        tested = [(found["epoch"], found["test"]) for found in history if found["test"] is not None]
        if tested:
            axes.plot(*zip(*tested, strict=True), "s", color=COLOURS[1], markersize=5, label="test, where dev was best")
        axes.set_xlabel("epochs")
        axes.set_ylabel(f"{metric}{', %' * percent}")
        axes.set_title(title)
        losses = axes.twinx()
        values = [float("nan") if found["loss"] is None else found["loss"] for found in history]
        losses.plot(epochs, values, color="#777777", linestyle=":", label="training loss")
        losses.set_ylabel("training loss")
        losses.spines["right"].set_visible(True)
        figure.legend(loc="outside lower center", ncols=3, fontsize=8.5)
        return as_svg(figure)
