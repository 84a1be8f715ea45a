"""The backward pass of a convolution where each map of each example has its own k positions.

With the images stored pixel by pixel (padded, channels last), the patch under an output position is a few *runs* of
consecutive numbers: kh runs of kw C numbers, or kh kw runs of C where the taps are dilated. A selected entry
(b, n, p) of value v is then two multiply-adds on those runs, where they lie, with no matrix of patches in between:

    dW[n]          +=  v x[b, patch p]            (1)    sums in registers over all p, x is read in place
    dx[b, patch p] +=  v W[n]                     (2)    W in registers over all p of a map, dx is read and written

A vector of (1) costs a load and a multiply-add, of (2) a store besides; but where an image does not fit into the first
cache, both wait for the second: 0.024 ns a number each, where a dense product takes 0.010 (32x64x32x32 -> 128, 3x3, a
fifth of the positions, 2 threads with AVX-512). So the order matters: (1) goes through the examples tile by tile, (2)
example by example.

Three parallel regions: images to pixels, and weights to vectors; by maps, the selection and (1); by images, (2) and
pixels back to images. The groups of a grouped convolution are images of their own, C being the channels of one.

A patch is cut into vectors: first those that are full, for all runs, then for each run what is left over. Of the latter
(1) computes all lanes and drops those that belong to the next pixel; (2) goes through them one by one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import carray, types

from meprop_bench.ops.kernels.native.compiler import function, view
from meprop_bench.ops.kernels.native.patches import LANES, VECTOR_BYTES, gather_all, scatter_all, transpose
from meprop_bench.ops.kernels.native.threads import body, parallel
from meprop_bench.ops.kernels.native.topk import largest, working_bytes

__all__ = ["IMAGES", "LANES", "MAPS", "PIXELS", "Plan", "backward", "scratch_bytes"]


class Plan(NamedTuple):
    """What follows from the shapes, made once for each by `ops.conv.native`: an int64 word each."""

    batch: int
    groups: int
    channels: int
    height: int
    width: int
    padded_height: int
    padded_width: int
    top: int
    left: int
    maps: int
    positions: int
    k: int
    taps: int
    full: int  # vectors of a patch that belong to one run; after them, for each run, one with the rest
    rest: int  # numbers in each of those
    vectors: int  # of a patch, both kinds
    tile: int  # examples that one pass over all maps reads
    place: int  # address of int64 (vectors,): where each begins, in bytes from the patch's first number
    slot: int  # address of int32 (C, taps): where a weight is among the numbers of the vectors
    patch: int  # address of int32 (P,): where the patch of an output position begins, in pixels of its image


PLAN_WORDS = len(Plan._fields)
(
    _B, _G, _C, _H, _W, _HP, _WP, _TOP, _LEFT, _N, _P, _K, _TAPS, _FULL, _REST, _VECTORS, _TILE, _PLACE, _SLOT, _PATCH,
) = range(PLAN_WORDS)  # fmt: skip

# The words of the regions: addresses of contiguous memory (0: not there). The letters are those of `Plan`.
(
    _PLAN,  # int64 (PLAN_WORDS,)
    _DY,  # float32 (B, N, P)
    _IDX,  # int64 (B N, K), a selection made before; 0: select the K largest
    _X,  # float32 (B, G C, H, W)
    _WEIGHT,  # float32 (N, C, taps)
    _DX,  # as x, written
    _DW,  # as the weight, written
    _DB,  # float32 (N,), written
    _XP,  # float32 (B G, Hp, Wp, C), padded pixels of x
    _PACKED,  # float32 (N, vectors, LANES), the weight in the order of a patch's vectors
    _DWP,  # the same, of dW
    _PIXEL,  # int32 (N, B K), by map: the pixel where each selected patch begins, counted over all images
    _VALUE,  # float32 (N, B K), dy there
    _START,  # int32 (N, B + 1), where an example's entries begin in the two
    _PARTS,  # float32 (N, _SUMS), sums for the bias
    _WORKING,  # for each share, what `largest` works in, and int32 (K,) for the positions it finds
    _IMAGE,  # float32 (shares, Hp, Wp, C): the image of dx that a share adds to
) = range(17)
WORDS = 17

_SUMS = 64
"""Sums of a map that are added up side by side for the bias: a single one would wait for itself."""


@function()
def _image_bytes(plan):
    """Return the bytes of one padded image; the vector after its last number may be read."""
    return 4 * plan[_HP] * plan[_WP] * plan[_C]


def _pixels(a, share, shares):
    """Region 1: images to padded pixels, weights to vectors."""
    a = carray(a, WORDS)
    plan = view(a[_PLAN], PLAN_WORDS, np.int64)
    c, h, w, hp, wp, top, left = plan[_C], plan[_H], plan[_W], plan[_HP], plan[_WP], plan[_TOP], plan[_LEFT]
    # x (C, H, W) -> (Hp, Wp, C), image by image, a share of them: as one transposition, or row by row into the padding.
    if a[_DW] != 0:
        images = plan[_B] * plan[_G]
        for image in range(images * share // shares, images * (share + 1) // shares):
            source, target = a[_X] + 4 * image * c * h * w, a[_XP] + _image_bytes(plan) * image
            if hp * wp == h * w:
                transpose(source, 4 * h * w, c, h * w, target, 4 * c)
                continue
            view(target, hp * wp * c, np.float32)[:] = 0
            for y in range(h):
                inside = target + 4 * ((y + top) * wp + left) * c
                transpose(source + 4 * y * w, 4 * h * w, c, w, inside, 4 * c)
    # W (C, taps) -> (vectors, LANES), map by map, a share of them; lanes that hold no weight are never used.
    if a[_DX] != 0:
        n, count, numbers = plan[_N], c * plan[_TAPS], plan[_VECTORS] * LANES
        slots = view(plan[_SLOT], count, np.int32)
        for i in range(n * share // shares, n * (share + 1) // shares):
            weights = view(a[_WEIGHT] + 4 * i * count, count, np.float32)
            packed = view(a[_PACKED] + 4 * i * numbers, numbers, np.float32)
            for j in range(count):
                packed[slots[j]] = weights[j]


@function()
def _select(a, plan, b, n, fill, working, places):
    """Select in map n of example b; append the entries to the map's list, from `fill` on; return where it ends."""
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
    # Each position as the pixel where its patch begins, counted over all images, and dy there.
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


