"""The two products of a unified selection: k columns of dy with k rows of W, and with x.

    dx = dy[:, t] W[t]          (B, k) (k, m)      B m numbers written, k rows of W read where they lie
    dW[t] = dy[:, t]ᵀ x         (k, B) (B, m)      B m numbers read; k rows written where the dense gradient has them

The sum in dx has but k terms, so that up to some k writing dx takes longer than the arithmetic (k = 32 in strict
float32 on an H200, hundreds on its tensor cores), and so does reading x for dW. Neither W's rows nor those of dW are
copied on the way. The columns of dy are another matter: memory moves 32 bytes for each number of a column. Every
program of a product would fetch them again, so from `_GATHER_FROM` columns on they are gathered once, to `(B, k)`.

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

__all__ = ["input_gradient", "weight_rows"]

_GATHER_FROM = 16
"""Columns of dy from which on they are gathered before both products. Not measured yet."""

_PROGRAMS = 264
"""Programs of dW wanted, two for each multiprocessor of an H200. Not measured yet."""

_CHUNK = 512
"""Examples that a program of dW takes at least."""


class _Tiles(NamedTuple):
    """What one program computes: an output of so many rows and columns, so many terms of the sums at once."""

    rows: int
    columns: int
    terms: int
    warps: int
    stages: int


def _dx_tiles(k: int) -> _Tiles:
    """Return the tiles of dx; k = 8 fills half of the 16 terms that a product of tiles has at least."""
    return _Tiles(64, 128, 16 if k <= 16 else 32, 4, 3)


def _dw_tiles(k: int) -> _Tiles:
    """Return the tiles of dW's rows; x is read once for each `rows` neurons."""
    return _Tiles(16 if k <= 16 else 32 if k <= 32 else 64, 64, 64 if k <= 32 else 32, 4, 3)


@triton.jit
def _input_gradient(
    g, t, w, dx, batch, m, k, g_b, g_k, w_n, w_m,
    GATHER: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(batch, ROWS)
    row = ((tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = ((tl.program_id(0) // blocks) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
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
def _weight_rows(
    g, t, x, dw, batch, m, k, g_b, g_k, x_b, x_m, share,
    GATHER: tl.constexpr, SCATTER: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(k, ROWS)
    term = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    column = ((tl.program_id(0) // blocks) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)[None, :]
    chunk = tl.program_id(1)
    neuron = tl.load(t + term, mask=term < k, other=0)
    source = neuron if GATHER else term.to(tl.int64)
    last = tl.minimum((chunk + 1) * share, batch)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
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
    target = neuron if SCATTER else chunk.to(tl.int64) * k + term
    tl.store(dw + target[:, None] * m + column, total, mask=(term < k)[:, None] & (column < m))


@triton.jit
def _add_chunks(parts, t, dw, chunks, k, m, SCATTER: tl.constexpr, COLUMNS: tl.constexpr):
    term = tl.program_id(1).to(tl.int64)
    column = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    total = tl.zeros((COLUMNS,), tl.float32)
    for chunk in range(chunks):
        total += tl.load(parts + (chunk * k + term) * m + column, mask=column < m, other=0.0)
    target = tl.load(t + term) if SCATTER else term
    tl.store(dw + target * m + column, total, mask=column < m)


def gather(dy: Tensor, t: Tensor) -> tuple[Tensor, bool]:
    """Return what the products read the kept columns of dy from, and whether they lie there as in dy."""
    return (dy, True) if len(t) < _GATHER_FROM else (dy.index_select(1, t), False)


def input_gradient(g: Tensor, gathered: bool, t: Tensor, w: Tensor) -> Tensor:
    """Return dx `(B, m)`.

    Args:
        g: dy `(B, n)`, or its kept columns `(B, k)`.
        gathered: whether it is dy, whose columns the kernel gathers.
        t: the neurons, int64 `(k,)`.
        w: weight, `(n, m)`.

    """
    batch, k, m = g.shape[0], len(t), w.shape[1]
    tiles = _dx_tiles(k)
    dx = torch.empty(batch, m, dtype=g.dtype, device=g.device)
    _input_gradient[(triton.cdiv(batch, tiles.rows) * triton.cdiv(m, tiles.columns),)](
        g, t, w, dx, batch, m, k, g.stride(0), g.stride(1), w.stride(0), w.stride(1),
        GATHER=gathered, PRECISION=precision(g.dtype), WIDEN=widened(g.dtype),
        ROWS=tiles.rows, COLUMNS=tiles.columns, TERMS=tiles.terms, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return dx


def weight_rows(g: Tensor, gathered: bool, t: Tensor, x: Tensor, n: int | None) -> Tensor:
    """Return dW: its rows t, `(k, m)`, or the whole of it, `(n, m)`, which is cleared first.

    Args:
        g, gathered, t: as for `input_gradient`.
        x: input, `(B, m)`.
        n: rows of the whole; None for the rows t alone.

    """
    batch, m = x.shape
    k = len(t)
    tiles = _dw_tiles(k)
    blocks = triton.cdiv(k, tiles.rows) * triton.cdiv(m, tiles.columns)
    chunks = max(1, min(_PROGRAMS // blocks, batch // _CHUNK))
    dw = x.new_empty(k, m) if n is None else x.new_zeros(n, m)
    parts = dw if chunks == 1 else torch.empty(chunks, k, m, dtype=torch.float32, device=x.device)
    _weight_rows[(blocks, chunks)](
        g, t, x, parts, batch, m, k, g.stride(0), g.stride(1), x.stride(0), x.stride(1), triton.cdiv(batch, chunks),
        GATHER=gathered, SCATTER=n is not None and chunks == 1, PRECISION=precision(g.dtype), WIDEN=widened(g.dtype),
        ROWS=tiles.rows, COLUMNS=tiles.columns, TERMS=tiles.terms, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    if chunks > 1:
        _add_chunks[(triton.cdiv(m, 1024), k)](parts, t, dw, chunks, k, m, SCATTER=n is not None, COLUMNS=1024)
    return dw
