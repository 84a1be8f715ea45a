"""What a figure looks like to a reader, and rows as tables: made once, for the terminal, Markdown and HTML alike.

A figure has three significant digits, a unit that fits, and a dash for what does not apply. Its `Cell` is text, and a
tone that a terminal and a page show as a colour. The text alone says everything: a mark or a word always goes with the
tone, so nothing is lost in black and white.

A `Section` holds one workload under one allocator, its rows in groups by phase. An axis that does not vary within a
section is said once above the table instead of in a column, which keeps a table as narrow as its sweep is; below it, a
line for each method draws its speed-up over k. What is narrower still is `layout`'s.

A forward pass that the method leaves as it is has its time, and no verdict: it is no news that it is as fast as before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import attrgetter
from typing import Any, Literal, TypeAlias

from meprop_bench.report.quality import Quality
from meprop_bench.report.reliability import Footnotes, common, significant_rows
from meprop_bench.results.axes import AXES as TABLE
from meprop_bench.results.axes import WITHOUT_K
from meprop_bench.results.axis import Axis, number
from meprop_bench.results.redact import bounded
from meprop_bench.results.schema import PASSED, Row
from meprop_bench.stats import CANNOT_TELL, Interval, plus_minus, too_wide

__all__ = [
    "ABSENT",
    "AXES",
    "BARS",
    "IN_SHAPE",
    "PARTS",
    "PHASES",
    "SHAPE",
    "WORDS",
    "Cell",
    "Section",
    "axis_cells",
    "by_phase",
    "check",
    "counted",
    "distinct_rows",
    "efficiency",
    "failure",
    "joules",
    "k_of",
    "left_alone",
    "memory",
    "pair",
    "parity",
    "percent",
    "phase_order",
    "plain_section",
    "plain_speedup",
    "quantity",
    "ratio",
    "ratio_within",
    "seconds",
    "seconds_within",
    "sections",
    "shape",
    "span",
    "speedup",
    "varying",
]

ABSENT = "–"
SHAPE, IN_SHAPE = "batch, m → n", ("batch", "in_features", "out_features")
"""Heading of `shape`, and the axes that it says together."""
Tone: TypeAlias = Literal["", "good", "bad", "quiet"]


@dataclass(slots=True, unsafe_hash=True)  # nobody changes one, but a frozen one takes four times as long to make
class Cell:
    """Text of a table's cell and how it is meant."""

    text: str
    tone: Tone = ""
    link: str = ""  # where it leads, a relative address; a terminal shows the text alone


def digits(value: float) -> str:
    """Three significant digits without an exponent; more before the point where the number needs them."""
    size = abs(value)
    return f"{value:.2f}" if size < 9.995 else f"{value:.1f}" if size < 99.95 else f"{value:.0f}"


def seconds(value: float | None) -> str:
    """A time in s, ms, µs or ns."""
    return _small(value, "s")


def seconds_within(found: Interval) -> str:
    """A time with its interval, as in `400 µs ±2%`, or `cannot tell`; negative, as a difference of two may be."""
    if too_wide(found.half_width):
        return CANNOT_TELL
    text = seconds(found.estimate) if found.estimate >= 0 else f"-{seconds(-found.estimate)}"
    return f"{text} {plus_minus(found.half_width, '.0%')}" if found.bounded else text


def joules(value: float | None) -> str:
    """An energy in J, mJ, µJ or nJ."""
    return _small(value, "J")


def percent(value: float | None) -> str:
    """A share that is given in percent, or a sum of such: `198%`."""
    return ABSENT if value is None else f"{value:.0f}%"


def pair(baseline: str, method: str) -> str:
    """What dense and sparse have, in one cell; a dash when neither has it."""
    return ABSENT if baseline == method == ABSENT else f"{baseline} → {method}"


def _small(value: float | None, unit: str) -> str:
    if value is None:
        return ABSENT
    for prefix, scale in (("", 1.0), ("m", 1e-3), ("µ", 1e-6)):
        if value >= 0.9995 * scale:
            return f"{digits(value / scale)} {prefix}{unit}"
    return f"{digits(value / 1e-9)} n{unit}"


@lru_cache(maxsize=1 << 12)  # of a shape it is the same in all its rows
def memory(value: float | None) -> str:
    """A size in binary units."""
    if value is None:
        return ABSENT
    for unit, scale in (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10)):
        if value >= scale:
            return f"{digits(value / scale)} {unit}"
    return f"{value:.0f} B"


def quantity(value: float) -> str:
    """A number of any size with a decimal prefix, as in `35.1 G`."""
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if abs(value) >= scale:
            return f"{digits(value / scale)} {unit}"
    return f"{value:g}"


def ratio(value: float) -> str:
    """A speed-up as in `5.12x`."""
    return f"{digits(value)}x"


