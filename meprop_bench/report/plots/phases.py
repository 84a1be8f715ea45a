"""Where the time of a step goes: forward, backward and update stacked, dense above sparse."""

from __future__ import annotations

from collections.abc import Sequence

from meprop_bench.report.cells import ratio, seconds
from meprop_bench.report.plots.grouping import PerKind, called, detail, grouped, of_several, setting_of, way
from meprop_bench.report.plots.svg import PALETTE, Picture, Plot, name_of
from meprop_bench.results.redact import one_line
from meprop_bench.results.schema import Row

__all__ = ["phases"]

_STACK = {"forward": "p0", "backward": "p1", "communication": "p3", "update": "p2"}
_MOST_CASES = 8
_BAR = 28.0
_MANY_SETTINGS = 8
"""From here on a setting with one case alone, as a sweep over sizes has many, gets no picture of its phases."""


def phases(rows: Sequence[Row], most: int, kinds: PerKind) -> tuple[list[Plot], int]:
    """Draw up to `most` settings, and return how many more there would be."""
    settings = grouped([row for row in rows if row.method != "dense"], kinds(setting_of))
    found = []
    for own in settings:
        ordered = sorted(own, key=lambda row: (row.method, row.gradient, row.k))
        cases = [stack for case in grouped(ordered, lambda row: row.case_id) if (stack := _stack(case))]
        if len(cases) > (len(settings) > _MANY_SETTINGS):
            found.append(cases)
    found.sort(key=lambda cases: -len(cases))
    several = of_several(rows)
    return [_drawn(cases, several) for cases in found[:most]], max(0, len(found) - most)


def _stack(case: list[Row]) -> list[Row]:
    """Return the rows that add up to a step, if the case has several of them, timed on both sides."""
    found = {row.phase: row for row in case if row.sparse.median_s is not None and row.dense.median_s is not None}
    stack = [found[phase] for phase in _STACK if phase in found]
    return stack if len(stack) > 1 else []


def _drawn(cases: list[list[Row]], several: bool) -> Plot:
    shown, first = cases[:_MOST_CASES], cases[0][0]
    picture = Picture("case", "phase", "dense → sparse", "speed-up", left=12, top=4)
    axes = picture.axes
    whole = max(sum(row.side(side).median_s or 0.0 for row in case) for case in shown for side in ("dense", "sparse"))
    unit, scale = ("s", 1.0) if whole >= 1 else ("ms", 1e3) if whole >= 1e-3 else ("µs", 1e6)
    for place, case in enumerate(shown):
        words = [word for word in (case[0].gradient, *way(case[0])) if word != "dense"]
        named = f"{case[0].method} k={case[0].k:g}" + (f" ({', '.join(words)})" if words else "")
        top = 2.6 * place
        axes.text(0, top - 0.62, one_line(named, 58), fontsize=10, va="bottom", ha="left")
        for offset, side in ((0.0, "dense"), (0.85, "sparse")):
            _bar(picture, case, (top + offset, side, named), scale, whole, labelled=place == 0 and side == "dense")
    axes.set_ylim(2.6 * len(shown) - 0.9, -1.5)
    axes.set_xlim(0, whole * scale * 1.16)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"median time of one iteration, {unit}")
    axes.grid(axis="x", linewidth=0.5)
    axes.set_axisbelow(True)
    constant = detail([first], several=several)
    left_out = f" The first {_MOST_CASES} of {len(cases)} cases." if len(cases) > _MOST_CASES else ""
    return picture.plot(
        name_of("phases", constant),
        "phases",
        "Phases of a step, dense above sparse",
        constant,
        f"Where the time of a step goes, dense above sparse ({constant}).",
        cut=left_out,
        height=2.0 * _BAR * len(shown) + 20,
        choices={"of": constant},
    )


def _bar(
    picture: Picture, case: list[Row], bar: tuple[float, str, str], scale: float, whole: float, *, labelled: bool
) -> None:
    """Draw one stacked bar, its side's name behind it, and a point in each part."""
    place, side, named = bar
    start = 0.0
    for row in case:
        width = scale * (row.side(side).median_s or 0.0)
        picture.axes.barh(
            place,
            width,
            0.72,
            left=start,
            color=PALETTE[_STACK[str(row.phase)]][0],
            edgecolor=PALETTE["page"][0],
            linewidth=0.8,
            label=str(row.phase) if labelled else None,
        )
        if side == "sparse":
            times = f"{seconds(row.dense.median_s)} → {seconds(row.sparse.median_s)}"
            faster = "–" if row.speedup is None else ratio(row.speedup)
            picture.point(start + width / 2, place, named, called(row.phase), times, faster)
        start += width
    picture.axes.text(start + scale * whole * 0.012, place, side, fontsize=9, va="center", ha="left")
