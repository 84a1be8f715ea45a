"""A dense linear layer, forward and backward; float32 on the CPU.

    y (B, n) = max(x (B, m) · W (n, m)ᵀ + b (n,), 0)           with the ReLU behind it, or without
    dx = dy W,  dW = dyᵀ x,  db = Σ_batch dy                   the products of `unified`, with all neurons selected

In the forward pass both operands have the summed dimension contiguous, so that each result is a dot product of a row
with a row, and nothing has to be packed or transposed: a tile of some examples and ROWS neurons keeps its sums, a
vector each, in registers, and adds the lanes of four vectors up in one go at its end. With AVX-512 a tile is up to
6 x 4 (24 of the 32 registers), else 3 x 4 (12 of 16). A row of W is read once for each panel of examples, and comes
from the first cache for all tiles of it but the first.

This is for what trains without torch's operators (`ops.perceptron`), sparsified or dense. In small batches a general
product spends its time on setting up, and torch's does not use AVX-512 on every processor that has it.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic
from torch import Tensor

from meprop_bench.ops import memory
from meprop_bench.ops.kernels import Gradients, kept
from meprop_bench.ops.kernels.native import plan, unified
from meprop_bench.ops.kernels.native.compiler import function, view
from meprop_bench.ops.kernels.native.threads import OPENMP, body, parallel, shares
from meprop_bench.ops.kernels.native.vectors import LANES, VECTOR, either, fused, load, loop, offset, splat, store

__all__ = ["backward", "forward"]

HEIGHT = 6 if LANES == 16 else 3
"""Examples of a tile at most."""
ROWS = 4
"""Neurons of a tile."""
DEEP = 1024
"""Summands before a tile is stored: its rows of W, and a panel of x, stay in the first and second cache."""
PANEL = 10 * HEIGHT
"""Examples for which a row of W is read once."""

_AT_ONCE = 4
"""Multiply-adds in the time of one that is not in a tile."""

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_FOUR = ir.VectorType(_F32, ROWS)


def _fold(builder: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Add the lanes of four vectors up: (Σa, Σb, Σc, Σd)."""

    def mixed(first: Any, second: Any, picks: list[int]) -> Any:
        """Take four numbers of two vectors, 0 to 3 of the first and 4 to 7 of the second, in each four lanes."""
        lanes = [block + (p if p < 4 else LANES - 4 + p) for block in range(0, LANES, 4) for p in picks]
        return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(_I32, LANES), lanes))

    def paired(first: Any, second: Any, low: list[int], high: list[int]) -> Any:
        return builder.fadd(mixed(first, second, low), mixed(first, second, high))

    # (a0 + a2, b0 + b2, a1 + a3, b1 + b3) and so for c and d, then (Σa, Σb, Σc, Σd) of each four lanes.
    ab, cd = (paired(p, q, [0, 4, 1, 5], [2, 6, 3, 7]) for p, q in ((a, b), (c, d)))
    total, width = paired(ab, cd, [0, 1, 4, 5], [2, 3, 6, 7]), LANES
    while width > 4:
        width //= 2
        halves = [ir.Constant(ir.VectorType(_I32, width), [*range(s, s + width)]) for s in (0, width)]
        low, high = (builder.shuffle_vector(total, total, half) for half in halves)
        total = builder.fadd(low, high)
    return total


