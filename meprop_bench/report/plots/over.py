"""What was measured over one axis, k above all: speed-up, time, memory, energy; one picture for each choice.

A speed-up stands with its 95% interval beside what it cannot exceed (n/k, the share of the arithmetic that is left),
what this machine's floor allows, and, for the shape that the paper measured, what the paper reports.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from meprop_bench.report.cells import (
    ABSENT,
    joules,
    left_alone,
    memory,
    pair,
    ratio,
    ratio_within,
    seconds,
)
from meprop_bench.report.plots.grouping import (
    OVER,
    PerKind,
    called,
    detail,
    grouped,
    held,
    in_phases,
    key_of,
    line_of,
    of_several,
    unique,
)
from meprop_bench.report.plots.svg import COLOURS, DASHES, MARKERS, PALETTE, Picture, Plot, log_ticks, name_of
from meprop_bench.report.processes import speedups
from meprop_bench.results.schema import Row, Side
from meprop_bench.stats import too_wide

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["over"]

# ICML 2017, table 7: backward time of the linear layer, batch 1024, 8192 -> 8192, unified, on a GTX 1080.
_PAPER_SHAPE = (1024, 8192, 8192)
_PAPER = {8: 36.8, 16: 33.6, 32: 27.5, 64: 21.4, 128: 14.5, 256: 8.0, 512: 4.4}

_WORDS = {"k": "k", "hidden": "size", "batch": "batch", "length": "length", "layers": "layers"}
_LABELS = {"hidden": "neurons of a layer", "batch": "examples in a batch", "length": "length", "layers": "layers"}
_MAIN = ("step", "backward", "linear-backward")
"""Phases whose speed-up over k is a file of its own, too: what the method is about."""


@dataclass(frozen=True)
class _Metric:
    """What may be shown: of a side, how it is written, and how it is called."""

    of: Callable[[Side], float | None]
    text: Callable[[float | None], str]
    label: str


_SPEEDUP = "speed-up"
_MOST_POINTS = 40
"""Of a line."""
_METRICS = {
    "time": _Metric(lambda side: side.median_s, seconds, "median time of one iteration"),
    "peak memory": _Metric(lambda side: side.peak_memory_bytes, memory, "peak memory, on top of what is there"),
    "energy": _Metric(
        lambda side: None if side.utilization is None else side.utilization.energy_per_step_j,
        joules,
        "energy of one iteration, idle power included",
    ),
}


@dataclass(frozen=True)
class _Choice:
    """One picture to be drawn."""

    axis: str
    phase: str
    metric: str
    rows: list[Row]

    @property
    def rank(self) -> tuple[object, ...]:
        return (self.metric != _SPEEDUP, self.axis != "k", self.phase not in _MAIN, -len(self.rows))


def over(rows: Sequence[Row], most: int, kinds: PerKind) -> tuple[list[Plot], int]:
    """Draw up to `most` pictures of what the rows give, and return how many more there would be."""
    timed = [row for row in rows if row.speedup is not None and row.method != "dense" and not left_alone(row)]
    found = [choice for axis in OVER for choice in _choices(timed, axis, kinds)]
    chosen = sorted(found, key=lambda choice: choice.rank)[:most]
    several = of_several(rows)
    return [_drawn(choice, several) for choice in chosen], len(found) - len(chosen)


def _choices(rows: Sequence[Row], axis: str, kinds: PerKind) -> list[_Choice]:
    field = OVER[axis]
    if len({getattr(row, field) for row in rows}) < 2:
        return []
    found = []
    key, words = kinds(lambda row: key_of(row, axis)), kinds(line_of)
    line_at: Callable[[Row], object] = words if axis == "k" else lambda row: (words(row), f"{row.k:g}")
    for phase, own in in_phases([row for row in rows if getattr(row, field) is not None]):
        for group in grouped(own, key):
            if not any(len({getattr(row, field) for row in line}) > 1 for line in grouped(group, line_at)):
                continue
            found.append(_Choice(axis, phase, _SPEEDUP, group))
            for name, metric in _METRICS.items():
                some = (row for row in group if (metric.of(row.sparse) or 0) > 0)  # its scale is logarithmic
                if len(list(islice(some, 2))) > 1:
                    found.append(_Choice(axis, phase, name, group))
    return found


def _line(row: Row, axis: str) -> tuple[str, ...]:
    return line_of(row) if axis == "k" else (row.method, f"k={row.k:g}", *line_of(row)[1:])


def _drawn(choice: _Choice, several: bool) -> Plot:
    axis, rows = choice.axis, choice.rows
    heads: tuple[str, ...] = ("line", _WORDS[axis], _SPEEDUP, "dense → sparse", "of each process")
    if choice.metric != _SPEEDUP:
        heads = ("line", _WORDS[axis], f"{choice.metric}, dense → sparse", _SPEEDUP)
    picture = Picture(*heads)
    lines = grouped(rows, lambda row: _line(row, axis))
    shown = sorted(lines, key=len, reverse=True)[: len(COLOURS)]
    for index, line in enumerate(shown):
        ordered = _thinned(sorted(line, key=lambda row: getattr(row, OVER[axis])))
        (_speedups if choice.metric == _SPEEDUP else _sides)(picture, choice, ordered, index)
    if choice.metric == _SPEEDUP:
        _beside(picture.axes, choice)
    _scales(picture.axes, choice)
    title = f"{called(choice.phase).capitalize()}: {choice.metric} over {_WORDS[axis]}"
    constant = detail(rows, axis, several=several)
    intervals = ", with 95% intervals" if choice.metric == _SPEEDUP else ""
    more = f" The {len(shown)} of {len(lines)} lines that have the most cases." if len(lines) > len(shown) else ""
    if len(shown[0]) > _MOST_POINTS:
        more += f" Of a line with more than {_MOST_POINTS} cases so many are drawn, evenly among them."
    stem = "speedup" if choice.metric == _SPEEDUP else choice.metric.replace(" ", "-")
    return picture.plot(
        name_of(stem, axis, choice.phase, constant),
        "over",
        title,
        constant,
        f"{title} ({constant}){intervals}.",
        cut=more,
        choices={"of": constant, "phase": choice.phase, "over": _WORDS[axis], "metric": choice.metric},
        main=choice.metric == _SPEEDUP and choice.phase in _MAIN,
    )


def _thinned(line: list[Row]) -> list[Row]:
    """Return the cases of a line that are drawn: both ends, and so many evenly between them."""
    if len(line) <= _MOST_POINTS:
        return line
    return [line[place * (len(line) - 1) // (_MOST_POINTS - 1)] for place in range(_MOST_POINTS)]


def _style(index: int) -> dict[str, Any]:
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index % len(DASHES)],
        "markersize": 5,
        "linewidth": 1.5,
    }


def _speedups(picture: Picture, choice: _Choice, rows: list[Row], index: int) -> None:
    """Draw one line with error bars, and dotted in the same colour what the machine's floor would allow."""
    xs = [getattr(row, OVER[choice.axis]) for row in rows]
    values = [row.speedup or 0.0 for row in rows]
    ends = [(row.speedup_low or value, row.speedup_high or value) for row, value in zip(rows, values, strict=True)]
    spread = [
        [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)],
        [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)],
    ]
    label = ", ".join(_line(rows[0], choice.axis))
    picture.axes.errorbar(xs, values, yerr=spread, label=label, capsize=3, elinewidth=1, **_style(index))
    for x, value, row in zip(xs, values, rows, strict=True):
        interval = ABSENT if row.interval is None else ratio_within(row.interval)
        times = pair(seconds(row.dense.median_s), seconds(row.sparse.median_s))
        picture.point(x, value, label, _value(choice.axis, x), interval, times, speedups(row))
    found = [(x, row.dense.median_s, row.sparse.floor_s) for x, row in zip(xs, rows, strict=True)]
    floors = [(x, dense_s / floor_s) for x, dense_s, floor_s in found if dense_s and floor_s]
    if len(floors) > 1:
        picture.axes.plot(*zip(*floors, strict=True), color=COLOURS[index % len(COLOURS)], linewidth=1, linestyle=":")


