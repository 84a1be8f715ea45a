"""The two products of a unified selection: k columns of dy with k rows of W, and with x.

    dx = dy[:, t] W[t]          (B, k) (k, m)      B m numbers written, k rows of W read where they lie
    dW[t] = dy[:, t]ᵀ x         (k, B) (B, m)      B m numbers read; k rows written where the dense gradient has them

The sum in dx has but k terms, so that up to some k writing dx takes longer than the arithmetic (k = 32 in strict
float32 on an H200, hundreds on its tensor cores), and so does reading x for dW. Neither W's rows nor those of dW are
copied on the way. The columns of dy are another matter: memory moves 32 bytes for each number of a column. Every
program of a product would fetch them again, so from `_GATHER_FROM` columns on they are gathered once, to `(B, k)`.

Both are one launch, since neither waits for the other: the one mostly writes and the other mostly reads. The two tiles
share nothing but the registers that a program gets, which are the larger number of both.

Where dW has few tiles and a long batch, the batch is cut into chunks, whose sums another kernel adds up in a fixed
order, as no atomic addition would: the same input gives the same bits. Factors of float32 are exact or rounded to TF32
as torch's own products are; sums are float32 in all types.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from meprop_bench.ops.kernels.triton.launch import precision, widened

__all__ = ["products"]

_GATHER_FROM = 16
"""Columns of dy from which on they are gathered before both products; other limits were not measured."""

_PROGRAMS = 264
"""Programs of dW wanted, two for each multiprocessor of an H200; other numbers were not measured."""

_CHUNK = 512
"""Examples that a program of dW takes at least."""

_WARPS, _STAGES = 4, 3
"""Of each program; stages of the loop that are under way at once. Others were not measured."""


class _Tiles(NamedTuple):
    """What one program computes: an output of so many rows and columns, so many terms of the sums at once."""

    rows: int
    columns: int
    terms: int


def _dx_tiles(k: int) -> _Tiles:
    """Return the tiles of dx; a product of tiles has at least 16 terms, of which k = 8 fills a half.

    Compiled for an H200 in strict float32, with those of dW, a thread takes 168 registers for 64 x 128 and 32 terms (12
    multiply-adds for each 16 bytes from shared memory), and 255 with 16 terms, where 32 x 128 takes 96 (Triton 3.7).
    """
    return _Tiles(32, 128, 16) if k <= 16 else _Tiles(64, 128, 32)


def _dw_tiles(k: int) -> _Tiles:
    """Return the tiles of dW's rows; x is read once for each `rows` neurons."""
    return _Tiles(16 if k <= 16 else 32 if k <= 32 else 64, 64, 64 if k <= 32 else 32)