def _emit_tile(builder: Any, height: int, arguments: Any) -> None:
    """Emit a tile: out[e, r] = max(start[e, r] + Σ x[e, c] w[r, c], least), e < height, r < ROWS.

    All are addresses but the strides, in bytes, and: first and last, the bytes of a row where whole vectors begin and
    end; rest, how many numbers there are beyond, which end at byte `end`; least, a number.
    """
    x, stride, rows, first, last, rest, end, start, start_stride, out, out_stride, least = arguments
    examples = [builder.add(x, builder.mul(stride, ir.Constant(_I64, e))) for e in range(height)]
    neurons = [load(builder, _I64, offset(builder, rows, 8 * r)) for r in range(ROWS)]
    zero = ir.Constant(VECTOR, [0.0] * LANES)

    def multiply_add(sums: list[Any], at: Any, kept: Any = None) -> list[Any]:
        def numbers(row: Any) -> Any:
            vector = load(builder, VECTOR, builder.add(row, at))
            return vector if kept is None else builder.select(kept, vector, zero)

        left = [numbers(row) for row in examples]
        new = []
        for r, row in enumerate(neurons):
            right = numbers(row)
            new += [fused(builder, left[e], right, sums[height * r + e]) for e in range(height)]
        return new

    sums = loop(
        builder, (first, last), 4 * LANES, [zero] * (height * ROWS), lambda at, sums: multiply_add(sums, at),
        may_be_empty=True,
    )  # fmt: skip

    # The last vector of a row, in which lanes that were added before are put to zero, on both sides: 0 · inf is NaN.
    lanes = ir.Constant(ir.VectorType(_I32, LANES), [*range(LANES)])
    before = builder.sub(ir.Constant(_I32, LANES), builder.trunc(rest, _I32))
    kept = builder.icmp_signed(">=", lanes, splat(builder, ir.VectorType(_I32, LANES), before))
    at = builder.sub(end, ir.Constant(_I64, 4 * LANES))
    some = builder.zext(builder.icmp_signed(">", rest, ir.Constant(_I64, 0)), _I64)
    zeroth = ir.Constant(_I64, 0)
    sums = loop(builder, (zeroth, some), 1, sums, lambda _, sums: multiply_add(sums, at, kept), may_be_empty=True)

    bound = splat(builder, _FOUR, least)
    for e in range(height):
        total = _fold(builder, *(sums[height * r + e] for r in range(ROWS)))
        before_it = load(builder, _FOUR, builder.add(start, builder.mul(start_stride, ir.Constant(_I64, e))))
        total = builder.fadd(total, before_it)
        total = builder.select(builder.fcmp_ordered("<", total, bound), bound, total)  # NaN stays NaN
        store(builder, total, builder.add(out, builder.mul(out_stride, ir.Constant(_I64, e))))


