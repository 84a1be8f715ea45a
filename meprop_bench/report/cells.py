"""What a figure looks like to a reader, and rows as tables: made once, for the terminal, Markdown and HTML alike.

A figure has three significant digits, a unit that fits, and a dash for what does not apply. Its `Cell` is text, and a
tone that a terminal and a page show as a colour. The text alone says everything: a mark or a word always goes with the
tone, so nothing is lost in black and white.

A `Section` holds one workload under one allocator, its rows in groups by phase. An axis that does not vary within a
section is said once above the table instead of in a column, which keeps a table as narrow as its sweep is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import Literal, TypeAlias

from meprop_bench.measure.notes import Note
from meprop_bench.report.quality import Quality
from meprop_bench.report.reliability import Footnotes, significant_rows
from meprop_bench.results.axes import AXES as TABLE
from meprop_bench.results.axes import WITHOUT_K, Axis
from meprop_bench.results.schema import PASSED, Row, select
from meprop_bench.stats import CANNOT_TELL, Interval, plus_minus, too_wide

__all__ = [
    "ABSENT",
    "AXES",
    "IN_SHAPE",
    "PHASES",
    "SHAPE",
    "WORDS",
    "Cell",
    "Section",
    "axis_cells",
    "by_phase",
    "check",
    "distinct_rows",
    "efficiency",
    "failure",
    "joules",
    "k_of",
    "memory",
    "pair",
    "parity",
    "percent",
    "phase_order",
    "plain_speedup",
    "quantity",
    "ratio",
    "ratio_within",
    "seconds",
    "seconds_within",
    "sections",
    "shape",
    "speedup",
    "varying",
]

ABSENT = "–"
SHAPE, IN_SHAPE = "batch, m → n", ("batch", "in_features", "out_features")
"""Heading of `shape`, and the axes that it says together."""
Tone: TypeAlias = Literal["", "good", "bad", "quiet"]


@dataclass(frozen=True, slots=True)
class Cell:
    """Text of a table's cell and how it is meant."""

    text: str
    tone: Tone = ""
    link: str = ""  # where it leads, a relative address; a terminal shows the text alone


def digits(value: float) -> str:
    """Three significant digits without an exponent; more before the point where the number needs them."""
    size = abs(value)
    return f"{value:.{2 if size < 9.995 else 1 if size < 99.95 else 0}f}"


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
    if not (row.significant and distinct):
        return Cell(text if too_wide(row.half_width) else f"{text} not significant", "quiet")
    return Cell(text, "good" if row.interval.estimate > 1 else "bad")


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
    """The k of a row; a dash for a method that has none."""
    return ABSENT if row.method in WITHOUT_K else f"{row.k:g}"


PHASES = ("linear-backward", "decode", "forward", "backward", "update", "step")

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

_PARTS: dict[str, Callable[[Row], object]] = {
    **{axis.heading: attrgetter(axis.field, axis.stored) for axis in TABLE.values() if axis.heading in AXES},
    "phase": attrgetter("phase"),
    "method": attrgetter("method"),
    SHAPE: attrgetter(*IN_SHAPE),
    "k": attrgetter("method", "k", "size", "filter"),
    "dense side": attrgetter("baseline_chosen"),
    "environment": attrgetter("environment_id"),
}
"""Heading -> the fields of a row that its text depends on."""

_NEED_NO_WORD = {axis.heading: axis.text(axis.default) for axis in TABLE.values() if axis.came_later}
"""Where it is the same for all rows: nobody chose it."""

_FIGURES: dict[str, Callable[[Row], Cell]] = {
    "dense": lambda row: Cell(seconds(row.dense.median_s)),
    "sparse": lambda row: Cell(seconds(row.sparse.median_s if row.passed else None)),
    "speed-up": speedup,
    "efficiency": efficiency,
    "peak memory": lambda row: Cell(_memory_pair(row)),
    "check": check,
    "parity": parity,
}
_ALWAYS = ("method", "k")
WORDS = frozenset({*AXES, "speed-up", "check", "parity", "verdict", "task"}) - {
    axis.heading for axis in TABLE.values() if not axis.words
}


