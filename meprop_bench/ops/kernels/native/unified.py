"""The backward pass where the whole batch has the same k neurons.

With the selected neurons h (k,), everything is small and dense:

    dx = dy[:, h] W[h]        (B, k) (k, m)
    dW[h] = dy[:, h]ᵀ x       (k, B) (B, m)

The arithmetic is a k / n part of the dense layer's, so all that the dense layer never notices shows: a pass over dy
for the sums, gathering, and products so thin that a general matrix product spends its time on setting up. Hence one
pass for both sums over the batch (|dy| for the selection, dy for the bias), and a product of our own (`product`).
A thread has its own columns of dx and of dW, so nobody waits.

The columns of dx and then those of dW are dealt out in order, so that with two threads one computes dx and the other
dW, and they share no row (see `example` for what sharing costs). In a small layer each thread also packs for itself
what it needs of dy, which spares a parallel region.

The sums are added up eight rows at a time, then over these, so that rounding stays far below the distances that
matter.
"""

from __future__ import annotations

import numpy as np
from numba import carray, types

from meprop_bench.ops.kernels.native.compiler import function, view, zero_row
from meprop_bench.ops.kernels.native.product import TALLEST, WIDE, multiply, pack_height, packed_bytes
from meprop_bench.ops.kernels.native.threads import body, parallel
from meprop_bench.ops.kernels.native.topk import largest, working_bytes
from meprop_bench.ops.kernels.native.zeros import blank, blank_all, look_at

# The words of the parallel regions, int64 each: numbers, flags, and addresses of contiguous memory (0: not there).
(
    _DY,  # float32 (B, N)
    _X,  # float32 (B, M)
    _W,  # float32 (N, M)
    _DX,  # float32 (B, M), written
    _DW,  # float32 (K, M) if COMPACT, else (N, M), written
    _B,
    _N,
    _M,
    _K,  # neurons selected that have a gradient
    _HITS,  # int64 (K,), which they are, ascending
    _PARTS,  # float32 (shares, 2, N), Σ|dy| and Σdy over a share's examples
    _TALL_DX,  # float32 (tiles, K, height), dy[:, HITS] in tiles of examples: the tall operand of dx
    _TALL_DW,  # float32 (tiles, B, height), dy[:, HITS] in tiles of neurons: the tall operand of dW
    _GATHERED,  # whether both are made before, once for all shares; else each share makes its own
    _PACKED,  # `packed_bytes()` for each share: its panel of the wide operand
    _COMPACT,  # whether dW has the rows HITS alone
    _STREAMING,  # whether results are written past the caches
    _WRITTEN,  # uint8 (N + 1,), which rows of a dW that is not compact are not zero before: see `kept.Target`; 0: any
    _SEED,  # of `kept.Target`
) = range(19)
WORDS = 19


def _sum(a, share, shares):
    """Sum a share of the examples up: Σ|dy| and Σdy, (N,) each, eight rows at a time."""
    a = carray(a, WORDS)
    b, n = a[_B], a[_N]
    part = a[_PARTS] + 8 * share * n
    magnitudes, totals = view(part, n, np.float32), view(part + 4 * n, n, np.float32)
    magnitudes[:] = 0
    totals[:] = 0
    e, stop = b * share // shares, b * (share + 1) // shares
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


@function()
def _sum_up(openmp, run, shares, a):
    """Sum (B, N) up to (shares, 2, N), by all threads, and these in their order to the first, by this one."""
    n = a[_N]
    parallel(openmp, shares, run, a)
    parts = view(a[_PARTS], (shares, 2, n), np.float32)
    for t in range(1, shares):
        for j in range(n):
            parts[0, 0, j] += parts[t, 0, j]
            parts[0, 1, j] += parts[t, 1, j]
    return parts


@function(types.int64(*[types.int64] * 7))
def statistics(openmp, sums, shares, dy, b, n, parts):
    """Sum dy (b, n) up over the batch: Σ|dy| and Σdy, float32 (2, n), to the first of `parts` (shares, 2, n)."""
    a = np.empty(WORDS, np.int64)
    a[_DY], a[_B], a[_N], a[_PARTS] = dy, b, n, parts
    _sum_up(openmp, sums, shares, a)
    return 0


