"""What the gate judges: one figure of one case, with its values in base and head; and many of them as columns.

Three shapes, by how the values came about:

    pairs         process by process the values (base, head) that were taken next to each other. The pair of processes
                  is the unit: it gives one figure, the median log ratio of its values
    base, head    values that were not taken together, as of two files: one for each process (or seed, or one count), or
                  the many values of a single process, which know nothing of what differs from process to process
    Summary       what a file says that has no values: a median and how well it is known

Every figure is a cost, but an accuracy, which is given as it is (percent, higher is better) and judged by what was
lost.

A file may hold a million figures. As objects (`Series`) each takes half a kilobyte and some 20 µs to judge; as columns
(`Sides`, `Block`) 50 bytes besides its values, and numpy judges all of them in one go:

    values   v v v v v v | v v v | m e c | v v v v ...      m e c: a summary's median, standard error and count
    starts   0             6       9       12
    counts   6             3       1       4
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, compress
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from meprop_bench.gate.judgement import Quantity
from meprop_bench.stats import Runs, student

__all__ = ["MEDIAN_ERROR", "NORMAL_IQR", "Block", "Flags", "Floats", "Integers", "Series", "Side", "Sides", "Summary"]

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]
Flags: TypeAlias = npt.NDArray[np.bool_]

_AT_ONCE = 1 << 20
"""Values of a matrix at most, 8 MiB: all of a large file's, beside themselves, would double its memory."""

NORMAL_IQR = 1.3489795
"""Interquartile range of the normal distribution, in its standard deviations."""
MEDIAN_ERROR = 1.2533141
"""Standard error of a median, in that of a mean, for normal values: sqrt(pi / 2)."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A side without values: its median (or mean, where the file has nothing else) with its standard error, NaN where
    the file does not say, and how many values it is over, 0 where the file does not say.
    """

    median: float
    error: float
    count: int

    @property
    def empty(self) -> bool:
        """Whether it is of what was measured 0 times."""
        return self.count == 0 and math.isnan(self.median)

    @classmethod
    def of_quartiles(cls, median: float, lower: float, upper: float, count: int) -> Summary:
        """Return it from the quartiles of `count` values; they shrug off the tail that timings have."""
        return cls.of_deviation(median, (upper - lower) / NORMAL_IQR, count)

    @classmethod
    def of_deviation(cls, median: float, deviation: float, count: int) -> Summary:
        """Return it from the standard deviation of `count` values."""
        error = MEDIAN_ERROR * deviation / math.sqrt(count) if count > 1 else math.nan
        return cls(median, error, count)

    @classmethod
    def of_interval(cls, median: float, low: float, high: float, confidence: float, count: int) -> Summary:
        """Return it from a confidence interval of the median (asv has one of 99%)."""
        if not (math.isfinite(low) and math.isfinite(high)) or count < 2:
            return cls(median, math.nan, count)
        t = student.quantile(count - 1, (1 + confidence) / 2)
        return cls(median, (high - low) / (2 * float(t)), count)


Side: TypeAlias = tuple[float, ...] | Summary
"""One side's values, in the figure's unit, or what is known of them; an empty tuple where it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One figure of one case in base and head."""

    case: str  # its label, the same in base and head
    figure: str
    """What of it: "backward", "sparse/dense backward", "peak memory backward", "flops", "accuracy", ..."""
    quantity: Quantity
    unit: str  # "s", "B", "1"; what is lost of an accuracy, "points" of a percentage, else "%" of the base's figure
    pairs: Runs | None = None  # process by process the values (base, head); None where they were not taken together
    base: Side = ()  # the values, where there are no pairs; of an accuracy one for each seed, in the order of `head`
    head: Side = ()
    own_processes: bool = False
    """Each of those values is of a process (or seed) of its own. Those of one process understate the noise, which is
    then added (`settings.process_noise`)."""
    most: int = 0  # pairs of processes that the budget allows, 0 where there is none; what is decided early has fewer
    failure: str = ""  # why the head has no figure though it should (its check failed, it crashed): such a figure fails
    unjudged: str = ""  # why there is nothing to judge: the case is new, gone, or fails in the base
    gone: bool = False  # whether that is because the head has no such case
    decides: bool = True  # whether that leaves the result open; what is new does not
    repeats: str = ""  # the figure of the same case which says the same, and sharper: where it is judged it decides

    def __post_init__(self) -> None:
        if self.pairs is not None and (self.base or self.head):
            raise ValueError(f"{self.name} has pairs, and values besides")

    @property
    def name(self) -> str:
        """Case and figure."""
        return f"{self.case}/{self.figure}"


