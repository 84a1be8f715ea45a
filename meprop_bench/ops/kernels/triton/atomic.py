"""The weight gradient of a selection of each example's own, added up where it lies: no sort, and no fixed order.

    dW[t[b, j]] += v[b, j] x[b]      for all examples b and places j at once

A program has an example: it reads a panel of x[b] once and adds it, times each v[b, j], to k rows of dW, by atomic
additions. These happen in L2, in the order in which programs happen to come by, so that *the last bits differ from run
to run*. They are relaxed: nobody waits for another's, and the sum is read when all are through. The hardware's flush
subnormal numbers, those below 1.2e-38, to zero.

Nothing is sorted, unlike in `example`, and x is read once; that is bought with bytes. The sums, float32 in all types,
have to be cleared first and, for half precision, cast at the end: 268 MB and 403 MB for an 8192 x 8192 layer. An
addition is a read and a write in L2 where a sorted sum has a read. As there, panels keep what is worked on in the
cache: 2 KB of each row of dW, 17 MB of those 268.

Sparse rows are added up in their places among the neurons that any example selects, which a mark for each neuron and a
running count of the marks give. How many they are is known on the device alone, and waited for.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from meprop_bench.ops.kernels import hybrid_rows

__all__ = ["weight_gradient"]

_COLUMNS = 512
"""Of a panel: 2 KB of each row of float32 sums, 16 bytes for each thread of four warps."""
_PAIRS = 4
"""Rows added to at once; nothing comes back, so that a program goes on meanwhile; others were not measured."""


@triton.jit
def _add_up(
    x, t, v, places, sums, batch, m, k, x_b, x_m,
    COMPACT: tl.constexpr, PAIRS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    # A program has one example and one panel of columns, x's part of which it reads once.
    example = (tl.program_id(0) % batch).to(tl.int64)
    column = ((tl.program_id(0) // batch) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    inside = column < m
    row = tl.load(x + example * x_b + column * x_m, mask=inside, other=0.0).to(tl.float32)
    # PAIRS of its k neurons at once: v[b, j] x[b] is added to each one's row, in no order.
    for first in range(0, k, PAIRS):
        term = first + tl.arange(0, PAIRS)
        ours = term < k
        target = tl.load(t + example * k + term, mask=ours, other=0).to(tl.int64)
        value = tl.load(v + example * k + term, mask=ours, other=0.0).to(tl.float32)
        if COMPACT:
            ours = ours & (value != 0)  # others may have no place
            target = tl.load(places + target, mask=ours, other=0).to(tl.int64)
        tl.atomic_add(
            sums + target[:, None] * m + column[None, :], value[:, None] * row[None, :],
            mask=ours[:, None] & inside[None, :], sem="relaxed",
        )  # fmt: skip


def weight_gradient(t: Tensor, v: Tensor, x: Tensor, n: int, as_rows: bool) -> Tensor:
    """Return dW `(n, m)`, dense or as sparse rows, not deterministic: see the module, and `example` for the arguments.

    Sums are float32 and rounded to x's type once.
    """
    if not as_rows:
        return _sums(t, v, x, None, n)
    marks = torch.zeros(n, dtype=torch.int32, device=t.device)
    marks = marks.index_add_(0, t.view(-1).long(), (v.view(-1) != 0).int()).clamp_(max=1)
    hits = marks.nonzero().view(-1)
    return hybrid_rows(hits, _sums(t, v, x, marks.cumsum(0, dtype=torch.int32) - 1, len(hits)), n)


def _sums(t: Tensor, v: Tensor, x: Tensor, places: Tensor | None, rows: int) -> Tensor:
    """Return, `(rows, m)`, what each row gets: that of its neuron, or of its place if places are given."""
    (batch, m), k = x.shape, t.shape[1]
    sums = torch.zeros(rows, m, dtype=torch.float32, device=x.device)
    _add_up[(batch * triton.cdiv(m, _COLUMNS),)](
        x, t, v, t if places is None else places, sums, batch, m, k, x.stride(0), x.stride(1),
        COMPACT=places is not None, PAIRS=_PAIRS, COLUMNS=_COLUMNS, num_warps=4,
    )  # fmt: skip
    return sums.to(x.dtype)
