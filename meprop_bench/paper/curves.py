"""The dev curve of every arm of a table over the epochs: the mean of its seeds, and from the lowest to the highest.

A verdict of a level is only as good as the training was long; the curves show whether it still rose at its end. Where
the change of the parameters was watched (TKDE, figure 4, right), a second picture shows that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from meprop_bench.paper.evidence import Evidence, Place
from meprop_bench.paper.trainings import Trained
from meprop_bench.report.plots import COLOURS, MARKERS, STYLE, Plot, as_svg

if TYPE_CHECKING:
    from meprop_bench.paper.published import Part

__all__ = ["curves"]


def curves(evidence: Evidence) -> list[Plot]:
    """Draw a picture for each part that was trained; needs matplotlib (ImportError)."""
    import matplotlib as mpl

    drawn: list[Plot] = []
    with mpl.rc_context(STYLE):
        for part in evidence.experiment.table.parts:
            found = {row.name: Place(evidence, part, row).seeds for row in part.rows}
            trained = {name: seeds for name, seeds in found.items() if seeds}
            if not trained:
                continue
            drawn.append(_picture(part, trained, len(drawn), "dev metric", _dev))
            if all(seed.updates for seeds in trained.values() for seed in seeds):
                drawn.append(_picture(part, trained, len(drawn), "mean change at an update", _updates))
    return drawn


def _dev(seed: Trained) -> tuple[list[float], list[float]]:
    return [one.epoch for one in seed.evaluations], [one.dev for one in seed.evaluations]


def _updates(seed: Trained) -> tuple[list[float], list[float]]:
    return [one.epoch for one in seed.evaluations][: len(seed.updates)], list(seed.updates)


def _picture(
    part: Part,
    trained: dict[str, Sequence[Trained]],
    number: int,
    what: str,
    curve: Callable[[Trained], tuple[list[float], list[float]]],
) -> Plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for index, (name, seeds) in enumerate(trained.items()):
        epochs, _ = curve(seeds[0])
        columns = list(zip(*(curve(seed)[1] for seed in seeds), strict=False))
        epochs = epochs[: len(columns)]
        colour = COLOURS[index % len(COLOURS)]
        means = [sum(column) / len(column) for column in columns]
        axes.plot(epochs, means, color=colour, marker=MARKERS[index % len(MARKERS)], markersize=4, label=name)
        axes.fill_between(epochs, [min(c) for c in columns], [max(c) for c in columns], color=colour, alpha=0.15)
    axes.set_xlabel("epochs")
    axes.set_ylabel(what)
    axes.set_title(part.name)
    axes.legend(fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    count = max(len(seeds) for seeds in trained.values())
    caption = f"{part.name}: {what} over the epochs; mean, lowest and highest of {count} seeds."
    return Plot(f"curve-{number}.svg", caption, as_svg(figure))
