"""The inner loops of a convolution on patches, and the transposition that brings images into the order for them.

A patch is a list of vectors at given places from where it begins; `gather` sums such vectors up over patches, `scatter`
adds to them. Both hold up to eight vectors in registers while they go through the patches. The automatic vectoriser
finds neither: the places are known only when it runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from meprop_bench.ops.kernels.native.compiler import function, view
from meprop_bench.ops.kernels.native.vectors import fused, load, load_f32, load_i32, loop, offset, splat, store

__all__ = ["LANES", "VECTOR_BYTES", "gather_all", "scatter_all", "transpose"]

LANES = 8
"""float32 numbers in a vector: half of what the processor may have, since runs are short."""
VECTOR_BYTES = 4 * LANES
_I64 = ir.IntType(64)
VECTOR = ir.VectorType(ir.FloatType(), LANES)


def _loop_over_entries(builder: Any, arguments: Any, starts: list[Any], step: Any) -> list[Any]:
    """Emit the loop over the selected entries s in [first, last), of which there is one at least.

    arguments: table, stride, pixels, values, first, last; an entry's patch begins `pixels[s] * stride` bytes into the
    table. `step(patch address, value, vectors)` gives the vectors that the next entry gets.
    """
    table, stride, pixels, values, *bounds = arguments

    def body(s: Any, vectors: list[Any]) -> list[Any]:
        patch = builder.add(table, builder.mul(load_i32(builder, pixels, s), stride))
        return list(step(patch, splat(builder, VECTOR, load_f32(builder, values, s)), vectors))

    return loop(builder, tuple(bounds), 1, starts, body)


def _offsets(builder: Any, offsets: Any, count: int) -> list[Any]:
    return [
        builder.load(builder.inttoptr(offset(builder, offsets, 8 * i), _I64.as_pointer()), align=8)
        for i in range(count)
    ]


def _gather(vectors: int) -> Any:
    """Make (1) for some vectors: dw[i] += sum over s of values[s] (the vector at patch s + offsets[i])."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        dw, offsets, *entries = arguments
        places = _offsets(builder, offsets, vectors)

        def step(patch: Any, value: Any, sums: list[Any]) -> list[Any]:
            return [
                fused(builder, value, load(builder, VECTOR, builder.add(patch, place)), total)
                for place, total in zip(places, sums, strict=True)
            ]

        start = [load(builder, VECTOR, offset(builder, dw, i * VECTOR_BYTES)) for i in range(vectors)]
        for i, total in enumerate(_loop_over_entries(builder, entries, start, step)):
            store(builder, total, offset(builder, dw, i * VECTOR_BYTES))
        return context.get_dummy_value()

    @intrinsic
    def gather(typing: Any, dw: Any, offsets: Any, table: Any, stride: Any, pixels: Any, values: Any, s: Any, e: Any):
        return types.void(*[types.int64] * 8), codegen

    return gather


