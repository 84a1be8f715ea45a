"""Zeros in the rows of a kept dense gradient: `kernels.kept` says what for, and what is looked at before."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from meprop_bench.ops.kernels.kept import SAMPLE, TRIES
from meprop_bench.ops.kernels.native.compiler import function, view, zero_row
from meprop_bench.ops.kernels.native.vectors import declare

__all__ = ["blank", "blank_all", "look_at"]

_PLACES = 64
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
    if m > SAMPLE:
        lines = m // SAMPLE
        mixed = seed * 6364136223846793005
        for i in range(_PLACES):
            # Multiples of the golden ratio spread them; `seed` shifts them from call to call.
            mixed += -7046029254386353131
            line = (((mixed >> 32) & 0x7FFFFFFF) * lines) >> 31
            example = x + 4 * m * ((seed + i) % b)
            for _ in range(TRIES):
                if _some(example + 4 * SAMPLE * line, SAMPLE, 0x7FFFFFFF):
                    break
                line = line + 1 if line + 1 < lines else 0
            places[i] = 4 * SAMPLE * line
    return places


@function()
def _sample(dw, m, j, places):
    """Return where to look in row j: a whole line of the cache, if the row has one there."""
    row = dw + 4 * j * m
    at = (row + places[j % _PLACES] + 63) // 64 * 64
    return min(at, row + 4 * (m - SAMPLE)) if m > SAMPLE else row


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
            if _some(_sample(dw, m, j, places), min(m, SAMPLE), -1):
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
