"""The pictures of a report, as few as tell the story, each of a kind that says how it is read.

A picture shows one device under one allocator and one dense work; what is constant in it is said above it. A report has
as many of a kind as its rows give, up to `MOST`; the page lets its reader choose among them, and a README shows those
that are about what the method is for. The colours are told apart with every kind of colour vision, and each series has
a marker and a dash of its own as well.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from meprop_bench.report.plots.accuracy import accuracy
from meprop_bench.report.plots.grouping import PerKind
from meprop_bench.report.plots.heat import heat
from meprop_bench.report.plots.over import over
from meprop_bench.report.plots.phases import phases
from meprop_bench.report.plots.roofline import rooflines
from meprop_bench.report.plots.svg import STYLE, Plot
from meprop_bench.report.plots.training import curve
from meprop_bench.report.plots.watched import watched
from meprop_bench.results.schema import Row

__all__ = ["KINDS", "STYLE", "PictureKind", "Plot", "curve", "plots"]

_FILES = 3
"""Pictures of a kind that are files of their own, and in a README."""


@dataclass(frozen=True)
class PictureKind:
    """What pictures of one kind are called, and how they are read."""

    title: str
    how: str
    most: int  # of a report


KINDS = {
    "over": PictureKind(
        "Speed-up over k",
        "Each point is a case, its bar the 95% interval over the processes. Above the line at 1 the method is faster"
        " than dense. Both scales are logarithmic: where the arithmetic is all that counts, halving k doubles the"
        " speed-up. It cannot exceed n/k (dashed); dotted is what this machine would allow if the sparse side reached"
        " its floor. Where the shape is that of the paper's table, the paper's figures stand beside.",
        36,
    ),
    "accuracy": PictureKind(
        "Speed against accuracy",
        "To the right is faster, up is more accurate, dense is at 1 and 0. Above the dotted line the accuracy holds"
        " within the margin: a case pays where its bars lie right of 1 and above that line. On the front (dashed) are"
        " the cases that no other one beats in both.",
        8,
    ),
    "heat": PictureKind(
        "Where it pays",
        "Each rectangle is a case and its figure the speed-up: blue is faster than dense, orange slower, grey not told"
        " apart. The thick line is break-even. A question mark: the interval is too wide for a figure.",
        12,
    ),
    "phases": PictureKind(
        "Phases of a step",
        "The parts of a bar add up to one training step. The method shortens the backward pass; what it leaves alone"
        " limits the whole: if backward is half of a step, even a free one makes the step twice as fast.",
        12,
    ),
    "roofline": PictureKind(
        "Roofline",
        "Up is more operations a second, to the right more operations for each byte that must be moved. The roofs were"
        " measured here: on the slope memory is the limit, on the flat part arithmetic. A point above them was faster"
        " than these measurements."
        " Sparse points move left, since operations go and bytes stay; the distance to the roof is what is left to"
        " gain."
        " A speed-up is not to be seen here: the sparse side does less.",
        8,
    ),
    "watched": PictureKind(
        "Utilisation, power and memory",
        "An open mark is dense, a filled one sparse; left is less. Each was watched for seconds of a steady loop after"
        " the timing. Energy is that of the device, idle power included.",
        16,
    ),
    "learning": PictureKind(
        "Learning curves",
        "A line is the mean over the seeds, its band the lowest and the highest of them. Over steps (or epochs) it"
        " tells what a step teaches, over time what a second does. The seconds are of steps alone, spread evenly over"
        " the epochs, and other trainings may have run beside them: how fast a method is, the timed rows say.",
        24,
    ),
    "sizes": PictureKind(
        "Layer sizes under meSimp",
        "The blue part of a bar are the neurons that are left, the grey part those that were removed, mean over the"
        " seeds.",
        8,
    ),
    "trend": PictureKind(
        "The same case over commits and machines",
        "Each point is a run, its bar the 95% interval over that run's processes; the lines are the levels that runs"
        " agree on, and where one ends a step was found. Bars know nothing of what differs between runs: two of them"
        " may lie apart without a step.",
        12,
    ),
}
"""Kind of a picture -> what a page says of it, in the order of the page."""


def plots(rows: Sequence[Row], peaks: Mapping[str, Any] | None = None) -> tuple[list[Plot], dict[str, int]]:
    """Draw what the rows give, up to so many pictures of a kind, and count how many more there would be.

    Needs matplotlib (ImportError).
    """
    import matplotlib as mpl

    drawn: list[Plot] = []
    left_out = {}
    kinds = PerKind(rows)
    draws: dict[str, Callable[[int], tuple[list[Plot], int]]] = {
        "over": lambda most: over(rows, most, kinds),
        "accuracy": lambda most: accuracy(rows, most),
        "heat": lambda most: heat(rows, most, kinds),
        "phases": lambda most: phases(rows, most, kinds),
        "roofline": lambda most: rooflines(rows, peaks or {}, most),
        "watched": lambda most: watched(rows, most),
    }
    with mpl.rc_context(STYLE):
        for kind, draw in draws.items():
            own, more = draw(KINDS[kind].most)
            if own and not gc.isenabled():
                gc.collect()  # matplotlib's figures refer to themselves, and nobody else collects them
            drawn += _files(own)
            if more:
                left_out[kind] = more
    return drawn, left_out


def _files(drawn: Sequence[Plot]) -> list[Plot]:
    """Let the first few of a kind alone be files: a README is read from its beginning."""
    main = [plot.name for plot in drawn if plot.main][:_FILES]
    return [replace(plot, main=plot.name in main) for plot in drawn]
