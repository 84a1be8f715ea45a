"""Rows as tables, for the terminal, Markdown and HTML alike.

A `Section` holds one workload under one allocator, its rows in groups by phase. An axis that does not vary within a
section is said once above the table instead of in a column, which keeps a table as narrow as its sweep is; below it, a
line for each method draws its speed-up over k. What is narrower still is `layout`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import attrgetter
from typing import Any

from meprop_bench.report.cells import (
    ABSENT,
    IN_SHAPE,
    SHAPE,
    Cell,
    check,
    efficiency,
    failure,
    k_of,
    memory,
    pair,
    parity,
    ratio,
    seconds,
    shape,
    speedup,
)
from meprop_bench.report.reliability import Footnotes, common, significant_rows
from meprop_bench.results.axes import AXES as TABLE
from meprop_bench.results.axis import Axis, number
from meprop_bench.results.redact import bounded
from meprop_bench.results.schema import PASSED, Row

__all__ = [
    "AXES", "BARS", "PARTS", "PHASES", "WORDS", "Section", "axis_cells", "by_phase", "distinct_rows", "memory_pair",
    "phase_order", "plain_section", "sections", "varying",
]  # fmt: skip

PHASES = ("linear-backward", "decode", "forward", "backward", "communication", "update", "step")

_DEFAULT_REMARK = (
    "The same under the system's default allocator, for comparison: there a large tensor is mapped anew at each"
    " allocation, for dense and sparse alike, and the page faults of fresh memory cost more than the arithmetic that"
    " was saved. The other sections use settings that serve a training process."
)


@dataclass(frozen=True)
class Section:
    """One table: `columns` over `groups` of lines of cells, with what is constant in it and the notes to its lines."""

    title: str
    columns: tuple[str, ...]
    groups: tuple[tuple[tuple[Cell, ...], ...], ...]
    constants: str = ""
    remark: str = ""
    footnotes: tuple[str, ...] = ()
    left: frozenset[str] = frozenset()  # columns of words; the others hold figures
    keys: frozenset[str] = frozenset()  # columns that together say what a line is of
    drop: tuple[str, ...] = ()  # columns that a narrow page leaves out, the first of them first
    late: tuple[str, ...] = ()  # and those that it leaves out where nothing else helps
    trends: tuple[str, ...] = ()  # speed-ups over k, a line for each series

    def __post_init__(self) -> None:
        """Shorten what is longer than anybody reads: names are somebody else's."""
        for name in ("title", "constants", "remark"):
            object.__setattr__(self, name, _readable(getattr(self, name), _LONGEST))
        for name in ("columns", "footnotes", "trends"):
            object.__setattr__(self, name, tuple(_readable(text, _LONGEST) for text in getattr(self, name)))
        if any(len(cell.text) > _ENDLESS for group in self.groups for line in group for cell in line):
            groups = tuple(tuple(tuple(map(_readable_cell, line)) for line in group) for group in self.groups)
            object.__setattr__(self, "groups", groups)


_LONGEST, _LONGEST_CELL, _ENDLESS = 4000, 1200, 160
"""Characters of a text beside a table, of a cell, and of a word in either."""


def _readable(text: str, limit: int) -> str:
    """Return a text that is not too long as it is, with its line breaks."""
    short = len(text) <= _ENDLESS or (len(text) <= limit and max(map(len, text.split()), default=0) <= _ENDLESS)
    return text if short else bounded(text, limit)


def _readable_cell(cell: Cell) -> Cell:
    return cell if len(cell.text) <= _ENDLESS else replace(cell, text=_readable(cell.text, _LONGEST_CELL))


def plain_section(
    title: str, columns: Sequence[str], lines: Iterable[Sequence[str]], *, left: Collection[str] = (), **more: Any
) -> Section:
    """Return a section of texts, those of the columns `left` words."""
    group = tuple(tuple(map(Cell, line)) for line in lines)
    return Section(title, tuple(columns), (group,), left=frozenset(left), **more)


def _column(axis: Axis) -> Callable[[Row], str]:
    """Return what a column shows of an axis: as it was carried out, or else as it was requested."""

    def text(row: Row) -> str:
        value = getattr(row, axis.field)
        if value is None:
            value = getattr(row, axis.stored)
        return ABSENT if value is None else axis.cell.format(*(axis.text(value),) * 2)

    return text


AXES: dict[str, Callable[[Row], str]] = {
    "phase": lambda row: row.phase or ABSENT,
    "method": lambda row: row.method,
    SHAPE: shape,
    "k": k_of,
    **{
        axis.heading: _column(axis)
        for axis in TABLE.values()
        if not axis.titled and axis.field not in (*IN_SHAPE, "method", "k")
    },
    "dense side": lambda row: row.baseline_chosen or ABSENT,
    "environment": lambda row: row.environment_id,
}
"""Heading of a column -> its text; workload and allocator are in the titles."""

