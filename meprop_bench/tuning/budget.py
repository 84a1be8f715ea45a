"""Seconds of wall clock, as a search spends them.

    budget = Budget(1200.0)
    budget.part(0.3)                       a budget of its own that ends when 30% of what is left are over
    budget.allows(40.0)                    whether something that takes about 40 s would be done in time
    Bounded(worker, budget)                a process that is ended when the budget ends

Nothing is begun that would overrun. What is left of one part goes to the next, since a part ends when its work does.
Some of what is begun takes longer than anybody knows: imports on a busy machine, a user's own code, a first
torch.compile. All of that is in other processes, which can be ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from meprop_bench.measure.worker import WorkerLike, WorkerOverdue

__all__ = ["Bounded", "Budget", "Over"]


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

    def until(self, seconds: float) -> Self:
        """Return a budget that ends in so many seconds, or with this one."""
        return type(self)(min(seconds, self.left_s), self._now)

    def part(self, share: float) -> Self:
        """Return a budget of this share of what is left."""
        return type(self)(self.left_s * share, self._now)


class Over(Exception):
    """The budget has ended amid something."""


class Bounded:
    """A measuring process that has no longer than a budget: when that ends, it is ended, and `Over` raised."""

    def __init__(self, worker: WorkerLike, budget: Budget) -> None:
        self._worker, self._budget = worker, budget

    def request(self, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """Return the answer; as `WorkerLike` does, and `Over`."""
        if not self._budget.allows():
            raise Over
        left_s = self._budget.left_s
        try:
            return self._worker.request(message, min(timeout, left_s))
        except WorkerOverdue:
            if left_s < timeout:
                raise Over from None
            raise

    def close(self) -> None:
        """End it."""
        self._worker.close()
