"""A dense weight gradient in memory that is kept from step to step, where only the rows written last are zeroed again.

    dW (n, m): k rows of numbers, n - k of zeros        fresh: n - k rows to write, and their pages to map
                                                        kept: those of the last k rows that are not among these

At 2048 x 2048, B = 15, k = 30 the zeros take six times as long as all the rest. So a weight has a *record*: the memory
of the gradient that was handed out last, and which of its rows were written. The next gradient takes that memory when
nobody else has it any more, as after `zero_grad(set_to_none=True)`; it is a new tensor each time, which autograd makes
`p.grad` as it is. That it is not taken too early, and not trusted too far, is what the rest is for:

* Whatever holds the memory (`p.grad` that accumulates, a hook's or an optimizer's copy of it, a view, an array of
  NumPy) counts among the users of its storage; then the gradient is fresh. So it is where the storage got other memory
  (`share_memory_`, `resize_`, a copy on write), and for a thread that comes while another computes into it.
* A change in place that autograd counts (`p.grad.add_`, gradient accumulation, DDP) makes all rows be zeroed again.
* `p.grad.data`, NumPy, DLPack and torch's fused and `_foreach` functions are not counted. Therefore of each row that
  should be zero 16 numbers are looked at, bit for bit: at another place in each row and each time, where an example of
  the batch has an input. A change of the whole tensor or of whole rows is found by that, unless it is zero at all these
  places; then all rows are zeroed, and this weight's zeros are never trusted again. What is *not* found is a change, by
  such a way, of nothing but a few numbers of rows without a gradient, as `p.grad.data[5, 3] = 1`. Who does that sets
  the switch.

Double backward, create_graph=True, compiled graphs and weights that are no leaves take fresh memory. A record dies
with its weight; until then the memory stays, also while `p.grad` is None: MEPROP_BENCH_GRADIENTS=fresh in the
environment, read when the first layer is called, switches it off.

The C++ node has the same records in `ops/node/kept.h`.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from functools import cache
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from meprop_bench.ops.kernels.native.compiler import function, view, zero_row
from meprop_bench.ops.kernels.native.vectors import declare

__all__ = ["SWITCH", "Record", "blank", "blank_all", "look_at", "record", "smallest"]

SWITCH = "MEPROP_BENCH_GRADIENTS"
"""The environment variable; its values are "kept", the default, and "fresh"."""
_SMALLEST = 1 << 16
"""Bytes of a gradient from which its memory is kept: what is saved then is more than what the record costs."""

_SAMPLE = 16
_PLACES = 64
_TRIES = 64
"""How many places are tried for one where the example has an input: images have large dark parts."""
_AHEAD = 24
"""Rows between fetching numbers and looking at them, so that their ways from memory overlap."""


@intrinsic
def _fetch(typingctx: Any, address: Any) -> Any:
    """Begin to fetch what is at an address."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        read, near, data = (ir.Constant(number, value) for value in (0, 3, 1))
        place = builder.inttoptr(arguments[0], pointer)
        builder.call(declare(builder, "llvm.prefetch.p0i8", kind), [place, read, near, data])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@function()
def _some(numbers, length, mask):
    """Whether any of some float32 numbers at an address has a bit of the mask."""
    row, found = view(numbers, length, np.int32), np.int32(0)
    for i in range(length):
        found |= row[i]
    return found & mask != 0


@function()
def look_at(x, b, m, seed):
    """Return the places of a row, in bytes, at which to look: where examples of x (b, m) have inputs, if they do."""
    places = np.zeros(_PLACES, np.int64)
    if m > _SAMPLE:
        lines = m // _SAMPLE
        mixed = seed * 6364136223846793005
        for i in range(_PLACES):
            # Multiples of the golden ratio spread them; `seed` shifts them from call to call.
            mixed += -7046029254386353131
            line = (((mixed >> 32) & 0x7FFFFFFF) * lines) >> 31
            example = x + 4 * m * ((seed + i) % b)
            for _ in range(_TRIES):
                if _some(example + 4 * _SAMPLE * line, _SAMPLE, 0x7FFFFFFF):
                    break
                line = line + 1 if line + 1 < lines else 0
            places[i] = 4 * _SAMPLE * line
    return places


@function()
def _sample(dw, m, j, places):
    """Return where to look in row j: a whole line of the cache, if the row has one there."""
    row = dw + 4 * j * m
    at = (row + places[j % _PLACES] + 63) // 64 * 64
    return min(at, row + 4 * (m - _SAMPLE)) if m > _SAMPLE else row


