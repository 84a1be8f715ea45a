"""Blocks: one side of a case, timed for a few milliseconds at a time, by a worker that alternates with another.

    lead      iterations that are not timed, so that a block does not pay for what ran before it
    block     some iterations under the case's clock: one value a phase, and whether the machine disturbed it
    slowed    the same under a clock that makes the backward pass take a share of its usual time longer: a regression of
              known size inside a real timed region, for the gate's self-test. Everything else is the real code

Between blocks the garbage is collected, within one it never is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress

from meprop_bench.measure.clock import Clock
from meprop_bench.measure.disturbance import contention
from meprop_bench.measure.paired import collector_at_rest, warm_up
from meprop_bench.measure.procfs import Unavailable
from meprop_bench.stats import median
from meprop_bench.workloads.prepared import Prepared

__all__ = ["Blocks", "SlowedClock"]

_USUAL_VALUES = 21
"""Values behind the median that a slowdown is a share of."""

_LOOPS = 1000
"""Calls of nothing that tell what waiting costs by itself."""


class Blocks:
    """Takes one case's blocks: meanwhile the collector is at rest, and the scheduler is watched where it can be."""

    def __init__(self, prepared: Prepared, clock: Clock) -> None:
        self.clock = clock
        self._usual_s: list[float] = []
        with ExitStack() as stack:
            self._collect = stack.enter_context(collector_at_rest())
            self._probe = None
            with suppress(Unavailable):
                self._probe = stack.enter_context(contention())
            self._closing = stack.pop_all()
        self.use(prepared)

    def use(self, prepared: Prepared) -> None:
        """Go on with another set-up of the case."""
        self._prepared: Prepared | None = prepared
        self._phase = "backward" if "backward" in prepared.phases else prepared.phases[0]
        calls = prepared.memory.get(self._phase)
        self._slowed: SlowedClock | None = SlowedClock(self.clock, self._phase, calls[1] if calls else None)

    def release(self) -> None:
        """Let the case that is set up go, with its memory."""
        self._prepared = self._slowed = None
        self._collect()

    def take(self, side: str, loops: int, lead: int, slowdown: float) -> tuple[dict[str, float], bool | None]:
        """Return the seconds of each phase, and whether the block was disturbed."""
        assert self._prepared is not None
        subject = {"baseline": self._prepared.baseline, "method": self._prepared.method}[side]
        clock = self.clock
        slowed = slowdown and side == "method"
        if slowed:
            clock = self._slowed_by(slowdown, loops)
        self._collect()
        warm_up(subject, clock, seconds=0.0, least=lead)
        if self._probe is not None:
            self._probe.begin()
        values = subject(loops, clock)
        disturbed = None if self._probe is None else self._probe.disturbed()
        if side == "method" and not slowed:
            self._usual_s.append(values[self._phase])
        return {phase: float(values[phase]) for phase in self._prepared.phases}, disturbed

    def close(self) -> None:
        """Let the collector work again."""
        self._closing.close()

    def _slowed_by(self, share: float, loops: int) -> Clock:
        """Return the clock under which the phase takes a share of its usual time longer."""
        assert self._prepared is not None
        assert self._slowed is not None
        while len(self._usual_s) < _USUAL_VALUES:  # the other process sleeps meanwhile
            self._usual_s.append(self._prepared.method(loops, self.clock)[self._phase])
        self._slowed.wait(share * median(self._usual_s))
        return self._slowed


class SlowedClock:
    """A clock under which one phase takes longer: the wait is a loop that reads the clock, as in `workloads.identical`.

    A subject times its phases either by name (`time_phases({"backward": ...})`) or one call at a time (`time(fn)`); the
    clock knows the former by the name and the latter by the function itself.

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
        self._wanted_s = 0.0
        self.now, self.synchronize = clock.now, clock.synchronize

    def wait(self, seconds: float) -> None:
        """Slow each call of the phase by these seconds from now on; 0 or less leaves it alone."""
        if seconds == self._wanted_s:
            return
        self._wait_ns, self._wanted_s = None, seconds
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
