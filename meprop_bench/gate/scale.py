"""The scale of a plot in a terminal: values to columns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["LEAST", "MOST", "PlotScale"]

LEAST, MOST = 24, 100
"""Columns of a plot."""


@dataclass(frozen=True)
class PlotScale:
    """Columns of a plot for values from `low` to `high`; what lies outside is drawn at its end."""

    low: float
    high: float
    width: int

    @classmethod
    def within(cls, low: float, high: float, width: int) -> PlotScale:
        """Return a scale of as many of `width` columns as a plot may have."""
        return cls(low, high, min(max(width, LEAST), MOST))

    def column(self, value: float) -> int:
        """Return the column of a value."""
        share = (value - self.low) / (self.high - self.low)
        return round(min(max(share, 0.0), 1.0) * (self.width - 1))

    def labels(self, wanted: Iterable[tuple[float, str]]) -> str:
        """Return a line with texts at their values, as many as do not touch each other."""
        line = " " * self.width
        for value, text in wanted:
            begin = min(max(self.column(value) - len(text) // 2, 0), self.width - len(text))
            if not line[max(begin - 1, 0) : begin + len(text) + 1].strip():
                line = line[:begin] + text + line[begin + len(text) :]
        return line.rstrip()
