"""A slowdown of known size inside a real timed region, to find out what a gate would see.

A regression of 3% is asked for as a clock that wraps what it times: whoever calls the backward pass under this clock
waits, inside the timed region, for a share of what the pass usually takes. Everything else is the real code.

    slowed = SlowedClock(clock, "backward", call)
    slowed.wait(0.03 * usual_s)                        ->  slowed.time(call, loops) is 3% longer

A subject times its phases either by name (`time_phases({"backward": ...})`) or one call at a time (`time(fn)`); the
clock knows the former by the name and the latter by the function itself. The wait is a loop that reads the clock (see
`workloads.identical`, which slows a whole side in the same way).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from meprop_bench.measure.clock import Clock

__all__ = ["SlowedClock"]

_LOOPS = 1000


class SlowedClock:
    """A clock under which one phase takes longer.

    Args:
        clock: what really times; its device is the CPU, since the wait is the processor's.
        phase: the name of the phase that is slowed.
        call: what a subject without names calls for this phase; None where it gives names.
        now: nanoseconds of a monotonic clock.

    """

    def __init__(
        self, clock: Clock, phase: str, call: Callable[[], object] | None, now: Callable[[], int] = time.perf_counter_ns
    ) -> None:
        self._clock, self._phase, self._call, self._now = clock, phase, call, now
        self._wait_ns: int | None = None
        self._asked_s = 0.0
        self.now, self.synchronize = clock.now, clock.synchronize

    def wait(self, seconds: float) -> None:
        """Slow each call of the phase by these seconds from now on; 0 or less leaves it alone."""
        if seconds == self._asked_s:
            return
        self._wait_ns, self._asked_s = None, seconds
        if seconds > 0:
            # What waiting costs by itself, about 0.3 µs, would be a third of 1% of a small layer's backward pass.
            itself_s = self._clock.time(self._slowed(_nothing, 0), _LOOPS) - self._clock.time(_nothing, _LOOPS)
            self._wait_ns = max(0, round(1e9 * (seconds - itself_s)))

    def time(self, fn: Callable[[], object], loops: int) -> float:
        """Return the seconds of one call of `fn`, slowed if it is the phase's call."""
        return self._clock.time(self._longer(fn) if fn == self._call else fn, loops)

    def time_phases(self, phases: Mapping[str, Callable[[], object]], loops: int) -> dict[str, float]:
        """Return the seconds of each phase, the one of that name slowed."""
        slowed = {name: self._longer(fn) if name == self._phase else fn for name, fn in phases.items()}
        return self._clock.time_phases(slowed, loops)

    def _longer(self, fn: Callable[[], object]) -> Callable[[], object]:
        return fn if self._wait_ns is None else self._slowed(fn, self._wait_ns)

    def _slowed(self, fn: Callable[[], object], wait_ns: int) -> Callable[[], object]:
        now = self._now

        def longer() -> object:
            found = fn()
            end = now() + wait_ns
            while now() < end:
                pass
            return found

        return longer


def _nothing() -> None:
    """Do nothing, which takes no time."""
