"""A dense weight gradient in memory that is kept from step to step, where only the rows written last are zeroed again.

    dW (n, m): k rows of numbers, n - k of zeros        fresh: n - k rows to write, and on a CPU their pages to map
                                                        kept: those of the last k rows that are not among these

At 2048 x 2048, B = 15, k = 30 on a CPU the zeros take six times as long as all the rest. So a weight has a *record*:
the memory of the gradient that was handed out last, and which of its rows were written. The next gradient takes that
memory when nobody else has it any more, as after `zero_grad(set_to_none=True)`; it is a new tensor each time, which
autograd makes `p.grad` as it is. That it is not taken too early, and not trusted too far, is what the rest is for:

* Whatever holds the memory (`p.grad` that accumulates, a hook's or an optimizer's copy of it, a view, an array of
  NumPy) counts among the users of its storage; then the gradient is fresh. So it is where the storage got other memory
  (`share_memory_`, `resize_`, a copy on write), for a thread that comes while another computes into it, and on a GPU
  where the backward pass now runs on another stream than the last one.
* A change in place that autograd counts (`p.grad.add_`, gradient accumulation, DDP) makes all rows be zeroed again.
* `p.grad.data`, NumPy, DLPack and torch's fused and `_foreach` functions are not counted. Therefore of each row that
  should be zero 16 numbers are looked at, bit for bit: at another place in each row and each time, where an example of
  the batch has an input. A change of the whole tensor or of whole rows is found by that, unless it is zero at all these
  places; then all rows are zeroed, and this weight's zeros are never trusted again. What is *not* found is a change, by
  such a way, of nothing but a few numbers of rows without a gradient, as `p.grad.data[5, 3] = 1`. Who does that sets
  the switch.

Two kernels have records, and look by themselves: `native` (`native.zeros`, and its C++ node in `ops/node/kept.h`), and
`triton_kept` on a GPU (`triton.zeros`), where nobody waits for what was found: it stays on the device.

Double backward, create_graph=True, compiled graphs and weights that are no leaves take fresh memory. A record dies
with its weight; until then the memory stays, also while `p.grad` is None: MEPROP_BENCH_GRADIENTS=fresh in the
environment, read when the first layer is called, switches it off.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable
from functools import cache
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from meprop_bench.ops import memory

__all__ = ["FRESH", "SAMPLE", "SWITCH", "TRIES", "Record", "Target", "computed", "record", "smallest"]

SWITCH = "MEPROP_BENCH_GRADIENTS"
"""The environment variable; its values are "kept", the default, and "fresh"."""
_SMALLEST = 1 << 16
"""Bytes of a gradient from which its memory is kept: what is saved then is more than what the record costs."""

SAMPLE = 16
"""Numbers that are looked at in a row: a cache line of float32."""
TRIES = 64
"""How many places are tried for one where the example has an input: images have large dark parts."""

_T = TypeVar("_T")


class Target(NamedTuple):
    """Where a dense dW goes, and what is known of its rows."""

    dw: Tensor | None  # (n, m), contiguous; None: fresh memory
    written: Tensor | None  # uint8 (n + 1,), on its device: rows that are not zero; last, whether others were not
    seed: int  # of the places to look at, another one each time


FRESH = Target(None, None, 0)


class Record:
    """The gradient of one weight that was handed out last: see the module."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: Tensor | None = None  # an alias: it shares the storage and the count of changes
        self._place = (0, 0)  # the address of its numbers, and the stream on which they were written
        self._version = self._idle = 0  # its changes, the storage's users
        self._seen = 0  # its changes when it was last not free
        self._written = torch.empty(0, dtype=torch.uint8)
        self._found = False  # whether zeros turned out to be none
        self._missed = self._seed = 0

    def take(self, n: int, m: int, like: Tensor) -> Target | None:
        """Return memory for a dW (n, m) of the dtype and on the device of another tensor, or None where it is fresh.

        Until `give`, which must follow unless something is raised, nobody else gets it.
        """
        if not self._lock.acquire(blocking=False):
            return None
        try:
            taken = self._taken(n, m, like)
        except BaseException:
            self._lock.release()
            raise
        if taken is None:
            self._lock.release()
        return taken

    def give(self, dw: Tensor | None) -> None:
        """Note what was computed; None where that failed."""
        if dw is not None:
            if memory.is_read_at_once(dw):  # else it stays in `written`, where the device reads it
                self._found = self._found or bool(self._written[-1])
            self._last = dw.detach()
            self._place = dw.untyped_storage().data_ptr(), _stream(dw)
            self._version = self._seen = dw._version
            self._idle = _users(self._last) - 1
        self._lock.release()

    def _taken(self, n: int, m: int, like: Tensor) -> Target | None:
        last, trusted = self._last, False
        if last is not None:
            version = last._version
            storage = last.untyped_storage()
            if (
                (last.shape, last.device) != ((n, m), like.device)
                or storage.nbytes() != like.element_size() * n * m
                or (storage.data_ptr(), _stream(last)) != self._place
            ):
                last = None
            else:
                del storage  # or it would be a user
                if _users(last) != self._idle:
                    # An accumulating gradient changes from one to the next; what does not may be held for long.
                    self._missed = self._missed + 1 if version == self._seen else 0
                    self._seen = version
                    if self._missed < 2:
                        return None
                    last = None
            trusted = last is not None and version == self._version and not self._found
        self._last, self._missed = None, 0
        dw = like.new_empty(n, m) if last is None else _over(last)
        if self._written.numel() != n + 1 or self._written.device != like.device:
            self._written = torch.zeros(n + 1, dtype=torch.uint8, device=like.device)
        if not trusted:
            self._written[:-1].fill_(1)
        if memory.is_read_at_once(dw):
            self._written[-1] = 0
        self._seed += 1
        return Target(dw, self._written, self._seed)


