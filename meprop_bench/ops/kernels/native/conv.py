"""The backward pass of a convolution where each map of each example keeps its own k positions.

With the images stored pixel by pixel (padded, channels last), the patch under an output position is a few *runs* of
consecutive numbers: kh runs of kw C numbers, or kh kw runs of C where the taps are dilated. A kept entry (b, n, p) of
value v is then two multiply-adds on those runs, from and to where they lie, with no matrix of patches in between:

    dW[n]          +=  v x[b, patch p]            (1)    sums in registers over all kept p, x is read in place
    dx[b, patch p] +=  v W[n]                     (2)    W in registers over all kept p of a map, dx is read and written

A vector of (1) costs a load and a multiply-add, of (2) a store besides, so that (1) runs at about the rate of a dense
product and (2) at half of it. What is left is order, so that things stay in the caches: (1) goes through the examples
tile by tile, (2) example by example.

Three parallel regions: images to pixels, and weights to vectors; by maps, the selection and (1); by images, (2) and
pixels back to images. The groups of a grouped convolution are images of their own, C being the channels of one.

A patch is cut into vectors: first those that are full, for all runs, then for each run what is left over. Of the latter
(1) computes all lanes and drops those that belong to the next pixel; (2) goes through them one by one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from meprop_bench.ops.kernels.native.compiler import (
    body,
    function,
    fused,
    load,
    load_f32,
    load_i32,
    offset,
    parallel,
    splat,
    store,
    thread_number,
    view,
)
from meprop_bench.ops.kernels.native.topk import largest, working_bytes

__all__ = ["IMAGES", "MAPS", "PIXELS", "PLAN_WORDS", "backward", "scratch_bytes"]

LANES = 8
"""float32 numbers in a vector: half of what the processor may have, since runs are short."""
_SIZE = 4 * LANES
_I64 = ir.IntType(64)
VECTOR = ir.VectorType(ir.FloatType(), LANES)


def _loop_over_kept(builder: Any, arguments: Any, start: list[Any], step: Any) -> list[Any]:
    """Emit the loop over the kept entries [first, last): `step(patch address, value, carried)` gives the next carried.

    arguments: table, stride, pixels, values, first, last; an entry's patch begins `pixels[s] * stride` bytes into the
    table. There must be one entry at least.
    """
    table, stride, pixels, values, first, last = arguments
    before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
    builder.branch(loop)
    builder.position_at_end(loop)
    s = builder.phi(_I64)
    carried = [builder.phi(VECTOR) for _ in start]
    patch = builder.add(table, builder.mul(load_i32(builder, pixels, s), stride))
    new = step(patch, splat(builder, VECTOR, load_f32(builder, values, s)), carried)
    following = builder.add(s, ir.Constant(_I64, 1))
    builder.cbranch(builder.icmp_signed("<", following, last), loop, after)
    for phi, value, change in zip([s, *carried], [first, *start], [following, *new], strict=True):
        phi.add_incoming(value, before)
        phi.add_incoming(change, loop)
    builder.position_at_end(after)
    return list(new)


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

        start = [load(builder, VECTOR, offset(builder, dw, i * _SIZE)) for i in range(vectors)]
        for i, total in enumerate(_loop_over_kept(builder, entries, start, step)):
            store(builder, total, offset(builder, dw, i * _SIZE))
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
        weights = [load(builder, VECTOR, offset(builder, w, i * _SIZE)) for i in range(vectors)]

        def step(patch: Any, value: Any, _: list[Any]) -> list[Any]:
            for place, weight in zip(places, weights, strict=True):
                address = builder.add(patch, place)
                store(builder, fused(builder, value, weight, load(builder, VECTOR, address)), address)
            return []

        _loop_over_kept(builder, entries, [], step)
        return context.get_dummy_value()

    @intrinsic
    def scatter(typing: Any, w: Any, offsets: Any, table: Any, stride: Any, pixels: Any, values: Any, s: Any, e: Any):
        return types.void(*[types.int64] * 8), codegen

    return scatter


_gather8, _gather4, _gather2, _gather1 = (_gather(vectors) for vectors in (8, 4, 2, 1))
_scatter8, _scatter4, _scatter2, _scatter1 = (_scatter(vectors) for vectors in (8, 4, 2, 1))


@function()
def _gather_all(dw, offsets, count, table, stride, pixels, values, first, last):
    """Compute (1) for `count` vectors of a patch."""
    if first >= last:
        return
    i = 0
    while i + 8 <= count:
        _gather8(dw + _SIZE * i, offsets + 8 * i, table, stride, pixels, values, first, last)
        i += 8
    if i + 4 <= count:
        _gather4(dw + _SIZE * i, offsets + 8 * i, table, stride, pixels, values, first, last)
        i += 4
    if i + 2 <= count:
        _gather2(dw + _SIZE * i, offsets + 8 * i, table, stride, pixels, values, first, last)
        i += 2
    if i < count:
        _gather1(dw + _SIZE * i, offsets + 8 * i, table, stride, pixels, values, first, last)


@function()
def _scatter_all(w, offsets, full, count, rest, table, stride, pixels, values, first, last):
    """Compute (2) for the `full` vectors of a patch and the `rest` lanes of each of the others."""
    if first >= last:
        return
    i = 0
    while i + 8 <= full:
        _scatter8(w + _SIZE * i, offsets + 8 * i, table, stride, pixels, values, first, last)
        i += 8
    if i + 4 <= full:
        _scatter4(w + _SIZE * i, offsets + 8 * i, table, stride, pixels, values, first, last)
        i += 4
    if i + 2 <= full:
        _scatter2(w + _SIZE * i, offsets + 8 * i, table, stride, pixels, values, first, last)
        i += 2
    if i < full:
        _scatter1(w + _SIZE * i, offsets + 8 * i, table, stride, pixels, values, first, last)
    place = view(offsets, count, np.int64)
    pixel, value = view(pixels, last, np.int32), view(values, last, np.float32)
    for i in range(full, count):
        weight = view(w + _SIZE * i, rest, np.float32)
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
def _transpose(source, stride, rows, columns, target, target_stride):
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


# The plan: sizes, and the addresses of three tables. Of a patch: where its vectors are (bytes, int64), and where among
# the numbers of the vectors the weight of a channel and tap is, (C, taps) (int32). Of an image: where its patches
# are, by output position (pixels, int32).
(_B, _G, _C, _H, _W, _HP, _WP, _TOP, _LEFT, _N, _P, _K) = range(12)
(_TAPS, _FULL, _REST, _VECTORS, _TILE, _PLACE, _SLOT, _PATCH) = range(12, 20)
PLAN_WORDS = 20

# The arguments of the bodies, one word each.
(_TID, _THREADS, _PLAN, _DY, _IDX, _X, _WEIGHT, _DX, _DW, _DB) = range(10)
(_XP, _PACKED, _DWP, _PIXEL, _VALUE, _START, _PARTS, _WORKING, _IMAGE) = range(10, 19)
WORDS = 19

_SUMS = 64
"""Sums of a map that are added up side by side for the bias: a single one would wait for itself."""


@function()
def _image_bytes(plan):
    """Return the bytes of one padded image; the vector after its last number may be read."""
    return 4 * plan[_HP] * plan[_WP] * plan[_C]


def _pixels(a):
    """Region 1: images to padded pixels, weights to vectors."""
    a = carray(a, WORDS)
    plan = view(a[_PLAN], PLAN_WORDS, np.int64)
    t, threads = thread_number(a[_TID]), a[_THREADS]
    c, h, w, hp, wp, top, left = plan[_C], plan[_H], plan[_W], plan[_HP], plan[_WP], plan[_TOP], plan[_LEFT]
    if a[_DW] != 0:
        images = plan[_B] * plan[_G]
        for image in range(images * t // threads, images * (t + 1) // threads):
            source, target = a[_X] + 4 * image * c * h * w, a[_XP] + _image_bytes(plan) * image
            if hp * wp == h * w:
                _transpose(source, 4 * h * w, c, h * w, target, 4 * c)
                continue
            view(target, hp * wp * c, np.float32)[:] = 0
            for y in range(h):
                inside = target + 4 * ((y + top) * wp + left) * c
                _transpose(source + 4 * y * w, 4 * h * w, c, w, inside, 4 * c)
    if a[_DX] != 0:
        n, count, numbers = plan[_N], c * plan[_TAPS], plan[_VECTORS] * LANES
        slots = view(plan[_SLOT], count, np.int32)
        for i in range(n * t // threads, n * (t + 1) // threads):
            weights = view(a[_WEIGHT] + 4 * i * count, count, np.float32)
            packed = view(a[_PACKED] + 4 * i * numbers, numbers, np.float32)
            for j in range(count):
                packed[slots[j]] = weights[j]


@function()
def _keep(a, plan, b, n, fill, working, places):
    """Select in one map; append what is kept to the map's list, from `fill` on, and return where it ends."""
    p, k, maps, batch = plan[_P], plan[_K], plan[_N], plan[_B]
    number = b * maps + n
    row = view(a[_DY] + 4 * number * p, p, np.float32)
    if a[_IDX]:
        given = view(a[_IDX] + 8 * number * k, k, np.int64)
        count = k
        for s in range(k):
            places[s] = given[s]
    else:
        count = largest(a[_DY] + 4 * number * p, p, k, working, places)
    patch = view(plan[_PATCH], p, np.int32)
    pixel, value = view(a[_PIXEL], (maps, batch * k), np.int32), view(a[_VALUE], (maps, batch * k), np.float32)
    image = (b * plan[_G] + n // (maps // plan[_G])) * plan[_HP] * plan[_WP]
    for s in range(count):
        pixel[n, fill + s] = image + patch[places[s]]
        value[n, fill + s] = row[places[s]]
    return fill + count


@function()
def _add_up(row, p, sums):
    """Add the p numbers at an address to `_SUMS` sums."""
    for start in range(0, p, _SUMS):
        length = min(_SUMS, p - start)
        part = view(row + 4 * start, length, np.float32)
        for i in range(length):
            sums[i] += part[i]


def _maps(a):
    """Region 2: selection, dW and db, a share of the maps on each thread."""
    a = carray(a, WORDS)
    plan = view(a[_PLAN], PLAN_WORDS, np.int64)
    t, threads = thread_number(a[_TID]), a[_THREADS]
    batch, maps, p, k, c, count = plan[_B], plan[_N], plan[_P], plan[_K], plan[_C], plan[_C] * plan[_TAPS]
    low, high = maps * t // threads, maps * (t + 1) // threads
    vectors = plan[_VECTORS]
    slots, sums = view(plan[_SLOT], count, np.int32), view(a[_PARTS], (maps, _SUMS), np.float32)
    working = a[_WORKING] + t * (working_bytes(p, k) + 4 * k)
    places = view(working + working_bytes(p, k), k, np.int32)
    starts = view(a[_START], (maps, batch + 1), np.int32)
    view(a[_DWP] + _SIZE * low * vectors, (high - low) * vectors * LANES, np.float32)[:] = 0
    for n in range(low, high):
        starts[n, 0] = 0
        sums[n] = 0
    for tile in range(0, batch, plan[_TILE]):
        stop = min(batch, tile + plan[_TILE])
        for n in range(low, high):
            for b in range(tile, stop):
                if a[_DB] != 0:
                    _add_up(a[_DY] + 4 * (b * maps + n) * p, p, sums[n])
                starts[n, b + 1] = _keep(a, plan, b, n, np.int64(starts[n, b]), working, places)
            if a[_DW] != 0:
                entries = 4 * n * batch * k
                _gather_all(
                    a[_DWP] + _SIZE * n * vectors, plan[_PLACE], vectors, a[_XP], 4 * c, a[_PIXEL] + entries,
                    a[_VALUE] + entries, np.int64(starts[n, tile]), np.int64(starts[n, stop]),
                )  # fmt: skip
    if a[_DW] != 0:
        for n in range(low, high):
            packed = view(a[_DWP] + _SIZE * n * vectors, vectors * LANES, np.float32)
            dw = view(a[_DW] + 4 * n * count, count, np.float32)
            for j in range(count):
                dw[j] = packed[slots[j]]
    if a[_DB] != 0:
        db = view(a[_DB], maps, np.float32)
        for n in range(low, high):
            db[n] = 0
            for i in range(_SUMS):
                db[n] += sums[n, i]


def _images(a):
    """Region 3: dx, a share of the images on each thread."""
    a = carray(a, WORDS)
    plan = view(a[_PLAN], PLAN_WORDS, np.int64)
    t, threads = thread_number(a[_TID]), a[_THREADS]
    batch, groups, maps, k, c = plan[_B], plan[_G], plan[_N], plan[_K], plan[_C]
    h, w, hp, wp, top, left = plan[_H], plan[_W], plan[_HP], plan[_WP], plan[_TOP], plan[_LEFT]
    vectors = plan[_VECTORS]
    starts = view(a[_START], (maps, batch + 1), np.int32)
    flat = view(a[_IMAGE] + _image_bytes(plan) * t, hp * wp * c, np.float32)
    each = maps // groups
    for image in range(batch * groups * t // threads, batch * groups * (t + 1) // threads):
        flat[:] = 0
        table = a[_IMAGE] + _image_bytes(plan) * (t - image)  # so that pixels, counted over all images, begin in it
        b, g = image // groups, image % groups
        for n in range(g * each, (g + 1) * each):
            entries = 4 * n * batch * k
            _scatter_all(
                a[_PACKED] + _SIZE * n * vectors, plan[_PLACE], plan[_FULL], vectors, plan[_REST], table, 4 * c,
                a[_PIXEL] + entries, a[_VALUE] + entries, np.int64(starts[n, b]), np.int64(starts[n, b + 1]),
            )  # fmt: skip
        target, source = a[_DX] + 4 * image * c * h * w, a[_IMAGE] + _image_bytes(plan) * t
        if hp * wp == h * w:
            _transpose(source, 4 * c, h * w, c, target, 4 * h * w)
            continue
        for y in range(h):
            inside = source + 4 * ((y + top) * wp + left) * c
            _transpose(inside, 4 * c, w, c, target + 4 * y * w, 4 * h * w)


PIXELS, MAPS, IMAGES = body(_pixels), body(_maps), body(_images)


@function()
def _place(a, plan, threads, scratch):
    """Set where everything lies in the scratch memory; return where it ends."""
    n, batch, k = plan[_N], plan[_B], plan[_K]
    numbers = _SIZE * n * plan[_VECTORS]
    a[_PACKED] = (scratch + 63) // 64 * 64
    a[_DWP] = a[_PACKED] + numbers
    a[_IMAGE] = (a[_DWP] + numbers + 63) // 64 * 64
    a[_XP] = (a[_IMAGE] + threads * _image_bytes(plan) + 63) // 64 * 64
    a[_PIXEL] = a[_XP] + batch * plan[_G] * _image_bytes(plan) + _SIZE
    a[_VALUE] = a[_PIXEL] + 4 * n * batch * k
    a[_START] = a[_VALUE] + 4 * n * batch * k
    a[_PARTS] = a[_START] + 4 * n * (batch + 1)
    a[_WORKING] = a[_PARTS] + 4 * n * _SUMS
    return a[_WORKING] + threads * (working_bytes(plan[_P], k) + 4 * k)


@function(types.int64(*[types.int64] * 2))
def scratch_bytes(plan, threads):
    """Return how many bytes `backward` needs."""
    return _place(np.empty(WORDS, np.int64), view(plan, PLAN_WORDS, np.int64), threads, 0) + 64


@function(types.void(*[types.int64] * 15))
def backward(gomp, tid, pixels, maps, images, threads, plan, dy, idx, x, w, dx, dw, db, scratch):
    """Compute dx, dW and db through the kept positions.

    Args:
        gomp, tid: `OPENMP`.
        pixels, maps, images: `PIXELS`, `MAPS`, `IMAGES`.
        threads: how many.
        plan: address of the plan.
        dy: float32 (B, N, P).
        idx: int64 (B N, k), positions, or 0 to select the k largest magnitudes.
        x, w: float32 (B, G C, H, W) and (N, C, kh, kw), contiguous.
        dx, dw, db: the same and (N,), written; each 0 where it is not wanted.
        scratch: `scratch_bytes(plan, threads)` bytes.

    """
    a = np.empty(WORDS, np.int64)
    a[_TID], a[_PLAN], a[_DY], a[_IDX], a[_X], a[_WEIGHT] = tid, plan, dy, idx, x, w
    a[_DX], a[_DW], a[_DB] = dx, dw, db
    _place(a, view(plan, PLAN_WORDS, np.int64), threads, scratch)
    parallel(gomp, threads, pixels, a)
    parallel(gomp, threads, maps, a)
    if dx != 0:
        parallel(gomp, threads, images, a)