_FIELDS: dict[str, tuple[str, ...]] = {
    **{axis.heading: (axis.field, axis.stored) for axis in TABLE.values() if axis.heading in AXES},
    "phase": ("phase",),
    "method": ("method",),
    SHAPE: IN_SHAPE,
    "k": ("method", "k", "size", "filter"),
    "dense side": ("baseline_chosen",),
    "environment": ("environment_id",),
}
PARTS: dict[str, Callable[[Row], object]] = {name: attrgetter(*dict.fromkeys(own)) for name, own in _FIELDS.items()}
"""Heading -> the fields of a row that its text depends on."""
_OFTEN = (SHAPE, "k")
"""What most sweeps are over."""
_RARE = attrgetter(*dict.fromkeys(field for name, own in _FIELDS.items() if name not in _OFTEN for field in own))

_NEED_NO_WORD = {axis.heading: axis.text(axis.default) for axis in TABLE.values() if axis.came_later}
"""Where it is the same for all rows: nobody chose it."""

_FIGURES: dict[str, Callable[[Row], Cell]] = {
    "dense": lambda row: Cell(seconds(row.dense.median_s)),
    "sparse": lambda row: Cell(seconds(row.sparse.median_s if row.passed else None)),
    "speed-up": speedup,
    "efficiency": efficiency,
    "peak memory": lambda row: Cell(memory_pair(row)),
    "sent": lambda row: Cell(_wire_pair(row)),
    "check": check,
    "parity": parity,
}
_ALWAYS = ("method", "k")
WORDS = frozenset({*AXES, "speed-up", "check", "parity", "verdict", "task"}) - {
    axis.heading for axis in TABLE.values() if not axis.words
}


def sections(
    rows: Sequence[Row], distinct: AbstractSet[int] | None = None, everywhere: Sequence[str] | None = None
) -> list[Section]:
    """Group rows by workload and allocator; the default allocator comes last where there is another.

    `distinct` has the identities of the rows that differ from 1, all judged at once, and `everywhere` the notes of all
    (`reliability.common`), where they are known already. What was only trained has no times, and is in no table of
    times.
    """
    distinct = distinct_rows(rows) if distinct is None else distinct
    everywhere = common(rows) if everywhere is None else everywhere
    timed = [row for row in rows if not _only_trained(row)]
    kinds: dict[tuple[str, str], list[Row]] = {}
    for row in timed:
        kinds.setdefault((row.workload, row.allocator), []).append(row)
    tuned = any(allocator != "default" for _, allocator in kinds)
    result = []
    # Stable: otherwise the order of the measurements.
    for workload, allocator in sorted(kinds, key=lambda kind: tuned and kind[1] == "default"):
        remark = _DEFAULT_REMARK if tuned and allocator == "default" else ""
        found = kinds[workload, allocator]
        result.append(_section(f"{workload}, {allocator} allocator", found, remark, distinct, everywhere))
    return result


def _only_trained(row: Row) -> bool:
    return row.phase is None and row.parity is not None


def distinct_rows(rows: Sequence[Row]) -> frozenset[int]:
    """Return the identities of the rows whose speed-up differs from 1, all of the report judged at once."""
    return frozenset(id(rows[place]) for place in significant_rows(rows))


def axis_cells(names: Iterable[str]) -> Callable[[Row], tuple[Cell, ...]]:
    """Return a function that gives a row's axes as cells; of many rows few differ, and what they say alike is one."""
    known: list[tuple[Callable[[Row], object], Callable[[Row], str], dict[object, Cell]]]
    known = [(PARTS[name], AXES[name], {}) for name in names]

    def cells(row: Row) -> tuple[Cell, ...]:
        found = []
        for part, text, made in known:
            key = part(row)
            if (cell := made.get(key)) is None:
                cell = made[key] = _axis_cell(text(row))
            found.append(cell)
        return tuple(found)

    return cells


_axis_cell = lru_cache(maxsize=1 << 12)(Cell)


def varying(rows: Iterable[Row]) -> tuple[list[str], str]:
    """Return the axes that need a column, and what is the same in all rows as one line."""
    rows = list(rows)
    # Of a hundred thousand rows few differ in what an axis says: these are put into words, and no others.
    some = list(dict(zip(map(_RARE, rows), rows, strict=True)).values())
    few = {
        name: dict(zip(map(PARTS[name], own), own, strict=True)).values()
        for name in AXES
        for own in [rows if name in _OFTEN else some]
    }
    texts = {name: {axis(row) for row in few[name]} for name, axis in AXES.items()}
    axes = [name for name in AXES if name in _ALWAYS or len(texts[name]) > 1]
    silent = {"environment"} | {name for name in AXES if texts[name] in ({ABSENT}, {_NEED_NO_WORD.get(name)})}
    said = [name for name in AXES if name not in axes and name not in silent]
    return axes, "; ".join(f"{name} {next(iter(texts[name]))}" for name in said)


