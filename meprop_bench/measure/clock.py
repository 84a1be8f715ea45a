"""Clocks, injected into everything that measures time, so that schedulers are tested with a fake one and never sleep.

Two facts shape the protocol. A CUDA kernel runs after the call that launched it returned, so reading the wall clock
around a call times the launch: events recorded in the stream are read instead, and only once at the end of the loop,
because a synchronisation in between would add its own 10 microseconds. And a Python loop has a price of its own, so
loops bind everything locally, sums are left for later, and a value lasts long enough to hide the rest.

    clock.time(fn, loops)             seconds for one call of fn, averaged over a loop
    clock.time_phases(phases, loops)  the same for consecutive phases of one iteration: forward, backward, update

What is timed is chosen by the clock (`clock_for`), the code under test knows nothing of it:

    WallClock        perf_counter                         the CPU; on CUDA, what a program sees from outside
    CudaEventClock   events in the stream                 the device's time, launches included where they are the slower
    CudaGraphClock   events around replays of a graph     the device's time without launches: what a captured step costs
    ColdClock        any of them, caches emptied before   what data cost that come from memory

The average over a loop hides the spread within it; the spread is what the many values are for.

A graph. A launch costs the CPU 2 to 10 microseconds, and a sparse backward pass of a few small kernels is nothing but
launches: the device waits for the next one. A graph records the kernels of a call once, then one call replays them
all, without Python, dispatcher or allocator in between. What may be captured has fixed addresses and shapes and never
waits for the device (`item()`, a copy to the host, a sparse gradient whose number of rows depends on the data); any
other call is an error, never a silent measurement of something else. Autograd runs a backward pass on the stream of its
forward pass, and a capture sees its own stream alone: whoever wants one captured sets it up on that stream
(`on_capture_stream`). A replay works on the inputs that were captured; an optimizer's state moves on with each.

Cold caches. A call that is timed again and again finds weights and inputs where the last call left them: a layer of
500 x 500 floats (1 MB) then never touches memory, though in training the optimizer has walked over everything in
between. Cold, each iteration follows a walk over a buffer larger than the last-level caches (CPU) or the L2 cache
(CUDA), by all threads of torch, timed as a phase of its own and thrown away: on CUDA nothing waits in between, and the
launch hides behind the eviction. Phases of one iteration follow each other without one, as in training. A value then
holds two readings of the clock for each call instead of for each loop (`overhead`'s "phase"), and an eviction costs
4 ms on the CPU below. Translation caches and branch predictors are swept in passing, not on purpose.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise, repeat
from typing import Any, Protocol

from meprop_bench.measure import procfs

__all__ = [
    "CACHES", "LAUNCHES", "Clock", "ColdClock", "CudaEventClock", "CudaGraphClock", "WallClock", "clock_for", "evictor",
    "on_capture_stream", "overhead",
]  # fmt: skip

LAUNCHES = ("eager", "graph")
"""How calls reach a GPU: launch by launch, or recorded once and replayed as one CUDA graph."""

CACHES = ("warm", "cold")
"""What a timed call may find in the caches: what the last one left there, or nothing."""

_Call = Callable[[], object]


class Clock(Protocol):
    """Tells the time and times a region."""

    def now(self) -> float:
        """Return wall seconds since an arbitrary start: for budgets, which count all that passes."""

    def synchronize(self) -> None:
        """Wait until the device has finished what was launched."""

    def time(self, fn: _Call, loops: int) -> float:
        """Call `fn` `loops` times and return the seconds of one call."""

    def time_phases(self, phases: Mapping[str, _Call], loops: int) -> dict[str, float]:
        """Call the phases in their order, `loops` rounds of them, and return the seconds of each for one round."""


class WallClock:
    """`time.perf_counter` around a region; on a CUDA device it waits for the device at both ends."""

    def __init__(self, device: str = "cpu", timer: Callable[[], float] = time.perf_counter) -> None:
        self.now = timer
        self._wait = None if device == "cpu" else CudaEventClock(device).synchronize

    def synchronize(self) -> None:
        """Wait for the device; on the CPU a call that returned has finished."""
        if self._wait is not None:
            self._wait()

    def time(self, fn: _Call, loops: int) -> float:
        """Return the seconds of one call of `fn`."""
        _check_loops(loops)
        now = self.now
        wait = self._wait
        rounds = repeat(None, loops)
        if wait is None:
            start = now()
            for _ in rounds:
                fn()
            return (now() - start) / loops
        wait()
        start = now()
        for _ in rounds:
            fn()
        wait()
        return (now() - start) / loops

    def time_phases(self, phases: Mapping[str, _Call], loops: int) -> dict[str, float]:
        """Return the seconds of each phase for one round; on CUDA each boundary waits, which events do not need."""
        _check_loops(loops)
        now = self.now
        wait = self._wait
        calls = list(phases.values())
        marks: list[float] = []
        mark = marks.append
        rounds = repeat(None, loops)
        if wait is None:
            mark(now())
            for _ in rounds:
                for phase in calls:
                    phase()
                    mark(now())
        else:
            wait()
            mark(now())
            for _ in rounds:
                for phase in calls:
                    phase()
                    wait()
                    mark(now())
        return _means([end - start for start, end in pairwise(marks)], phases)


class CudaEventClock:
    """CUDA events in the current stream of a device, "cuda" or "cuda:N": its own time, not the launches'."""

    def __init__(self, device: str) -> None:
        import torch

        self._device = torch.device(device)
        if self._device.type != "cuda":
            raise ValueError(f"CUDA events need a CUDA device, got {device!r}")

    def now(self) -> float:
        """Return wall seconds."""
        return time.perf_counter()

    def synchronize(self) -> None:
        """Wait for every stream of the device."""
        import torch

        torch.cuda.synchronize(self._device)

    def time(self, fn: _Call, loops: int) -> float:
        """Return the seconds of one call of `fn` on the device."""
        _check_loops(loops)
        start, end = self._events(2)
        rounds = repeat(None, loops)
        stream = self._stream()
        self.synchronize()
        start.record(stream)
        for _ in rounds:
            fn()
        end.record(stream)
        end.synchronize()
        return _elapsed_s(start, end) / loops

    def time_phases(self, phases: Mapping[str, _Call], loops: int) -> dict[str, float]:
        """Return the device seconds of each phase for one round, from one event at each boundary."""
        _check_loops(loops)
        calls = list(phases.values())
        events = self._events(loops * len(calls) + 1)  # made beforehand: making one costs a microsecond
        stream = self._stream()
        boundary = iter(events)
        self.synchronize()
        next(boundary).record(stream)
        for _ in repeat(None, loops):
            for phase in calls:
                phase()
                next(boundary).record(stream)
        self.synchronize()
        return _means([_elapsed_s(start, end) for start, end in pairwise(events)], phases)

    def _stream(self) -> Any:
        import torch

        return torch.cuda.current_stream(self._device)

    def _events(self, count: int) -> list[Any]:
        import torch

        event: Any = torch.cuda.Event
        with torch.cuda.device(self._device):
            return [event(enable_timing=True) for _ in range(count)]


