"""Blocks: one side of a case, timed for a few milliseconds at a time, interleaved with those of other workers.

    lead      iterations that are not timed, so that a block does not pay for what ran before it
    block     some iterations under the case's clock: one value a phase, and whether the machine disturbed it
    slowed    the same with the backward pass held back by a share of its usual time, for the gate's self-test

Between blocks the garbage is collected, within one it never is.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress

from meprop_bench.measure.clock import Clock
from meprop_bench.measure.disturbance import contention
from meprop_bench.measure.paired import collector_at_rest, warm_up
from meprop_bench.measure.procfs import Unavailable
from meprop_bench.stats import median
from meprop_bench.sweep.slowdown import SlowedClock
from meprop_bench.workloads.prepared import Prepared

__all__ = ["Blocks"]

_USUAL_VALUES = 21
"""Values behind the median that a slowdown is a share of."""


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