def _maps(a, share, shares):
    """Region 2: selection, dW and db; a share has maps [low, high) of all examples."""
    a = carray(a, WORDS)
    plan = view(a[_PLAN], PLAN_WORDS, np.int64)
    batch, maps, p, k, c, count = plan[_B], plan[_N], plan[_P], plan[_K], plan[_C], plan[_C] * plan[_TAPS]
    low, high = maps * share // shares, maps * (share + 1) // shares
    vectors = plan[_VECTORS]
    slots, sums = view(plan[_SLOT], count, np.int32), view(a[_PARTS], (maps, _SUMS), np.float32)
    working = a[_WORKING] + share * (working_bytes(p, k) + 4 * k)
    places = view(working + working_bytes(p, k), k, np.int32)
    starts = view(a[_START], (maps, batch + 1), np.int32)
    view(a[_DWP] + VECTOR_BYTES * low * vectors, (high - low) * vectors * LANES, np.float32)[:] = 0
    for n in range(low, high):
        starts[n, 0] = 0
        sums[n] = 0
    # Tile by tile of examples, whose pixels stay in the second cache while all maps read them: select, then (1).
    for tile in range(0, batch, plan[_TILE]):
        stop = min(batch, tile + plan[_TILE])
        for n in range(low, high):
            for b in range(tile, stop):
                if a[_DB] != 0:
                    _add_up(a[_DY] + 4 * (b * maps + n) * p, p, sums[n])
                starts[n, b + 1] = _select(a, plan, b, n, np.int64(starts[n, b]), working, places)
            if a[_DW] != 0:
                entries = 4 * n * batch * k
                gather_all(
                    a[_DWP] + VECTOR_BYTES * n * vectors, plan[_PLACE], count=vectors, table=a[_XP], stride=4 * c,
                    pixels=a[_PIXEL] + entries, values=a[_VALUE] + entries,
                    first=np.int64(starts[n, tile]), last=np.int64(starts[n, stop]),
                )  # fmt: skip
    # dW from the order of vectors into that of the weight, and the sums of a map into one.
    if a[_DW] != 0:
        for n in range(low, high):
            packed = view(a[_DWP] + VECTOR_BYTES * n * vectors, vectors * LANES, np.float32)
            dw = view(a[_DW] + 4 * n * count, count, np.float32)
            for j in range(count):
                dw[j] = packed[slots[j]]
    if a[_DB] != 0:
        db = view(a[_DB], maps, np.float32)
        for n in range(low, high):
            db[n] = 0
            for i in range(_SUMS):
                db[n] += sums[n, i]


