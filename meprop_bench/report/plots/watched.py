"""What the machine did while each side ran: utilisation, power, energy, memory, dense beside sparse.

Each line is a case: an open mark for dense, a filled one for sparse. A figure that this machine does not have (the
GPU's on a CPU, energy without a meter) has no picture; the table says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from meprop_bench.report.cells import capital, joules, memory, pair, percent, ratio
from meprop_bench.report.plots.grouping import called, detail, grouped, in_phases, of_several, setting_of, way
from meprop_bench.report.plots.svg import COLOURS, PALETTE, Picture, Plot, name_of
from meprop_bench.results.redact import one_line
from meprop_bench.results.schema import Row, Side, Utilization

__all__ = ["watched"]

_MOST_CASES = 10


@dataclass(frozen=True)
class _Figure:
    of: Callable[[Side], float | None]
    text: Callable[[float], str]
    label: str
    binary: bool = False  # whether round figures are powers of two


def _used(name: str) -> Callable[[Side], float | None]:
    def found(side: Side) -> float | None:
        value = None if side.utilization is None else getattr(side.utilization, name)
        return None if value is None else float(value)

    assert name in Utilization.__dataclass_fields__
    return found


_FIGURES = {
    "peak memory": _Figure(
        lambda side: side.peak_memory_bytes, memory, "peak memory, on top of what is there", binary=True
    ),
    "CPU": _Figure(_used("cpu_utilization"), percent, "CPU time, percent of one core"),
    "GPU": _Figure(_used("gpu_utilization"), percent, "time in which some kernel ran"),
    "power": _Figure(_used("power_w"), lambda value: f"{value:.0f} W", "mean power of the device"),
    "energy": _Figure(_used("energy_per_step_j"), joules, "energy of one iteration, idle power included"),
}


def watched(rows: Sequence[Row], most: int) -> tuple[list[Plot], int]:
    """Draw up to `most` pictures, and return how many more there would be."""
    found = []
    usable = [row for row in rows if row.passed and row.method != "dense"]
    for name, figure in _FIGURES.items():
        own = [row for row in usable if figure.of(row.dense) is not None and figure.of(row.sparse) is not None]
        for phase, of_phase in in_phases(own):
            for group in grouped(of_phase, setting_of):
                found.append((name, phase, group))
    chosen = sorted(found, key=lambda one: (one[1] not in ("step", "backward"), -len(one[2])))[:most]
    several = of_several(rows)
    return [_drawn(*one, several) for one in chosen], len(found) - len(chosen)


def _drawn(name: str, phase: str, rows: list[Row], several: bool) -> Plot:
    figure, shown = _FIGURES[name], rows[:_MOST_CASES]
    picture = Picture("case", f"{name}, dense → sparse", "sparse / dense", left=14, right=26, top=4)
    axes = picture.axes
    blue, grey = COLOURS[0], PALETTE["quiet"][0]
    for place, row in enumerate(shown):
        words = [word for word in (row.gradient, *way(row)) if word != "dense"]
        named = f"{row.method} k={row.k:g}" + (f" ({', '.join(words)})" if words else "")
        before, after = figure.of(row.dense) or 0.0, figure.of(row.sparse) or 0.0
        axes.plot([before, after], [place, place], color=grey, linewidth=1, zorder=1)
        own: dict[str, Any] = {"linestyle": "", "zorder": 2, "markersize": 7}
        label = ("dense", "sparse") if place == 0 else (None, None)
        axes.plot([before], [place], marker="o", markerfacecolor=PALETTE["page"][0], color=grey, label=label[0], **own)
        axes.plot([after], [place], marker="D", color=blue, label=label[1], **own)
        axes.text(0, place - 0.28, one_line(named, 58), fontsize=9.5, va="bottom", ha="left")
        share = ratio(after / before) if before else "–"
        picture.point(after, place, named, pair(figure.text(before), figure.text(after)), share)
    _scales(picture, figure, len(shown))
    constant = detail(rows, several=several)
    title = f"{capital(name)} of the {called(phase)}, dense and sparse"
    cut = f" The first {len(shown)} of {len(rows)} cases." if len(rows) > len(shown) else ""
    return picture.plot(
        name_of("watched", name, phase, constant),
        "watched",
        title,
        constant,
        f"{title} ({constant}).",
        cut=cut,
        height=34.0 * len(shown) + 16,
        choices={"of": constant, "phase": phase, "metric": name},
        main=False,
    )


def _scales(picture: Picture, figure: _Figure, lines: int) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

    axes = picture.axes
    axes.set_xlim(0, 1.05 * axes.dataLim.x1 or 1)  # a mark at the edge would be cut
    axes.set_ylim(lines - 0.5, -1.0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    most = axes.get_xlim()[1]
    step = 2.0 ** math.ceil(math.log2(most / 4)) if figure.binary and most > 0 else 0.0
    axes.xaxis.set_major_locator(MultipleLocator(step) if step else MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: figure.text(value) if value > 0 else "0"))
    axes.grid(axis="x", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_xlabel(figure.label)
