"""One pass over dy `(B, n)` that gives both what the unified selection needs and the bias gradient.

    magnitudes[j] = Σ_b |dy[b, j]|        sums[j] = Σ_b dy[b, j]        added in float32, whatever dy's type is

Torch's operators read dy for the magnitudes, write and read them again to be added up, and read dy once more for the
sums: four times the bytes. A program takes columns that fill a cache line of 128 bytes, which it reads whole, and walks
down the batch. Where that makes too few programs to use all of the memory at once, the batch is cut into chunks, whose
sums whoever selects adds up. No atomic additions: their order would change the last bits of the sums from one run to
the next, and with them what is selected.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["column_sums"]

_LINE = 128
"""Bytes of a row that a program reads."""
_ROWS = 128
"""Rows read at once: with 8 warps, 16 numbers of 4 bytes or 32 of 2 for each thread."""
_PROGRAMS = 384
"""Programs wanted, about three for each multiprocessor of an H200; other numbers were not measured."""


@triton.jit
def _column_sums(
    dy, parts, totals, batch, n, dy_b, dy_n, share, SUMS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    # A program has COLUMNS columns (one cache line of a row) of one chunk of `share` examples.
    chunk = tl.program_id(1)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < n
    last = tl.minimum((chunk + 1) * share, batch)
    magnitude = tl.zeros((ROWS, COLUMNS), tl.float32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    # Tiles of ROWS x COLUMNS are added up where they are: each thread has its own examples of each column.
    for first in range(chunk * share, last, ROWS):
        row = first + tl.arange(0, ROWS)
        place = row.to(tl.int64)[:, None] * dy_b + column.to(tl.int64)[None, :] * dy_n
        values = tl.load(dy + place, mask=(row < last)[:, None] & inside[None, :], other=0.0).to(tl.float32)
        magnitude += tl.abs(values)
        if SUMS:
            total += values
    # Only now do the threads add up what they have of a column: (ROWS, COLUMNS) -> (COLUMNS,), in a fixed order.
    tl.store(parts + chunk * n + column, tl.sum(magnitude, axis=0), mask=inside)
    if SUMS:
        tl.store(totals + chunk * n + column, tl.sum(total, axis=0), mask=inside)


def column_sums(dy: Tensor, *, sums: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the magnitudes of each chunk, float32 `(chunks, n)`, and with `sums` the sums.

    The bias gradient is the last that is returned, `(n,)` in dy's type. If there are several chunks it is still empty,
    and the second holds what it will be the sum of, float32 `(chunks, n)`; else the second is None.
    """
    batch, n = dy.shape
    width = _LINE // dy.element_size()
    blocks = triton.cdiv(n, width)
    chunks = max(1, min(_PROGRAMS // blocks, batch // _ROWS))
    share = triton.cdiv(batch, chunks)
    parts = torch.empty(chunks, n, dtype=torch.float32, device=dy.device)
    totals = torch.empty_like(parts) if sums and chunks > 1 else None
    db = torch.empty(n, dtype=dy.dtype, device=dy.device) if sums else None
    target = totals if totals is not None else db
    _column_sums[(blocks, chunks)](
        dy, parts, parts if target is None else target, batch, n, dy.stride(0), dy.stride(1), share,
        SUMS=sums, ROWS=_ROWS, COLUMNS=width, num_warps=8,
    )  # fmt: skip
    return parts, totals, db