def sections(rows: Sequence[Row]) -> list[Section]:
    """Group rows by workload and allocator; the default allocator comes last where there is another."""
    kinds = list(dict.fromkeys((row.workload, row.allocator) for row in rows))
    tuned = any(allocator != "default" for _, allocator in kinds)
    distinct = distinct_rows(rows)
    kinds.sort(key=lambda kind: tuned and kind[1] == "default")  # stable: otherwise the order of the measurements
    result = []
    for workload, allocator in kinds:
        remark = _DEFAULT_REMARK if tuned and allocator == "default" else ""
        found = select(rows, workload=workload, allocator=allocator)
        result.append(_section(f"{workload}, {allocator} allocator", found, remark, distinct))
    return result


def distinct_rows(rows: Sequence[Row]) -> frozenset[int]:
    """Return the identities of the rows whose speed-up differs from 1, all of the report judged at once."""
    return frozenset(id(rows[place]) for place in significant_rows(rows))


def axis_cells(row: Row, names: Iterable[str]) -> Iterator[Cell]:
    """Give a row's axes as cells; of many rows few differ, and what they say alike is one cell."""
    return (_axis_cell(AXES[name](row)) for name in names)


_axis_cell = lru_cache(maxsize=1 << 12)(Cell)


def varying(rows: Iterable[Row]) -> tuple[list[str], str]:
    """Return the axes that need a column, and what is the same in all rows as one line."""
    rows = list(rows)
    # Of a hundred thousand rows few differ in what an axis says: these are put into words, and no others.
    few = {name: dict(zip(map(_PARTS[name], rows), rows, strict=True)).values() for name in AXES}
    texts = {name: {axis(row) for row in few[name]} for name, axis in AXES.items()}
    axes = [name for name in AXES if name in _ALWAYS or len(texts[name]) > 1]
    silent = {"environment"} | {name for name in AXES if texts[name] in ({ABSENT}, {_NEED_NO_WORD.get(name)})}
    said = [name for name in AXES if name not in axes and name not in silent]
    return axes, "; ".join(f"{name} {next(iter(texts[name]))}" for name in said)


def _section(title: str, rows: list[Row], remark: str, distinct: frozenset[int]) -> Section:
    axes, constants = varying(rows)
    absent = {
        "check": all(row.check == PASSED for row in rows),
        "parity": not any(row.parity for row in rows),
        "efficiency": all(row.sparse.efficiency is None for row in rows),
        "peak memory": all(_memory_pair(row) == ABSENT for row in rows),
    }
    figures = [name for name in _FIGURES if not absent.get(name)]
    if absent["check"]:
        constants = "; ".join(filter(None, (constants, "check passed")))
    failures = [text for row in rows if (text := failure(row))]
    notes = Footnotes([row.notes for row in rows if row.sparse.median_s is not None or row.notes], failures)

    def marked(cell: Cell, own: Iterable[Note]) -> Cell:
        return Cell(cell.text + notes.marks(own), cell.tone)

    def line(row: Row) -> tuple[Cell, ...]:
        cells = {name: _FIGURES[name](row) for name in figures}
        cells["speed-up"] = marked(speedup(row, distinct=id(row) in distinct), row.notes)
        if "check" in cells:
            cells["check"] = marked(cells["check"], [Note(text) for text in (failure(row),) if text])
        return (*axis_cells(row, axes), *cells.values())

    return Section(
        title=title,
        constants=constants,
        remark=remark,
        columns=(*axes, *figures),
        groups=by_phase(rows, line),
        footnotes=notes.lines,
        left=WORDS,
    )


def by_phase(rows: Sequence[Row], line: Callable[[Row], tuple[Cell, ...]]) -> tuple[tuple[tuple[Cell, ...], ...], ...]:
    """Return the lines of rows in groups, phase by phase in the order of a step."""
    phases = sorted(dict.fromkeys(row.phase for row in rows), key=phase_order)
    return tuple(tuple(line(row) for row in rows if row.phase == phase) for phase in phases)


def phase_order(phase: str | None) -> int:
    """Return the place of a phase in a step, for sorting."""
    return PHASES.index(phase) if phase in PHASES else len(PHASES)


def _memory_pair(row: Row) -> str:
    return pair(memory(row.dense.peak_memory_bytes), memory(row.sparse.peak_memory_bytes))
