"""Peak memory of tensors while a function runs: what it allocates, not what was there before.

The resident set of a process cannot tell: it includes torch itself, what the allocator keeps, and the past. So we
count the allocations themselves. Over the events e_1, e_2, … in time order, each +bytes or -bytes of a block
allocated during the call,

    peak = max_j (e_1 + … + e_j)           bytes; blocks from before the call are not counted, nor is their release

On the CPU the events come from torch's allocator hook, through the profiler: they include temporaries inside
operators and what autograd allocates in the backward pass. They are exact: a float32 tensor of 1000 elements is 4000
bytes, without alignment. What does not pass through torch's allocator is not seen (NumPy arrays, a library's own
workspaces). On CUDA the caching allocator's own counter is read; it rounds each block up to 512 bytes.

Measure memory in a pass of its own: watching costs time.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable

__all__ = ["peak_of", "peak_tensor_bytes"]


def peak_tensor_bytes(fn: Callable[[], object], device: str) -> int:
    """Call `fn` once and return the peak of bytes newly allocated for tensors while it ran.

    Args:
        fn: anything; call it once before if it fills caches at first. What it returns is alive at the end, and counted.
        device: "cpu", or "cuda:N": only that device's memory is counted.

    """
    if device == "cpu":
        return _cpu_peak(fn)
    if device == "cuda" or device.startswith("cuda:"):
        return _cuda_peak(fn, device)
    raise ValueError(f"no memory counter for the device {device!r}: cpu, cuda or cuda:N")


def peak_of(events: Iterable[int]) -> int:
    """Return the highest running sum of signed sizes, at least 0."""
    current = peak = 0
    for size in events:
        current += size
        peak = max(peak, current)
    return peak


def _cpu_peak(fn: Callable[[], object]) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it reports each start and stop on standard error
    from torch.autograd.profiler import profile

    gc.collect()
    with profile(use_kineto=True, profile_memory=True) as profiler:
        kept = fn()
    del kept
    results = profiler.kineto_results
    assert results is not None
    events = [e for e in results.events() if e.name() == "[memory]" and e.device_type().name == "CPU"]
    return peak_of(int(e.nbytes()) for e in sorted(events, key=lambda e: int(e.start_ns())))


def _cuda_peak(fn: Callable[[], object], device: str) -> int:
    import torch

    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    kept = fn()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    del kept
    return int(peak - before)
