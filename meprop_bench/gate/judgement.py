"""What the gate says of one figure of one case, and of all of them together.

Every figure is a cost (seconds, bytes, operations, sparse time / dense time, points of accuracy lost), so that one rule
judges them all (`decide`): by head / base with its interval, of an accuracy by the points lost. What a figure is worth,
`noise` says: the half-width of the interval that the pairs gave.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from meprop_bench.errors import ExitCode
from meprop_bench.gate.past import Past
from meprop_bench.stats import Interval, Runs, Verdict

__all__ = ["ROW", "VERDICTS", "Judgement", "Judgements", "Kind", "Outcome", "Quantity"]

Quantity = Literal["time", "ratio", "memory", "count", "accuracy"]
Kind: TypeAlias = tuple[str, Quantity, str]
"""Figure, quantity and unit."""

VERDICTS: tuple[Verdict, ...] = ("fail", "inconclusive", "pass")
"""In the order in which a reader wants them: the worst first."""
ROW = np.dtype(
    [
        *((name, np.float64) for name in ("base", "head", "estimate", "low", "high", "margin", "least", "caught")),
        *((name, np.int64) for name in ("pairs", "kind", "reason")),
        ("verdict", np.int8),
        ("report_only", np.bool_),
    ]
)
"""A judgement without its case. NaN stands for None; kind, reason and verdict are places."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """One figure of one case; its first four fields are as in `Series`."""

    case: str
    figure: str
    quantity: Quantity
    unit: str
    base: float | None  # the base's median, in `unit`, and so is `head`; None where there is none
    head: float | None
    change: Interval | None  # head / base with its interval; of an accuracy base - head, in points
    margin: float  # how much may be lost: 0.01 is one percent; of an accuracy, points
    least: float  # the least absolute difference that counts, in `unit`
    pairs: int  # of processes, or of values, that the interval is over
    report_only: bool  # it is shown and does not decide
    verdict: Verdict
    reason: str = ""  # why, in a few words, where the interval alone does not say it
    caught: float | None = None  # the relative slowdown that would have failed with 95% probability, if reckoned

    @property
    def name(self) -> str:
        """What globs match: case and figure."""
        return f"{self.case}/{self.figure}"

    @property
    def noise(self) -> float | None:
        """Half the width of the interval, relative for a ratio, in points for an accuracy."""
        if self.change is None or not self.change.bounded:
            return None
        return self.change.half_width if self.quantity != "accuracy" else (self.change.high - self.change.low) / 2


class Judgements(Sequence[Judgement]):
    """Judgements as columns, 100 bytes each besides the case's name: a million of them as objects take a GB.

    `rows` are of the type `ROW`, whose columns `kind` and `reason` point into `kinds` and `reasons`.
    """

    def __init__(
        self, cases: Sequence[str], rows: npt.NDArray[np.void], kinds: Sequence[Kind], reasons: Sequence[str]
    ) -> None:
        if len(cases) != len(rows):
            raise ValueError(f"{len(cases)} cases and {len(rows)} rows")
        self.cases, self.rows, self.kinds, self.reasons = cases, rows, tuple(kinds), tuple(reasons)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Judgement]:
        for case, row in zip(self.cases, self.rows, strict=True):
            yield self._judgement(case, row.item())

    @overload
    def __getitem__(self, place: int) -> Judgement: ...
    @overload
    def __getitem__(self, place: slice) -> Judgements: ...
    def __getitem__(self, place: int | slice) -> Judgement | Judgements:
        if isinstance(place, slice):
            return Judgements(self.cases[place], self.rows[place], self.kinds, self.reasons)
        return self._judgement(self.cases[place], self.rows[place].item())

    def _judgement(self, case: str, row: tuple[Any, ...]) -> Judgement:
        base, head, estimate, low, high, margin, least, caught, pairs, kind, reason, verdict, report_only = row
        base, head, caught = (None if math.isnan(value) else value for value in (base, head, caught))
        change = None if math.isnan(estimate) else Interval(estimate, low, high)
        what: Kind = self.kinds[kind]
        said: tuple[Verdict, str, float | None] = VERDICTS[verdict], self.reasons[reason], caught
        return Judgement(case, *what, base, head, change, margin, least, pairs, report_only, *said)

    @property
    def names(self) -> Iterator[tuple[str, str]]:
        """Case and figure of each."""
        figures = [figure for figure, _, _ in self.kinds]
        return zip(self.cases, (figures[kind] for kind in self.rows["kind"].tolist()), strict=True)

    @property
    def noise(self) -> npt.NDArray[np.float64]:
        """`Judgement.noise` of each; NaN where it has none."""
        rows = self.rows
        half, middle = (rows["high"] - rows["low"]) / 2, np.abs(rows["estimate"])
        points = np.array([quantity == "accuracy" for _, quantity, _ in self.kinds], np.bool_)[rows["kind"]]
        with np.errstate(invalid="ignore", divide="ignore"):
            found: npt.NDArray[np.float64] = np.where(points | (half == 0), half, half / middle)
        return found

    @property
    def caught(self) -> float | None:
        """The slowdown that would have failed with 95% probability in any of the times that decide; None for none."""
        times = np.array([quantity == "time" for _, quantity, _ in self.kinds], np.bool_)
        found = self.rows["caught"][times[self.rows["kind"]] & ~self.rows["report_only"]]
        return float(np.nanmax(found)) if len(found) and not np.isnan(found).all() else None

    @cached_property
    def worst_first(self) -> npt.NDArray[np.int64]:
        """The places as a reader wants them: what failed first, what is only reported last, the largest change first.

        What has no change is the last of its verdict.
        """
        lost = np.where(np.isnan(self.rows["estimate"]), -np.inf, self.rows["estimate"])
        return np.lexsort((-lost, self.rows["verdict"], self.rows["report_only"]))

    def counts(self, places: npt.NDArray[np.int64] | slice = slice(None)) -> dict[str, int]:
        """Return how many have each verdict, and how many are only reported, in all or at some places."""
        verdicts, only = self.rows["verdict"][places], self.rows["report_only"][places]
        found = np.bincount(verdicts[~only], minlength=len(VERDICTS)).tolist()
        return dict(zip(VERDICTS, found, strict=True)) | {"report_only": len(only) - sum(found)}


@dataclass(frozen=True)
class Outcome:
    """All that one call of the gate found."""

    base: str  # what was compared with: a revision with its hash, or a file
    head: str
    judgements: Judgements
    notes: tuple[str, ...]  # what a reader should know: cases of one side only, figures left out and why
    command: str = ""
    environment: dict[str, Any] | None = None  # of the machine, where it measured; None for files
    seconds: float = 0.0
    suite: str = "gate"  # tells this gate from others that judge the same change
    doubts: tuple[str, ...] = ()  # why it is not to be believed, a line each: a machine that was busy
    machine: str = ""  # where it was measured, in a few words
    repeat: tuple[str, ...] = ()  # the words of a command that repeats it elsewhere; cases may be added
    runs: Mapping[tuple[str, str], Runs] = field(default_factory=dict)  # case and figure -> the pairs, where there are
    past: Past | None = None  # of a run that was judged by those before it, what these had of each figure
    allowed: float = 0.0  # the share of what decides that may be inconclusive in a run that passes
    firm: int = 0  # inconclusive figures that count all the same, as they await something
    findings: tuple[str, ...] = ()  # what stands below the verdict, a line each; of a history what it was able to find
    hint: str = ""  # how to read it, where that is not the usual
    incomparable: tuple[str, ...] = ()  # cases that the base has and cannot do

    @property
    def exit_code(self) -> ExitCode:
        """5 when nothing was judged; else 1 when a figure failed, 3 when the base cannot do what it has, 4 when more
        than are allowed are inconclusive, else 0.
        """
        if not self.judgements:
            return ExitCode.NOTHING_MEASURED
        counts = self.judgements.counts()
        if counts["fail"]:
            return ExitCode.REGRESSION
        if self.incomparable:
            return ExitCode.NOT_COMPARABLE
        too_many = counts["inconclusive"] > self.most_inconclusive
        return ExitCode.INCONCLUSIVE if too_many or self.firm else ExitCode.OK

    @property
    def most_inconclusive(self) -> int:
        """How many figures may be inconclusive in a run that passes."""
        counts = self.judgements.counts()
        return math.floor(self.allowed * (sum(counts.values()) - counts["report_only"]) + 1e-9)
