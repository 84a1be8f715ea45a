"""A product of matrices that are thin on one side, one operand gathered by rows: a tile of results at a time.

    out (h, m) = tall (h, d) · wide (d, m)         d is small for dx, h is small for dW; see `unified`

A general matrix product spends its time on setting up here. This is its usual form cut down to what the case needs:
the tall operand is packed by its caller in tiles of `height` rows, the wide one here, a panel of columns at a time and
straight from the rows that were selected, and the innermost loop keeps `height` x WIDE results in registers.

The height is chosen for each product, so that few rows of the last tile are computed for nothing: B = 50 is five
tiles of 10. With AVX-512 a tile is up to 12 x 32 (24 of the 32 registers), with less up to 6 x 16 (12 of 16). The
larger, the less of the time goes to starting and storing tiles, which is much when d is 30.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from meprop_bench.ops.kernels.native.compiler import function, view
from meprop_bench.ops.kernels.native.vectors import (
    LANES,
    VECTOR,
    either,
    fused,
    load,
    load_f32,
    loop,
    offset,
    splat,
    store,
)

__all__ = ["TALLEST", "multiply", "pack_height", "packed_bytes"]

HEIGHTS = (4, 6, 8, 10, 12) if LANES == 16 else (2, 4, 6)
TALLEST = HEIGHTS[-1]
VECTORS = 2
WIDE = VECTORS * LANES
DEEP = 1024
"""Summands of a tile before it is stored. The packed strip of the wide operand comes from the second cache then, at a
few bytes a cycle; storing and fetching the tile again in between would cost more."""
PANEL = 1 << 16
"""Numbers packed at once: 256 KiB stay in the second cache."""

_WORD = ir.IntType(64)
_FRESH, _ADDED, _STREAMED = range(3)


def _emit_tile(builder: Any, height: int, mode: int, arguments: Any) -> None:
    """Emit a tile: rows[r][shift:] = (or +=) Σ a[p, r] b[p] over p < deep, for r < height.

    a is (deep, height) and b (deep, WIDE), packed; rows has the addresses of `height` rows, of each of which WIDE
    numbers are written, from `shift` bytes on. All sums stay in registers: height x VECTORS of them.
    """
    a, b, rows, shift, deep = arguments
    starts_at = [builder.add(load(builder, _WORD, offset(builder, rows, 8 * r)), shift) for r in range(height)]
    places = [offset(builder, row, 4 * LANES * v) for row in starts_at for v in range(VECTORS)]
    zero = ir.Constant(VECTOR, [0.0] * LANES)
    starts = [load(builder, VECTOR, place) if mode == _ADDED else zero for place in places]

    # One summand p: WIDE numbers of b, times each of the `height` numbers of a in all lanes.
    def body(p: Any, sums: list[Any]) -> list[Any]:
        at = builder.add(b, builder.mul(p, ir.Constant(_WORD, 4 * WIDE)))
        wide = [load(builder, VECTOR, offset(builder, at, 4 * LANES * v)) for v in range(VECTORS)]
        first = builder.mul(p, ir.Constant(_WORD, height))
        new = []
        for r in range(height):
            tall = splat(builder, VECTOR, load_f32(builder, a, builder.add(first, ir.Constant(_WORD, r))))
            new += [fused(builder, tall, wide[v], sums[VECTORS * r + v]) for v in range(VECTORS)]
        return new

    totals = loop(builder, (ir.Constant(_WORD, 0), deep), 1, starts, body)
    for place, total in zip(places, totals, strict=True):
        store(builder, total, place, mode == _STREAMED)


@intrinsic
def _tile(typingctx: Any, kind: Any, a: Any, b: Any, rows: Any, shift: Any, deep: Any) -> Any:
    """Compute a tile; kind = 16 mode + height. Only the tallest is ever streamed."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        chosen, *others = arguments
        kinds = [(mode, height) for mode in (_FRESH, _ADDED) for height in HEIGHTS] + [(_STREAMED, TALLEST)]
        either(builder, chosen, {
            16 * mode + height: partial(_emit_tile, builder, height, mode, others) for mode, height in kinds
        })  # fmt: skip
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), codegen


