"""An outcome as something to read: one table, worst first, for the terminal and for a pull request alike.

What failed comes first, then what could not be decided, then what passed, the largest change first in each; what is
only reported comes last. A table of a million lines is read by nobody: `most` lines are shown, the rest is counted, and
JSON has them all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from meprop_bench.errors import ExitCode
from meprop_bench.gate.judgement import Judgement, Outcome
from meprop_bench.report.cells import ABSENT, Cell, memory, quantity, seconds
from meprop_bench.report.sections import Section

__all__ = ["OutcomeDocument", "change", "margin", "told"]

_COLUMNS = ("verdict", "case", "figure", "base", "head", "head / base", "margin", "pairs", "noise", "why")
_TONES = {"fail": "bad", "inconclusive": "quiet", "pass": "good"}
_RESULT = {
    ExitCode.OK: "Passed: nothing got worse by more than its margin.",
    ExitCode.REGRESSION: "Failed: something got worse by more than its margin.",
    ExitCode.INCONCLUSIVE: "Inconclusive: nothing failed, but the noise hides whether all is within its margin.",
    ExitCode.NOTHING_MEASURED: "Nothing was judged.",
}


@dataclass(frozen=True)
class OutcomeDocument:
    """An outcome, ready to be printed (`report.document.Readable`).

    Attributes:
        outcome: what the gate found.
        most: lines of the table at most.

    """

    outcome: Outcome
    most: int = 200

    @property
    def title(self) -> str:
        """What was compared."""
        return f"{self.outcome.head} against {self.outcome.base}"

    @property
    def command(self) -> str:
        """What made it."""
        return self.outcome.command

    @property
    def summary(self) -> list[str]:
        """The result in two sentences."""
        return [
            _RESULT[self.outcome.exit_code],
            f"{told(self.outcome.judgements.counts())}, in {self.outcome.seconds:.0f} s.",
        ]

    @property
    def sections(self) -> list[Section]:
        """The table."""
        every = self.outcome.judgements
        places, rest = every.worst_first[: self.most], every.worst_first[self.most :]
        shown = [every[place] for place in places.tolist()]
        more = f"{len(rest)} more are not shown: {told(every.counts(rest))}." if len(rest) else ""
        return [
            Section(
                title="Verdicts",
                columns=_COLUMNS,
                groups=_groups(shown),
                footnotes=tuple(filter(None, (more,))),
                left=frozenset({"verdict", "case", "figure", "why"}),
            )
        ]

    @property
    def notes(self) -> Sequence[str]:
        """What a reader should know."""
        return self.outcome.notes

    @property
    def hints(self) -> Sequence[str]:
        """How to read it."""
        return (
            "A figure fails when the low end of its interval is above 1 + margin, passes when the high end is below it,"
            " and is inconclusive otherwise. Noise is half the interval's width. A margin in points is of accuracy,"
            " whose change is what was lost.",
        )


def told(counts: Mapping[str, int]) -> str:
    """Return how many failed, passed and so on: `1 failed, 2 inconclusive, 9 passed, 3 only reported`."""
    words = {"fail": "failed", "inconclusive": "inconclusive", "pass": "passed", "report_only": "only reported"}
    return ", ".join(f"{counts[key]} {word}" for key, word in words.items() if counts[key]) or "none"


def _groups(judgements: Sequence[Judgement]) -> tuple[tuple[tuple[Cell, ...], ...], ...]:
    """Return the lines, what decides apart from what is only reported."""
    parts = ([one for one in judgements if one.report_only is only] for only in (False, True))
    return tuple(tuple(_line(one) for one in part) for part in parts if part)


def _line(one: Judgement) -> tuple[Cell, ...]:
    words = f"({one.verdict})" if one.report_only else one.verdict.upper() if one.verdict == "fail" else one.verdict
    return (
        Cell(words, "quiet" if one.report_only else _TONES[one.verdict]),  # type: ignore[arg-type]
        Cell(one.case),
        Cell(one.figure),
        Cell(_amount(one, one.base)),
        Cell(_amount(one, one.head)),
        Cell(change(one)),
        Cell(margin(one)),
        Cell(str(one.pairs) if one.pairs else ABSENT),
        Cell(_noise(one)),
        Cell(one.reason),
    )


def change(one: Judgement) -> str:
    """Return the ratio, or the points lost, with its interval: `1.032 [1.021, 1.043]`."""
    if one.change is None or math.isnan(one.change.estimate):
        return ABSENT
    form, unit = ("+.2f", " points") if one.quantity == "accuracy" else (".3f", "")
    found, low, high = (_fixed(value, form) for value in (one.change.estimate, one.change.low, one.change.high))
    if not one.change.bounded:
        return f"{found}{unit}, no interval"
    return f"{found}{unit}" if low == high == found else f"{found} [{low}, {high}]{unit}"


def _fixed(value: float, form: str) -> str:
    return format(value, form) if abs(value) < 1000 else f"{value:.3g}"


def margin(one: Judgement) -> str:
    """Return what may be lost: `1%`, with the least difference where there is one; `0.5 points`."""
    if one.quantity == "accuracy":
        return f"{one.margin:g} points"
    return f"{100 * one.margin:g}%" + (f", {_amount(one, one.least)}" if one.least else "")


def _noise(one: Judgement) -> str:
    if one.noise is None or math.isnan(one.noise):
        return ABSENT
    if one.quantity == "accuracy":
        return f"{one.noise:.2f} points"
    return f"±{100 * one.noise:.2g}%" if one.noise else "none"


def _amount(one: Judgement, value: float | None) -> str:
    if value is None:
        return ABSENT
    if one.quantity == "accuracy":
        return f"{value:.2f}"
    if one.unit == "s":
        return seconds(value)
    if one.unit == "B":
        return memory(value)
    return f"{value:.4g}" if one.quantity == "ratio" else quantity(value)
