"""An outcome as something to read: one table, worst first, for the terminal and for a pull request alike.

What failed comes first, then what could not be decided, then what passed, the largest change first in each; what is
only reported comes last. A table of a million lines is read by nobody: `most` lines are shown, the rest is counted, and
JSON has them all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from meprop_bench.errors import ExitCode
from meprop_bench.gate.judgement import VERDICTS, Judgement, Judgements, Outcome
from meprop_bench.gate.names import shown
from meprop_bench.report.cells import ABSENT, Cell, memory, quantity, ratio, ratio_within, seconds
from meprop_bench.report.findings import Finding, plain
from meprop_bench.report.quality import WIDEST_POINTS
from meprop_bench.report.sections import Section
from meprop_bench.stats import CANNOT_TELL, too_wide

__all__ = [
    "OutcomeDocument",
    "amount",
    "better",
    "caught",
    "change",
    "counted",
    "in_words",
    "left_out",
    "margin",
    "most_of_all",
    "result",
    "section",
    "seen",
    "worst",
]

_COLUMNS = ("verdict", "case", "figure", "base", "head", "head / base", "margin", "pairs", "noise", "why")
_TONES = {"fail": "bad", "inconclusive": "quiet", "pass": "good"}


@dataclass(frozen=True)
class OutcomeDocument:
    """An outcome, ready to be printed (`report.document.Readable`), with so many lines of the table at `most`."""

    outcome: Outcome
    most: int = 200

    @property
    def title(self) -> str:
        """What was compared, and where."""
        where = f", on {shown(self.outcome.machine)}" if self.outcome.machine else ""
        return f"{shown(self.outcome.head)} against {shown(self.outcome.base)}{where}"

    @property
    def command(self) -> str:
        """What made it."""
        return self.outcome.command

    @property
    def doubts(self) -> Sequence[str]:
        """Whether the machine was too busy."""
        return self.outcome.doubts

    @property
    def findings(self) -> Sequence[Finding]:
        """The result, what speaks against it first."""
        return plain(self.doubts, self.summary)

    @property
    def summary(self) -> list[str]:
        """The result, in its line what would have been seen, and the counts."""
        verdict, what = result(self.outcome)
        worst = most_of_all(self.outcome)
        most = "" if worst is None else f", most of all {shown(worst.name, 160)}: {in_words(worst)}"
        gains, best = better(self.outcome)
        found = seen(self.outcome)
        return [
            " ".join([f"{verdict}: {what}{most}.", *found[:1]]),
            *([f"{gains}, most of all {shown(best.name, 160)}: {in_words(best)}."] if best else []),
            f"{counted(self.outcome.judgements.counts())}, in {self.outcome.seconds:.0f} s.",
            *found[1:],
        ]

    @property
    def sections(self) -> list[Section]:
        """The table."""
        return [section("Verdicts", *worst(self.outcome.judgements, self.most))]

    @property
    def notes(self) -> Sequence[str]:
        """What a reader should know."""
        return [shown(note, 1000) for note in self.outcome.notes]

    @property
    def hints(self) -> Sequence[str]:
        """How to read it."""
        return (
            self.outcome.hint
            or "A figure passes when the high end of its interval is below 1 + margin: a loss of the margin is ruled"
            " out. It fails when that is not so and a loss is certain, among all that are judged at once: more than an"
            " eighth of the margin, of files more than the margin itself. Otherwise it is inconclusive. Noise is half"
            " the interval's width. A margin in points is of accuracy, whose change is what was lost.",
        )


def worst(every: Judgements, most: int) -> tuple[list[Judgement], str]:
    """Return the worst, and a line on the rest."""
    return [every[place] for place in every.worst_first[:most].tolist()], left_out(every, most)


def left_out(every: Judgements, most: int) -> str:
    """Return a line on what follows the `most` that are shown; '' for nothing."""
    rest = every.worst_first[most:]
    return f"{len(rest)} more are not shown: {counted(every.counts(rest))}." if len(rest) else ""


def seen(outcome: Outcome) -> Sequence[str]:
    """Return what stands below the verdict: of a history its findings, else the slowdown that would have failed."""
    return outcome.findings or caught(outcome.judgements.caught)


def caught(slowdown: float | None, of: str = ", of any time judged here,") -> list[str]:
    """Return a line on the slowdown that would have failed, `of` what; none where it was not reckoned."""
    if slowdown is None:
        return []
    if too_wide(slowdown):
        return [f"What slowdown would have failed: {CANNOT_TELL}, a time is too noisy."]
    return [f"A slowdown of {slowdown:.1%} or more{of} would have failed with 95% probability."]


def counted(counts: Mapping[str, int]) -> str:
    """Return how many failed, passed and so on: `1 failed, 2 inconclusive, 9 passed, 3 only reported`."""
    words = {"fail": "failed", "inconclusive": "inconclusive", "pass": "passed", "report_only": "only reported"}
    return ", ".join(f"{counts[key]} {word}" for key, word in words.items() if counts[key]) or "none"


def result(outcome: Outcome) -> tuple[str, str]:
    """Return the verdict in a word, and what it says."""
    counts, rows = outcome.judgements.counts(), outcome.judgements.rows
    every = sum(counts[verdict] for verdict in VERDICTS)
    failed = rows[(rows["verdict"] == VERDICTS.index("fail")) & ~rows["report_only"]]
    broken = int(np.isnan(failed["head"]).sum())
    worse = f"{len(failed) - broken} of {every} figures got worse" if len(failed) > broken else ""
    of_all = "" if worse else f" of {every} figures"
    alone = f"{broken}{of_all} {'fails' if broken == 1 else 'fail'} in the head alone" if broken else ""
    none = f"none of {every} figures got worse by as much as its margin" if every else "no figure decides"
    unclear = (
        f"{counts['inconclusive']} of {every} figures {'is' if counts['inconclusive'] == 1 else 'are'} not decided"
    )
    policy = _policy(outcome)
    return {
        ExitCode.OK: ("Passed", f"{unclear}, none failed{policy}" if counts["inconclusive"] else none),
        ExitCode.REGRESSION: ("Failed", ", ".join(filter(None, (worse, alone)))),
        ExitCode.NOT_COMPARABLE: ("Not comparable", "the base cannot do all that is measured, none failed"),
        ExitCode.INCONCLUSIVE: ("Inconclusive", f"{unclear}, none failed{policy}"),
        ExitCode.NOTHING_MEASURED: ("Nothing was judged", "no figure is among those requested"),
    }[outcome.exit_code]


def _policy(outcome: Outcome) -> str:
    """Return what was said of how much may be inconclusive, where it mattered."""
    found = outcome.judgements.counts()["inconclusive"]
    if not outcome.allowed or not found:
        return ""
    text = f", and {100 * outcome.allowed:g}% of all ({outcome.most_inconclusive:,}) may be"
    return text + (f", but {outcome.firm:,} of them are not excused" if outcome.firm else "")


def most_of_all(outcome: Outcome) -> Judgement | None:
    """Return the figure that failed worst: one that the head cannot do, else the largest change; None without any."""
    if not outcome.judgements.counts()["fail"]:
        return None
    rows = outcome.judgements.rows
    failed = np.flatnonzero((rows["verdict"] == VERDICTS.index("fail")) & ~rows["report_only"])
    broken = failed[np.isnan(rows["head"][failed])]
    return outcome.judgements[int(broken[0] if len(broken) else outcome.judgements.worst_first[0])]


def better(outcome: Outcome) -> tuple[str, Judgement | None]:
    """Say how many figures that decide got better by more than their margin, to the end of the interval; and the best.

    A point of accuracy counts as a percent.
    """
    every, rows = outcome.judgements, outcome.judgements.rows
    points = np.array([quantity == "accuracy" for _, quantity, _ in every.kinds], np.bool_)[rows["kind"]]
    bound = np.where(points, -rows["margin"], 1 / (1 + rows["margin"]))
    found = np.flatnonzero((rows["high"] < bound) & ~rows["report_only"])
    if not len(found):
        return "", None
    changes = np.where(points, 1 + rows["estimate"] / 100, rows["estimate"])[found]
    its = "its" if len(found) == 1 else "their"
    return f"{len(found)} got better by more than {its} margin", every[int(found[np.argmin(changes)])]


_WORDS = {"time": ("slower", "as long"), "memory": ("larger", "as large")}
"""Quantity -> what more of it is, and how much of it many times is."""
_MANY = 3.0


def in_words(one: Judgement) -> str:
    """Return what happened to a figure: `30% slower [29%, 31%]`; `1.2 points lost [0.9, 1.5]`; why it has no change."""
    found = one.change
    if found is None or math.isnan(found.estimate):
        return shown(one.reason) or "cannot be compared"
    if _vague(one):
        return change(one)
    ends = (found.estimate, found.low, found.high)
    if one.quantity == "accuracy" and found.estimate < 0:
        amounts, words = [f"{-part:.2f}" for part in (ends[0], ends[2], ends[1])], f"{_points(one).strip()} gained"
    elif one.quantity == "accuracy":
        amounts, words = [f"{part:.2f}" for part in ends], f"{_points(one).strip()} lost"
    else:
        more, times = _WORDS.get(one.quantity, ("more", "as much"))
        if found.estimate >= _MANY:
            amounts, words = [ratio(part) for part in ends], times
        elif found.estimate >= 1:
            amounts, words = _shares([part - 1 for part in ends]), more
        else:
            amounts, words = _shares([1 - part for part in (found.estimate, found.high, found.low)]), "less"
    within = "" if found.low == found.high or not found.bounded else f" [{amounts[1]}, {amounts[2]}]"
    return f"{amounts[0]} {words}{within}"


def _shares(parts: Sequence[float]) -> list[str]:
    digits = 1 if abs(parts[0]) < 0.0995 else 0
    return [f"{100 * part:.{digits}f}%" for part in parts]


def section(title: str, judgements: Sequence[Judgement], footnote: str = "") -> Section:
    """Return some verdicts as a table, what decides apart from what is only reported."""
    parts = ([one for one in judgements if one.report_only is only] for only in (False, True))
    return Section(
        title=title,
        columns=_COLUMNS,
        groups=tuple(tuple(_line(one) for one in part) for part in parts if part),
        footnotes=tuple(filter(None, (footnote,))),
        left=frozenset({"verdict", "case", "figure", "why"}),
        keys=frozenset({"case", "figure"}),
        drop=("pairs", "noise", "base", "head"),
    )


def _line(one: Judgement) -> tuple[Cell, ...]:
    words = f"({one.verdict})" if one.report_only else one.verdict.upper() if one.verdict == "fail" else one.verdict
    verdict = Cell(words, "quiet" if one.report_only else _TONES[one.verdict])  # type: ignore[arg-type]
    amounts = (amount(one, one.base), amount(one, one.head), change(one), margin(one))
    pairs = str(one.pairs) if one.pairs else ABSENT
    texts = (shown(one.case), shown(one.figure), *amounts, pairs, _noise(one), shown(one.reason))
    return (verdict, *map(Cell, texts))


def change(one: Judgement) -> str:
    """Return the ratio, or the points lost, with its interval: `1.032 [1.021, 1.043]`."""
    if one.change is None or math.isnan(one.change.estimate):
        return ABSENT
    if _vague(one):
        if one.quantity == "accuracy":
            return CANNOT_TELL
        return ratio_within(one.change, lambda value: _fixed(value, ".3f"))
    form, unit = ("+.2f", _points(one)) if one.quantity == "accuracy" else (".3f", "")
    found, low, high = (_fixed(value, form) for value in (one.change.estimate, one.change.low, one.change.high))
    if not one.change.bounded:
        return f"{found}{unit}, no interval"
    return f"{found}{unit}" if low == high == found else f"{found} [{low}, {high}]{unit}"


def _fixed(value: float, form: str) -> str:
    return format(value, form) if abs(value) < 1000 else f"{value:.3g}"


def margin(one: Judgement) -> str:
    """Return what may be lost: `1%`, with the least difference where there is one; `0.5 points`."""
    if one.quantity == "accuracy":
        return f"{one.margin:g}{_points(one)}"
    return f"{100 * one.margin:g}%" + (f", {amount(one, one.least)}" if one.least else "")


def _points(one: Judgement) -> str:
    """Return the unit of what an accuracy lost."""
    return " points" if one.unit == "points" else "% of the base's"


def _vague(one: Judgement) -> bool:
    """Whether the interval is too wide to be shown: of points, as `report.quality` has it."""
    return too_wide(one.noise) if one.quantity != "accuracy" else 2 * (one.noise or 0.0) > WIDEST_POINTS


def _noise(one: Judgement) -> str:
    if one.noise is None or math.isnan(one.noise):
        return ABSENT
    if _vague(one):
        return CANNOT_TELL
    if one.quantity == "accuracy":
        return f"{one.noise:.2f}{_points(one)}"
    return f"±{100 * one.noise:.2g}%" if one.noise else "none"


def amount(one: Judgement, value: float | None) -> str:
    """Return a value of a figure in its unit."""
    if value is None:
        return ABSENT
    if one.quantity == "accuracy":
        return f"{value:.2f}" if one.unit == "points" else f"{value:.4g}"
    if one.unit == "s":
        return seconds(value)
    if one.unit == "B":
        return memory(value)
    return f"{value:.4g}" if one.quantity == "ratio" else quantity(value)