@intrinsic
def _tile(
    typingctx: Any, height: Any, x: Any, stride: Any, rows: Any, first: Any, last: Any, rest: Any, end: Any,
    start: Any, start_stride: Any, out: Any, out_stride: Any, least: Any,
) -> Any:  # fmt: skip
    """Compute a tile of `height` examples, 1 to HEIGHT."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        chosen, *others = arguments
        either(builder, chosen, {n: partial(_emit_tile, builder, n, others) for n in range(1, HEIGHT + 1)})
        return context.get_dummy_value()

    return types.void(*[types.int64] * 12, types.float32), codegen


# The words of the parallel region, int64 each: numbers, flags, and addresses of contiguous memory.
(
    _X,  # float32 (B, M)
    _W,  # float32 (N, M)
    _BIAS,  # float32 (N,); 0: none
    _Y,  # float32 (B, N), written
    _B,
    _N,
    _M,
    _RELU,  # whether results below zero are zero
) = range(8)
WORDS = 8


@function()
def _short_rows(a, low, high):
    """Compute neurons [low, high) where a row is shorter than a vector."""
    b, n, m = a[_B], a[_N], a[_M]
    for e in range(b):
        x, y = view(a[_X] + 4 * e * m, m, np.float32), view(a[_Y] + 4 * e * n, n, np.float32)
        for j in range(low, high):
            row = view(a[_W] + 4 * j * m, m, np.float32)
            total = np.float32(0)
            for c in range(m):
                total += x[c] * row[c]
            if a[_BIAS] != 0:
                total += view(a[_BIAS], n, np.float32)[j]
            y[j] = np.float32(0) if a[_RELU] != 0 and total < 0 else total


def _forward(a, share, shares):
    """Compute a share of the neurons, for all examples."""
    a = carray(a, WORDS)
    b, n, m = a[_B], a[_N], a[_M]
    # Whole cache lines of y to a share.
    lines = (n + 15) // 16
    low, high = lines * share // shares * 16, min(n, lines * (share + 1) // shares * 16)
    if m < LANES:
        _short_rows(a, low, high)
        return
    rows = np.empty(ROWS, np.int64)
    aside = np.zeros((HEIGHT + 1) * ROWS, np.float32)  # the last row stays zero: what is added where there is no bias
    beside = aside.ctypes.data
    nothing = beside + 4 * HEIGHT * ROWS
    for panel in range(0, b, PANEL):
        examples = min(PANEL, b - panel)
        tiles = (examples + HEIGHT - 1) // HEIGHT
        for c in range(0, m, DEEP):
            stop = min(m, c + DEEP)
            last = c + (stop - c) // LANES * LANES
            least = np.float32(0) if a[_RELU] != 0 and stop == m else np.float32(-np.inf)
            for j in range(low, high, ROWS):
                inside = min(ROWS, high - j)
                for r in range(ROWS):  # the last rows again, where neurons are left over
                    rows[r] = a[_W] + 4 * m * min(j + r, high - 1)
                for tile in range(tiles):
                    e = panel + examples * tile // tiles
                    height = panel + examples * (tile + 1) // tiles - e
                    y = a[_Y] + 4 * (e * n + j)
                    # Sums go on from the bias, or from what they were for the columns before.
                    start, start_stride = (a[_BIAS] + 4 * j, 0) if a[_BIAS] != 0 else (nothing, 0)
                    if c > 0:
                        start, start_stride = y, 4 * n
                    out, out_stride = y, 4 * n
                    if inside < ROWS:
                        for i in range(height):
                            source = view(start + i * start_stride, inside, np.float32)
                            if start != nothing:
                                for r in range(inside):
                                    aside[i * ROWS + r] = source[r]
                            else:
                                for r in range(inside):
                                    aside[i * ROWS + r] = 0
                        start, start_stride, out, out_stride = beside, 4 * ROWS, beside, 4 * ROWS
                    _tile(
                        height, a[_X] + 4 * e * m, 4 * m, rows.ctypes.data, 4 * c, 4 * last, stop - last, 4 * stop,
                        start, start_stride, out, out_stride, least,
                    )  # fmt: skip
                    if inside < ROWS:
                        for i in range(height):
                            target = view(y + 4 * i * n, inside, np.float32)
                            for r in range(inside):
                                target[r] = aside[i * ROWS + r]


_FORWARD = body(_forward)


@function(types.void(*[types.int64] * 11))
def _run(openmp, run, shares, x, w, bias, y, b, n, m, relu):
    """Compute y; arguments that are words of the region are described there.

    Args:
        openmp, run: `OPENMP`, `_FORWARD`.
        shares: into how many the neurons are cut.

    """
    a = np.empty(WORDS, np.int64)
    a[_X], a[_W], a[_BIAS], a[_Y], a[_B], a[_N], a[_M], a[_RELU] = x, w, bias, y, b, n, m, relu
    parallel(openmp, shares, run, a)


def forward(x: Tensor, w: Tensor, b: Tensor | None, *, relu: bool) -> Tensor:
    """Return y `(B, n)` for x `(B, m)`, w `(n, m)` and b `(n,)`, all contiguous and none empty."""
    batch, m = x.shape
    n = w.shape[0]
    y = x.new_empty(batch, n)
    few = shares(torch.get_num_threads(), batch * n * m // _AT_ONCE)
    _run(
        OPENMP, _FORWARD, few, x.data_ptr(), w.data_ptr(), 0 if b is None else b.data_ptr(), y.data_ptr(), batch, n, m,
        relu,
    )  # fmt: skip
    return y


def backward(
    dy: Tensor, x: Tensor, w: Tensor, needs: tuple[bool, bool, bool], record: kept.Record | None = None
) -> Gradients:
    """Return the gradients of x `(B, m)`, w `(n, m)` and the bias that are needed, for dy `(B, n)`; all contiguous.

    That of w is in the memory of its record, if there is one and it is free.
    """
    n, m = w.shape
    return kept.computed(record if needs[1] else None, n, m, w, lambda target: _backward(dy, x, w, needs, target))


def _backward(dy: Tensor, x: Tensor, w: Tensor, needs: tuple[bool, bool, bool], target: kept.Target) -> Gradients:
    need_dx, need_dw, need_db = needs
    (batch, n), m = dy.shape, w.shape[1]
    few, most, size, streaming = plan("unified", torch.get_num_threads() if OPENMP else 1, batch, n, m, n)
    into, written, seed = target
    dx = dy.new_empty(batch, m) if need_dx else None
    dw = (dy.new_empty(n, m) if into is None else into) if need_dw else None
    db = dy.new_empty(n) if need_db else None
    unified.backward(
        OPENMP, unified.SUM, unified.GATHER, unified.MULTIPLY, few, most,
        dy.data_ptr(), x.data_ptr(), w.data_ptr(), memory.address(dx), memory.address(dw), memory.address(db),
        batch, n, m, n, _all(n).data_ptr(), True, False, streaming, memory.scratch(size), memory.address(written), seed,
    )  # fmt: skip
    return dx, dw, db


@lru_cache(maxsize=64)
def _all(n: int) -> Tensor:
    """Return the neurons: all of them."""
    return torch.arange(n)
