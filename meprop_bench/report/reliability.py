"""Which speed-ups of a report can be believed, which differ from 1, and what the notes of its rows say.

*Dense times that disagree.* The dense side of a case does the same work whatever the method, its k or its kernel
(`DENSE_AXES` names what it depends on), so the dense times of one phase of such cases are the same figure, measured
several times. The pairs of one case cannot show that its dense side ran three times slower than elsewhere: the ratio is
then of a dense call that something held up, and its interval is narrow all the same. (A GRU at B = 1: 7.3 ms and
21.5 ms for one and the same backward pass, and 26x where the other case says 9x.) Neither of two that disagree can be
believed without the other one measured anew, so both are marked.

*Many at once.* Each speed-up has its 95% interval, and of twenty identical cases one leaves 1 out by chance. So the
intervals stay what they are, and the *judgement* is corrected: the p-values of "the speed-up is 1" of all rows of a
report go through Holm's step-down (`stats.holm`), and what is above the level then is called not significant, even
though its own interval may miss 1 by a little. The price is power: a small effect among many rows needs more processes
to be seen. All of it is computed from the raw values, without the pairs that the speed-up leaves out, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any

from meprop_bench.measure.machine import was_busy
from meprop_bench.measure.notes import Note, together
from meprop_bench.results.axes import DENSE_AXES
from meprop_bench.results.schema import Row
from meprop_bench.stats import LEVEL, Interval, Runs, holm, mean_of_logs
from meprop_bench.stats.many import p_values

__all__ = [
    "AGREE", "MARKS", "Footnotes", "common", "disagreement", "doubts", "judged_runs", "legend", "mean_speedup",
    "significant_rows", "with_disagreements",
]  # fmt: skip

AGREE = 1.25
"""Factor within which equal dense times agree. Medians of identical code differ by some 3% from process to process and
by 20% where a neighbour is on the same cores (docs/log); a speed-up that is off by more than that misleads."""

_NOTE = "dense-times"
"""The kind of the note that a row gets whose dense time disagrees."""


def doubts(states: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> list[str]:
    """Return why figures are not to be believed, a line each: the machine was busy, equal dense times disagree.

    `states` are the machine's, as recorded; rows are as `with_disagreements` gives them.
    """
    notes: dict[str, list[Note]] = {}
    for row in rows:
        notes.setdefault(row.case_id, []).extend(row.notes)
    return [line for line in (was_busy(states, notes), disagreement(rows)) if line]


def with_disagreements(rows: Iterable[Row]) -> list[Row]:
    """Return the rows with `baseline_disagreement` set, and a note, where equal dense times differ by too much."""
    plain = [_plain(row) for row in rows]
    groups: dict[tuple[object, ...], list[float]] = {}
    alike = [groups.setdefault(_work(row), []) for row in plain]  # the dense times of the same work
    for row, times in zip(plain, alike, strict=True):
        if own := row.dense.median_s:
            times.append(own)
    extremes = {id(times): (min(times), max(times)) for times in groups.values() if times}
    if all(most / least <= AGREE for least, most in extremes.values()):
        return plain
    found = []
    for row, times in zip(plain, alike, strict=True):
        factor = 1.0
        if own := row.dense.median_s:
            least, most = extremes[id(times)]
            factor = max(own / least, most / own)
        found.append(_marked(row, factor) if factor > AGREE else row)
    return found


def _marked(row: Row, factor: float) -> Row:
    return row.judged(factor, (*row.notes, Note.of(_NOTE, factor=factor)))


def _plain(row: Row) -> Row:
    """Return a row as it was before it was marked: it may be judged among others now."""
    if row.baseline_disagreement is None:
        return row
    return row.judged(None, tuple(note for note in row.notes if note.kind != _NOTE))


_work: Callable[[Row], tuple[object, ...]] = attrgetter("environment_id", "phase", "baseline_chosen", *DENSE_AXES)
"""What the dense side of a row does, and where."""


def disagreement(rows: Sequence[Row]) -> str:
    """Return a line for the top of a report on what `with_disagreements` found, "" where all agree."""
    marked = [row for row in rows if row.baseline_disagreement is not None]
    if not marked:
        return ""
    count = len({row.case_id for row in marked})
    cases, most = "1 case's" if count == 1 else f"{count} cases'", max(row.baseline_disagreement or 0 for row in marked)
    return (
        f"{cases} dense times disagree by up to {most:.1f}x for the same work: do not"
        " believe their speed-ups (marked b); measure them again on a quiet machine."
    )


def judged_runs(row: Row) -> Runs | None:
    """Return the pairs that a row's speed-up is taken over, process by process; None without raw values."""
    return None if row.measurement is None or row.speedup is None else row.measurement.judged_runs


