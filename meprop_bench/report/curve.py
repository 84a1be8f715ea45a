"""The learning curve of one training: the loss falling, the development metric rising, and where it was best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from meprop_bench.report.plots import COLOURS, STYLE, as_svg

__all__ = ["curve"]


def curve(history: Sequence[Mapping[str, Any]], title: str, metric: str) -> bytes:
    """Draw the curve as SVG; needs matplotlib (ImportError).

    Args:
        history: evaluations with "epoch", "loss" (None where it was not finite), "dev" and "test", at least one.
        title: above it.
        metric: what dev and test are of.

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
        axes.set_ylabel(f"{metric}, %")
        axes.set_title(title)
        losses = axes.twinx()
        values = [float("nan") if found["loss"] is None else found["loss"] for found in history]
        losses.plot(epochs, values, color="#777777", linestyle=":", label="training loss")
        losses.set_ylabel("training loss")
        losses.spines["right"].set_visible(True)
        figure.legend(loc="outside lower center", ncols=3, fontsize=8.5)
        return as_svg(figure)
