"""A case in two revisions: one side timed for a few milliseconds at a time, by a worker that alternates with another.

    lead      iterations that are not timed, so that a block does not pay for what ran before it
    block     some iterations under the case's clock: one value a phase, and whether the machine disturbed it
    slowed    the same under a clock that makes the backward pass take a share of its usual time longer: a regression of
              known size inside a real timed region, for the gate's self-test. Everything else is the real code

Between blocks the garbage is collected, within one it never is.

The gate has base and head in two processes, each with its own code, and gives both one plan of blocks, which they
follow by themselves: the one computes while the other one sleeps, then hands over. Prompted by a parent for each block,
they change places in 1.0 ms (JSON, two pipes, a thread that reads them); by themselves in 0.1 ms (two vCPUs of an AMD
EPYC). What a neighbour of the machine does to a block of half a millisecond is not what it does to the next but one, so
the faster the two alternate, the more of it cancels.

Nothing here imports torch before a case that needs it is set up again: a user's function is timed in the same blocks,
in an environment that may have none.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, Protocol

from meprop_bench.measure.clock import Clock
from meprop_bench.measure.disturbance import contention
from meprop_bench.measure.paired import Subject, collector_at_rest, warm_up
from meprop_bench.measure.procfs import Unavailable
from meprop_bench.stats import median
from meprop_bench.sweep.worker import WorkerSession, side_by_side

__all__ = ["Blocks", "Handoff", "SlowedClock", "Timeable", "again", "blocks_of", "interleave", "meet"]

_BALLAST = (4 << 10, 64 << 10, 1 << 20)
"""Bytes at most of each tensor that is in the way when a case is set up again."""

_Answer = Mapping[str, Any]

_USUAL_VALUES = 21
"""Values behind the median that a slowdown is a share of."""

_LOOPS = 1000
"""Calls of nothing that tell what waiting costs by itself."""


class Timeable(Protocol):
    """What is timed in blocks: a case that is set up (`workloads.Prepared`), or a user's function."""

    @property
    def phases(self) -> tuple[str, ...]:
        """What both subjects time."""

    @property
    def baseline(self) -> Subject:
        """The dense side; of a function the same as `method`."""

    @property
    def method(self) -> Subject:
        """The side that is judged."""

    @property
    def memory(self) -> Mapping[str, tuple[Callable[[], object], Callable[[], object]]]:
        """Phase -> the calls of both that can be made one by one."""


class Blocks:
    """Takes one case's blocks: meanwhile the collector is at rest, and the scheduler is watched where it can be."""

    def __init__(self, prepared: Timeable, clock: Clock) -> None:
        self.clock = clock
        self._usual_s: list[float] = []
        with ExitStack() as stack:
            self._collect = stack.enter_context(collector_at_rest())
            self._probe = None
            with suppress(Unavailable):
                self._probe = stack.enter_context(contention())
            self._closing = stack.pop_all()
        self.use(prepared)

    def use(self, prepared: Timeable) -> None:
        """Go on with another set-up of the case."""
        self._prepared: Timeable | None = prepared
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
    """A clock under which one phase takes longer: the wait is a loop that reads the clock, as in `workloads.linear`.

    A subject times its phases either by name (`time_phases({"backward": ...})`) or one call at a time (`time(fn)`); the
    clock knows the former by the name and the latter by the function itself. A phase may come in parts ("backward 0",
    "backward 1", where gradients are added up), which share the wait.

    The device of what really times is the CPU, since the wait is the processor's; `call` is what a subject without
    names calls for the phase, None where it gives names; `now` gives nanoseconds of a monotonic clock.
    """

    def __init__(
        self, clock: Clock, phase: str, call: Callable[[], object] | None, now: Callable[[], int] = time.perf_counter_ns
    ) -> None:
        self._clock, self._phase, self._call, self._now = clock, phase, call, now
        self._wanted_s = self._itself_s = 0.0
        self.now, self.synchronize = clock.now, clock.synchronize

    def wait(self, seconds: float) -> None:
        """Slow each call of the phase by these seconds from now on; 0 or less leaves it alone."""
        if seconds == self._wanted_s:
            return
        self._wanted_s = seconds
        if seconds > 0:
            # What waiting costs by itself, about 0.3 µs, would be a third of 1% of a small layer's backward pass.
            self._itself_s = self._clock.time(self._slowed(_nothing, 0), _LOOPS) - self._clock.time(_nothing, _LOOPS)

    def time(self, fn: Callable[[], object], loops: int) -> float:
        """Return the seconds of one call of `fn`, slowed if it is the phase's call."""
        return self._clock.time(self._longer(fn) if fn == self._call else fn, loops)

    def time_phases(self, phases: Mapping[str, Callable[[], object]], loops: int) -> dict[str, float]:
        """Return the seconds of each phase, the one of that name slowed; ValueError where none is, nor a part of it."""
        parts = [name for name in phases if name.split()[0] == self._phase]
        if not parts:
            raise ValueError(f"nothing of what is timed is the phase {self._phase!r}: {', '.join(phases)}")
        slowed = {name: self._longer(fn, len(parts)) if name in parts else fn for name, fn in phases.items()}
        return self._clock.time_phases(slowed, loops)

    def _longer(self, fn: Callable[[], object], parts: int = 1) -> Callable[[], object]:
        if self._wanted_s <= 0:
            return fn
        return self._slowed(fn, max(0, round(1e9 * (self._wanted_s / parts - self._itself_s))))

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


