"""Seconds of wall clock, as a user writes them, and as a search spends them.

    seconds_of("20m") == 1200.0            90, 90s, 20m, 1h, 1h30m
    budget = Budget(1200.0)
    budget.part(0.3)                       a budget of its own that ends when 30% of what is left are over
    budget.allows(40.0)                    whether something that takes about 40 s would be done in time

Nothing is begun that would overrun. What is left of one part goes to the next, since a part ends when its work does.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from typing import Self

from meprop_bench.errors import UserError

__all__ = ["Budget", "duration", "seconds_of"]

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_PIECE = r"(\d+(?:\.\d+)?)\s*([smh]?)"


def seconds_of(text: str) -> float:
    """Return the seconds that a text such as `90`, `90s`, `20m` or `1h30m` means; `UserError` for any other."""
    words = text.strip().lower()
    pieces = re.findall(_PIECE, words)
    found = sum(float(number) * _UNITS[unit] for number, unit in pieces)
    sound = re.fullmatch(rf"(?:{_PIECE}\s*)+", words) and (len(pieces) == 1 or all(unit for _, unit in pieces))
    if not sound or not 0 < found < math.inf:
        raise UserError(f"{text!r} is no time: write seconds, or for instance 90s, 20m, 1h30m")
    return found


def duration(seconds: float) -> str:
    """Return seconds as a user reads them: 0.4 s, 30 s, 2 min, 1.5 h."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.2g} min" if minutes < 10 else f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.2g} h"


class Budget:
    """Seconds from now on, infinite ones too.

    Args:
        seconds: how many there are, those that an earlier run spent not among them.
        now: the clock, in seconds.

    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._begun = now, now()
        self._end = self._begun + seconds

    @property
    def left_s(self) -> float:
        """Seconds until its end, at least 0."""
        return max(0.0, self._end - self._now())

    @property
    def spent_s(self) -> float:
        """Seconds since its beginning."""
        return self._now() - self._begun

    def allows(self, seconds: float = 0.0) -> bool:
        """Whether something that takes so long, and is begun now, is done in time."""
        return self.left_s > seconds

    def part(self, share: float) -> Self:
        """Return a budget of this share of what is left."""
        return type(self)(self.left_s * share, self._now)