@triton.jit
def _dx_tile(
    tile, g, t, w, dx, batch, m, k, g_b, g_k, w_n, w_m,
    GATHER: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    # Which tile of dx, (ROWS, COLUMNS): neighbours share columns, hence the rows of W, which then come from the cache.
    blocks = tl.cdiv(batch, ROWS)
    row = ((tile % blocks) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = ((tile // blocks) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    # TERMS of the k neurons at once: (ROWS, TERMS) of dy, or of its gathered columns, by (TERMS, COLUMNS) of W's rows.
    for first in range(0, k, TERMS):
        term = first + tl.arange(0, TERMS)
        neuron = tl.load(t + term, mask=term < k, other=0)
        source = neuron if GATHER else term.to(tl.int64)
        left = tl.load(g + row * g_b + source[None, :] * g_k, mask=(row < batch) & (term < k)[None, :], other=0.0)
        right = tl.load(w + neuron[:, None] * w_n + column * w_m, mask=(term < k)[:, None] & (column < m), other=0.0)
        if WIDEN:
            left, right = left.to(tl.float32), right.to(tl.float32)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    tl.store(dx + row * m + column, total, mask=(row < batch) & (column < m))


@triton.jit
def _dw_tile(
    tile, chunk, g, t, x, dw, batch, m, k, g_b, g_k, x_b, x_m, share,
    GATHER: tl.constexpr, SCATTER: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    # Which tile of dW's k rows, (ROWS, COLUMNS), and which chunk of the batch.
    blocks = tl.cdiv(k, ROWS)
    term = (tile % blocks) * ROWS + tl.arange(0, ROWS)
    column = ((tile // blocks) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)[None, :]
    neuron = tl.load(t + term, mask=term < k, other=0)
    source = neuron if GATHER else term.to(tl.int64)
    last = tl.minimum((chunk + 1) * share, batch)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    # TERMS examples at once: (ROWS, TERMS) of dy, transposed as it is read, by (TERMS, COLUMNS) of x.
    for first in range(chunk * share, last, TERMS):
        example = first + tl.arange(0, TERMS)
        inside = example < last
        place = example.to(tl.int64)
        left = tl.load(
            g + place[None, :] * g_b + source[:, None] * g_k, mask=(term < k)[:, None] & inside[None, :], other=0.0
        )
        right = tl.load(x + place[:, None] * x_b + column * x_m, mask=inside[:, None] & (column < m), other=0.0)
        if WIDEN:
            left, right = left.to(tl.float32), right.to(tl.float32)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    # Into the rows of the full gradient, or one below the other, chunk by chunk.
    target = neuron if SCATTER else chunk.to(tl.int64) * k + term
    tl.store(dw + target[:, None] * m + column, total, mask=(term < k)[:, None] & (column < m))


@triton.jit
def _products(
    g, t, x, w, dx, dw, dx_tiles, dw_tiles, batch, m, k, g_b, g_k, x_b, x_m, w_n, w_m, share,
    GATHER: tl.constexpr, SCATTER: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    DX_ROWS: tl.constexpr, DX_COLUMNS: tl.constexpr, DX_TERMS: tl.constexpr,
    DW_ROWS: tl.constexpr, DW_COLUMNS: tl.constexpr, DW_TERMS: tl.constexpr,
):  # fmt: skip
    # The first programs have a tile of dx each, the others a tile of dW for one chunk of the batch.
    tile = tl.program_id(0)
    if tile < dx_tiles:
        _dx_tile(
            tile, g, t, w, dx, batch, m, k, g_b, g_k, w_n, w_m,
            GATHER, PRECISION, WIDEN, DX_ROWS, DX_COLUMNS, DX_TERMS,
        )  # fmt: skip
    else:
        rest = tile - dx_tiles
        _dw_tile(
            rest % dw_tiles, rest // dw_tiles, g, t, x, dw, batch, m, k, g_b, g_k, x_b, x_m, share,
            GATHER, SCATTER, PRECISION, WIDEN, DW_ROWS, DW_COLUMNS, DW_TERMS,
        )  # fmt: skip


@triton.jit
def _add_chunks(parts, t, dw, chunks, k, m, SCATTER: tl.constexpr, COLUMNS: tl.constexpr):
    # A program has COLUMNS of one row of dW and adds up what the chunks have of it, in their order.
    term = tl.program_id(1).to(tl.int64)
    column = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    total = tl.zeros((COLUMNS,), tl.float32)
    for chunk in range(chunks):
        total += tl.load(parts + (chunk * k + term) * m + column, mask=column < m, other=0.0)
    target = tl.load(t + term) if SCATTER else term
    tl.store(dw + target * m + column, total, mask=column < m)


def products(
    dy: Tensor, t: Tensor, x: Tensor, w: Tensor, need_dx: bool, need_dw: bool, as_rows: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return dx `(B, m)` and dW, each if it is needed; one is. x is None if dW is not, and w if dx is not.

    dW is its rows t, int64 `(k,)`, alone, `(k, m)`, or the whole of it, `(n, m)`, which is cleared first.
    """
    x, w = (x, w if need_dx else x) if need_dw else (w, w)  # of what is not needed nothing is read
    (batch, n), m, k = dy.shape, x.shape[1], len(t)
    gathered = k < _GATHER_FROM
    g = dy if gathered else dy.index_select(1, t)
    left, right = _dx_tiles(k), _dw_tiles(k)
    dx_tiles = triton.cdiv(batch, left.rows) * triton.cdiv(m, left.columns) if need_dx else 0
    dw_tiles = triton.cdiv(k, right.rows) * triton.cdiv(m, right.columns)
    chunks = max(1, min(_PROGRAMS // dw_tiles, batch // _CHUNK)) if need_dw else 0
    dx = torch.empty(batch, m, dtype=x.dtype, device=x.device) if need_dx else None
    dw = None if not need_dw else x.new_empty(k, m) if as_rows else x.new_zeros(n, m)
    share = triton.cdiv(batch, max(1, chunks))
    parts = torch.empty(chunks, k, m, dtype=torch.float32, device=x.device) if chunks > 1 else dw
    _products[(dx_tiles + dw_tiles * chunks,)](
        g, t, x, w, g if dx is None else dx, g if parts is None else parts, dx_tiles, dw_tiles, batch, m, k,
        g.stride(0), g.stride(1), x.stride(0), x.stride(1), w.stride(0), w.stride(1), share,
        GATHER=gathered, SCATTER=not as_rows and chunks == 1, PRECISION=precision(x.dtype), WIDEN=widened(x.dtype),
        DX_ROWS=left.rows, DX_COLUMNS=left.columns, DX_TERMS=left.terms,
        DW_ROWS=right.rows, DW_COLUMNS=right.columns, DW_TERMS=right.terms, num_warps=_WARPS, num_stages=_STAGES,
    )  # fmt: skip
    if chunks > 1:
        _add_chunks[(triton.cdiv(m, 1024), k)](parts, t, dw, chunks, k, m, SCATTER=not as_rows, COLUMNS=1024)
    return dx, dw