_HERE = "127.0.0.1"
_GO, _STOP = b"go", b"stop"


class Handoff:
    """One process's end of the connection to the other; when that one has ended, waiting ends.

    By a port, and not by a file, since nobody would take the file of a process away that was killed.
    """

    def __init__(self) -> None:
        self._listener: Listener | None = None
        self._connection: Connection | None = None

    def listen(self) -> int:
        """Open a place to meet and return its port; nobody needs to be waited for."""
        self._listener = Listener((_HERE, 0))
        _, port = self._listener.address
        return int(port)

    def connect(self, port: int) -> None:
        """Come to where the other process listens."""
        self._connection = Client((_HERE, port))

    def give(self, number: int) -> bool:
        """Let the other process go on; return whether it is there to do so."""
        return self._send(_GO, number)

    def stop(self, number: int) -> None:
        """Tell the other process not to wait any more."""
        self._send(_STOP, number)

    def wait(self, number: int) -> bool:
        """Wait until the other process hands over in this exchange; return False when it will not."""
        try:
            while True:
                word, exchange = self._other().recv_bytes().split()
                if int(exchange) == number:  # what is left of an exchange that failed is not for this one
                    return word == _GO
        except (EOFError, OSError):
            return False

    def _send(self, word: bytes, number: int) -> bool:
        try:
            self._other().send_bytes(b"%b %d" % (word, number))
        except OSError:
            return False
        return True

    def _other(self) -> Connection:
        """Return the connection; the one who listens accepts it when it is first needed."""
        if self._connection is None:
            if self._listener is None:
                raise ValueError("the two processes have not met")
            self._connection = self._listener.accept()
            self._listener.close()
        return self._connection


def blocks_of(session: WorkerSession) -> Blocks:
    """Return what times the case in blocks; meanwhile the garbage collector is at rest."""
    prepared, clock = session.passed()
    if session.blocks is None:
        session.blocks = Blocks(prepared, clock)
    blocks: Blocks = session.blocks
    return blocks


def meet(session: WorkerSession, port: int | None = None) -> _Answer:
    """Say where another worker can meet this one, or go to where it is."""
    session.handoff = handoff = Handoff()
    if port is None:
        return {"port": handoff.listen()}
    handoff.connect(port)
    return {}


def again(session: WorkerSession, seed: int) -> _Answer:
    """Set the case up once more: what its addresses do to its time is drawn anew, without a new process.

    The same code on the same numbers passed its check in this process. A ballast of random sizes, there until the
    next time, sees to it that other memory is free than before.
    """
    import torch

    from meprop_bench.workloads import setup

    session.passed()
    assert session.case is not None
    blocks = blocks_of(session)
    session.prepared = session.checked = None
    blocks.release()
    rng = random.Random(seed)
    session.ballast = [torch.empty(rng.randrange(1, most), dtype=torch.uint8) for most in _BALLAST]
    with side_by_side(session.case):
        session.prepared = prepared = setup(session.case)
        warm_up(prepared.method, blocks.clock, seconds=0.0)  # touches the new memory
    session.checked = prepared, blocks.clock
    blocks.use(prepared)
    return {}


def interleave(
    session: WorkerSession,
    me: str,
    plan: Sequence[tuple[str, str, float]],
    loops: Mapping[str, int],
    lead: int,
    number: int = 0,
) -> _Answer:
    """Time one side in blocks, alternating with another worker that has the same plan.

    The plan, which has a number, says of each block who times it, which side ("baseline" or "method"), and by what
    share it is slowed; `me` are ours. A block has `loops[side]` iterations that are timed after `lead` that are not.
    """
    taken: list[_Answer] = []
    handoff: Handoff = session.handoff or Handoff()
    try:
        blocks = blocks_of(session)
        for index, (who, side, slowdown) in enumerate(plan):
            if who != me:
                continue
            if index and plan[index - 1][0] != me and not handoff.wait(number):
                return {"blocks": taken, "stopped": True}
            values, disturbed = blocks.take(side, loops[side], lead, slowdown)
            taken.append({"values": values, "disturbed": disturbed})
            if index + 1 < len(plan) and plan[index + 1][0] != me and not handoff.give(number):
                return {"blocks": taken, "stopped": True}
    except BaseException:
        if session.handoff is not None:
            session.handoff.stop(number)
        raise
    return {"blocks": taken, "stopped": False}
