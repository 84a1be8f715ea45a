"""Many figures of one kind, as columns: a file may hold a million of them.

A figure as objects (`Series`, a tuple of values on each side) takes half a kilobyte and some 20 µs to judge. As columns
it takes 50 bytes besides its values, and numpy judges all of them in one go:

    values   v v v v v v | v v v | m e c | v v v v ...      m e c: a summary's median, standard error and count
    starts   0             6       9       12
    counts   6             3       1       4

Figures of one size are a matrix (figures, size), so what is computed of one is computed of all along an axis
(`Sides.matrices`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, compress
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from meprop_bench.gate.judgement import Quantity
from meprop_bench.gate.series import Side, Summary

__all__ = ["Block", "Flags", "Floats", "Integers", "Sides"]

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]
Flags: TypeAlias = npt.NDArray[np.bool_]

_AT_ONCE = 1 << 20
"""Values of a matrix at most, 8 MiB: all of a large file's, beside themselves, would double its memory."""


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


@dataclass(frozen=True, kw_only=True)
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
