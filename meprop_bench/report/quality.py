"""A figure of quality as a reader sees it: a percentage, or whatever else a task or a user's `evaluate` gives.

    percentages      97.42%    differences in points, +0.04 [-0.26, +0.34]
    other figures    -2.143    -0.031 [-0.046, -0.016], to four significant digits of dense's figures

Higher is better in both. What a difference amounts to is seen against a scale: 100 for percentages, else the size of
dense's own figure (`results.schema.Parity.scale`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from meprop_bench.results.schema import WHOLE, Parity
from meprop_bench.stats import CANNOT_TELL, Interval, Verdict, non_inferiority, values_to_clear

__all__ = ["POINTS", "WIDEST_POINTS", "Quality", "held", "measure", "more_seeds", "verdict_at"]

WIDEST_POINTS = 20.0
"""Points that an interval spans at most to be shown, of another scale percent of it: beyond, one example in ten may be
lost, or won."""

_DIGITS = 4  # of a figure that is no percentage
_PLAIN = range(-4, 7)  # powers of ten that need no exponent


@dataclass(frozen=True)
class Quality:
    """How the figures of one metric, and their differences, are written."""

    percent: bool = True
    scale: float = WHOLE

    @classmethod
    def of(cls, found: Parity) -> Quality:
        """Return that of a comparison's figures."""
        return cls(found.percent, found.scale)

    @property
    def unit(self) -> str:
        """What follows a difference in a sentence."""
        return " points" if self.percent else " (higher is better)"

    def figure(self, value: float) -> str:
        """One figure, `97.42%` or `-2.143`."""
        return f"{value:{self._form}}{'%' * self.percent}"

    def plain(self, value: float) -> str:
        """One figure without a sign of percent, where the unit is said elsewhere."""
        return f"{value:{self._form}}"

    def change(self, value: float) -> str:
        """A difference without its interval."""
        return f"{value:+{self._form}}"

    def vague(self, found: Interval) -> bool:
        """Whether an interval is too wide for its estimate to be a figure."""
        return found.high - found.low > WIDEST_POINTS / WHOLE * self.scale

    def within(self, found: Interval) -> str:
        """A difference with its interval, `+0.04 [-0.26, +0.34]`, or `cannot tell` where that is too wide."""
        if self.vague(found):
            return CANNOT_TELL
        low, high = self.change(found.low), self.change(found.high)
        return self.change(found.estimate) + (f" [{low}, {high}]" if found.bounded else "")

    @property
    def _form(self) -> str:
        if self.percent:
            return ".2f"
        power = math.floor(math.log10(self.scale)) if self.scale > 0 else 0
        return f".{max(0, _DIGITS - 1 - power)}f" if power in _PLAIN else f".{_DIGITS - 1}e"


def measure(found: Parity) -> str:
    """Return what was compared, in a word or two: of a task's percentage accuracy, of a user's what that is called."""
    metric = found.figure
    return metric.name if metric.of == "own" or not found.percent else "accuracy"


POINTS = Quality()
"""That of percentages."""


_MOST_SEEDS = 1000
"""Beyond, nobody trains so often to be told."""


def verdict_at(found: Parity, margin: float | None = None) -> Verdict:
    """Return whether the quality holds within a margin, by default that of the comparison."""
    return found.verdict if margin is None else non_inferiority(found.interval, margin)


def held(found: Parity, margin: float | None = None, whose: str = "") -> str:
    """Return what came of a comparison as a clause, with the seeds that would decide what is open.

    accuracy holds within 0.5 points (-0.10 [-0.30, +0.10])
    accuracy is lost: -2.40 [-3.20, -1.60] points, where 0.5 may be
    whether accuracy holds within 0.5 points is undecided (-0.15 [-0.71, +0.41]): about 12 more seeds would tell
    """
    quality, what = Quality.of(found), whose + measure(found)
    allowed = f"{found.margin if margin is None else margin:.4g}"
    within, unit = quality.within(found.interval), " points" if found.percent else ""
    verdict = verdict_at(found, margin)
    if verdict == "inconclusive":
        return f"whether {what} holds within {allowed}{unit} is undecided ({within}): {_to_decide(found, margin)}"
    doubt = f", but {_ALIKE}" * (len(set(_differences(found))) == 1 < len(found.seeds))
    if verdict == "fail":
        return f"{what} is lost: {within}{unit}, where {allowed} may be{doubt}"
    return f"{what} holds within {allowed}{unit} ({within}){doubt}"


def more_seeds(found: Parity, margin: float | None = None) -> int | None:
    """Return how many more seeds would probably decide, if they differ as these do; None where that is not known."""
    bound = -(found.margin if margin is None else margin)
    enough = values_to_clear(_differences(found), bound, most=_MOST_SEEDS)
    return None if enough is None else max(1, enough - len(found.seeds))


_ALIKE = "all seeds differ alike, as those of models that learnt nothing yet: train for longer"


def _to_decide(found: Parity, margin: float | None) -> str:
    if len(found.seeds) < 2:
        return "one seed cannot tell"
    if len(set(_differences(found))) == 1:
        return _ALIKE
    if (more := more_seeds(found, margin)) is None:
        return f"{_MOST_SEEDS:,} seeds would hardly tell"
    return f"about {more} more seed{'s' * (more > 1)} would tell"


def _differences(found: Parity) -> list[float]:
    return [sparse - dense for dense, sparse in zip(found.baseline, found.method, strict=True)]
