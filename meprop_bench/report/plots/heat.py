"""Where it pays: the speed-up for each k and each size, with the line between faster and slower.

A rectangle is a case, its colour what is known: a speed-up that is not told apart from 1 has neither side's colour. The
break-even line runs between the rectangles on whose two sides the speed-ups are above and below 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meprop_bench.report.cells import ABSENT, digits, left_alone, pair, ratio_within, seconds
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
)
from meprop_bench.report.plots.svg import PALETTE, Picture, Plot, name_of
from meprop_bench.report.processes import speedups
from meprop_bench.results.schema import Row
from meprop_bench.stats import too_wide

__all__ = ["heat"]

_SECOND = {"hidden": "size", "batch": "batch", "length": "length"}
_LABELS = {"hidden": "neurons", "batch": "batch", "length": "length"}
_SLOWER, _FASTER = (0.5, 0.9), (1.5, 3.0, 10.0)
_FILLED = 0.5
"""The share of the rectangles that must have been measured for a picture to be one."""
_MOST_SIDE = 14


def heat(rows: Sequence[Row], most: int, kinds: PerKind) -> tuple[list[Plot], int]:
    """Draw up to `most` pictures, and return how many more there would be."""
    timed = [row for row in rows if row.speedup is not None and row.method != "dense" and not left_alone(row)]
    found = [one for axis in _SECOND for one in _grids(timed, axis, kinds)]
    found.sort(key=lambda one: -len(one[2]))
    several = of_several(rows)
    return [_drawn(*one, several) for one in found[:most]], max(0, len(found) - most)


def _grids(rows: Sequence[Row], axis: str, kinds: PerKind) -> list[tuple[str, str, dict[tuple[Any, Any], Row]]]:
    """Return of what there are enough cases for k and an axis: the axis, the phase, and the rows by both."""
    if len({getattr(row, OVER[axis]) for row in rows}) < 2:
        return []
    found = []
    key = kinds(lambda row: (key_of(row, axis), line_of(row)))
    for phase, own in in_phases(rows):
        for group in grouped(own, key):
            cells = {(row.k, getattr(row, OVER[axis])): row for row in group}
            ks, sizes = (sorted({key[place] for key in cells}) for place in (0, 1))
            if len(ks) > 1 and len(sizes) > 1 and len(cells) > _FILLED * len(ks) * len(sizes):
                found.append((axis, phase, cells))
    return found


def _drawn(axis: str, phase: str, cells: dict[tuple[Any, Any], Row], several: bool) -> Plot:
    from matplotlib.patches import Rectangle

    ks, sizes = (sorted({key[place] for key in cells})[:_MOST_SIDE] for place in (0, 1))
    picture = Picture("k", _SECOND[axis], "speed-up", "dense → sparse", "of each process")
    axes = picture.axes
    small = len(ks) > 7
    for (k, size), row in cells.items():
        if k not in ks or size not in sizes:
            continue
        x, y = ks.index(k), sizes.index(size)
        colour = PALETTE[_colour(row)][0]
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor=PALETTE["page"][0], linewidth=1))
        text = "?" if too_wide(row.half_width) else digits(row.speedup or 0.0)
        axes.text(x, y, text, ha="center", va="center", fontsize=8 if small else 9.5)
        interval = ABSENT if row.interval is None else ratio_within(row.interval)
        times = pair(seconds(row.dense.median_s), seconds(row.sparse.median_s))
        picture.point(x, y, f"k = {k:g}", f"{_SECOND[axis]} {size:g}", interval, times, speedups(row))
    _break_even(picture, cells, ks, sizes)
    axes.set_xlim(-0.5, len(ks) - 0.5)
    axes.set_ylim(-0.5, len(sizes) - 0.5)
    axes.set_xticks(range(len(ks)), [f"{k:g}" for k in ks], fontsize=8 if small else 10)
    axes.set_yticks(range(len(sizes)), [f"{size:g}" for size in sizes])
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    rows = list(cells.values())
    axes.set_xlabel(held(rows))
    axes.set_ylabel(_LABELS[axis])
    words = ", ".join(line_of(rows[0]))
    constant = f"{words}; {detail(rows, axis, several=several)}"
    title = f"{called(phase).capitalize()}: speed-up for k and {_SECOND[axis]}"
    return picture.plot(
        name_of("heat", axis, phase, constant),
        "heat",
        title,
        constant,
        f"{title} ({constant}); the line is where dense and sparse take equally long.",
        height=28.0 * len(sizes) + 10,
        choices={"of": constant, "phase": phase, "over": f"k and {_SECOND[axis]}"},
    )


def _colour(row: Row) -> str:
    value = row.speedup or 0.0
    if row.significant is False or too_wide(row.half_width):
        return "h3"
    if value < 1:
        return f"h{sum(value >= bound for bound in _SLOWER)}"
    return f"h{4 + sum(value >= bound for bound in _FASTER)}"


def _break_even(
    picture: Picture, cells: dict[tuple[Any, Any], Row], ks: Sequence[float], sizes: Sequence[float]
) -> None:
    """Draw the edges between neighbours of which one is faster than dense and the other is not."""
    pays = {
        (ks.index(k), sizes.index(size)): (row.speedup or 0.0) > 1
        for (k, size), row in cells.items()
        if k in ks and size in sizes
    }
    label: str | None = "break-even"
    for (x, y), faster in pays.items():
        for other, edge in (
            ((x + 1, y), ((x + 0.5, x + 0.5), (y - 0.5, y + 0.5))),
            ((x, y + 1), ((x - 0.5, x + 0.5), (y + 0.5, y + 0.5))),
        ):
            if other in pays and pays[other] != faster:
                picture.axes.plot(*edge, color=PALETTE["ink"][0], linewidth=2.5, label=label, zorder=3)
                label = None
