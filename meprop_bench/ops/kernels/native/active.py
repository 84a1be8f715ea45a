"""A linear layer of which each example has its own active neurons, given as bits: forward and backward.

    y[e, j] = W[j] · x[e] + b[j]   where j is active for e, else 0
    dW[j]   = Σ_{e : j active for e} dy[e, j] x[e]        db[j] = Σ_{e : j active for e} dy[e, j]
    dx[e]   = Σ_{j : j active for e} dy[e, j] W[j]

The bits of a batch are gathered once, by example and, transposed 64 by 64, by neuron. With those nothing is selected,
counted or sorted: who needs the examples of a neuron, or the neurons of an example, walks along a word. 50 examples of
500 neurons are 7 KB, which the backward pass keeps from the forward pass.

Forward, a row of W is read once for 64 examples, whose rows of x stay in the second cache, and up to `GROUP` of them
are multiplied with it at once. Backward, zeros of dy (behind a ReLU about every third) are left out, and rows of dW and
dx are sums of rows as in `example`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from meprop_bench.ops.kernels.native.compiler import function, trailing_zeros, view, zero_row
from meprop_bench.ops.kernels.native.example import sum_rows
from meprop_bench.ops.kernels.native.threads import OPENMP, body, parallel, shares
from meprop_bench.ops.kernels.native.vectors import (
    LANES,
    VECTOR,
    declare,
    either,
    fused,
    load,
    loop,
    offset,
    splat,
    store,
)

__all__ = ["BACKWARD", "FORWARD", "OPENMP", "backward", "forward", "gather", "shares", "words"]

GROUP = 8 if LANES == 16 else 4
"""Examples that are multiplied with a row of W at once: a load of W for as many multiply-adds."""
UNROLLED = 2
"""Vectors of each of them at once, so that the sums do not wait for one another."""
STEP = UNROLLED * LANES

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_INDEX = ir.VectorType(_I32, LANES)


@intrinsic
def _ones(typingctx: Any, mask: Any) -> Any:
    """Return how many bits are set."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.call(declare(builder, "llvm.ctpop.i64", ir.FunctionType(_I64, [_I64])), [arguments[0]])

    return types.int64(types.uint64), codegen


def _emit_products(builder: Any, group: int, arguments: Any) -> None:
    """Emit out[i] = w · rows[i], of m numbers, i < group; rows has the rows' addresses. m is at least LANES."""
    w, rows, m, out = arguments
    starts = [load(builder, _I64, offset(builder, rows, 8 * i)) for i in range(group)]
    zero = ir.Constant(VECTOR, [0.0] * LANES)
    four = ir.Constant(_I64, 2)

    # STEP columns: UNROLLED vectors of w, and as many of each row, whose sums stay in registers.
    def step(c: Any, sums: list[Any]) -> list[Any]:
        at = builder.shl(c, four)
        new = []
        for v in range(UNROLLED):
            shifted = offset(builder, at, 4 * LANES * v)
            left = load(builder, VECTOR, builder.add(w, shifted))
            new += [
                fused(builder, left, load(builder, VECTOR, builder.add(row, shifted)), sums[v * group + i])
                for i, row in enumerate(starts)
            ]
        return new

    whole = builder.and_(m, ir.Constant(_I64, -STEP))
    sums = loop(builder, (ir.Constant(_I64, 0), whole), STEP, [zero] * (group * UNROLLED), step, may_be_empty=True)
    for v in range(1, UNROLLED):
        sums[:group] = [builder.fadd(one, other) for one, other in zip(sums[:group], sums[v * group :], strict=False)]

    # What is left, a vector at a time; the last one reaches back, without the columns that it has in common.
    def rest(c: Any, sums: list[Any]) -> list[Any]:
        last = builder.sub(m, ir.Constant(_I64, LANES))
        at = builder.select(builder.icmp_signed("<", c, last), c, last)
        seen = splat(builder, _INDEX, builder.trunc(builder.sub(c, at), _I32))
        new = builder.icmp_signed(">=", ir.Constant(_INDEX, list(range(LANES))), seen)
        at = builder.shl(at, four)
        left, *right = (builder.select(new, load(builder, VECTOR, builder.add(row, at)), zero) for row in (w, *starts))
        return [fused(builder, left, each, total) for each, total in zip(right, sums, strict=True)]

    sums = loop(builder, (whole, m), LANES, sums[:group], rest, may_be_empty=True)
    add = declare(builder, f"llvm.vector.reduce.fadd.v{LANES}f32", ir.FunctionType(_F32, [_F32, VECTOR]))
    for i, total in enumerate(sums):
        number = builder.call(add, [ir.Constant(_F32, -0.0), total], fastmath=("reassoc",))
        store(builder, number, offset(builder, out, 4 * i))