@intrinsic
def _copy_strip(typingctx: Any, target: Any, source: Any) -> Any:
    """Copy WIDE numbers."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, source = arguments
        for v in range(VECTORS):
            part = load(builder, VECTOR, offset(builder, source, 4 * LANES * v))
            store(builder, part, offset(builder, target, 4 * LANES * v))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@function()
def pack_height(rows):
    """Return the height of the tiles in which a tall operand of so many rows is packed."""
    best, least = TALLEST, np.int64(1) << 62
    for height in HEIGHTS:
        # A row that is computed costs the same in all tiles; starting a tile costs about as much as one more row.
        cost = (rows + height - 1) // height * (height + 1)
        if cost <= least:
            best, least = height, cost
    return best


@function()
def packed_bytes():
    """Return how many bytes of its own a thread needs in `multiply`."""
    return 4 * (PANEL + WIDE * DEEP + WIDE * TALLEST)


@function()
def _pack(source, stride, hits, first, deep, columns, packed):
    """Pack rows of the wide operand in strips of WIDE columns; rows hits[first:], or first and on when hits is 0."""
    chosen = view(hits, first + deep, np.int64)
    full = columns // WIDE
    # (deep, columns) -> (strips, deep, WIDE): what a tile reads, one vector pair after the other. The last strip, where
    # columns are left over, is filled up with zeros.
    for p in range(deep):
        row = source + (chosen[first + p] if hits != 0 else first + p) * stride
        for strip in range(full):
            _copy_strip(packed + 4 * WIDE * (strip * deep + p), row + 4 * WIDE * strip)
        if full * WIDE < columns:
            target, rest = view(packed + 4 * WIDE * (full * deep + p), WIDE, np.float32), columns - full * WIDE
            target[rest:] = 0
            target[:rest] = view(row + 4 * WIDE * full, rest, np.float32)


@function()
def multiply(tall, height, rows, total, source, stride, hits, out, out_hits, m, start, stop, packed, streaming):
    """Compute columns [start, stop) of out = tall · wide.

    Args:
        tall: packed tiles, (⌈rows / height⌉, total, height), by `pack_height(rows)`; what exceeds the rows is zero.
        height, rows, total: sizes.
        source, stride, hits: the wide operand: row p is at source + stride * hits[p], or stride * p when hits is 0.
        out, out_hits: the result, of m columns; row i is row out_hits[i] of it, or i when that is 0.
        m, start, stop: columns in all, and which of them; start is a multiple of WIDE.
        packed: `packed_bytes()` bytes, aligned to 64.
        streaming: whether the result goes past the caches.

    """
    # A panel is as many columns as stay in the second cache; the sums are DEEP terms long at most, and go on in `out`.
    deepest = min(DEEP, total)
    panel = max(1, PANEL // (deepest * WIDE)) * WIDE
    while start < stop:
        columns = min(panel, stop - start)
        for first in range(0, total, DEEP):
            deep = min(DEEP, total - first)
            _pack(source + 4 * start, stride, hits, first, deep, columns, packed)
            shifted, part = tall + 4 * height * first, out + 4 * start
            _panel(shifted, height, rows, total, deep, part, out_hits, m, columns, packed, first > 0, streaming)
        start += columns


@function()
def _panel(tall, height, rows, total, deep, out, out_hits, m, columns, packed, adding, streaming):
    """Multiply all tiles of the tall operand with one packed panel. What sticks out of the result goes aside."""
    aside = packed + 4 * (PANEL + WIDE * DEEP)
    place = np.empty(TALLEST, np.int64)
    chosen = view(out_hits, rows, np.int64)
    full, rest = columns // WIDE, columns % WIDE
    # Tile by tile of `height` rows, where each row goes; those beyond the last go aside, past every strip.
    for tile in range((rows + height - 1) // height):
        a, inside = tall + 4 * height * tile * total, min(height, rows - tile * height)
        for r in range(inside):
            i = tile * height + r
            place[r] = out + 4 * m * (chosen[i] if out_hits != 0 else i)
        kind = height + 16 * (_ADDED if adding else _FRESH)
        whole = inside == height
        if streaming and whole and not adding and height == TALLEST and (place[0] | 4 * m) & 63 == 0:
            kind = height + 16 * _STREAMED
        # (height, deep) · (deep, WIDE), strip by strip; then what is left of the columns.
        for strip in range(full):
            shift = 4 * WIDE * strip
            for r in range(inside, height):
                place[r] = aside + 4 * WIDE * r - shift
            _tile(kind, a, packed + shift * deep, place.ctypes.data, shift, deep)
        if rest > 0:
            _edge(a, height, inside, deep, place, packed + 4 * WIDE * full * deep, 4 * WIDE * full, rest, aside, adding)


@function()
def _edge(a, height, inside, deep, place, b, shift, rest, aside, adding):
    """Multiply one tile of which only `rest` columns are in the result: aside, and copy."""
    target = np.empty(TALLEST, np.int64)
    for r in range(height):
        target[r] = aside + 4 * WIDE * r
    if adding:
        for r in range(inside):
            view(target[r], rest, np.float32)[:] = view(place[r] + shift, rest, np.float32)
    _tile(height + 16 * (_ADDED if adding else _FRESH), a, b, target.ctypes.data, 0, deep)
    for r in range(inside):
        view(place[r] + shift, rest, np.float32)[:] = view(target[r], rest, np.float32)
