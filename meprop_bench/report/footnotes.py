"""The notes of a table's rows, told once.

A note of a kind that many rows have, each with a figure of its own, becomes one letter and one line with the range of
the figures; the rows themselves (`--format json`) keep each figure. A note that all rows have is said once without a
mark. Any other note has a number.

    5.29x [5.10, 5.40] (n, 1)        (n) noisy pairs: within a process the middle half of the ratios spans 10 to 33%
                                     (1) the method's gradient is off the reference by ...
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from meprop_bench.measure.machine import MEANWHILE
from meprop_bench.report.baselines import NOTE
from meprop_bench.stats import spread_percent

__all__ = ["Footnotes"]

_BUDGET = "~"
"""This mark stands in the cell already, as a row knows whether it converged."""

_KINDS: dict[str, tuple[str, str | None]] = {
    "n": (r"noisy pairs: within a process the middle half of the ratios spans ((?:more than )?\d+)%", None),
    "p": (r"the processes' speed-ups differ by (?:up to )?((?:more than )?\d+)%", None),
    "d": (r"\d+ of \d+ pairs were disturbed by the machine", "pairs were disturbed by the machine: they do not count"),
    "D": (
        r"most pairs of \d+ of \d+ processes were disturbed: all of theirs count",
        "most pairs of a process were disturbed by the machine: all of its pairs count",
    ),
    "o": (MEANWHILE["others"], None),
    "h": (MEANWHILE["steal"], None),
    "b": (NOTE, None),
    "s": (r"a value lasts only ([\d.e+-]+) µs: the timer's own cost is part of it", None),
    _BUDGET: (r"the budget was spent before ±([\d.e-]+)% was reached", None),
}
"""Mark -> the note, its figure in a group, and what to say of all of that kind where a range does not say it."""


class Footnotes:
    """The footnotes of one table.

    Args:
        notes: of each row that has figures.
        failures: why rows have none.

    """

    def __init__(self, notes: Sequence[Sequence[str]], failures: Iterable[str] = ()) -> None:
        every = list(dict.fromkeys(note for own in notes for note in own))
        self._kinds = {note: mark for note in every if (mark := _kind(note)) is not None}
        single = [note for note in every if note not in self._kinds]
        self._shared = [note for note in single if len(notes) > 1 and all(note in own for own in notes)]
        self._numbered = list(dict.fromkeys([*(note for note in single if note not in self._shared), *failures]))

    def marks(self, notes: Iterable[str]) -> str:
        """Return what goes behind a cell: ` (n, p, 1)`, or nothing."""
        own = set(notes)
        letters = [mark for mark in _KINDS if mark != _BUDGET and any(self._kinds.get(note) == mark for note in own)]
        numbers = [str(number) for number, note in enumerate(self._numbered, 1) if note in own]
        return f" ({', '.join([*letters, *numbers])})" if letters or numbers else ""

    @property
    def lines(self) -> tuple[str, ...]:
        """Return the lines below the table."""
        kinds = [
            f"{mark if mark == _BUDGET else f'({mark})'} {_together(mark, notes)}"
            for mark in _KINDS
            if (notes := [note for note, own in self._kinds.items() if own == mark])
        ]
        numbered = [f"({number}) {note}" for number, note in enumerate(self._numbered, 1)]
        return (*(f"All rows: {note}" for note in self._shared), *kinds, *numbered)


def _kind(note: str) -> str | None:
    return next((mark for mark, (pattern, _) in _KINDS.items() if re.fullmatch(pattern, note)), None)


def _readable(figure: str) -> str:
    """Return a figure of a stored note as it is written today: `21526` percent are `more than 300`."""
    return spread_percent(float(figure) / 100).removesuffix("%") if figure.isdecimal() else figure


def _together(mark: str, notes: Sequence[str]) -> str:
    """Say notes of one kind as one, with the range of their figures."""
    pattern, words = _KINDS[mark]
    if words is not None:
        return words
    found = [match for note in notes if (match := re.fullmatch(pattern, note))]
    figures = sorted({_readable(match[1]) for match in found}, key=lambda text: (float(text.split()[-1]), text))
    first = found[0]
    ends = figures[-1:] if first.string[: first.start(1)].endswith("up to ") else (figures[0], figures[-1])
    span = " to ".join(dict.fromkeys(ends))
    return (first.string[: first.start(1)] + span + first.string[first.end(1) :]).replace("up to more", "more")
