"""Rows as tables, once for every format: the terminal, Markdown and HTML print the sections made here.

A section holds one workload under one allocator, its rows in groups by phase. An axis that does not vary within a
section is said once above the table instead of in a column, which keeps a table as narrow as its sweep is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean as mean

from meprop_bench.measure.notes import Note, together
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
    points,
    ratio,
    ratio_within,
    seconds,
    shape,
    speedup,
)
from meprop_bench.report.reliability import mean_speedup, significant_rows
from meprop_bench.results.axes import AXES as TABLE
from meprop_bench.results.axes import Axis
from meprop_bench.results.schema import PASSED, Row, select
from meprop_bench.stats import too_wide

__all__ = [
    "AXES",
    "MARKS",
    "PHASES",
    "WORDS",
    "Footnotes",
    "Section",
    "by_phase",
    "parity_section",
    "phase_order",
    "sections",
    "summary",
    "varying",
]

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
    "environment": lambda row: row.environment_id,
}
"""Heading of a column -> its text; workload and allocator are in the titles."""

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
    distinct = _distinct(rows)
    kinds.sort(key=lambda kind: tuned and kind[1] == "default")  # stable: otherwise the order of the measurements
    result = []
    for workload, allocator in kinds:
        remark = _DEFAULT_REMARK if tuned and allocator == "default" else ""
        found = select(rows, workload=workload, allocator=allocator)
        result.append(_section(f"{workload}, {allocator} allocator", found, remark, distinct))
    return result


def _distinct(rows: Sequence[Row]) -> frozenset[int]:
    """Return the identities of the rows whose speed-up differs from 1, all of the report judged at once."""
    return frozenset(id(rows[place]) for place in significant_rows(rows))


def varying(rows: Iterable[Row]) -> tuple[list[str], str]:
    """Return the axes that need a column, and what is the same in all rows as one line."""
    rows = list(rows)
    texts = {name: {axis(row) for row in rows} for name, axis in AXES.items()}
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
        return (*(Cell(AXES[name](row)) for name in axes), *cells.values())

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


_METRICS = {"accuracy_percent": "development-set accuracy"}
"""`Parity.metric` in words, where it is not words already."""


def parity_section(rows: Iterable[Row]) -> Section | None:
    """Return the accuracy against dense, one line per case that was trained on both sides; None if none was."""
    trained = [(row, row.parity) for row in rows if row.parity is not None]
    if not trained:
        return None
    lines = [
        {
            "method": Cell(row.method),
            "k": Cell(k_of(row)),
            SHAPE: Cell(shape(row)),
            "task": Cell(found.task),
            "seeds": Cell(str(len(found.seeds))),
            "steps": Cell(str(found.steps)),
            "dense": Cell(f"{mean(found.baseline):.2f}%"),
            "sparse": Cell(f"{mean(found.method):.2f}%"),
            "difference": Cell(points(found.interval)),
            "margin": Cell(f"{found.margin:g}"),
            "verdict": Cell(found.verdict, parity(row).tone),
        }
        for row, found in trained
    ]
    metrics = dict.fromkeys(_METRICS.get(found.metric, found.metric) for _, found in trained)
    remark = (
        "Dense and sparse were trained from the same seeds on the same batches; the difference is sparse minus dense in"
        f" points of {' or '.join(metrics)}, with its 95% interval over the seeds. Trainings of a sweep are short ones,"
        " not a paper's table. Pass: the interval lies above minus the margin; fail: below it; inconclusive: it holds"
        " it."
    )
    groups = (tuple(tuple(line.values()) for line in lines),)
    return Section("Accuracy against dense", tuple(lines[0]), groups, remark=remark, left=WORDS)


def summary(rows: Sequence[Row]) -> list[str]:
    """Return the result in a few sentences."""
    cases = {row.case_id: row for row in rows}
    failed = {row.case_id for row in rows if row.error is not None}
    wrong = {row.case_id for row in rows if row.error is None and not row.passed}
    count = len(cases)
    first = f"{count} case{'s' * (count != 1)}: {count - len(failed | wrong)} ran and passed the correctness check"
    if wrong:
        first += f", {len(wrong)} failed it"
    if failed:
        first += f", {len(failed)} could not be run"
    lines = [first + "."]
    distinct = _distinct(rows)
    lines += [_range_of(found, name, distinct) for name, found in _headline_rows(rows)]
    verdicts = Counter(row.parity.verdict for row in rows if row.parity is not None)
    if verdicts:
        words = {"pass": "kept", "inconclusive": "inconclusive", "fail": "broken"}
        counts = ", ".join(f"{words[verdict]} in {count}" for verdict, count in sorted(verdicts.items()))
        lines.append(f"Accuracy parity with dense: {counts}.")
    return lines


def _headline_rows(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    rows = [row for row in rows if row.method != "dense"]  # `identical` reports those
    tuned = [row for row in rows if row.allocator != "default"] or rows
    kinds = dict.fromkeys((row.workload, row.phase) for row in tuned if row.phase in ("backward", "step"))
    timed = [row for row in tuned if row.speedup is not None]
    return [(f"{workload} {phase}", select(timed, workload=workload, phase=phase)) for workload, phase in kinds]


def _range_of(rows: list[Row], name: str, distinct: frozenset[int]) -> str:
    if not rows:
        return f"{name}: no speed-up could be measured."
    doubted = sum(row.baseline_disagreement is not None for row in rows)
    vague = sum(row.baseline_disagreement is None and too_wide(row.half_width) for row in rows)
    reasons = {"whose dense times disagree": doubted, "that cannot be told": vague}
    left_out = [f"{count} {reason}" for reason, count in reasons.items() if count]
    rows = [row for row in rows if row.baseline_disagreement is None and not too_wide(row.half_width)]
    without = f", without {' and '.join(left_out)}" if left_out else ""
    if not rows:
        return f"{name}: no speed-up to be believed{without}."
    values = sorted(row.speedup for row in rows if row.speedup is not None)
    span = " to ".join(dict.fromkeys((ratio(values[0]), ratio(values[-1]))))
    text = f"{name}: {span} the speed of dense in {len(values)} case{'s' * (len(values) != 1)}{without}"
    if len(rows) > 1 and (mean := mean_speedup(rows)) is not None:
        text += f", geometric mean {ratio_within(mean)}"
    if unclear := sum(row.significant is not None and id(row) not in distinct for row in rows):
        text += f", {unclear} of them not significant"
    if slower := sum(id(row) in distinct and (row.speedup or 0) < 1 for row in rows):
        text += f", {slower} of them slower"
    return text + "."


_BUDGET = "~"
"""This mark stands in the cell already, as a row knows whether it converged."""

MARKS = {
    "noisy-pairs": "n",
    "noisy-processes": "p",
    "disturbed-pairs": "d",
    "disturbed-processes": "D",
    "others": "o",
    "steal": "h",
    "dense-times": "b",
    "short-values": "s",
    "budget": _BUDGET,
}
"""Kind of a note -> its mark."""


class Footnotes:
    """The notes of a table's rows, each said once: `notes` of each row that has figures, `failures` why rows have none.

    A note of a kind that many rows have, each with a figure of its own, becomes one letter and one line with the range
    of the figures; the rows themselves (`--format json`) keep each figure. A note that all rows have is said once
    without a mark. Any other note has a number.

        5.29x [5.10, 5.40] (n, 1)        (n) noisy pairs: within a process the middle half of the ratios spans 10 to 33%
                                         (1) the method's gradient is off the reference by ...
    """

    def __init__(self, notes: Sequence[Sequence[Note]], failures: Iterable[str] = ()) -> None:
        every = [note for own in notes for note in own]
        self._marked = [(kind, found) for kind in MARKS if (found := [note for note in every if note.kind == kind])]
        rest = list(dict.fromkeys(note.text for note in every if note.kind not in MARKS))
        texts = [{note.text for note in own} for own in notes]
        self._shared = [text for text in rest if len(notes) > 1 and all(text in own for own in texts)]
        self._numbered = list(dict.fromkeys([*(text for text in rest if text not in self._shared), *failures]))

    def marks(self, notes: Iterable[Note]) -> str:
        """Return what goes behind a cell: ` (n, p, 1)`, or nothing."""
        own = list(notes)
        kinds, texts = {note.kind for note in own}, {note.text for note in own}
        letters = [mark for kind, mark in MARKS.items() if mark != _BUDGET and kind in kinds]
        numbers = [str(number) for number, text in enumerate(self._numbered, 1) if text in texts]
        return f" ({', '.join([*letters, *numbers])})" if letters or numbers else ""

    @property
    def lines(self) -> tuple[str, ...]:
        """Return the lines below the table."""
        marks = {kind: mark if mark == _BUDGET else f"({mark})" for kind, mark in MARKS.items()}
        kinds = [f"{marks[kind]} {together(found)}" for kind, found in self._marked]
        numbered = [f"({number}) {text}" for number, text in enumerate(self._numbered, 1)]
        return (*(f"All rows: {text}" for text in self._shared), *kinds, *numbered)
