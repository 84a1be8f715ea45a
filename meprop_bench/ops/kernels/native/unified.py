"""The backward pass where the whole batch keeps the same k neurons.

With the kept neurons h (k,), everything is small and dense:

    dx = dy[:, h] W[h]        (B, k) (k, m)
    dW[h] = dy[:, h]ᵀ x       (k, B) (B, m)

The arithmetic is a k / n part of the dense layer's, so all that the dense layer never notices shows: a pass over dy
for the sums, gathering, and products so thin that a general matrix product spends its time on setting up. Hence one
pass for both sums over the batch (|dy| for the selection, dy for the bias), and a product of our own in the usual
form: both operands are packed to tiles, W and x a panel of columns at a time, straight from the rows of h, and the
innermost loop keeps a tile of 6 x 16 results in registers. A thread has its own columns of dx and of dW, so nobody
waits.

The columns of dx and then those of dW are dealt out in order, so that with two threads one computes dx and the other
dW, and they share no row (see `example` for what sharing costs).

The sums are added up eight rows at a time, then over these, so that rounding stays far below the distances that
matter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from meprop_bench.ops.kernels.native.compiler import (
    LANES,
    VECTOR,
    body,
    function,
    fused,
    load,
    load_f32,
    offset,
    parallel,
    splat,
    store,
    thread_number,
    view,
    zero_row,
)
from meprop_bench.ops.kernels.native.topk import largest, working_bytes

TALL = 6
WIDE = 2 * LANES
"""A tile of results: 12 vectors, which with two of the one operand and one of the other fill the registers of AVX2."""
DEEP = 256
"""Summands a tile takes before it is stored: a packed strip of the wide operand, 256 x 16, stays in the first cache."""
PANEL = 8 * WIDE
"""Columns packed at once: 256 x 128 numbers stay in the second cache."""


def _tile(accumulate: bool, streaming: bool) -> Any:
    """Make the inner loop: the tile `out` = (or +=) sum over p of a[p, :TALL] b[p, :WIDE]."""
    word = ir.IntType(64)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, b, out, deep = arguments
        rows = [load(builder, word, offset(builder, out, 8 * r)) for r in range(TALL)]
        places = [offset(builder, row, 4 * LANES * v) for row in rows for v in range(2)]
        zero = ir.Constant(VECTOR, [0.0] * LANES)
        starts = [load(builder, VECTOR, place) if accumulate else zero for place in places]
        before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
        builder.branch(loop)
        builder.position_at_end(loop)
        p = builder.phi(word)
        sums = [builder.phi(VECTOR) for _ in places]
        at = builder.add(b, builder.mul(p, ir.Constant(word, 4 * WIDE)))
        wide = [load(builder, VECTOR, offset(builder, at, 4 * LANES * v)) for v in range(2)]
        first = builder.mul(p, ir.Constant(word, TALL))
        new = []
        for r in range(TALL):
            tall = splat(builder, VECTOR, load_f32(builder, a, builder.add(first, ir.Constant(word, r))))
            new += [fused(builder, tall, wide[v], sums[2 * r + v]) for v in range(2)]
        following = builder.add(p, ir.Constant(word, 1))
        builder.cbranch(builder.icmp_signed("<", following, deep), loop, after)
        for phi, start, step in zip([p, *sums], [ir.Constant(word, 0), *starts], [following, *new], strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(step, loop)
        builder.position_at_end(after)
        for place, total in zip(places, new, strict=True):
            store(builder, total, place, streaming)
        return context.get_dummy_value()

    @intrinsic
    def tile(typingctx: Any, a: Any, b: Any, out: Any, deep: Any) -> Any:
        return types.void(*[types.int64] * 4), codegen

    return tile


_fresh, _streamed, _added = _tile(False, False), _tile(False, True), _tile(True, False)

# The arguments of the parallel regions, one word each.
(
    _TID,
    _THREADS,
    _DY,
    _X,
    _W,
    _DX,
    _DW,
    _B,
    _N,
    _M,
    _K,
    _HITS,
    _PARTS,
    _TALL_DX,
    _TALL_DW,
    _PACKED,
    _COMPACT,
    _STREAMING,
) = range(18)
WORDS = 18


def _sum(a):
    a = carray(a, WORDS)
    b, n, threads = a[_B], a[_N], a[_THREADS]
    t = thread_number(a[_TID])
    magnitudes, totals = view(a[_PARTS] + 8 * t * n, n, np.float32), view(a[_PARTS] + 8 * t * n + 4 * n, n, np.float32)
    magnitudes[:] = 0
    totals[:] = 0
    e, stop = b * t // threads, b * (t + 1) // threads
    while e + 8 <= stop:
        rows = view(a[_DY] + 4 * e * n, 8 * n, np.float32)
        r0, r1, r2, r3, r4, r5, r6, r7 = (
            rows[:n], rows[n:2 * n], rows[2 * n:3 * n], rows[3 * n:4 * n],
            rows[4 * n:5 * n], rows[5 * n:6 * n], rows[6 * n:7 * n], rows[7 * n:],
        )  # fmt: skip
        for j in range(n):
            magnitudes[j] += (abs(r0[j]) + abs(r1[j]) + abs(r2[j]) + abs(r3[j])) + (
                abs(r4[j]) + abs(r5[j]) + abs(r6[j]) + abs(r7[j])
            )
            totals[j] += (r0[j] + r1[j] + r2[j] + r3[j]) + (r4[j] + r5[j] + r6[j] + r7[j])
        e += 8
    while e < stop:
        row = view(a[_DY] + 4 * e * n, n, np.float32)
        for j in range(n):
            magnitudes[j] += abs(row[j])
            totals[j] += row[j]
        e += 1


SUM = body(_sum)


@function(types.int64(*[types.int64] * 11))
def select(gomp, tid, run, threads, dy, b, n, k, db, hits, scratch):
    """Select the k neurons with the largest sum of |dy| over the batch, and sum dy up for the bias.

    Args:
        gomp, tid: `OPENMP`.
        run: `SUM`.
        threads: how many.
        dy: float32 (b, n).
        b, n, k: sizes; with k = 0 nothing is selected, only summed up.
        db: float32 (n,), written, or 0.
        hits: int64 (k,), written: the neurons, ascending; those without any gradient are left out.
        scratch: `select_bytes(threads, n, k)` bytes.

    Returns:
        how many neurons there are.

    """
    a = np.empty(WORDS, np.int64)
    a[_TID], a[_DY], a[_B], a[_N], a[_PARTS] = tid, dy, b, n, scratch
    parallel(gomp, threads, run, a)
    parts = view(scratch, (threads, 2, n), np.float32)
    for t in range(1, threads):
        for j in range(n):
            parts[0, 0, j] += parts[t, 0, j]
            parts[0, 1, j] += parts[t, 1, j]
    if db != 0:
        view(db, n, np.float32)[:] = parts[0, 1]
    if k == 0:
        return 0
    working = scratch + 8 * threads * n
    places = view(working, k, np.int32)
    count = largest(scratch, n, k, working + 4 * k, places)
    hit = view(hits, k, np.int64)
    for i in range(count):
        hit[i] = places[i]
    return count


@function(types.int64(*[types.int64] * 3))
def select_bytes(threads, n, k):
    """Return how many bytes `select` needs."""
    return 8 * threads * n + 4 * k + working_bytes(n, k)


def _gather(a):
    """Pack dy[:, hits] twice: in tiles of examples for dx, in tiles of neurons for dW."""
    a = carray(a, WORDS)
    b, n, k, threads = a[_B], a[_N], a[_K], a[_THREADS]
    t = thread_number(a[_TID])
    hits = view(a[_HITS], k, np.int64)
    tiles = (b + TALL - 1) // TALL
    by_example = view(a[_TALL_DX], (tiles, k, TALL), np.float32)
    by_neuron = view(a[_TALL_DW], ((k + TALL - 1) // TALL, b, TALL), np.float32)
    for tile in range(tiles * t // threads, tiles * (t + 1) // threads):
        for r in range(TALL):
            e = tile * TALL + r
            row = view(a[_DY] + 4 * min(e, b - 1) * n, n, np.float32)
            for p in range(k):
                value = row[hits[p]] if e < b else np.float32(0)
                by_example[tile, p, r] = value
                if e < b:
                    by_neuron[p // TALL, e, p % TALL] = value


@function()
def _pack(source, stride, hits, first, deep, columns, packed):
    """Pack rows of the wide operand in strips of WIDE columns; rows hits[first:], or first and on when hits is 0."""
    chosen = view(hits, first + deep, np.int64)
    for p in range(deep):
        row = view(source + (chosen[first + p] if hits != 0 else first + p) * stride, columns, np.float32)
        full = columns // WIDE
        for strip in range(full):
            target = view(packed + 4 * WIDE * (strip * deep + p), WIDE, np.float32)
            for c in range(WIDE):
                target[c] = row[strip * WIDE + c]
        if full * WIDE < columns:
            target = view(packed + 4 * WIDE * (full * deep + p), WIDE, np.float32)
            target[:] = 0
            for c in range(columns - full * WIDE):
                target[c] = row[full * WIDE + c]


@function()
def _multiply(tall, height, total, source, stride, hits, out, out_hits, m, start, columns, packed, streaming):
    """Compute columns [start, start + columns) of out = tall · wide.

    Args:
        tall: packed tiles, (⌈height / TALL⌉, total, TALL).
        height: rows of the result.
        total: number of summands.
        source, stride, hits: the wide operand, as `_pack` takes it.
        out, out_hits: result of m columns; row i is row out_hits[i] of it, unless that is 0.
        m, start, columns: which columns.
        packed: memory for (DEEP + 1) * PANEL numbers; the last are the place for what sticks out of the result.
        streaming: whether the result goes past the caches.

    """
    outside = packed + 4 * DEEP * PANEL
    place = np.empty(TALL, np.int64)
    chosen = view(out_hits, height, np.int64)
    strips = (columns + WIDE - 1) // WIDE
    for first in range(0, total, DEEP):
        deep = min(DEEP, total - first)
        _pack(source + 4 * start, stride, hits, first, deep, columns, packed)
        for tile in range((height + TALL - 1) // TALL):
            a = tall + 4 * TALL * (tile * total + first)
            rows = min(TALL, height - tile * TALL)
            for strip in range(strips):
                c = start + strip * WIDE
                within = min(WIDE, start + columns - c)
                for r in range(TALL):
                    i = tile * TALL + min(r, rows - 1)
                    place[r] = out + 4 * ((chosen[i] if out_hits != 0 else i) * m + c)
                    if r >= rows or within < WIDE:
                        place[r] = outside + 4 * WIDE * r
                if within < WIDE and first > 0:
                    for r in range(rows):
                        i = tile * TALL + r
                        kept = view(out + 4 * ((chosen[i] if out_hits != 0 else i) * m + c), within, np.float32)
                        view(place[r], within, np.float32)[:] = kept
                b = packed + 4 * WIDE * strip * deep
                if first > 0:
                    _added(a, b, place.ctypes.data, deep)
                elif streaming and (place[0] | 4 * m) & 31 == 0 and rows == TALL and within == WIDE:
                    _streamed(a, b, place.ctypes.data, deep)
                else:
                    _fresh(a, b, place.ctypes.data, deep)
                if within < WIDE:
                    for r in range(rows):
                        i = tile * TALL + r
                        kept = view(out + 4 * ((chosen[i] if out_hits != 0 else i) * m + c), within, np.float32)
                        kept[:] = view(place[r], within, np.float32)


def _multiply_all(a):
    a = carray(a, WORDS)
    b, n, m, k, threads, hits = a[_B], a[_N], a[_M], a[_K], a[_THREADS], a[_HITS]
    t = thread_number(a[_TID])
    packed = a[_PACKED] + 4 * t * (DEEP + 1) * PANEL
    if a[_DW] != 0 and a[_COMPACT] == 0:
        chosen = view(hits, k, np.int64)
        low, high = n * t // threads, n * (t + 1) // threads
        i = 0
        for j in range(low, high):
            while i < k and chosen[i] < j:
                i += 1
            if i == k or chosen[i] != j:
                zero_row(a[_DW] + 4 * j * m, m, a[_STREAMING])
    if k == 0:
        if a[_DX] != 0:
            for e in range(b * t // threads, b * (t + 1) // threads):
                zero_row(a[_DX] + 4 * e * m, m, False)
        return
    strips = (m + WIDE - 1) // WIDE
    both = a[_DX] != 0 and a[_DW] != 0
    low, high = (1 + both) * strips * t // threads, (1 + both) * strips * (t + 1) // threads
    if a[_DX] != 0:
        start, stop = low * WIDE, min(high * WIDE, m)
        while start < stop:
            columns = min(PANEL, stop - start)
            streaming = a[_STREAMING] != 0
            _multiply(a[_TALL_DX], b, k, a[_W], 4 * m, hits, a[_DX], 0, m, start, columns, packed, streaming)
            start += columns
    if a[_DW] != 0:
        start, stop = max(0, low - both * strips) * WIDE, min((high - both * strips) * WIDE, m)
        while start < stop:
            columns = min(PANEL, stop - start)
            out_hits = 0 if a[_COMPACT] else hits
            _multiply(a[_TALL_DW], k, b, a[_X], 4 * m, 0, a[_DW], out_hits, m, start, columns, packed, False)
            start += columns


GATHER, MULTIPLY = body(_gather), body(_multiply_all)


@function(types.void(*[types.int64] * 19))
def products(
    gomp, tid, gather, multiply, few, threads, dy, x, w, dx, dw, b, n, m, k, hits, compact, streaming, scratch
):
    """Compute dx and dW through the selected neurons.

    Args:
        gomp, tid: `OPENMP`.
        gather, multiply: `GATHER`, `MULTIPLY`.
        few, threads: how many threads gather, and how many multiply.
        dy, x, w: float32 (b, n), (b, m) and (n, m), contiguous.
        dx: float32 (b, m), or 0.
        dw: float32 (n, m), or (k, m) when it is compact, or 0.
        b, n, m, k: sizes.
        hits: int64 (k,), ascending.
        compact: whether dw holds the rows `hits` alone.
        streaming: whether results go past the caches.
        scratch: `product_bytes(threads, b, k)` bytes, 64 of them for alignment.

    """
    a = np.empty(WORDS, np.int64)
    a[_TID], a[_DY], a[_X], a[_W], a[_DX], a[_DW], a[_B], a[_N], a[_M], a[_K] = tid, dy, x, w, dx, dw, b, n, m, k
    a[_HITS], a[_COMPACT], a[_STREAMING] = hits, compact, streaming
    a[_PACKED] = (scratch + 63) // 64 * 64
    a[_TALL_DX] = a[_PACKED] + 4 * threads * (DEEP + 1) * PANEL
    a[_TALL_DW] = a[_TALL_DX] + 4 * (b + TALL) * k
    if k > 0:
        parallel(gomp, few, gather, a)
    parallel(gomp, threads, multiply, a)


@function(types.int64(*[types.int64] * 3))
def product_bytes(threads, b, k):
    """Return how many bytes `products` needs."""
    return 64 + 4 * (threads * (DEEP + 1) * PANEL + (b + TALL) * k + (k + TALL) * b)