def computed(record: Record | None, n: int, m: int, like: Tensor, compute: Callable[[Target], _T]) -> _T:
    """Return what `compute` gives, which computes a dW (n, m) into the target: the record's memory, if it is free."""
    target = None if record is None else record.take(n, m, like)
    if record is None or target is None:
        return compute(FRESH)
    done = False
    try:
        found = compute(target)
        done = True
    finally:
        record.give(target.dw if done else None)
    return found


def _over(last: Tensor) -> Tensor:
    """Return a new tensor in the memory of another, with its own count of changes."""
    return last.new_empty(0).set_(last.untyped_storage(), 0, last.shape, last.stride())


def _stream(of: Tensor) -> int:
    """Return the stream on which a tensor's device is working, 0 for the CPU."""
    return torch.cuda.current_stream(of.device).cuda_stream if of.is_cuda else 0


def _users(last: Tensor) -> int:
    """Count who holds the storage of a tensor: others in C++, and in Python, where all have one object of it."""
    storage = last.untyped_storage()
    return int(torch._C._storage_Use_Count(storage._cdata)) + sys.getrefcount(storage)


@cache
def smallest() -> int:
    """Return the bytes of a gradient from which its memory is kept, 0 for never; ValueError for a wrong switch."""
    chosen = os.environ.get(SWITCH, "kept")
    if chosen not in ("kept", "fresh"):
        raise ValueError(f'{SWITCH}={chosen}: its values are "kept" and "fresh"')
    return _SMALLEST if chosen == "kept" and hasattr(torch._C, "_storage_Use_Count") else 0


_records: dict[int, tuple[weakref.ref[Tensor], Record]] = {}


def record(w: Tensor) -> Record | None:
    """Return the record of a weight, or None where it is too small, no leaf, or the switch is set."""
    least = smallest()
    if least == 0 or w.element_size() * w.numel() < least or w.grad_fn is not None:
        return None
    key = id(w)
    found = _records.get(key)
    if found is None or found[0]() is not w:
        found = _records[key] = (weakref.ref(w, lambda gone: _forget(key, gone)), Record())
    return found[1]


def _forget(key: int, gone: weakref.ref[Tensor]) -> None:
    found = _records.get(key)
    if found is not None and found[0] is gone:
        del _records[key]