class CudaGraphClock(CudaEventClock):
    """CUDA events around replays of CUDA graphs. A function is captured once and known again by equality.

    Hand over the same functions each time (bound methods are equal to themselves), or every value pays for a capture.
    """

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self._name = device
        self._replays: dict[tuple[_Call, ...], tuple[_Call, ...]] = {}

    def replay(self, fn: _Call) -> _Call:
        """Return the call that replays `fn`; ValueError when it cannot be captured."""
        (replay,) = self._captured((fn,))
        return replay

    def time(self, fn: _Call, loops: int) -> float:
        """Return the device seconds of one replay of `fn`; ValueError when it cannot be captured."""
        return super().time(self.replay(fn), loops)

    def time_phases(self, phases: Mapping[str, _Call], loops: int) -> dict[str, float]:
        """Return the device seconds of each phase's replay, from one event at each boundary."""
        replays = self._captured(tuple(phases.values()))
        return super().time_phases(dict(zip(phases, replays, strict=True)), loops)

    def _captured(self, calls: tuple[_Call, ...]) -> tuple[_Call, ...]:
        if calls not in self._replays:
            self._replays[calls] = self._capture(calls)
        return self._replays[calls]

    def _capture(self, calls: tuple[_Call, ...]) -> tuple[_Call, ...]:
        import torch

        with torch.cuda.device(self._device):
            side, current = _capture_stream(self._name), torch.cuda.current_stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(_WARM_ROUNDS):
                    for call in calls:
                        call()
            current.wait_stream(side)
            pool = torch.cuda.graph_pool_handle()
            graphs = [torch.cuda.CUDAGraph() for _ in calls]
            try:
                for graph, call in zip(graphs, calls, strict=True):
                    with torch.cuda.graph(graph, pool=pool, stream=side):
                        call()
            except RuntimeError as error:
                reason = str(error).strip().partition("\n")[0]
                raise ValueError(f"it cannot be captured as a CUDA graph: {reason}") from error
        return tuple(graph.replay for graph in graphs)


_WARM_ROUNDS = 3
"""As torch's own documentation of whole-network capture has it."""


_streams: dict[str, Any] = {}
"""Device -> the stream of all captures."""