def _section(
    title: str, rows: list[Row], remark: str, distinct: AbstractSet[int], everywhere: Sequence[str]
) -> Section:
    axes, constants = varying(rows)
    absent = {
        "check": all(row.check == PASSED for row in rows),
        "parity": not any(row.parity for row in rows),
        "efficiency": all(row.sparse.efficiency is None for row in rows),
        "peak memory": all(row.dense.peak_memory_bytes is row.sparse.peak_memory_bytes is None for row in rows),
        "sent": all(row.dense.wire_bytes is row.sparse.wire_bytes is None for row in rows),
    }
    figures = [name for name in _FIGURES if not absent.get(name)]
    if absent["check"]:
        constants = "; ".join(filter(None, (constants, "check passed")))
    notes = Footnotes(rows, filter(None, map(failure, rows)), everywhere)
    nothing = Cell("")  # in the place of what has a mark of its own
    shown = {name: (lambda _: nothing) if name == "speed-up" else _FIGURES[name] for name in figures}

    keys = axis_cells(axes)

    def line(row: Row) -> tuple[Cell, ...]:
        cells = {name: figure(row) for name, figure in shown.items()}
        found = speedup(row, distinct=id(row) in distinct)
        marks = notes.marks(row)
        cells["speed-up"] = Cell(found.text + marks, found.tone) if marks else found
        if "check" in cells:
            cells["check"] = Cell(cells["check"].text + notes.number(failure(row)), cells["check"].tone)
        return (*keys(row), *cells.values())

    return Section(
        title=title,
        constants=constants,
        remark=remark,
        columns=(*axes, *figures),
        groups=by_phase(rows, line),
        footnotes=notes.lines,
        left=WORDS,
        keys=frozenset(axes),
        drop=("peak memory", "efficiency", "dense side", "sent"),
        late=("dense", "sparse"),
        trends=tuple(trends(rows)),
    )


def by_phase(rows: Sequence[Row], line: Callable[[Row], tuple[Cell, ...]]) -> tuple[tuple[tuple[Cell, ...], ...], ...]:
    """Return the lines of rows in groups, phase by phase in the order of a step."""
    found: dict[str | None, list[Row]] = {}
    for row in rows:
        found.setdefault(row.phase, []).append(row)
    return tuple(tuple(map(line, found[phase])) for phase in sorted(found, key=phase_order))


def phase_order(phase: str | None) -> int:
    """Return the place of a phase in a step, for sorting."""
    return PHASES.index(phase) if phase in PHASES else len(PHASES)


def memory_pair(row: Row) -> str:
    """Return what both sides take at most, in one cell."""
    return pair(memory(row.dense.peak_memory_bytes), memory(row.sparse.peak_memory_bytes))


def _wire_pair(row: Row) -> str:
    sent = (row.dense.wire_bytes, row.sparse.wire_bytes)
    return pair(*(memory(None if nbytes is None else round(nbytes)) for nbytes in sent))


BARS = "▁▂▃▄▅▆▇█"
_SHORTEST, _MOST_TRENDS = 3, 12
"""Points that make a trend, and trends below a table."""


def trends(rows: Sequence[Row]) -> list[str]:
    """Return a line for each series of speed-ups over k: `backward, unified: k 10 7.88x █▇▄ 3.58x k 100`.

    The bars are of the logarithm, of all lines together, from 1.00x, the shortest, to the highest.
    """
    heads = ["phase", "method", *(name for name in AXES if name not in ("phase", "method", "k", "kernel"))]
    alike = attrgetter("kernel_requested", *dict.fromkeys(field for name in heads for field in _FIELDS[name]))
    series: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        if row.phase in _TRENDING and row.speedup is not None and row.passed and row.baseline_disagreement is None:
            series.setdefault(alike(row), []).append(row)
    long = (found for found in series.values() if len({row.k for row in found}) >= _SHORTEST)
    drawn = [sorted(found, key=attrgetter("k")) for found in long]
    drawn.sort(key=lambda found: phase_order(found[0].phase))
    top = max((math.log(row.speedup or 1.0) for found in drawn for row in found), default=0.0)
    names = [[AXES[name](found[0]) for name in heads] for found in drawn]
    varied = [place for place in range(2, len(heads)) if len({name[place] for name in names}) > 1]
    lines = []
    for found, name in zip(drawn[:_MOST_TRENDS], names, strict=False):
        others = (name[place] if heads[place] == SHAPE else f"{heads[place]} {name[place]}" for place in varied)
        bars = "".join(_bar(row.speedup or 1.0, top) for row in found)
        first, last = ((f"k {number(row.k)}", ratio(row.speedup or 1.0)) for row in (found[0], found[-1]))
        lines.append(f"{', '.join([*name[:2], *others])}: {' '.join(first)} {bars} {' '.join(reversed(last))}")
    more = len(drawn) - _MOST_TRENDS
    return [*lines, f"{more:,} more series over k are not drawn."] if more > 0 else lines


_TRENDING = ("linear-backward", "backward", "step")


def _bar(speedup: float, top: float) -> str:
    height = math.log(speedup) / top if top > 0 else 0.0
    return BARS[max(0, min(len(BARS) - 1, round(height * (len(BARS) - 1))))]
