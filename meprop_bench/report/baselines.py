"""Do the dense times of a report agree? Where they do not, no speed-up over them can be believed.

The dense side of a case does the same work whatever the method, its k or its kernel (`DENSE_AXES` names what it depends
on), so the dense times of one phase of such cases are the same figure, measured several times. The pairs of one
case cannot show that its dense side ran three times slower than elsewhere: the ratio is then of a dense call that
something held up, and its interval is narrow all the same. (A GRU at B = 1: 7.3 ms and 21.5 ms for one and the same
backward pass, and 26x where the other case says 9x.)

Neither of two that disagree can be believed without the other one measured anew, so both are marked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from meprop_bench.measure.notes import Note
from meprop_bench.results.axes import DENSE_AXES
from meprop_bench.results.schema import Row

__all__ = ["AGREE", "disagreement", "with_disagreements"]

AGREE = 1.25
"""Factor within which equal dense times agree. Medians of identical code differ by some 3% from process to process and
by 20% where a neighbour is on the same cores (docs/log); a speed-up that is off by more than that misleads."""

_NOTE = "dense-times"
"""The kind of the note that such a row gets."""


def with_disagreements(rows: Iterable[Row]) -> list[Row]:
    """Return the rows with `baseline_disagreement` set, and a note, where equal dense times differ by too much."""
    plain = [_plain(row) for row in rows]
    extremes: dict[tuple[object, ...], tuple[float, float]] = {}
    for row in plain:
        if own := row.dense.median_s:
            least, most = extremes.get(_work(row), (own, own))
            extremes[_work(row)] = min(least, own), max(most, own)
    found = []
    for row in plain:
        factor = 1.0
        if own := row.dense.median_s:
            least, most = extremes[_work(row)]
            factor = max(own / least, most / own)
        found.append(_marked(row, factor) if factor > AGREE else row)
    return found


def disagreement(rows: Sequence[Row]) -> str:
    """Return a line for the top of a report on what `with_disagreements` found, "" where all agree."""
    factors: dict[str, float] = {}
    for row in rows:
        if row.baseline_disagreement is not None:
            factors[row.case_id] = max(row.baseline_disagreement, factors.get(row.case_id, 0.0))
    if not factors:
        return ""
    cases = "1 case's" if len(factors) == 1 else f"{len(factors)} cases'"
    return (
        f"{cases} dense times disagree by up to {max(factors.values()):.1f}x for the same work: do not"
        " believe their speed-ups (marked b); measure them again on a quiet machine."
    )


def _work(row: Row) -> tuple[object, ...]:
    return (row.environment_id, row.phase, *(getattr(row, axis) for axis in DENSE_AXES))


def _marked(row: Row, factor: float) -> Row:
    return replace(row, baseline_disagreement=factor, notes=(*row.notes, Note.of(_NOTE, factor=factor)))


def _plain(row: Row) -> Row:
    """Return a row as it was before it was marked: it may be judged among others now."""
    if row.baseline_disagreement is None:
        return row
    notes = tuple(note for note in row.notes if note.kind != _NOTE)
    return replace(row, baseline_disagreement=None, notes=notes)