@dataclass(frozen=True)
class Sides:
    """One side of many figures, none of them empty: where their values start in `values`, which may hold others as
    well, how many each has (a summary stands for one), and which are summaries. (figures,) each.
    """

    values: Floats
    starts: Integers
    counts: Integers
    summarised: Flags

    @classmethod
    def of(cls, sides: Sequence[Side]) -> Sides:
        """Return some sides as columns."""
        flat = [(one.median, one.error, one.count) if isinstance(one, Summary) else one for one in sides]
        lengths = np.fromiter(map(len, flat), np.int64, len(flat))
        values = np.fromiter(chain.from_iterable(flat), np.float64, int(lengths.sum()))
        summarised = np.fromiter((isinstance(one, Summary) for one in sides), np.bool_, len(flat))
        return cls(values, lengths.cumsum() - lengths, np.where(summarised, 1, lengths), summarised)

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, places: Integers | Flags) -> Sides:
        """Return some of them."""
        return Sides(self.values, self.starts[places], self.counts[places], self.summarised[places])

    @property
    def firsts(self) -> Floats:
        """The first value of each; of a summary, its median."""
        return self.values[self.starts]

    @property
    def sizes(self) -> Floats:
        """How many values each has; of a summary, is over."""
        found = self.counts.astype(np.float64)
        found[self.summarised] = self.values[self.starts[self.summarised] + 2]
        return found

    def matrices(self) -> Iterator[tuple[Integers, Floats]]:
        """Yield the values of figures of one size, as (which figures, their values): (m,), (m, size).

        Summaries are not among them.
        """
        own = np.flatnonzero(~self.summarised)
        by_size = own[np.argsort(self.counts[own], kind="stable")]
        sizes, amounts = np.unique(self.counts[by_size], return_counts=True)
        end = 0
        for size, amount in zip(sizes.tolist(), amounts.tolist(), strict=True):
            begin, end, step = end, end + amount, max(1, _AT_ONCE // size)
            for first in range(begin, end, step):
                places = by_size[first : min(end, first + step)]
                yield places, self.values[self.starts[places, None] + np.arange(size)]


@dataclass(frozen=True)
class Block:
    """Figures of one kind that both sides have, whose values were not taken together: `Series` by the thousand.

    Fields are as in `Series`; the quantity is a cost that is judged by its ratio, its values are positive and finite.
    """

    figure: str
    quantity: Quantity
    unit: str
    cases: Sequence[str]
    base: Sides
    head: Sides
    own_processes: bool = False

    def __post_init__(self) -> None:
        if self.quantity not in ("time", "ratio", "memory"):
            raise ValueError(f"a block is of costs that are judged by their ratio, not of {self.quantity}")
        if not len(self.cases) == len(self.base) == len(self.head):
            raise ValueError(f"{len(self.cases)} cases, {len(self.base)} of base and {len(self.head)} of head")

    def __len__(self) -> int:
        return len(self.cases)

    def only(self, wanted: Flags) -> Block:
        """Return those that are wanted."""
        if wanted.all():
            return self
        cases = list(compress(self.cases, wanted.tolist()))
        return replace(self, cases=cases, base=self.base.take(wanted), head=self.head.take(wanted))
