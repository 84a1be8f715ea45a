"""A figure of quality as a reader sees it: a percentage, or whatever else a task or a user's `evaluate` gives.

    percentages      97.42%    differences in points, +0.04 [-0.26, +0.34]
    other figures    -2.143    -0.031 [-0.046, -0.016], to four significant digits of dense's figures

Higher is better in both. What a difference amounts to is seen against a scale: 100 for percentages, else the size of
dense's own figure (`results.schema.Parity.scale`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from meprop_bench.results.schema import WHOLE, Parity
from meprop_bench.stats import CANNOT_TELL, Interval

__all__ = ["POINTS", "WIDEST_POINTS", "Quality", "measure"]

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
    """Return what was compared, in a word or two."""
    return "accuracy" if found.percent else re.split(" on the |, at the end", found.metric)[0]


POINTS = Quality()
"""That of percentages."""