@function()
def _select(openmp, run, shares, a, k, db, working):
    """Select the k neurons with the largest sum of |dy| over the batch, and sum dy up for the bias.

    Neurons without any gradient are left out. Returns how many neurons there are; with k = 0 it only sums up.
    """
    n = a[_N]
    parts = _sum_up(openmp, run, shares, a)
    if db != 0:
        view(db, n, np.float32)[:] = parts[0, 1]
    if k == 0:
        return 0
    places = view(working, k, np.int32)
    count = largest(a[_PARTS], n, k, working + 4 * k, places)
    hits = view(a[_HITS], k, np.int64)
    for i in range(count):
        hits[i] = places[i]
    return count


@function()
def _pack_examples(a, low, high):
    """Pack dy[:, hits] for dx: tiles [low, high) of `height` examples, (K, height) each, zeros after the last."""
    b, n, k = a[_B], a[_N], a[_K]
    height = pack_height(b)
    hits = view(a[_HITS], k, np.int64)
    packed = view(a[_TALL_DX], ((b + height - 1) // height, k, height), np.float32)
    for tile in range(low, high):
        for r in range(height):
            e = tile * height + r
            if e < b:
                row = view(a[_DY] + 4 * e * n, n, np.float32)
                for p in range(k):
                    packed[tile, p, r] = row[hits[p]]
            else:
                for p in range(k):
                    packed[tile, p, r] = 0


@function()
def _pack_neurons(a, low, high):
    """Pack dy[:, hits] for dW, in tiles of `height` neurons, (B, height) each: the rows of examples [low, high)."""
    b, n, k = a[_B], a[_N], a[_K]
    height = pack_height(k)
    hits = view(a[_HITS], k, np.int64)
    tiles = (k + height - 1) // height
    packed = view(a[_TALL_DW], (tiles, b, height), np.float32)
    for e in range(low, high):
        row = view(a[_DY] + 4 * e * n, n, np.float32)
        for tile in range(tiles):
            target = packed[tile, e]
            for r in range(height):
                p = tile * height + r
                target[r] = row[hits[p]] if p < k else np.float32(0)


def _gather(a, share, shares):
    """Pack a share of both: of the tiles for dx, of the examples for dW."""
    a = carray(a, WORDS)
    b = a[_B]
    height = pack_height(b)
    tiles = (b + height - 1) // height
    if a[_DX] != 0:
        _pack_examples(a, tiles * share // shares, tiles * (share + 1) // shares)
    if a[_DW] != 0:
        _pack_neurons(a, b * share // shares, b * (share + 1) // shares)


@function()
def _zero_others(a, share, shares):
    """Have zeros in a share of the rows of dW that were not selected."""
    n, m, k = a[_N], a[_M], a[_K]
    chosen, written = view(a[_HITS], k, np.int64), view(a[_WRITTEN], n + 1, np.uint8)
    places = look_at(a[_X], a[_B], m if a[_WRITTEN] != 0 else 0, a[_SEED])
    following, stop = n * share // shares, n * (share + 1) // shares
    for i in range(k):
        j = chosen[i]
        if following <= j < stop:
            blank(a[_DW], n, m, following, j, a[_WRITTEN], places, a[_STREAMING])
            following = j + 1
            if a[_WRITTEN] != 0:
                written[j] = 1
    blank(a[_DW], n, m, following, stop, a[_WRITTEN], places, a[_STREAMING])


@function()
def tall_bytes(b, k):
    """Return how many bytes dy[:, hits] takes when it is packed twice."""
    return 8 * (b + TALLEST) * (k + TALLEST)


def _multiply(given, share, shares):
    """Compute a share of the columns of dx and, after them, of dW; and write a share of dW's rows of zeros."""
    a = carray(given, WORDS).copy()  # each share's own: what it gathers goes to its own memory
    b, m, k = a[_B], a[_M], a[_K]
    if a[_DW] != 0 and not a[_COMPACT]:
        _zero_others(a, share, shares)
    if k == 0:
        if a[_DX] != 0:
            for e in range(b * share // shares, b * (share + 1) // shares):
                zero_row(a[_DX] + 4 * e * m, m, False)
        return
    high_dx, high_dw = pack_height(b), pack_height(k)
    packed = a[_PACKED] + share * packed_bytes()
    if not a[_GATHERED]:
        a[_TALL_DX] += share * tall_bytes(b, k)
        a[_TALL_DW] += share * tall_bytes(b, k)
    # The strips of WIDE columns, those of dx first and then those of dW, are dealt out in order: [low, high).
    strips = (m + WIDE - 1) // WIDE
    both = a[_DX] != 0 and a[_DW] != 0
    low, high = (1 + both) * strips * share // shares, (1 + both) * strips * (share + 1) // shares
    # dx = dy[:, hits] · W[hits], columns [start, stop).
    if a[_DX] != 0 and low < strips:
        start, stop = low * WIDE, min(high * WIDE, m)
        if not a[_GATHERED]:
            _pack_examples(a, 0, (b + high_dx - 1) // high_dx)
        multiply(
            a[_TALL_DX], high_dx, rows=b, total=k, source=a[_W], stride=4 * m, hits=a[_HITS], out=a[_DX], out_hits=0,
            m=m, start=start, stop=stop, packed=packed, streaming=a[_STREAMING] != 0,
        )  # fmt: skip
    # dW[hits] = dy[:, hits]ᵀ · x, columns [start, stop), into the rows `out_hits` of dW or one below the other.
    if a[_DW] != 0 and high > both * strips:
        start, stop = max(0, low - both * strips) * WIDE, min((high - both * strips) * WIDE, m)
        if not a[_GATHERED]:
            _pack_neurons(a, 0, b)
        out_hits = 0 if a[_COMPACT] else a[_HITS]
        multiply(
            a[_TALL_DW], high_dw, rows=k, total=b, source=a[_X], stride=4 * m, hits=0, out=a[_DW], out_hits=out_hits,
            m=m, start=start, stop=stop, packed=packed, streaming=False,
        )  # fmt: skip


SUM, GATHER, MULTIPLY = body(_sum), body(_gather), body(_multiply)


@function(types.int64(*[types.int64] * 23))
def backward(
    openmp, sums, gather, run, few, shares,
    dy, x, w, dx, dw, db, b, n, m, k, hits, given, compact, streaming, scratch, written, seed,
):  # fmt: skip
    """Compute the gradients; arguments that are words of the regions are described there.

    Args:
        openmp, sums, gather, run: `OPENMP`, `SUM`, `GATHER`, `MULTIPLY`.
        few, shares: into how many summing and gathering are cut, and multiplying; one that sums gathers in passing.
        db: float32 (n,), written; or 0.
        hits, given: written, unless they are given.
        scratch: `scratch_bytes(few, shares, b, n, k)` bytes.
        written, seed: of a dw that is not compact: see `kept.Target`; or 0.

    Returns:
        how many neurons have a gradient: of `hits`, and of a compact dw, only so many are written.

    """
    # In the scratch memory: panels, then the sums; once these have selected, the tall operands take their place.
    a = np.empty(WORDS, np.int64)
    a[_DY], a[_X], a[_W], a[_DX], a[_DW], a[_B], a[_N], a[_M] = dy, x, w, dx, dw, b, n, m
    a[_HITS], a[_COMPACT], a[_STREAMING], a[_GATHERED] = hits, compact, streaming, few > 1
    a[_PACKED] = (scratch + 63) // 64 * 64
    a[_PARTS] = a[_TALL_DX] = a[_PACKED] + shares * packed_bytes()
    count = k
    if not given or db != 0:
        found = _select(openmp, sums, few, a, 0 if given else k, db, a[_PARTS] + 8 * few * n)
        count = k if given else found
    a[_K], a[_WRITTEN], a[_SEED] = count, written, seed
    a[_TALL_DW] = a[_TALL_DX] + tall_bytes(b, k) // 2
    if few > 1 and count > 0:
        parallel(openmp, few, gather, a)
    if dx != 0 or dw != 0:
        parallel(openmp, shares, run, a)
        blank_all(dw, n, m, written)
    return count


@function(types.int64(*[types.int64] * 5))
def scratch_bytes(few, shares, b, n, k):
    """Return how many bytes `backward` needs."""
    tall = tall_bytes(b, k) * (1 if few > 1 else shares)
    return 64 + shares * packed_bytes() + max(tall, 8 * few * n + 4 * k + working_bytes(n, k))
