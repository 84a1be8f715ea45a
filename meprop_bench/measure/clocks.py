"""Which clock is right for a device, its launches and its caches: the one place that knows all of them."""

from __future__ import annotations

from meprop_bench.measure.clock import Clock, CudaEventClock, WallClock
from meprop_bench.measure.cold import ColdClock, evictor
from meprop_bench.measure.graph import CudaGraphClock

__all__ = ["CACHES", "LAUNCHES", "clock_for"]

LAUNCHES = ("eager", "graph")
"""How calls reach a GPU: launch by launch, or recorded once and replayed as one CUDA graph."""

CACHES = ("warm", "cold")
"""What a timed call may find in the caches: what the last one left there, or nothing."""


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
