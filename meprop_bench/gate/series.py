"""What the gate judges: one figure of one case, with its values in base and head.

Three shapes, by how the values came about:

    pairs         process by process the values (base, head) that were taken next to each other. The pair of processes
                  is the unit: it gives one figure, the median log ratio of its values
    base, head    values that were not taken together, as of two files: one for each process (or seed, or one count), or
                  the many values of a single process, which know nothing of what differs from process to process
    Summary       what a file says that has no values: a median and how well it is known

Every figure is a cost, but an accuracy, which is given as it is (percent, higher is better) and judged by what was
lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

from meprop_bench.gate.judgement import Quantity
from meprop_bench.stats import Runs

__all__ = ["Series", "Side", "Summary"]

_NORMAL_IQR = 1.3489795
"""Interquartile range of the normal distribution, in its standard deviations."""
_MEDIAN_ERROR = 1.2533141
"""Standard error of a median, in that of a mean, for normal values: sqrt(pi / 2)."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A side without values: its median (or mean, where the file has nothing else) with its standard error, NaN where
    the file does not say, and how many values it is over, 0 where the file does not say.
    """

    median: float
    error: float
    count: int

    @classmethod
    def of_nothing(cls) -> Summary:
        """Return it of what was measured 0 times."""
        return cls(math.nan, math.nan, 0)

    @property
    def empty(self) -> bool:
        """Whether it is of what was measured 0 times."""
        return self.count == 0 and math.isnan(self.median)

    @classmethod
    def of_quartiles(cls, median: float, lower: float, upper: float, count: int) -> Summary:
        """Return it from the quartiles of `count` values; they shrug off the tail that timings have."""
        return cls.of_deviation(median, (upper - lower) / _NORMAL_IQR, count)

    @classmethod
    def of_deviation(cls, median: float, deviation: float, count: int) -> Summary:
        """Return it from the standard deviation of `count` values."""
        error = _MEDIAN_ERROR * deviation / math.sqrt(count) if count > 1 else math.nan
        return cls(median, error, count)

    @classmethod
    def of_interval(cls, median: float, low: float, high: float, confidence: float, count: int) -> Summary:
        """Return it from a confidence interval of the median (asv has one of 99%)."""
        if not (math.isfinite(low) and math.isfinite(high)) or count < 2:
            return cls(median, math.nan, count)
        from scipy.special import stdtrit

        return cls(median, (high - low) / (2 * float(stdtrit(count - 1, (1 + confidence) / 2))), count)


Side: TypeAlias = tuple[float, ...] | Summary
"""One side's values, in the figure's unit, or what is known of them; an empty tuple where it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One figure of one case in base and head.

    Attributes:
        case: the case's label, the same in base and head.
        figure: what of it: "backward", "sparse/dense backward", "peak memory backward", "flops", "accuracy", ...
        quantity: its kind.
        unit: "s", "B", "1" or "points"; of an accuracy the values are percent.
        pairs: process by process the values (base, head); None where they were not taken together.
        base: the base's values, where there are no pairs; of an accuracy one for each seed.
        head: the head's, in the same order.
        own_processes: whether each of those values is of a process (or seed) of its own. Values of a single process
            understate the noise, which is then added (`settings.process_noise`).
        most: pairs of processes that the budget allows, 0 where there is none; what is decided early has fewer.
        failure: why the head has no figure though it should (its check failed, it crashed, ...): such a figure fails.

    """

    case: str
    figure: str
    quantity: Quantity
    unit: str
    pairs: Runs | None = None
    base: Side = ()
    head: Side = ()
    own_processes: bool = False
    most: int = 0
    failure: str = ""

    def __post_init__(self) -> None:
        if self.pairs is not None and (self.base or self.head):
            raise ValueError(f"{self.name} has pairs, and values besides")

    @property
    def name(self) -> str:
        """What globs match: case and figure."""
        return f"{self.case}/{self.figure}"
