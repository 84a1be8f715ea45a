"""Speed against accuracy: for each case trained on both sides, the speed-up of its step and what the method costs.

    right of 1            the step is faster than dense
    above minus margin    the accuracy holds
    the front             cases that no other one beats in both (Pareto)

Where both intervals lie right of 1 and above minus the margin, it pays.
"""

from __future__ import annotations

from collections.abc import Sequence

from meprop_bench.report.cells import ABSENT, ratio_within
from meprop_bench.report.plots.grouping import called, detail, grouped, in_phases, line_of, of_several, setting_of
from meprop_bench.report.plots.svg import COLOURS, MARKERS, PALETTE, Picture, Plot, name_of
from meprop_bench.report.quality import Quality, measure
from meprop_bench.results.schema import Parity, Row

__all__ = ["accuracy", "front"]

_MOST_POINTS = 40


def accuracy(rows: Sequence[Row], most: int) -> tuple[list[Plot], int]:
    """Draw up to `most` pictures, and return how many more there would be."""
    trained: dict[str, Parity] = {row.case_id: row.parity for row in rows if row.parity is not None}
    timed = [row for row in rows if row.case_id in trained and row.speedup is not None and row.method != "dense"]
    found = []
    for phase, own in in_phases(timed):
        if phase not in ("step", "backward"):
            continue
        for group in grouped(own, lambda row: (setting_of(row), trained[row.case_id].metric)):
            found.append((phase, [(row, trained[row.case_id]) for row in group]))
    found.sort(key=lambda one: (one[0] != "step", -len(one[1])))
    several = of_several(rows)
    return [_drawn(*one, several) for one in found[:most]], max(0, len(found) - most)


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that none exceeds in one figure without falling behind in the other, by the first figure."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(set(points), reverse=True):
        if not kept or y > kept[-1][1]:
            kept.append((x, y))
    return kept[::-1]


def _drawn(phase: str, found: list[tuple[Row, Parity]], several: bool) -> Plot:
    first, parity = found[0]
    quality, what = Quality.of(parity), measure(parity)
    unit = "points" if parity.percent else parity.metric
    picture = Picture("case", f"speed-up of the {phase}", f"{what} against dense", "verdict", "seeds")
    axes = picture.axes
    lines = grouped(found[:_MOST_POINTS], lambda one: line_of(one[0]))
    for index, line in enumerate(lines):
        label: str | None = ", ".join(line_of(line[0][0]))
        for row, own in sorted(line, key=lambda one: one[0].k):
            x, y = row.speedup or 0.0, own.difference
            colour = COLOURS[index % len(COLOURS)]
            across = [[max(0.0, x - (row.speedup_low or x))], [max(0.0, (row.speedup_high or x) - x)]]
            along = [[max(0.0, y - bound)] for bound in ([own.low] if own.low is not None else [y])]
            along += [[max(0.0, bound - y)] for bound in ([own.high] if own.high is not None else [y])]
            axes.errorbar(
                [x], [y], xerr=across, yerr=along, label=label, color=colour, marker=MARKERS[index % len(MARKERS)],
                markersize=6, linewidth=0, elinewidth=1, capsize=2,
            )  # fmt: skip
            axes.annotate(f"k={row.k:g}", (x, y), xytext=(6, 5), textcoords="offset points", fontsize=9)
            speed = ABSENT if row.interval is None else ratio_within(row.interval)
            change = quality.within(own.interval)
            picture.point(
                x,
                y,
                f"{label or ', '.join(line_of(row))}, k={row.k:g}",
                speed,
                change,
                own.verdict,
                str(len(own.seeds)),
            )
            label = None
    best = front([(row.speedup or 0.0, own.difference) for row, own in found])
    if len(best) > 1:
        grey = PALETTE["quiet"][0]
        axes.plot(*zip(*best, strict=True), color=grey, linewidth=1, linestyle="--", label="Pareto front", zorder=0)
    axes.axvline(1, color=PALETTE["ink"][0], linewidth=0.8)
    axes.axhline(0, color=PALETTE["rule"][0], linewidth=0.8)
    margin = f"margin, -{parity.margin:g} {unit}"
    axes.axhline(-parity.margin, color=PALETTE["c1"][0], linewidth=1, linestyle=":", label=margin)
    axes.margins(0.14)
    axes.set_xlabel(f"speed-up of the {called(phase)} over dense")
    axes.set_ylabel(f"{what} minus dense, {unit}")
    _plain_ticks(picture)
    constant = ", ".join((detail([first], several=several), f"{parity.steps} steps", parity.task))
    cut = f" The first {_MOST_POINTS} of {len(found)} cases." if len(found) > _MOST_POINTS else ""
    title = f"Speed of the {called(phase)} against {what}"
    return picture.plot(
        name_of("accuracy", phase, constant),
        "accuracy",
        title,
        constant,
        f"{title} ({constant}), with 95% intervals, the Pareto front and the margin.",
        cut=cut,
        choices={"of": constant, "phase": phase},
        main=phase == "step",
    )


def _plain_ticks(picture: Picture) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    picture.axes.xaxis.set_major_locator(MaxNLocator(6))
    picture.axes.yaxis.set_major_locator(MaxNLocator(6))
    picture.axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    picture.axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
