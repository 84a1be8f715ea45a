"""The notes of a table's rows, told once.

A note of a kind that many rows have, each with a figure of its own, becomes one letter and one line with the range of
the figures; the rows themselves (`--format json`) keep each figure. A note that all rows have is said once without a
mark. Any other note has a number.

    5.29x [5.10, 5.40] (n, 1)        (n) noisy pairs: within a process the middle half of the ratios spans 10 to 33%
                                     (1) the method's gradient is off the reference by ...
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from meprop_bench.measure.notes import Note, together

__all__ = ["MARKS", "Footnotes"]

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
    """The footnotes of one table.

    Args:
        notes: of each row that has figures.
        failures: why rows have none.

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
