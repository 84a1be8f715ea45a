"""How trainings went: the learning curve of one, those of several arms side by side, and the sizes that meSimp left.

Curves stand against steps and against the time spent in them: a method whose step is faster and learns less in each
is behind in the one picture and may be ahead in the other. Trainings that were stored before they said their steps
stand against epochs instead. A training that was evaluated once has no curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean as mean
from typing import TYPE_CHECKING, Any

from meprop_bench.durations import duration
from meprop_bench.report.cells import counted, seconds
from meprop_bench.report.plots.svg import COLOURS, DASHES, MARKERS, PALETTE, STYLE, Picture, Plot, name_of
from meprop_bench.results.redact import one_line
from meprop_bench.stats import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SeedCurve", "curve", "learning", "over_budgets", "sizes"]

_OVER = {"steps": "steps", "epochs": "epochs", "time": "seconds spent in steps"}


@dataclass(frozen=True)
class SeedCurve:
    """One seed of one arm: a figure after so many epochs, the seconds of all its steps, and how many these were."""

    epochs: Sequence[float]
    figures: Sequence[float]
    seconds: float
    steps: int | None = None  # None where that is not known


def curve(history: Sequence[Mapping[str, Any]], title: str, metric: str, *, percent: bool = True) -> bytes:
    """Draw the learning curve of a training as SVG; needs matplotlib (ImportError).

    `history` are its evaluations, at least one, with "epoch", "loss" (None where it was not finite), "dev" and "test",
    which are of `metric`, a percentage or not, and the "step" and the "seconds" spent in steps so far, where these are
    known.
    """
    import matplotlib as mpl

    epochs = [found["epoch"] for found in history]
    with mpl.rc_context(STYLE):
        picture = Picture("epoch", metric, right=52)
        axes = picture.axes
        axes.plot(epochs, [found["dev"] for found in history], color=COLOURS[0], marker="o", markersize=3, label="dev")
        tested = [(found["epoch"], found["test"]) for found in history if found["test"] is not None]
        if tested:
            axes.plot(*zip(*tested, strict=True), "s", color=COLOURS[1], markersize=5, label="test, where dev was best")
        spent = history[-1].get("seconds")
        taken = f"{history[-1]['step']:,} steps" if history[-1].get("step") else "steps"
        axes.set_xlabel(f"epochs ({taken} in {seconds(spent)})" if spent else "epochs")
        axes.set_ylabel(f"{one_line(metric, 40)}{', %' * percent}")
        _ticks(axes, epochs)
        losses = axes.twinx()
        values = [float("nan") if found["loss"] is None else found["loss"] for found in history]
        grey = PALETTE["quiet"][0]
        losses.plot(epochs, values, color=grey, linestyle=":", marker=".", label="training loss")
        losses.set_ylabel("training loss")
        losses.spines["right"].set_visible(True)
        for found in history:
            picture.point(found["epoch"], found["dev"], f"{found['epoch']:g}", f"{found['dev']:.4g}")
        return picture.plot("curve", "learning", title, "", f"Learning curve: {title}.", height=190).svg


def learning(
    title: str, what: str, arms: Mapping[str, Sequence[SeedCurve]], *, number: int, timed: bool = True
) -> list[Plot]:
    """Draw what arms reached over their steps, and over time where it is known; none of a single evaluation.

    Mean, lowest and highest over the seeds of each arm. `number` makes the file's name.
    """
    if all(len(seed.epochs) < 2 for seeds in arms.values() for seed in seeds):
        return []
    every = [seed for seeds in arms.values() for seed in seeds]
    ways = ["steps" if all(seed.steps for seed in every) else "epochs"]
    ways += ["time"] * (timed and all(seed.seconds for seed in every))
    return [_learning(title, what, arms, way, number) for way in ways]


def _learning(title: str, what: str, arms: Mapping[str, Sequence[SeedCurve]], way: str, number: int) -> Plot:
    picture = Picture("arm", way, what, "lowest to highest seed")
    axes = picture.axes
    places: list[float] = []
    for index, (name, seeds) in enumerate(arms.items()):
        columns = list(zip(*(seed.figures for seed in seeds), strict=False))
        epochs = list(seeds[0].epochs)[: len(columns)]
        whole = mean(seed.seconds if way == "time" else seed.steps or epochs[-1] for seed in seeds)
        xs = epochs if way == "epochs" else [whole * epoch / epochs[-1] for epoch in epochs]
        places += xs
        colour = COLOURS[index % len(COLOURS)]
        style: dict[str, Any] = {"marker": MARKERS[index % len(MARKERS)], "linestyle": DASHES[index % len(DASHES)]}
        means = [mean(column) for column in columns]
        axes.plot(xs, means, color=colour, markersize=4.5, linewidth=1.5, label=name, **style)
        axes.fill_between(xs, list(map(min, columns)), list(map(max, columns)), color=colour, alpha=0.15, linewidth=0)
        for x, epoch, value, column in zip(xs, epochs, means, columns, strict=True):
            place = {"steps": f"{x:,.0f} (epoch {epoch:g})", "epochs": f"{x:g}", "time": seconds(x)}[way]
            picture.point(x, value, name, place, f"{value:.4g}", f"{min(column):.4g} to {max(column):.4g}")
    axes.set_xlabel(_OVER[way])
    axes.set_ylabel(what)
    axes.grid(axis="y", linewidth=0.5)
    axes.set_axisbelow(True)
    if way == "epochs":
        _ticks(axes, places)
    elif way == "steps":
        _thousands(axes)
    of = counted(max(map(len, arms.values())), "seed")
    words = {"steps": "over the steps", "epochs": "over the epochs", "time": "over the time spent in steps"}[way]
    return picture.plot(
        name_of(f"curve-{number}", "" if what == "dev metric" else what, way if way == "time" else ""),
        "learning",
        f"{title}: {what} {words}",
        f"mean, lowest and highest of {of}",
        f"{title}: {what} {words}; mean, lowest and highest of {of}.",
        choices={"of": title, "metric": what, "over": way},
        main=way != "time",
    )


def over_budgets(sides: Mapping[str, Sequence[tuple[float, Interval]]], title: str, metric: str) -> bytes:
    """Draw what trainings of so many seconds reach, side by side, as SVG; needs matplotlib (ImportError).

    A side has its seconds and the mean over the seeds with its interval; the first is what the others are held against.
    """
    import matplotlib as mpl
    from matplotlib.ticker import FuncFormatter, NullLocator

    with mpl.rc_context(STYLE):
        picture = Picture("side", "seconds", metric, "interval")
        axes = picture.axes
        for index, (name, points) in enumerate(sides.items()):
            style: dict[str, Any] = {"color": PALETTE["quiet"][0], "marker": "x"}
            if index > 0:
                style = {"color": COLOURS[(index - 1) % len(COLOURS)], "marker": MARKERS[(index - 1) % len(MARKERS)]}
            means = [found.estimate for _, found in points]
            bounds = [(found.low, found.high) if found.bounded else (found.estimate,) * 2 for _, found in points]
            spread = [[mean - low for mean, (low, _) in zip(means, bounds, strict=True)],
                      [high - mean for mean, (_, high) in zip(means, bounds, strict=True)]]  # fmt: skip
            places = [spent for spent, _ in points]
            axes.errorbar(places, means, yerr=spread, label=name, markersize=4.5, capsize=3, **style)
            for spent, mean_of, (low, high) in zip(places, means, bounds, strict=True):
                picture.point(spent, mean_of, name, duration(spent), f"{mean_of:.4g}", f"{low:.4g} to {high:.4g}")
        axes.set_xscale("log")
        axes.set_xticks(sorted({spent for points in sides.values() for spent, _ in points}))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
        axes.set_xlabel("virtual wall-clock time of a training")
        axes.set_ylabel(one_line(metric, 40))
        axes.grid(axis="y", linewidth=0.5)
        axes.set_axisbelow(True)
        constant = "every schedule fitted to its time; mean over the seeds with its 95% interval"
        return picture.plot("time-to-quality", "learning", title, constant, f"{title}: {constant}.").svg


def _ticks(axes: Axes, epochs: Sequence[float]) -> None:
    """Let ticks be epochs that there are: whole ones where evaluations are, and the only one where there is one."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

    if len(set(epochs)) == 1:
        axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
        axes.xaxis.set_major_locator(FixedLocator([epochs[0]]))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=all(float(epoch).is_integer() for epoch in epochs)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _thousands(axes: Axes) -> None:
    """Write steps in full, as few as fit."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def sizes(title: str, arms: Mapping[str, Mapping[str, Sequence[float]]], whole: float | None, *, number: int) -> Plot:
    """Draw the neurons that meSimp left of each layer, mean over the seeds, of `whole` that a layer began with."""
    picture = Picture("arm", "layer", "neurons left", "of each seed", left=14, right=30, top=4)
    axes = picture.axes
    place = 0.0
    for name, layers in arms.items():
        axes.text(0, place - 0.62, one_line(name, 58), fontsize=10, va="bottom", ha="left")
        for index, (layer, found) in enumerate(layers.items()):
            left = mean(found)
            if whole:
                axes.barh(place, whole, 0.8, color=PALETTE["p2"][0], label="removed" if place == 0 else None)
            axes.barh(place, left, 0.8, color=PALETTE["p0"][0], label="left" if place == 0 else None)
            axes.text(left, place, f" {left:.0f}  {one_line(layer, 24)}", fontsize=9, va="center", ha="left")
            each = ", ".join(f"{value:.0f}" for value in found)
            picture.point(left, place, name, layer, f"{left:.1f}" + (f" of {whole:g}" if whole else ""), each)
            place += 1.0 if index < len(layers) - 1 else 2.0
    axes.set_ylim(place - 1.2, -1.5)
    axes.set_xlim(0, (whole or max(max(found) for own in arms.values() for found in own.values())) * 1.12)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("neurons of a layer")
    constant = "mean over the seeds, of the model that was best on the development set"
    return picture.plot(
        name_of(f"sizes-{number}"),
        "sizes",
        f"{title}: neurons that meSimp left",
        constant,
        f"{title}: neurons that meSimp left of each layer, {constant}.",
        height=20.0 * (place + 0.5),
        choices={"of": title},
    )
