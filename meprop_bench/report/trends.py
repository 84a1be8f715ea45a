"""The same cases over commits and machines: how a figure went from run to run, and where it moved to another level.

A case is the same where its id is, in whatever folder; a *series* is one phase of it on one machine, a point for each
result in the order of time. Two figures of it are followed:

    speed-up    dense / sparse, both of one run: free of what the machine did meanwhile
    time        of the method: what a user waits for, and what varies with whatever else the machine does

Steps of their logarithms (`stats.steps`) are changes that at least three runs agree on; a single bad run is none, nor
is the newest result by itself. An interval over processes does not cover what differs between runs, so no step within
1% of noise is believed, whatever the few runs of a series say. Where the software changed at a step, its line says so.

What is kept is bounded: points of rows that passed their check and can be believed, the last `RUNS` of each series, and
so many series; what is left out is counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from operator import attrgetter
from typing import TYPE_CHECKING, Literal, TypeAlias

from meprop_bench.measure.environment import NOT_IN_ID
from meprop_bench.report.cells import ABSENT, Cell, counted, ratio, ratio_within, seconds
from meprop_bench.report.document import Document
from meprop_bench.report.findings import Finding, plain
from meprop_bench.report.sections import BARS, Section
from meprop_bench.results.axes import case_name
from meprop_bench.results.redact import one_line
from meprop_bench.results.schema import Row
from meprop_bench.stats import Interval, median, too_wide
from meprop_bench.stats.steps import SHORTEST, steps

if TYPE_CHECKING:
    from meprop_bench.report.plots import Plot

__all__ = ["RUNS", "Trend", "Trends", "machine_name"]

RUNS = 100
"""Runs of a series that are looked at, the last ones."""
_SERIES = 20_000
"""Series that are followed."""
_SHOWN = 500
"""Lines of the page."""
_DRAWN = 12
"""Pictures on it."""
_SAID, _FIRST = 20, 3
"""Steps that the index names, and those that its own page does, which has them all in its table."""

_NOISE = 0.01
"""Mean deviation of two runs of the same code on a quiet machine, relative (the A/A study)."""

Figure: TypeAlias = Literal["speed-up", "time"]
_FIGURES: tuple[Figure, ...] = ("speed-up", "time")


@dataclass(frozen=True, slots=True)
class TrendPoint:
    """What one result has of a series."""

    started: str  # ISO 8601
    place: str  # of its folder
    revision: str  # of the code; empty where it is not known
    environment: str  # its id
    speedup: Interval
    time_s: float

    def figure(self, name: Figure) -> float:
        """Return one of the two figures."""
        return self.speedup.estimate if name == "speed-up" else self.time_s


@dataclass(frozen=True)
class Move:
    """A step of one figure."""

    series: Trend
    figure: Figure
    place: int  # of the first point of the new level
    before: float
    after: float
    also: str = ""  # what else changed there: the environment

    @property
    def size(self) -> float:
        """By how much it moved, as a logarithm; above 0 is better."""
        change = math.log(self.after / self.before)
        return change if self.figure == "speed-up" else -change

    @property
    def text(self) -> str:
        """What moved and by how much, without the case."""
        form = ratio if self.figure == "speed-up" else seconds
        point = self.series.points[self.place]
        revision = f" at {point.revision}" if point.revision else ""
        word = "better" if self.size > 0 else "worse"
        percent = 100 * abs(math.expm1(math.log(self.after / self.before)))
        also = f"; {self.also}" if self.also else ""
        return (
            f"{self.figure} {form(self.before)} → {form(self.after)} ({percent:.3g}% {word}) from"
            f" {point.started[:10]}{revision} on{also}"
        )


@dataclass(frozen=True)
class Trend:
    """One phase of one case on one machine."""

    name: str  # of the case
    phase: str
    machine: str
    points: Sequence[TrendPoint]  # the last ones, in the order of time
    environments: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # by their ids
    baselines: Mapping[str, Interval] = field(
        default_factory=dict
    )  # the speed-ups of those that have the case, by name

    @cached_property
    def moves(self) -> list[Move]:
        """The steps of both figures."""
        return [move for name in _FIGURES for move in self._moves(name)]

    def _moves(self, name: Figure) -> Iterator[Move]:
        values = [math.log(point.figure(name)) for point in self.points]
        halves = [point.speedup.half_width for point in self.points if point.speedup.bounded]
        noise = max(_NOISE, median(halves) / 2 if halves else 0.0)
        places = steps(values, noise=noise)
        heights = [math.exp(level) for level in _levels(values, places)] if places else []
        for place, before, after in zip(places, heights, heights[1:], strict=False):
            yield Move(self, name, place, before, after, self._also(place))

    def _also(self, place: int) -> str:
        """Say what else is new at a point."""
        one, other = self.points[place - 1].environment, self.points[place].environment
        if one == other:
            return ""
        known, found = self.environments.get(one, {}), self.environments.get(other, {})
        names = [name for name in {**known, **found} if name not in NOT_IN_ID and known.get(name) != found.get(name)]
        return one_line(f"other {', '.join(names[:4])}", 120) if names else "another environment"

    @property
    def largest(self) -> float:
        """How far its largest step goes."""
        return max((abs(move.size) for move in self.moves), default=0.0)

    def course(self) -> str:
        """Return the speed-up over the runs as bars, the lowest to the highest."""
        values = [math.log(point.speedup.estimate) for point in self.points]
        least, span = min(values), max(values) - min(values)
        if span < 2 * _NOISE:  # bars of noise look like a history
            return BARS[3] * len(values)
        return "".join(BARS[round((value - least) / span * (len(BARS) - 1))] for value in values)


class Trends:
    """Collects results, one after another, and is then ready to be printed (`report.document.Readable`)."""

    title = "The same cases over commits and machines"
    started = ""

    def __init__(self, command: str) -> None:
        self.command = command
        self._points: dict[tuple[str, str, str], list[TrendPoint]] = {}
        self._names: dict[str, str] = {}
        self._environments: dict[str, Mapping[str, object]] = {}
        self._left = 0
        self._baselines: dict[tuple[str, str, str], dict[str, Interval]] = {}

    def add_baseline(self, name: str, document: Document) -> None:
        """Take the speed-ups of a named baseline, which stand beside the runs and are none of them."""
        for row in document.rows:
            if (point := _point(row, name, document)) is not None:
                key = (row.case_id, row.phase or "", machine_name(document.environments.get(row.environment_id)))
                self._baselines.setdefault(key, {})[name] = point.speedup

    def add(self, place: str, document: Document) -> None:
        """Take the rows of a result that can be believed."""
        for name, value in document.environments.items():
            if isinstance(value, Mapping):
                self._environments.setdefault(name, value)
        for row in document.rows:
            if (point := _point(row, place, document)) is None:
                continue
            key = (row.case_id, row.phase or "", machine_name(self._environments.get(row.environment_id)))
            if key not in self._points and len(self._points) >= _SERIES:
                self._left += 1
                continue
            if row.case_id not in self._names:
                self._names[row.case_id] = case_name(row)
            self._points.setdefault(key, []).append(point)

    @cached_property
    def series(self) -> list[Trend]:
        """Those of cases that were measured more than once, the largest steps first."""
        every = {key: _apart(points) for key, points in self._points.items()}
        counts: dict[tuple[str, str], int] = {}
        for (case_id, phase, _), points in every.items():
            counts[case_id, phase] = counts.get((case_id, phase), 0) + len(points)
        found = [
            Trend(
                self._names[case_id],
                phase,
                machine,
                points[-RUNS:],
                self._environments,
                self._baselines.get((case_id, phase, machine), {}),
            )
            for (case_id, phase, machine), points in every.items()
            if counts[case_id, phase] > 1
        ]
        return sorted(found, key=lambda one: (-one.largest, one.name, one.phase, one.machine))

    @property
    def moves(self) -> list[Move]:
        """All steps, the largest first."""
        return sorted((move for one in self.series for move in one.moves), key=lambda move: -abs(move.size))

    def said(self) -> list[str]:
        """Return the largest steps in words, and how many there are besides."""
        moves = self.moves
        lines = [f"Moved: {one.series.name}, {one.series.phase}, on {one.series.machine}: {one.text}." for one in moves]
        more = [f"{len(moves) - _SAID} more moved."] if len(moves) > _SAID else []
        return [*lines[:_SAID], *more]

    @property
    def doubts(self) -> list[str]:
        """Steps of a machine: most cases of it moved at one time, and alike."""
        found = []
        for machine in dict.fromkeys(one.machine for one in self.series):
            followed = [one for one in self.series if one.machine == machine and len(one.points) >= 2 * SHORTEST]
            for day, count in _days(followed).items():
                if count > max(2, len(followed) / 2):
                    found.append(
                        f"On {day} the times of {count} of {len(followed)} cases on {machine} moved together: look for"
                        " what changed there, not in the code."
                    )
        return found

    @property
    def summary(self) -> list[str]:
        """How many were followed, and what moved."""
        runs = sum(len(one.points) for one in self.series)
        if not self.series:
            return ["No case was measured more than once."]
        short = sum(len(one.points) < 2 * SHORTEST for one in self.series)
        lines = [f"{len(self.series)} phases of cases, {runs} runs of them; {len(self.moves)} steps."]
        if short:
            who = "All of them" if short == len(self.series) else str(short)
            lines.append(f"{who} have fewer than {2 * SHORTEST} runs, in which no step can be told from noise.")
        said = self.said()
        more = [f"{len(self.moves) - _FIRST} more, in the table."] if len(self.moves) > _FIRST else []
        return [*lines, *said[:_FIRST], *more]

    @property
    def findings(self) -> Sequence[Finding]:
        """The same, what speaks against it first."""
        return plain(self.doubts, self.summary)

    @property
    def sections(self) -> list[Section]:
        """The table."""
        shown = self.series[:_SHOWN]
        if not shown:
            return []
        more = len(self.series) - len(shown) + self._left
        footnotes = (f"{more} more are not shown.",) if more else ()
        named = list(dict.fromkeys(name for one in shown for name in one.baselines))
        heads = ("case", "phase", "machine", "runs", "speed-up", "course", "time")
        columns = (*heads, *(f"baseline {name}" for name in named), "steps")
        lines = tuple(_line(one, named) for one in shown)
        left = frozenset(columns) - {"runs"}
        return [Section("Cases that were measured more than once", columns, (lines,), footnotes=footnotes, left=left)]

    @property
    def notes(self) -> Sequence[str]:
        """None: all that was noticed is among the findings."""
        return ()

    @property
    def hints(self) -> Sequence[str]:
        """How to read it."""
        return (
            f"A step is a change of level, beyond noise, that at least {SHORTEST} runs agree on: of the speed-up, dense"
            " over sparse in one run, or of the method's time, which also varies with whatever else the machine does."
            " Both are given as in the first run → in the last one.",
            f"The course is the speed-up over the last {RUNS} runs of a case, from its lowest to its highest. Figures"
            " of two machines are shown side by side, and not compared.",
        )

    @property
    def how_to_read(self) -> Sequence[str]:
        """The same."""
        return self.hints

    @property
    def facts(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """The results have them."""
        return []

    def drawn(self) -> list[Plot]:
        """Draw the speed-up of those with the largest steps, or else of those with the most runs (ImportError)."""
        chosen = [one for one in self.series if one.moves] or sorted(self.series, key=lambda one: -len(one.points))
        return [_drawn(one, number) for number, one in enumerate(chosen[:_DRAWN]) if len(one.points) >= 2 * SHORTEST]


def machine_name(environment: object) -> str:
    """Return a machine in words, of its environment: `AMD EPYC, 2 cores, AVX2` or `NVIDIA H100 80GB HBM3`."""
    if not isinstance(environment, Mapping):
        return "an unknown machine"
    gpu = environment.get("gpu")
    if isinstance(gpu, Mapping) and gpu.get("name"):
        return one_line(str(gpu["name"]), 80)
    cores = environment.get("cpu_usable_cores")
    parts = (
        environment.get("cpu_model") or environment.get("cpu") or environment.get("architecture"),
        counted(cores, "core") if isinstance(cores, int) and cores else None,
        environment.get("cpu_capability"),
    )
    return one_line(", ".join(str(part) for part in parts if part), 80) or "an unknown machine"


def _apart(points: Iterable[TrendPoint]) -> list[TrendPoint]:
    """Return points in the order of time; what one result took over from another counts where it was measured."""
    found: dict[tuple[Interval, float], TrendPoint] = {}
    for point in sorted(points, key=attrgetter("started")):
        found.setdefault((point.speedup, point.time_s), point)
    return list(found.values())


def _point(row: Row, place: str, document: Document) -> TrendPoint | None:
    found, time_s = row.interval, row.sparse.median_s
    if not row.passed or row.phase is None or found is None or time_s is None or row.method == "dense":
        return None
    if row.baseline_disagreement is not None or too_wide(found.half_width):
        return None
    environment = document.environments.get(row.environment_id)
    known = environment.get("git_revision") if isinstance(environment, Mapping) else None
    revision = row.git_revision or (known if isinstance(known, str) else "")
    return TrendPoint(document.started, place, one_line(revision, 24), row.environment_id, found, time_s)


def _levels(values: Sequence[float], places: Sequence[int]) -> list[float]:
    """Return the median of each level, which begin at the start and at these places."""
    return [median(values[start:stop]) for start, stop in pairwise([0, *places, len(values)])]


def _days(followed: Iterable[Trend]) -> dict[str, int]:
    """Return how many series have a step of their time on each day."""
    counts: dict[str, int] = {}
    for one in followed:
        for day in {one.points[move.place].started[:10] for move in one.moves if move.figure == "time"}:
            counts[day] = counts.get(day, 0) + 1
    return counts


def _line(one: Trend, baselines: Sequence[str]) -> tuple[Cell, ...]:
    first, last, count = one.points[0], one.points[-1], len(one.points)
    both = [ratio_within(point.speedup) for point in (first, last)]
    times = [seconds(point.time_s) for point in (first, last)]
    if count == 1:
        both, times = both[:1], times[:1]
    worse = any(move.size < 0 for move in one.moves)
    few = "too few runs" if count < 2 * SHORTEST else "none"
    return (
        Cell(one.name),
        Cell(one.phase),
        Cell(one.machine),
        Cell(str(count)),
        Cell(" → ".join(both)),
        Cell(one.course() if count > 1 else ABSENT),
        Cell(" → ".join(times)),
        *(Cell(ratio_within(found) if (found := one.baselines.get(name)) else ABSENT) for name in baselines),
        Cell(". ".join(move.text for move in one.moves) or few, ("bad" if worse else "good") if one.moves else "quiet"),
    )


def _drawn(one: Trend, number: int) -> Plot:
    import matplotlib as mpl

    from meprop_bench.report.plots.svg import COLOURS, STYLE, Picture

    places = list(range(len(one.points)))
    found = [point.speedup for point in one.points]
    bounds = [
        [each.estimate - each.low if each.bounded else 0.0 for each in found],
        [each.high - each.estimate if each.bounded else 0.0 for each in found],
    ]
    moves = [move for move in one.moves if move.figure == "speed-up"]
    ends = [0, *(move.place for move in moves), len(places)]
    heights = _levels([each.estimate for each in found], ends[1:-1])
    with mpl.rc_context(STYLE):
        picture = Picture("run", "speed-up", "time", "revision", "result")
        axes = picture.axes
        axes.errorbar(places, [each.estimate for each in found], yerr=bounds, fmt="o", markersize=4, color=COLOURS[0],
                      linewidth=1, label="speed-up of a run, with its 95% interval")  # fmt: skip
        for place, (start, stop) in enumerate(pairwise(ends)):
            name = "" if place else "its levels"
            axes.hlines(heights[place], start - 0.4, stop - 0.6, color=COLOURS[1], linewidth=1.8, label=name)
        for place, point in zip(places, one.points, strict=True):
            cells = (ratio_within(point.speedup), seconds(point.time_s), point.revision or ABSENT, point.place)
            picture.point(place, point.speedup.estimate, point.started[:10], *cells)
        chosen = places[:: max(1, math.ceil(len(places) / 4))]
        axes.set_xticks(chosen, [_label(one.points[place]) for place in chosen], fontsize=8.5)
        axes.set_ylabel("speed-up over dense")
        axes.grid(axis="y", linewidth=0.5)
        axes.set_axisbelow(True)
        what = "; ".join(move.text for move in one.moves) or "no step"
        return picture.plot(
            f"trend-{number + 1}",
            "trend",
            f"{one.name}, {one.phase}",
            f"{one.machine}; {what}",
            f"{one.name}, {one.phase}, on {one.machine}: the speed-up of each run with its 95% interval, and its"
            f" levels; {what}.",
            choices={"case": one.name, "phase": one.phase, "machine": one.machine},
        )


def _label(point: TrendPoint) -> str:
    return f"{point.started[:10]}\n{point.revision[:8]}"