@function()
def blank(dw, n, m, first, last, written, places, streaming):
    """Have zeros in rows [first, last) of dW (n, m).

    `written`, uint8 (n + 1,), says which rows are not zero, or is 0 where nothing is known; its last entry is set where
    a row turns out not to be zero against what it says. `places` are those of `look_at`.
    """
    flags = view(written, n + 1, np.uint8)
    for j in range(first, last):
        row = dw + 4 * j * m
        if written == 0:
            zero_row(row, m, streaming)
        elif flags[j] != 0:
            zero_row(row, m, streaming)
            flags[j] = 0
        else:
            _fetch(_sample(dw, m, min(j + _AHEAD, n - 1), places))
            if _some(_sample(dw, m, j, places), min(m, _SAMPLE), -1):
                zero_row(row, m, streaming)
                flags[n] = 1


@function()
def blank_all(dw, n, m, written):
    """Write zeros to all rows that were not written, after `blank` has found one that was not zero."""
    if written == 0:
        return
    flags = view(written, n + 1, np.uint8)
    if flags[n] != 0:
        for j in range(n):
            if flags[j] == 0:
                zero_row(dw + 4 * j * m, m, False)


@cache
def smallest() -> int:
    """Return the bytes of a gradient from which its memory is kept, 0 for never; ValueError for a wrong switch."""
    chosen = os.environ.get(SWITCH, "kept")
    if chosen not in ("kept", "fresh"):
        raise ValueError(f'{SWITCH}={chosen}: its values are "kept" and "fresh"')
    return _SMALLEST if chosen == "kept" and hasattr(torch._C, "_storage_Use_Count") else 0


class Record:
    """The gradient of one weight that was handed out last: see the module."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: Tensor | None = None  # an alias: it shares the storage and the count of changes
        self._place = self._version = self._idle = 0  # where its numbers were, its changes, the storage's users
        self._written = torch.empty(0, dtype=torch.uint8)
        self._found = False  # whether zeros turned out to be none
        self._missed = self._seed = 0

    def take(self, n: int, m: int) -> tuple[Tensor, int, int] | None:
        """Return dW (n, m), and `written` of `blank` and `seed` of `look_at`, or None where it has to be fresh.

        Until `give`, which must follow unless something is raised, nobody else gets it.
        """
        if not self._lock.acquire(blocking=False):
            return None
        try:
            taken = self._taken(n, m)
        except BaseException:
            self._lock.release()
            raise
        if taken is None:
            self._lock.release()
        return taken

    def give(self, dw: Tensor | None) -> None:
        """Note what was computed; None where that failed."""
        if dw is not None:
            self._found = self._found or bool(self._written[-1])
            self._last = dw.detach()
            self._place, self._version = dw.untyped_storage().data_ptr(), dw._version
            self._idle = _users(self._last) - 1
        self._lock.release()

    def _taken(self, n: int, m: int) -> tuple[Tensor, int, int] | None:
        last, trusted = self._last, False
        if last is not None:
            unchanged = last._version == self._version
            storage = last.untyped_storage()
            if last.shape != (n, m) or storage.nbytes() != 4 * n * m or storage.data_ptr() != self._place:
                last = None
            else:
                del storage  # or it would be a user
                if _users(last) != self._idle:
                    # An accumulating gradient changes from one to the next; what does not may be held for long.
                    self._missed = self._missed + 1 if unchanged else 0
                    if self._missed < 2:
                        return None
                    last = None
            trusted = last is not None and unchanged and not self._found
        self._last, self._missed = None, 0
        dw = torch.empty(n, m) if last is None else torch.empty(0).set_(last.untyped_storage(), 0, (n, m), (m, 1))
        if self._written.numel() != n + 1:
            self._written = torch.empty(n + 1, dtype=torch.uint8)
        if not trusted:
            self._written.fill_(1)
        self._written[-1] = 0
        self._seed += 1
        return dw, self._written.data_ptr(), self._seed


def _users(last: Tensor) -> int:
    """Count who holds the storage of a tensor: others in C++, and in Python, where all have one object of it."""
    storage = last.untyped_storage()
    return int(torch._C._storage_Use_Count(storage._cdata)) + sys.getrefcount(storage)


_records: dict[int, tuple[weakref.ref[Tensor], Record]] = {}


def record(w: Tensor) -> Record | None:
    """Return the record of a weight, or None where it is too small, no leaf, or the switch is set."""
    least = smallest()
    if least == 0 or 4 * w.numel() < least or w.grad_fn is not None:
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
