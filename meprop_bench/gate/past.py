"""What the runs before a run had of each figure: what a verdict by a history is made of, to be stored and drawn.

Some twenty values a figure, and what each whole run had in common, which is taken off them (`history.noise`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from meprop_bench.gate.pairs import Positive

__all__ = ["Past", "PastRun", "PastRuns", "seen"]

_LEAST = 1e-30
"""Ratio that is drawn."""
_DIGITS = 6
"""Of a value that is stored."""
_Floats: TypeAlias = npt.NDArray[np.float64]
_Log = Annotated[float, msgspec.Meta(ge=-700, le=700)]


class PastRuns(msgspec.Struct, frozen=True):
    """The runs before the one that is judged, the newest last, with what each had in common: the log of a factor."""

    names: list[str]
    shifts: list[_Log]
    shift: _Log = 0.0  # of the run that is judged
    second_shift: _Log = 0.0
    third_shift: _Log = 0.0


@dataclass(frozen=True)
class PastRun:
    """One run of a figure."""

    name: str
    value: Positive  # in the figure's unit
    ratio: float  # beside the level of its last runs, what the whole run had in common taken off


@dataclass(frozen=True)
class Past:
    """The values of all figures, in the order of the judgements; what is judged besides has none."""

    runs: PastRuns
    values: _Floats  # (runs, figures); NaN, infinite or 0 where there is none that can be drawn
    second: _Floats  # (figures,), of the second run
    third: _Floats

    def of(self, place: int) -> dict[str, Any]:
        """Return what is stored of a figure: its values, one for each of the newest runs, and those of later ones."""
        if place >= len(self.second):
            return {}
        found = _stored(self.values[:, place])
        first = next((run for run, value in enumerate(found) if value is not None), len(found))
        later = zip(("second", "third"), _stored(np.array([self.second[place], self.third[place]])), strict=True)
        return {"past": found[first:]} | {name: value for name, value in later if value is not None}


def seen(runs: PastRuns, level: float | None, past: Sequence[float | None], *own: float | None) -> list[PastRun]:
    """Return the runs of a figure as they are drawn; none where there is no level.

    `own` are the values of the candidate and of its second and third run.
    """
    skipped = len(runs.names) - len(past)
    if level is None or level <= 0 or not past or skipped < 0:
        return []
    every = [*zip(runs.names[skipped:], runs.shifts[skipped:], past, strict=False)]
    shifts = (runs.shift, runs.second_shift, runs.third_shift)
    every += zip(("this run", "second run", "third run"), shifts, own, strict=False)
    found = [PastRun(name, value, value / level / math.exp(shift)) for name, shift, value in every if value]
    return [one for one in found if _LEAST < one.ratio < 1 / _LEAST]


def _stored(values: _Floats) -> list[float | None]:
    return [float(f"{value:.{_DIGITS}g}") if _LEAST <= value <= 1 / _LEAST else None for value in values.tolist()]