def _sides(picture: Picture, choice: _Choice, rows: list[Row], index: int) -> None:
    """Draw the sparse side's line, and dense behind it."""
    metric = _METRICS[choice.metric]
    label = ", ".join(_line(rows[0], choice.axis))
    found = [(getattr(row, OVER[choice.axis]), metric.of(row.dense), metric.of(row.sparse), row) for row in rows]
    dense = [(x, value) for x, value, _, _ in found if value is not None]
    if dense:
        own = "dense" if index == 0 else None
        grey = PALETTE["quiet"][0]
        picture.axes.plot(*zip(*dense, strict=True), color=grey, linewidth=1, marker="x", markersize=4, label=own)
    sparse = [(x, value) for x, _, value, _ in found if value is not None]
    if sparse:
        picture.axes.plot(*zip(*sparse, strict=True), label=label, **_style(index))
    for x, before, after, row in found:
        if after is not None:
            faster = ABSENT if row.speedup is None or too_wide(row.half_width) else ratio(row.speedup)
            both = pair(metric.text(before), metric.text(after))
            picture.point(x, after, label, _value(choice.axis, x), both, faster)


def _value(axis: str, value: float) -> str:
    return f"{'k' if axis == 'k' else _WORDS[axis]} = {value:g}"


def _beside(axes: Axes, choice: _Choice) -> None:
    """Draw 1, the arithmetic's bound, and the paper's figures where the shape is the paper's."""
    rows, first = choice.rows, choice.rows[0]
    axes.axhline(1, color=PALETTE["ink"][0], linewidth=0.8)
    if any(row.sparse.floor_s for row in rows):
        axes.plot([], [], color=PALETTE["quiet"][0], linewidth=1, linestyle=":", label="at the machine's floor")
    if choice.axis != "k" or first.workload != "linear":
        return
    if (n := first.out_features) is not None:  # an mlp has dense layers as well
        ks = sorted({row.k for row in rows})
        bound = [n / k if isinstance(k, int) else 1 / k for k in ks]
        grey = PALETTE["quiet"][0]
        axes.plot(ks, bound, color=grey, linewidth=1, linestyle="--", label="n/k, the arithmetic's bound")
    ours = (first.batch, first.in_features, first.out_features) == _PAPER_SHAPE and first.phase == "backward"
    if ours and any(row.method == "unified" for row in rows):
        style: dict[str, Any] = {"marker": "x", "markersize": 5, "linewidth": 1, "linestyle": "-."}
        label = "paper, unified, GTX 1080 (ICML 2017, table 7)"
        axes.plot(list(_PAPER), list(_PAPER.values()), color=PALETTE["ink"][0], label=label, **style)


def _scales(axes: Axes, choice: _Choice) -> None:
    """Both axes logarithmic, labelled with plain numbers: halving k ought to double the speed-up, a straight line."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    xs = sorted(unique(getattr(row, OVER[choice.axis]) for row in choice.rows))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(_spaced(xs)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    metric = _METRICS.get(choice.metric)
    text = (lambda value: f"{value:g}x") if metric is None else metric.text
    axes.yaxis.set_major_locator(log_ticks(*axes.get_ylim()))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.grid(axis="y", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_xlabel(held(choice.rows) if choice.axis == "k" else _LABELS[choice.axis])
    axes.set_ylabel("speed-up" if metric is None else metric.label)


def _spaced(values: Sequence[float]) -> list[float]:
    """Return values for ticks, without those whose labels would lie on one another."""
    if len(values) < 2:
        return list(values)

    least = (math.log(values[-1]) - math.log(values[0])) / 9
    found: list[float] = [values[0]]
    for value in values[1:]:
        if math.log(value) - math.log(found[-1]) >= least * min(2.0, 0.5 + len(f"{value:g}") / 6):
            found.append(value)
    return found