@intrinsic
def _products(typingctx: Any, count: Any, w: Any, rows: Any, m: Any, out: Any) -> Any:
    """Multiply `count` rows, 1 to GROUP, with one."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        chosen, *others = arguments
        either(builder, chosen, {n: partial(_emit_products, builder, n, others) for n in range(1, GROUP + 1)})
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


@function()
def _multiply(group, w, rows, m, out):
    """Multiply `group` rows with one: as `_products`, for any m."""
    if m >= LANES:
        _products(group, w, rows, m, out)
        return
    left, results, starts = view(w, m, np.float32), view(out, group, np.float32), view(rows, group, np.int64)
    for i in range(group):
        right, total = view(starts[i], m, np.float32), np.float32(0)
        for c in range(m):
            total += left[c] * right[c]
        results[i] = total


@function()
def _blocks(count):
    return (count + 63) // 64


@function(types.int64(types.int64, types.int64))
def words(b, n):
    """Return how many words the bits of a batch take: by example (b, ⌈n / 64⌉), then by neuron (n', ⌈b / 64⌉), n'
    being n rounded up to a multiple of 64.
    """
    return b * _blocks(n) + 64 * _blocks(n) * _blocks(b)


@function()
def _transpose(a):
    """Transpose 64 x 64 bits in place: bit c of word r becomes bit r of word c, by halves of halves."""
    distance, low = 32, np.uint64(0xFFFFFFFF)
    while distance > 0:
        shift = np.uint64(distance)
        for start in range(0, 64, 2 * distance):
            for r in range(start, start + distance):
                swapped = ((a[r] >> shift) ^ a[r + distance]) & low
                a[r + distance] ^= swapped
                a[r] ^= swapped << shift
        distance >>= 1
        low ^= low << np.uint64(distance)


@function(types.int64(*[types.int64] * 7))
def gather(bits, ids, examples, b, n, width, gathered):
    """Gather the bits of a batch; return how many are set, or -1 if there is no such example.

    Args:
        bits: uint8 (examples, width), the lowest bit first; what exceeds n is passed over.
        ids: int64 (b,), which of the examples.
        examples, b, n, width: sizes.
        gathered: `words(b, n)` words, written.

    """
    across, down = _blocks(n), _blocks(b)
    chosen = view(ids, b, np.int64)
    for e in range(b):
        if not 0 <= chosen[e] < examples:
            return -1
        row = view(gathered + 8 * e * across, 8 * across, np.uint8)
        row[:width] = view(bits + chosen[e] * width, width, np.uint8)
        row[width:] = 0
    rows = view(gathered, (b, across), np.uint64)
    if n & 63:
        for e in range(b):
            rows[e, across - 1] &= (np.uint64(1) << np.uint64(n & 63)) - np.uint64(1)
    columns = view(gathered + 8 * b * across, (64 * across, down), np.uint64)
    block = np.empty(64, np.uint64)
    total = 0
    for i in range(across):
        for t in range(down):
            inside = min(64, b - 64 * t)
            for r in range(inside):
                block[r] = rows[64 * t + r, i]
                total += _ones(block[r])
            block[inside:] = 0
            _transpose(block)
            for c in range(64):
                columns[64 * i + c, t] = block[c]
    return total


# The words of both regions, int64 each: sizes, flags, and addresses of contiguous memory (0: not there).
(
    _ROWS,  # by example, see `words`
    _COLUMNS,  # by neuron
    _X,  # float32 (B, M)
    _W,  # float32 (N, M)
    _BIAS,  # float32 (N,)
    _Y,  # float32 (B, N), written
    _DY,  # float32 (B, N)
    _DX,  # float32 (B, M), written
    _DW,  # float32 (N, M), written
    _DB,  # float32 (N,), written
    _B,
    _N,
    _M,
) = range(13)
WORDS = 13
"""After them come the cuts, `shares` + 1: where each share's neurons begin, and where the last one's end."""


@function()
def _begin(shares, gathered, b, n, m, pairs):
    """Return the words that both regions have; the cuts are where each share gets about as many pairs."""
    a, down = np.zeros(WORDS + shares + 1, np.int64), _blocks(b)
    a[_ROWS], a[_COLUMNS] = gathered, gathered + 8 * b * _blocks(n)
    a[_B], a[_N], a[_M] = b, n, m
    columns = view(a[_COLUMNS], (n, down), np.uint64)
    a[WORDS + 1 :] = n
    seen, share = 0, 1
    for j in range(n):
        for t in range(down):
            seen += _ones(columns[j, t])
        while share < shares and seen * shares >= pairs * share:
            a[WORDS + share] = j + 1
            share += 1
    return a


def _forward(a, share, shares):
    """Compute a share of the columns of y: a block of 64 examples, and in it neuron by neuron."""
    a = carray(a, WORDS + shares + 1)
    batch, n, m = a[_B], a[_N], a[_M]
    low, high = a[WORDS + share], a[WORDS + share + 1]
    columns = view(a[_COLUMNS], (n, _blocks(batch)), np.uint64)
    y, bias = view(a[_Y], (batch, n), np.float32), view(a[_BIAS], n, np.float32)
    for e in range(batch):
        y[e, low:high] = 0
    examples, rows, results = np.empty(64, np.int64), np.empty(64, np.int64), np.empty(GROUP, np.float32)
    for t in range(_blocks(batch)):
        for j in range(low, high):
            mask, count = columns[j, t], 0
            while mask != 0:
                e = 64 * t + trailing_zeros(mask)
                mask &= mask - np.uint64(1)
                examples[count], rows[count] = e, a[_X] + 4 * m * e
                count += 1
            added = bias[j] if a[_BIAS] != 0 else np.float32(0)
            for first in range(0, count, GROUP):
                group = min(GROUP, count - first)
                _multiply(group, a[_W] + 4 * m * j, rows.ctypes.data + 8 * first, m, results.ctypes.data)
                for i in range(group):
                    y[examples[first + i], j] = results[i] + added


def _backward(a, share, shares):
    """Compute dW and db of a share of the neurons, then dx of a share of the examples."""
    a = carray(a, WORDS + shares + 1)
    batch, n, m = a[_B], a[_N], a[_M]
    dy, db = view(a[_DY], (batch, n), np.float32), view(a[_DB], n, np.float32)
    most = max(batch, n)
    others, values = np.empty(most, np.int32), np.empty(most, np.float32)
    # Neuron by neuron, the examples whose gradient is not zero.
    columns = view(a[_COLUMNS], (n, _blocks(batch)), np.uint64)
    for j in range(a[WORDS + share], a[WORDS + share + 1]):
        count, total = 0, np.float32(0)
        for t in range(_blocks(batch)):
            mask = columns[j, t]
            while mask != 0:
                e = 64 * t + trailing_zeros(mask)
                mask &= mask - np.uint64(1)
                others[count], values[count] = e, dy[e, j]
                total += dy[e, j]
                count += dy[e, j] != 0
        if a[_DB] != 0:
            db[j] = total
        if a[_DW] != 0 and count > 0:
            sum_rows(a[_DW] + 4 * m * j, a[_X], m, others.ctypes.data, values.ctypes.data, 0, count, False)
        elif a[_DW] != 0:
            zero_row(a[_DW] + 4 * m * j, m, False)
    # Example by example, the neurons whose gradient is not zero.
    if a[_DX] == 0:
        return
    rows = view(a[_ROWS], (batch, _blocks(n)), np.uint64)
    for e in range(batch * share // shares, batch * (share + 1) // shares):
        count = 0
        for i in range(_blocks(n)):
            mask = rows[e, i]
            while mask != 0:
                j = 64 * i + trailing_zeros(mask)
                mask &= mask - np.uint64(1)
                others[count], values[count] = j, dy[e, j]
                count += dy[e, j] != 0
        sum_rows(a[_DX] + 4 * m * e, a[_W], m, others.ctypes.data, values.ctypes.data, 0, count, False)


FORWARD, BACKWARD = body(_forward), body(_backward)


@function(types.void(*[types.int64] * 12))
def forward(openmp, run, shares, gathered, pairs, x, w, bias, y, b, n, m):
    """Compute y; for words of the region, see there.

    Args:
        openmp, run: `OPENMP`, `FORWARD`.
        shares: into how many the work is cut.
        gathered, pairs: what `gather` wrote and returned.

    """
    a = _begin(shares, gathered, b, n, m, pairs)
    a[_X], a[_W], a[_BIAS], a[_Y] = x, w, bias, y
    parallel(openmp, shares, run, a)


@function(types.void(*[types.int64] * 14))
def backward(openmp, run, shares, gathered, pairs, dy, x, w, dx, dw, db, b, n, m):
    """Compute dx, dW and db, as far as they have an address; for words of the region, see there, else `forward`."""
    a = _begin(shares, gathered, b, n, m, pairs)
    a[_DY], a[_X], a[_W], a[_DX], a[_DW], a[_DB] = dy, x, w, dx, dw, db
    parallel(openmp, shares, run, a)
