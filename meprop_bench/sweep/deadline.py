"""By when a run has to end.

A machine that is lent for minutes must give something for any number of them. So what is to be done stands in the order
of its importance, and what would not be done in time is not begun: the run then ends with what it has, says what it
left out, and a later one with --resume goes on there. Nothing that has been begun is cut short, since half a case is no
measurement; a run may therefore end a little after its deadline, by as much as its last piece took longer than the
pieces before it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from meprop_bench.errors import UserError
from meprop_bench.stats import median

__all__ = ["Deadline"]


class Deadline:
    """Seconds of wall time that a run has, from when this is made; None for all the time it needs.

    Args:
        seconds: how many there are.
        usual_s: seconds that a piece takes, until some show it: of the first one most is then what is done once.
        now: the clock, in seconds.

    Raises:
        UserError: not a number of seconds above 0.

    """

    def __init__(
        self,
        seconds: float | None = None,
        now: Callable[[], float] = time.monotonic,
        *,
        usual_s: float | None = None,
    ) -> None:
        if seconds is not None and not 0 < seconds < math.inf:
            raise UserError(f"a deadline must be more than 0 seconds, and finite, not {seconds:g}")
        self._now, self._usual_s = now, usual_s
        self._spent: list[float] = []
        self._end = math.inf if seconds is None else now() + seconds

    @property
    def left_s(self) -> float:
        """Seconds until it, below 0 behind it; infinite where there is none."""
        return self._end - self._now()

    def allows(self) -> bool:
        """Whether to begin another piece: one that takes as long as the usual one so far would be done in time."""
        known = self._spent if self._usual_s is None else self._spent[1:]
        usual_s = median(known) if known else self._usual_s or 0.0
        return self.left_s > usual_s

    def took(self, seconds: float) -> None:
        """Note what a piece took. Of the first one nothing is known, so it is begun whenever there is time left."""
        self._spent.append(seconds)
