"""What the gate says of one figure of one case, and of all of them together.

Every figure is a cost (seconds, bytes, operations, sparse time / dense time, points of accuracy lost), so that one rule
judges them all: with `change` = head / base and its interval,

    fail          low > 1 + margin, and the difference is at least `least`
    pass          high < 1 + margin, or the difference is below `least`
    inconclusive  neither, when the budget is spent

Accuracy is judged by its difference in points instead of a ratio, against a margin in points; a count has no noise, so
its interval is a point. What a figure is worth, `noise` says: the half-width of the interval that the pairs gave.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from meprop_bench.errors import ExitCode
from meprop_bench.stats import Interval, Verdict

__all__ = ["Judgement", "Outcome", "Quantity"]

Quantity = Literal["time", "ratio", "memory", "count", "accuracy"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """One figure of one case.

    Attributes:
        case: the case's label, the same in base and head.
        figure: what of it: "backward", "sparse/dense backward", "peak memory backward", "flops", "accuracy", ...
        quantity: its kind.
        unit: "s", "B", "1" or "points".
        base: the base's median, in `unit`; None where it has none.
        head: the head's.
        change: head / base with its interval; of an accuracy base - head, in points.
        margin: how much may be lost: 0.01 is one percent; of an accuracy, points.
        least: the least absolute difference that counts, in `unit`.
        pairs: pairs of processes, or of values, that the interval is over.
        report_only: it is shown and does not decide.
        verdict: "pass", "fail" or "inconclusive".
        reason: why, in a few words, where the interval alone does not say it; empty otherwise.

    """

    case: str
    figure: str
    quantity: Quantity
    unit: str
    base: float | None
    head: float | None
    change: Interval | None
    margin: float
    least: float
    pairs: int
    report_only: bool
    verdict: Verdict
    reason: str = ""

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


@dataclass(frozen=True)
class Outcome:
    """All that one call of the gate found.

    Attributes:
        base: what was compared with: a revision with its hash, or a file.
        head: what was compared.
        judgements: one for each figure.
        notes: what a reader should know: cases of one side only, figures left out and why.
        command: the command line.
        environment: of the machine, where it measured; None for files.
        seconds: how long it took.

    """

    base: str
    head: str
    judgements: tuple[Judgement, ...]
    notes: tuple[str, ...]
    command: str
    environment: dict[str, Any] | None
    seconds: float

    @property
    def exit_code(self) -> ExitCode:
        """1 when a figure failed, else 4 when one is inconclusive, 5 when nothing was judged, else 0."""
        deciding = {judgement.verdict for judgement in self.judgements if not judgement.report_only}
        if not self.judgements:
            return ExitCode.NOTHING_MEASURED
        if "fail" in deciding:
            return ExitCode.REGRESSION
        return ExitCode.INCONCLUSIVE if "inconclusive" in deciding else ExitCode.OK