@contextmanager
def on_capture_stream(device: str) -> Iterator[None]:
    """Issue what is done in the block on the stream that captures use; the device has finished it at the end."""
    import torch

    with torch.cuda.device(device), torch.cuda.stream(_capture_stream(device)):
        yield
    torch.cuda.synchronize(device)


def _capture_stream(device: str) -> Any:
    import torch

    if device not in _streams:
        new_stream: Any = torch.cuda.Stream
        with torch.cuda.device(device):
            _streams[device] = new_stream()
    return _streams[device]


_EVICTION = "eviction before a cold call"

_TIMES = 4
"""Buffer / last-level caches. On an AMD EPYC that shows 32 MiB, a product with a 1 MB matrix, warm in 81 µs on one
thread, took 139, 156, 198 and 198 µs after sweeping 1, 2, 4 and 8 times that: no cache forgets in strict order."""

_USUAL_BYTES = 128 << 20
"""Where the system does not tell its caches."""


class ColdClock:
    """A clock that empties the caches of its device before each iteration, by what `evictor` gives."""

    def __init__(self, clock: Clock, evict: _Call) -> None:
        self._clock, self._evict = clock, evict

    def now(self) -> float:
        """Return wall seconds; the evictions are in them."""
        return self._clock.now()

    def synchronize(self) -> None:
        """Wait until the device has finished what was launched."""
        self._clock.synchronize()

    def time(self, fn: _Call, loops: int) -> float:
        """Return the seconds of one call of `fn`; each of the `loops` calls finds cold caches."""
        return self._clock.time_phases({_EVICTION: self._evict, "call": fn}, loops)["call"]

    def time_phases(self, phases: Mapping[str, _Call], loops: int) -> dict[str, float]:
        """Return the seconds of each phase for one round; each round begins with cold caches."""
        found = self._clock.time_phases({_EVICTION: self._evict, **phases}, loops)
        return {phase: found[phase] for phase in phases}


def evictor(device: str) -> _Call:
    """Return a call that empties the caches of a device: "cpu", "cuda" or "cuda:N"."""
    import torch

    if device == "cpu":
        numbers = torch.ones(_cpu_bytes() // 4)
        return lambda: numbers.add_(1)  # reads and writes: lines that were written have to be brought out as well
    nbytes = 2 * torch.cuda.get_device_properties(device).L2_cache_size
    zeros = torch.empty(nbytes, dtype=torch.uint8, device=device)
    return zeros.zero_


def _cpu_bytes() -> int:
    try:
        size, count = procfs.last_level_cache()
    except procfs.Unavailable:
        return _USUAL_BYTES
    return _TIMES * size * count


def clock_for(device: str, *, caches: str = "warm", graphs: bool = False) -> Clock:
    """Return the clock that is right for a device.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        caches: "warm", as the last call left them, or "cold", emptied before each iteration.
        graphs: time replays of CUDA graphs instead of launches; for a CUDA device only.

    """
    if caches not in CACHES:
        raise ValueError(f"no clock for {caches!r} caches: {' or '.join(CACHES)}")
    clock: Clock
    if device == "cpu":
        if graphs:
            raise ValueError("CUDA graphs need a CUDA device, got 'cpu'")
        clock = WallClock()
    elif device == "cuda" or device.startswith("cuda:"):
        clock = CudaGraphClock(device) if graphs else CudaEventClock(device)
    else:
        raise ValueError(f"no clock for the device {device!r}: cpu, cuda or cuda:N")
    if caches == "warm":
        return clock
    return ColdClock(clock, evictor(device))


def overhead(clock: Clock, *, loops: int = 100, repeats: int = 50) -> dict[str, float]:
    """Measure what a clock says of a function that does nothing.

    Returns:
        Seconds, the least of `repeats` values, of "call": one of many calls in a loop; "single": a loop of one;
        "phase": one phase of several. All values hold it, on both sides of a pair: none is corrected for it.

    """
    phases = {"first": _nothing, "second": _nothing}
    return {
        "call": min(clock.time(_nothing, loops) for _ in range(repeats)),
        "single": min(clock.time(_nothing, 1) for _ in range(repeats)),
        "phase": min(clock.time_phases(phases, loops)["second"] for _ in range(repeats)),
    }


def _nothing() -> None:
    pass


def _check_loops(loops: int) -> None:
    if loops < 1:
        raise ValueError(f"loops is at least 1, got {loops!r}")


def _means(spans: Sequence[float], phases: Iterable[str]) -> dict[str, float]:
    """Average the spans of each phase; they come round by round."""
    names = list(phases)
    rounds = [spans[index :: len(names)] for index in range(len(names))]
    return {name: sum(taken) / len(taken) for name, taken in zip(names, rounds, strict=True)}


def _elapsed_s(start: Any, end: Any) -> float:
    return float(start.elapsed_time(end)) / 1e3