def ratio_within(found: Interval, form: Callable[[float], str] = ratio) -> str:
    """A ratio with its interval, `5.12x [5.02, 5.22]`; where that is too wide, what it still says: `cannot tell`."""
    low, high = found.low, found.high
    if too_wide(found.half_width):
        return CANNOT_TELL + (f", above {form(low)}" if low > 1 else f", below {form(high)}" if high < 1 else "")
    return form(found.estimate) + (f" [{digits(low)}, {digits(high)}]" if found.bounded else "")


def speedup(row: Row, *, distinct: bool = True) -> Cell:
    """The speed-up with its interval, `~` if that is wider than the target; a dash for a case that failed its check.

    One over a dense time that disagrees with another's is marked whatever its interval says (`reliability`).
    `distinct` is whether it still differs from 1 when it is judged together with all others (`reliability`).
    """
    if not row.passed or row.interval is None:
        return Cell(ABSENT, "quiet")
    doubt = " do not believe" * (row.baseline_disagreement is not None)
    if row.significant is None:
        return Cell(f"{ratio(row.interval.estimate)} no interval{doubt}", "bad" if doubt else "quiet")
    text = ratio_within(row.interval) + " ~" * (row.converged is False)
    if doubt:
        return Cell(text + doubt, "bad")
    if left_alone(row):
        return Cell(text, "quiet")
    if not (row.significant and distinct):
        return Cell(text if too_wide(row.half_width) else f"{text} not significant", "quiet")
    return Cell(text, "good" if row.interval.estimate > 1 else "bad")


_UNCHANGED = 0.95
"""Speed-up down to which a forward pass counts as what it was: below, something that the method adds costs time."""


def left_alone(row: Row) -> bool:
    """Whether a row is of a forward pass that the method does not change: the same operations, in about the same time.

    Where both sides have a fused step, or neither, what runs is the same code.
    """
    if row.phase != "forward" or row.fused_step == "method" or row.interval is None:
        return False
    same = (row.sparse.flops, row.sparse.bytes) == (row.dense.flops, row.dense.bytes)
    found = row.interval
    slower, faster = found.high < _UNCHANGED, found.low > 1 / _UNCHANGED
    return same and not slower and not faster


def span(rows: Iterable[Row]) -> str:
    """Return the least and the greatest speed-up of rows, `3.31x to 31.0x`."""
    values = [row.speedup for row in rows if row.speedup is not None]
    return " to ".join(dict.fromkeys((ratio(min(values)), ratio(max(values)))))


def counted(number: int, noun: str) -> str:
    """Return `1 seed`, `5 seeds`, `100,000 rows`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def plain_speedup(row: Row) -> str:
    """The speed-up alone, where its interval stands elsewhere: `5.12x`, or why that is no figure."""
    if row.speedup is None:
        return ABSENT
    if row.baseline_disagreement is not None:
        return "do not believe"
    return CANNOT_TELL if too_wide(row.half_width) else ratio(row.speedup)


def efficiency(row: Row) -> Cell:
    """The floor as a share of the measured time, in percent."""
    share = row.sparse.efficiency if row.passed else None
    return Cell(ABSENT, "quiet") if share is None else Cell(f"{100 * share:.0f}%")


def check(row: Row) -> Cell:
    """Whether the case ran and computed the right thing; `failure` says why not."""
    if row.error is not None:
        return Cell("ERROR", "bad")
    if row.check is None:
        return Cell("NOT CHECKED", "bad")
    return Cell(PASSED, "good") if row.check == PASSED else Cell("FAILED", "bad")


def failure(row: Row) -> str | None:
    """Why a case has no figures, in one line."""
    return row.error or (None if row.check in (None, PASSED) else row.check)


def parity(row: Row) -> Cell:
    """The verdict on the quality, with the difference to dense."""
    if row.parity is None:
        return Cell(ABSENT, "quiet")
    found = row.parity
    tones: dict[str, Tone] = {"pass": "good", "fail": "bad", "inconclusive": "quiet"}
    return Cell(f"{found.verdict} {Quality.of(found).within(found.interval)}", tones[found.verdict])


def shape(row: Row) -> str:
    """Batch and sizes as the papers write them: `1024, 8192 → 8192`."""
    if row.out_features is None:
        return ABSENT if row.batch is None else str(row.batch)
    if row.in_features is None:
        return f"{row.batch}, h = {row.out_features}"
    return f"{row.batch}, {row.in_features} → {row.out_features}"


def k_of(row: Row) -> str:
    """The k of a row, of a convolution with the positions of a map that it is of; a dash for a method without one."""
    if row.method in WITHOUT_K:
        return ABSENT
    if row.size is None or row.filter is None or row.k < 1:
        return f"{row.k:g}"
    return f"{row.k:g} of {(row.size - row.filter + 1) ** 2}"


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
    "peak memory": lambda row: Cell(_memory_pair(row)),
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
        "peak memory": all(_memory_pair(row) == ABSENT for row in rows),
        "sent": all(_wire_pair(row) == ABSENT for row in rows),
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


def _memory_pair(row: Row) -> str:
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