def _images(a, share, shares):
    """Region 3: dx; a share has some of the B G images, and works on one at a time."""
    a = carray(a, WORDS)
    plan = view(a[_PLAN], PLAN_WORDS, np.int64)
    batch, groups, maps, k, c = plan[_B], plan[_G], plan[_N], plan[_K], plan[_C]
    h, w, hp, wp, top, left = plan[_H], plan[_W], plan[_HP], plan[_WP], plan[_TOP], plan[_LEFT]
    vectors = plan[_VECTORS]
    starts = view(a[_START], (maps, batch + 1), np.int32)
    flat = view(a[_IMAGE] + _image_bytes(plan) * share, hp * wp * c, np.float32)
    each = maps // groups
    for image in range(batch * groups * share // shares, batch * groups * (share + 1) // shares):
        flat[:] = 0
        table = a[_IMAGE] + _image_bytes(plan) * (share - image)  # so that pixels, counted over all images, begin in it
        # (2) for all maps of its group: the entries of this example.
        b, g = image // groups, image % groups
        for n in range(g * each, (g + 1) * each):
            entries = 4 * n * batch * k
            scatter_all(
                a[_PACKED] + VECTOR_BYTES * n * vectors, plan[_PLACE], full=plan[_FULL], count=vectors,
                rest=plan[_REST], table=table, stride=4 * c, pixels=a[_PIXEL] + entries, values=a[_VALUE] + entries,
                first=np.int64(starts[n, b]), last=np.int64(starts[n, b + 1]),
            )  # fmt: skip
        # (Hp, Wp, C) -> (C, H, W), without the padding.
        target, source = a[_DX] + 4 * image * c * h * w, a[_IMAGE] + _image_bytes(plan) * share
        if hp * wp == h * w:
            transpose(source, 4 * c, h * w, c, target, 4 * h * w)
            continue
        for y in range(h):
            inside = source + 4 * ((y + top) * wp + left) * c
            transpose(inside, 4 * c, w, c, target + 4 * y * w, 4 * h * w)


PIXELS, MAPS, IMAGES = body(_pixels), body(_maps), body(_images)


@function()
def _place(a, plan, shares, scratch):
    """Set where everything lies in the scratch memory; return where it ends."""
    n, batch, k = plan[_N], plan[_B], plan[_K]
    numbers = VECTOR_BYTES * n * plan[_VECTORS]
    a[_PACKED] = (scratch + 63) // 64 * 64
    a[_DWP] = a[_PACKED] + numbers
    a[_IMAGE] = (a[_DWP] + numbers + 63) // 64 * 64
    a[_XP] = (a[_IMAGE] + shares * _image_bytes(plan) + 63) // 64 * 64
    a[_PIXEL] = a[_XP] + batch * plan[_G] * _image_bytes(plan) + VECTOR_BYTES
    a[_VALUE] = a[_PIXEL] + 4 * n * batch * k
    a[_START] = a[_VALUE] + 4 * n * batch * k
    a[_PARTS] = a[_START] + 4 * n * (batch + 1)
    a[_WORKING] = a[_PARTS] + 4 * n * _SUMS
    return a[_WORKING] + shares * (working_bytes(plan[_P], k) + 4 * k)


@function(types.int64(*[types.int64] * 2))
def scratch_bytes(plan, shares):
    """Return how many bytes `backward` needs."""
    return _place(np.empty(WORDS, np.int64), view(plan, PLAN_WORDS, np.int64), shares, 0) + 64


@function(types.void(*[types.int64] * 14))
def backward(openmp, pixels, maps, images, shares, plan, dy, idx, x, w, dx, dw, db, scratch):
    """Compute dx, dW and db through the selected positions; for words of the regions, see there.

    Args:
        openmp, pixels, maps, images: `OPENMP`, `PIXELS`, `MAPS`, `IMAGES`.
        shares: into how many the work is cut.
        scratch: `scratch_bytes(plan, shares)` bytes.

    """
    a = np.empty(WORDS, np.int64)
    a[_PLAN], a[_DY], a[_IDX], a[_X], a[_WEIGHT] = plan, dy, idx, x, w
    a[_DX], a[_DW], a[_DB] = dx, dw, db
    _place(a, view(plan, PLAN_WORDS, np.int64), shares, scratch)
    parallel(openmp, shares, pixels, a)
    parallel(openmp, shares, maps, a)
    if dx != 0:
        parallel(openmp, shares, images, a)
