"""Seconds of wall clock, as a search spends them.

    budget = Budget(1200.0)
    budget.part(0.3)                       a budget of its own that ends when 30% of what is left are over
    budget.allows(40.0)                    whether something that takes about 40 s would be done in time

Nothing is begun that would overrun. What is left of one part goes to the next, since a part ends when its work does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self

__all__ = ["Budget"]


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
