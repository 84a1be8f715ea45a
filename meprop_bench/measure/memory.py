"""Peak memory while a function runs: of tensors, of CUDA's caching allocator, and of the process.

Tensors. The resident set of a process cannot tell what a function needs: it includes torch itself, what the allocator
keeps, and the past. So we count the allocations themselves. Over the events e_1, e_2, … in time order, each +bytes or
-bytes of a block allocated during the call,

    peak = max_j (e_1 + … + e_j)           bytes; blocks from before the call are not counted, nor is their release

On the CPU the events come from torch's allocator hook, through the profiler: they include temporaries inside
operators and what autograd allocates in the backward pass. They are exact: a float32 tensor of 1000 elements is 4000
bytes, without alignment. Blocks are told apart by address, since the profiler reports the release of older ones, too,
with a size that may be a former block's at the same address. What does not pass through torch's allocator is not seen
(NumPy arrays, a library's own workspaces). On CUDA the caching allocator's own counters are read: *allocated* rounds
each block up to 512 bytes, *reserved* is what it takes from the driver in segments of 2 MiB and more; its cache is
emptied first.

Process. What the machine has to have: the kernel's high-water mark of the resident set, set back before the call, and
how far it rises above the resident set at that moment. It holds what the tensors' count misses, and it depends on the
heap: memory that was freed and kept (the allocator "kept") is resident already, so a second call hardly grows. Where
the mark cannot be set back (not Linux, or not permitted) the resident set is sampled every millisecond, which misses
shorter peaks.

Measure memory in a pass of its own: watching costs time.
"""

from __future__ import annotations

import gc
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["MemoryPeaks", "ProcessPeak", "peak_of", "peak_process_bytes", "peak_tensor_bytes", "peaks_of"]

_PROC = Path("/proc/self")
_SAMPLE_S = 1e-3


@dataclass(frozen=True)
class ProcessPeak:
    """The process's resident set while a function ran."""

    peak_bytes: int  # the highest, everything included
    growth_bytes: int  # how much of it was not there before
    exact: bool  # the kernel's own high-water mark; otherwise sampled


@dataclass(frozen=True)
class MemoryPeaks:
    """The peaks of one call in bytes, each on top of what was there before except `process_bytes`."""

    tensor_bytes: int  # fresh tensors
    reserved_bytes: int | None = None  # what CUDA's caching allocator took from the driver; None on the CPU
    process_bytes: int | None = None  # the process's resident set, everything included; None on CUDA
    growth_bytes: int | None = None  # how much of that is new; None on CUDA
    exact: bool | None = None  # whether the process's figures are the kernel's own; None on CUDA


def peaks_of(fn: Callable[[], object], device: str, before: Callable[[], object] | None = None) -> MemoryPeaks:
    """Call `fn` and return all its peaks: once on CUDA, twice on the CPU, where the profiler itself takes memory.

    `before` is called before each call, and not counted: the forward pass that a backward pass needs.
    """
    prepare = before or (lambda: None)
    prepare()
    if device != "cpu":
        return MemoryPeaks(*_cuda_peaks(fn, _checked(device)))
    tensors = peak_tensor_bytes(fn)
    prepare()
    process = peak_process_bytes(fn)
    return MemoryPeaks(tensors, None, process.peak_bytes, process.growth_bytes, process.exact)


def peak_process_bytes(fn: Callable[[], object], proc: Path = _PROC) -> ProcessPeak:
    """Call `fn` once and return the peak of the process's resident set while it ran; what it returns is counted."""
    try:
        (proc / "clear_refs").write_text("5")  # sets the high-water mark back to the resident set, and nothing else
        before, _ = _resident(proc)
    except (OSError, ValueError):
        return _sampled_peak(fn)
    alive = fn()
    _, peak = _resident(proc)
    del alive
    return ProcessPeak(peak, max(0, peak - before), exact=True)


def peak_of(events: Iterable[tuple[int, int]]) -> int:
    """Return the most bytes that were allocated at a time.

    The events are in time order: address of a block and its bytes, negative when it is released. A release of a block
    that was not allocated in `events` counts nothing.
    """
    current = peak = 0
    live: dict[int, int] = {}
    for address, size in events:
        if size > 0:
            live[address] = size
            current += size
        else:
            current -= live.pop(address, 0)
        peak = max(peak, current)
    return peak


def _checked(device: str) -> str:
    if device == "cuda" or device.startswith("cuda:"):
        return device
    raise ValueError(f"no memory counter for the device {device!r}: cpu, cuda or cuda:N")


def peak_tensor_bytes(fn: Callable[[], object]) -> int:
    """Call `fn` once and return the peak of bytes newly allocated for tensors of the CPU.

    Call it once before if it fills caches at first. What it returns is alive at the end, and counted.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it reports each start and stop on standard error
    from torch.autograd.profiler import profile

    gc.collect()
    with profile(use_kineto=True, profile_memory=True) as profiler:
        alive = fn()
    del alive
    results = profiler.kineto_results
    assert results is not None
    return peak_of((address, size) for _, address, size in sorted(_allocations(results.experimental_event_tree())))


def _allocations(tree: Iterable[Any]) -> Iterator[tuple[int, int, int]]:
    """Find the allocator's events on the CPU anywhere in the profiler's tree: nanoseconds, address, signed bytes."""
    waiting = list(tree)
    while waiting:
        event = waiting.pop()
        waiting += event.children
        found = event.extra_fields
        if hasattr(found, "alloc_size") and found.device.type == "cpu":
            yield int(event.start_time_ns), int(found.ptr), int(found.alloc_size)


def _cuda_peaks(fn: Callable[[], object], device: str) -> tuple[int, int]:
    """Return the peaks of allocated and of reserved bytes above those at the start."""
    import torch

    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()  # or what earlier calls left would be reserved already
    torch.cuda.reset_peak_memory_stats(device)
    allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    alive = fn()
    torch.cuda.synchronize(device)
    peaks = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    del alive
    return int(peaks[0] - allocated), int(peaks[1] - reserved)


def _resident(proc: Path) -> tuple[int, int]:
    """Return the resident set and its high-water mark in bytes; ValueError where the kernel does not show them."""
    text = (proc / "status").read_text()
    found = [re.search(rf"^{key}:\s*(\d+) kB$", text, re.MULTILINE) for key in ("VmRSS", "VmHWM")]
    if found[0] is None or found[1] is None:
        raise ValueError("no resident set in status")
    return 1024 * int(found[0][1]), 1024 * int(found[1][1])


def _sampled_peak(fn: Callable[[], object]) -> ProcessPeak:
    import psutil

    process = psutil.Process()
    before = int(process.memory_info().rss)
    seen = [before]
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(_SAMPLE_S):
            seen.append(int(process.memory_info().rss))

    thread = threading.Thread(target=sample, daemon=True, name="memory")
    thread.start()
    try:
        alive = fn()
        seen.append(int(process.memory_info().rss))
    finally:
        ended.set()
        thread.join()
    del alive
    return ProcessPeak(max(seen), max(seen) - before, exact=False)
