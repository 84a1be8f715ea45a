"""Cold caches: each iteration finds its data in memory, as the first layer of a large model does in each step.

A call that is timed again and again finds weights and inputs where the last call left them. A layer of 500 x 500
floats (1 MB) then never touches memory, though in training the optimizer has walked over everything in between. So

    time(fn, loops) = the mean over `loops` of   evict(), then fn() between two readings of the clock

where `evict` walks over a buffer larger than the last-level caches (CPU) or the L2 cache (CUDA), by all threads of
torch, so that the caches of each core are swept, too. It is timed as a phase of its own and thrown away: on CUDA
nothing waits in between, and the launch of `fn` hides behind the eviction. Phases of one iteration follow each other
without an eviction, as in training, where the backward pass finds what the forward pass left.

The trade-off: a value holds two readings of the clock for each call instead of for each loop (`overhead`'s "phase"),
and an eviction costs 4 ms on the CPU below. Translation caches and branch predictors are swept in passing, not on
purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from meprop_bench.measure import procfs
from meprop_bench.measure.clock import Clock

__all__ = ["ColdClock", "evictor"]

_EVICTION = "eviction before a cold call"

_TIMES = 4
"""Buffer / last-level caches. On an AMD EPYC that shows 32 MiB, a product with a 1 MB matrix, warm in 81 µs on one
thread, took 139, 156, 198 and 198 µs after sweeping 1, 2, 4 and 8 times that: no cache forgets in strict order."""

_USUAL_BYTES = 128 << 20
"""Where the system does not tell its caches."""


class ColdClock:
    """A clock that empties the caches before each iteration.

    Args:
        clock: tells the time.
        evict: empties the caches of the clock's device; see `evictor`.

    """

    def __init__(self, clock: Clock, evict: Callable[[], object]) -> None:
        self._clock, self._evict = clock, evict

    def now(self) -> float:
        """Return wall seconds; the evictions are in them."""
        return self._clock.now()

    def synchronize(self) -> None:
        """Wait until the device has finished what was launched."""
        self._clock.synchronize()

    def time(self, fn: Callable[[], object], loops: int) -> float:
        """Return the seconds of one call of `fn`; each of the `loops` calls finds cold caches."""
        return self._clock.time_phases({_EVICTION: self._evict, "call": fn}, loops)["call"]

    def time_phases(self, phases: Mapping[str, Callable[[], object]], loops: int) -> dict[str, float]:
        """Return the seconds of each phase for one round; each round begins with cold caches."""
        found = self._clock.time_phases({_EVICTION: self._evict, **phases}, loops)
        return {phase: found[phase] for phase in phases}


def evictor(device: str) -> Callable[[], object]:
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
