"""Clocks, injected into everything that measures time, so that schedulers are tested with a fake one and never sleep.

Two facts shape the protocol. A CUDA kernel runs after the call that launched it returned, so reading the wall clock
around a call times the launch: events recorded in the stream are read instead, and only once at the end of the loop,
because a synchronisation in between would add its own 10 microseconds. And a Python loop has a price of its own, so
loops bind everything locally, sums are left for later, and a value lasts long enough to hide the rest.

    clock.time(fn, loops)             seconds for one call of fn, averaged over a loop
    clock.time_phases(phases, loops)  the same for consecutive phases of one iteration: forward, backward, update
    overhead(clock)                   what both say of a function that does nothing; reported, never subtracted

What is timed is chosen by the clock, the code under test knows nothing of it:

    WallClock        perf_counter                         the CPU; on CUDA, what a program sees from outside
    CudaEventClock   events in the stream                 the device's time, launches included where they are the slower
    CudaGraphClock   events around replays of a graph     the device's time without launches: what a captured step costs
    ColdClock        any of them, caches emptied before   what data cost that come from memory

The trade-off: the average over a loop hides the spread within it; the spread is what the many values are for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise, repeat
from typing import Any, Protocol

__all__ = ["Clock", "CudaEventClock", "WallClock", "overhead"]


class Clock(Protocol):
    """Tells the time and times a region."""

    def now(self) -> float:
        """Return wall seconds since an arbitrary start: for budgets, which count all that passes."""

    def synchronize(self) -> None:
        """Wait until the device has finished what was launched."""

    def time(self, fn: Callable[[], object], loops: int) -> float:
        """Call `fn` `loops` times and return the seconds of one call."""

    def time_phases(self, phases: Mapping[str, Callable[[], object]], loops: int) -> dict[str, float]:
        """Call the phases in their order, `loops` rounds of them, and return the seconds of each for one round."""


class WallClock:
    """`time.perf_counter` around a region; on a CUDA device it waits for the device at both ends.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        timer: returns monotonic seconds.

    """

    def __init__(self, device: str = "cpu", timer: Callable[[], float] = time.perf_counter) -> None:
        self.now = timer
        self._wait = None if device == "cpu" else CudaEventClock(device).synchronize

    def synchronize(self) -> None:
        """Wait for the device; on the CPU a call that returned has finished."""
        if self._wait is not None:
            self._wait()

    def time(self, fn: Callable[[], object], loops: int) -> float:
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

    def time_phases(self, phases: Mapping[str, Callable[[], object]], loops: int) -> dict[str, float]:
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
    """CUDA events in the device's current stream: the device's own time, not the launches'.

    Args:
        device: "cuda" or "cuda:N".

    """

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

    def time(self, fn: Callable[[], object], loops: int) -> float:
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

    def time_phases(self, phases: Mapping[str, Callable[[], object]], loops: int) -> dict[str, float]:
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
