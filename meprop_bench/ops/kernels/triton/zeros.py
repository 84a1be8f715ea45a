"""Zeros in the rows of a kept dense gradient, on the device: `kernels.kept` says what for.

    blank       row j: written last -> zeros;  else 16 numbers of it are looked at, and if any is not 0 -> zeros, found
    blank_rest  if found, now or ever before -> zeros in all rows;  rows t are noted as written

Each is one launch, and the second follows the first in the stream, so that what any program has found is known to all.
What was found stays on the device, beside the notes of which rows are written: the host waits for nothing, and a weight
whose gradients were found changed has all rows zeroed from then on, as fresh memory has.

Looked at are two sectors of memory of each row, 0.5 MB for 8192 rows, where zeros are 268 MB. Where in a row: at a line
that is another one for each row and each time, and from there at the first where an example has an input, since what
changes a gradient unseen (weight decay, a sum over processes) is rarely zero there.
"""

from functools import lru_cache
from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from meprop_bench.ops.kernels.kept import SAMPLE, TRIES, Target

__all__ = ["blanked"]

_ROWS = 16
"""Rows of a program, few of which have to be zeroed: 512 programs for 8192 of them; others were not measured."""
_COLUMNS = 256
"""Columns that a program zeroes at once: a row's 1 KB of float32; others were not measured."""
_STARTS = 1 << 20


@triton.jit
def _zero(dw, row, dirty, m, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    zeros = tl.zeros((ROWS, COLUMNS), dw.dtype.element_ty)
    for first in range(0, m, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        tl.store(dw + row[:, None] * m + column[None, :], zeros, mask=dirty[:, None] & (column < m)[None, :])


@triton.jit(do_not_specialize=["start"])
def _blank(
    dw, x, written, n, m, batch, lines, stride, start, x_b, x_m,
    SAMPLE: tl.constexpr, TRIES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < n
    dirty = inside & (tl.load(written + row, mask=inside, other=0) != 0)
    # Where to look: a line of SAMPLE columns of each row, the first of TRIES where an example has an input.
    line = (start + row * stride) % lines
    example = ((start + row) % batch)[:, None] * x_b
    number = tl.arange(0, SAMPLE)[None, :]
    column = tl.minimum(line * SAMPLE, tl.maximum(m - SAMPLE, 0))[:, None] + number
    searching = tl.max((inside & (dirty == 0)).to(tl.int32), axis=0)
    tried = 0
    while (searching > 0) & (tried < TRIES):
        inputs = tl.load(x + example + column * x_m, mask=inside[:, None] & (column < m), other=0.0)
        without = tl.max((inputs != 0).to(tl.int32), axis=1) == 0
        line = tl.where(without, (line + 1) % lines, line)
        column = tl.minimum(line * SAMPLE, tl.maximum(m - SAMPLE, 0))[:, None] + number
        searching = tl.max((without & inside & (dirty == 0)).to(tl.int32), axis=0)
        tried += 1
    # Bits, as a NaN or a -0 is no zero.
    seen = tl.load(dw + row[:, None] * m + column, mask=(inside & (dirty == 0))[:, None] & (column < m), other=0)
    found = tl.max((seen != 0).to(tl.int32), axis=1) != 0
    if tl.max(found.to(tl.int32), axis=0) > 0:
        tl.store(written + n, 1)
    dirty = dirty | found
    tl.store(written + row, tl.zeros((ROWS,), tl.uint8), mask=dirty)
    if tl.max(dirty.to(tl.int32), axis=0) > 0:
        _zero(dw, row, dirty, m, ROWS, COLUMNS)


@triton.jit
def _blank_rest(dw, t, written, n, m, k, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    if tl.load(written + n) != 0:
        _zero(dw, row, row < n, m, ROWS, COLUMNS)
    # There are more rows than rows of t: the first programs note these, one each for what would be one of theirs.
    ours = row < k
    tl.store(written + tl.load(t + row, mask=ours, other=0), tl.full((ROWS,), 1, tl.uint8), mask=ours)


def blanked(target: Target, t: Tensor, x: Tensor) -> Tensor | None:
    """Return the dW `(n, m)` of a target, zero but for rows t, int64 `(k,)`, which the caller writes; None for fresh.

    x, `(B, m)`, is the input that dW will be computed of.
    """
    dw, written, seed = target
    if dw is None or written is None:
        return None
    (n, m), batch = dw.shape, x.shape[0]
    bits = dw.view(torch.int32 if dw.element_size() == 4 else torch.int16)
    lines, stride = _spread(m)
    programs = (triton.cdiv(n, _ROWS),)
    _blank[programs](
        bits, x, written, n, m, batch, lines, stride, _start(seed), x.stride(0), x.stride(1),
        SAMPLE=SAMPLE, TRIES=TRIES, ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=4,
    )  # fmt: skip
    _blank_rest[programs](bits, t, written, n, m, len(t), ROWS=_ROWS, COLUMNS=_COLUMNS, num_warps=4)
    return dw


def _start(seed: int) -> int:
    """Return where to begin, another place each time."""
    return (seed * 6364136223846793005 >> 32) % _STARTS


@lru_cache(maxsize=64)
def _spread(m: int) -> tuple[int, int]:
    """Return of how many lines a row is made, and how many lie between those of two neighbours: prime to all, and about
    the golden ratio of them, which spreads best.
    """
    lines = triton.cdiv(m, SAMPLE)
    stride = max(1, round(0.618 * lines))
    while gcd(stride, lines) != 1:
        stride += 1
    return lines, stride