def significant_rows(rows: Sequence[Row]) -> frozenset[int]:
    """Return the places of the rows whose speed-up differs from 1, after Holm's correction for all that have one.

    A row without raw values is judged by its interval alone.
    """
    bounds = ((row.speedup, row.speedup_low, row.speedup_high) for row in rows)
    places = [place for place, found in enumerate(bounds) if None not in found]  # a single process has none
    measured = [(at, found) for at, place in enumerate(places) if (found := rows[place].measurement) is not None]
    judged = [math.nan] * len(places)
    for (at, _), p in zip(measured, p_values([found.estimate for _, found in measured]).tolist(), strict=True):
        judged[at] = p
    adjusted = holm(judged)
    return frozenset(
        place for place, p in zip(places, adjusted, strict=True) if not p > LEVEL and rows[place].significant
    )


def mean_speedup(rows: Sequence[Row]) -> Interval | None:
    """Return the geometric mean of the rows' speed-ups with its interval; None if one of them has no raw values."""
    found = [row.measurement for row in rows if row.measurement is not None and row.speedup is not None]
    if not found or len(found) < len(rows):
        return None
    cases = [one.log_medians for one in found]
    # With as many processes everywhere the i-th of each case may be the same one. To take it for the same costs a
    # little width where it is not; to take it for another one where it is would make the interval too narrow.
    return mean_of_logs(cases, same_processes=len(set(map(len, cases))) == 1)


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


def legend(rows: Iterable[Row]) -> list[str]:
    """Return what the letters and the tilde behind speed-ups mean that occur, with the range of their figures."""
    found: dict[str, list[Note]] = {}
    for row in rows:
        for note in row.notes:
            if note.kind in MARKS:
                found.setdefault(note.kind, []).append(note)
    marks = {kind: mark if mark == _BUDGET else f"({mark})" for kind, mark in MARKS.items() if kind in found}
    return [f"{mark} {together(found[kind])}" for kind, mark in marks.items()]


def common(rows: Sequence[Row]) -> list[str]:
    """Return the notes that all of several rows have, and that have no letter."""
    texts: dict[str, int] = {}
    for row in rows:
        if row.notes:
            for text in {note.text: None for note in row.notes if note.kind not in MARKS}:
                texts[text] = texts.get(text, 0) + 1
    return [text for text, count in texts.items() if count == len(rows) > 1]


class Footnotes:
    """What stands below a table: why rows have no figures, and notes, each said once, by its number.

    A note of a kind that many rows have, each with a figure of its own, has a letter instead, which one line of the
    report explains (`legend`); the rows themselves (`--format json`) keep each figure. What all rows of the table have
    is said once without a mark, and what all of the report have (`everywhere`) not here. What every row of a case has
    is marked in one of them: that of the step, else of the backward pass.

        5.29x [5.10, 5.40] (n, 1)        (1) the method's gradient is off the reference by ...
    """

    def __init__(self, rows: Sequence[Row], failures: Iterable[str] = (), everywhere: Collection[str] = ()) -> None:
        self._shared = [text for text in common(rows) if text not in everywhere]
        said = {*self._shared, *everywhere}
        cases: dict[str, list[Row]] = {}
        for row in rows:
            cases.setdefault(row.case_id, []).append(row)
        self._marked: dict[int, list[str]] = {}
        numbers: dict[str, None] = {}
        for own in cases.values():
            texts = [
                dict.fromkeys(note.text for note in row.notes if note.kind not in MARKS and note.text not in said)
                for row in own
            ]
            if not any(texts):
                continue
            of_case = set(texts[0]).intersection(*texts[1:]) if len(own) > 1 else ()
            first = max(own, key=_importance)
            for row, found in zip(own, texts, strict=True):
                kept = [text for text in found if text not in of_case or row is first]
                self._marked[id(row)] = kept
                numbers |= dict.fromkeys(kept)
        numbers |= dict.fromkeys(failures)
        self._numbers = {text: number for number, text in enumerate(numbers, 1)}

    def marks(self, row: Row) -> str:
        """Return what goes behind a row's speed-up: ` (n, p, 1)`, or nothing."""
        if not row.notes:
            return ""
        letters = _letters(tuple([note.kind for note in row.notes]))
        numbers = [str(self._numbers[text]) for text in self._marked.get(id(row), ())]
        return f" ({', '.join([*letters, *numbers])})" if letters or numbers else ""

    def number(self, failure: str | None) -> str:
        """Return what goes behind the word that says why a row has no figures."""
        return f" ({self._numbers[failure]})" if failure else ""

    @property
    def lines(self) -> tuple[str, ...]:
        """Return the lines below the table."""
        numbered = [f"({number}) {text}" for text, number in self._numbers.items()]
        return (*(f"All rows: {text}" for text in self._shared), *numbered)


@lru_cache(maxsize=1024)
def _letters(kinds: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(mark for kind, mark in MARKS.items() if mark != _BUDGET and kind in kinds)


def _importance(row: Row) -> int:
    return ("backward", "step").index(row.phase) if row.phase in ("backward", "step") else -1