def _scatter(vectors: int) -> Any:
    """Make (2) for some vectors: the vector at patch s + offsets[i] += values[s] w[i], for all s."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        w, offsets, *entries = arguments
        places = _offsets(builder, offsets, vectors)
        weights = [load(builder, VECTOR, offset(builder, w, i * VECTOR_BYTES)) for i in range(vectors)]

        def step(patch: Any, value: Any, _: list[Any]) -> list[Any]:
            for place, weight in zip(places, weights, strict=True):
                address = builder.add(patch, place)
                store(builder, fused(builder, value, weight, load(builder, VECTOR, address)), address)
            return []

        _loop_over_entries(builder, entries, [], step)
        return context.get_dummy_value()

    @intrinsic
    def scatter(typing: Any, w: Any, offsets: Any, table: Any, stride: Any, pixels: Any, values: Any, s: Any, e: Any):
        return types.void(*[types.int64] * 8), codegen

    return scatter


_gather8, _gather4, _gather2, _gather1 = (_gather(vectors) for vectors in (8, 4, 2, 1))
_scatter8, _scatter4, _scatter2, _scatter1 = (_scatter(vectors) for vectors in (8, 4, 2, 1))


@function()
def gather_all(dw, offsets, count, table, stride, pixels, values, first, last):
    """Compute (1) for `count` vectors of a patch."""
    if first >= last:
        return
    i = 0
    while i + 8 <= count:
        _gather8(dw + VECTOR_BYTES * i, offsets + 8 * i, table, stride, pixels, values, first, last)
        i += 8
    if i + 4 <= count:
        _gather4(dw + VECTOR_BYTES * i, offsets + 8 * i, table, stride, pixels, values, first, last)
        i += 4
    if i + 2 <= count:
        _gather2(dw + VECTOR_BYTES * i, offsets + 8 * i, table, stride, pixels, values, first, last)
        i += 2
    if i < count:
        _gather1(dw + VECTOR_BYTES * i, offsets + 8 * i, table, stride, pixels, values, first, last)


@function()
def scatter_all(w, offsets, full, count, rest, table, stride, pixels, values, first, last):
    """Compute (2) for the `full` vectors of a patch and the `rest` lanes of each of the others."""
    if first >= last:
        return
    i = 0
    while i + 8 <= full:
        _scatter8(w + VECTOR_BYTES * i, offsets + 8 * i, table, stride, pixels, values, first, last)
        i += 8
    if i + 4 <= full:
        _scatter4(w + VECTOR_BYTES * i, offsets + 8 * i, table, stride, pixels, values, first, last)
        i += 4
    if i + 2 <= full:
        _scatter2(w + VECTOR_BYTES * i, offsets + 8 * i, table, stride, pixels, values, first, last)
        i += 2
    if i < full:
        _scatter1(w + VECTOR_BYTES * i, offsets + 8 * i, table, stride, pixels, values, first, last)
    place = view(offsets, count, np.int64)
    pixel, value = view(pixels, last, np.int32), view(values, last, np.float32)
    for i in range(full, count):
        weight = view(w + VECTOR_BYTES * i, rest, np.float32)
        for s in range(first, last):
            target = view(table + pixel[s] * stride + place[i], rest, np.float32)
            for lane in range(rest):
                target[lane] += value[s] * weight[lane]


@intrinsic
def _transpose8(typing: Any, source: Any, stride: Any, target: Any, target_stride: Any):
    """Transpose 8 x 8 numbers; strides in bytes."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, stride, target, target_stride = arguments
        rows = []
        for _ in range(LANES):
            rows.append(load(builder, VECTOR, source))
            source = builder.add(source, stride)
        for d in (1, 2, 4):  # exchange the squares of d x d numbers off the diagonal
            upper = [lane if not lane & d else LANES + lane - d for lane in range(LANES)]
            lower = [lane + d if not lane & d else LANES + lane for lane in range(LANES)]
            kind = ir.VectorType(ir.IntType(32), LANES)
            for i in range(LANES):
                if not i & d:
                    a, b = rows[i], rows[i + d]
                    rows[i] = builder.shuffle_vector(a, b, ir.Constant(kind, upper))
                    rows[i + d] = builder.shuffle_vector(a, b, ir.Constant(kind, lower))
        for row in rows:
            store(builder, row, target)
            target = builder.add(target, target_stride)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


@function()
def transpose(source, stride, rows, columns, target, target_stride):
    """Transpose a matrix of float32 numbers; strides in bytes. The last squares of eight may overlap those before."""
    if rows >= LANES and columns >= LANES:
        for row in range(0, rows, LANES):
            i = min(row, rows - LANES)
            for column in range(0, columns, LANES):
                j = min(column, columns - LANES)
                _transpose8(source + i * stride + 4 * j, stride, target + j * target_stride + 4 * i, target_stride)
        return
    for i in range(rows):
        row_of = view(source + i * stride, columns, np.float32)
        for j in range(columns):
            view(target + j * target_stride + 4 * i, 1, np.float32)[0] = row_of[j]
