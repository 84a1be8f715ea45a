"""The two products of a selection of each example's own: weighted sums of a few rows, as an embedding bag is.

    dx[b] = Σ_j v[b, j] W[t[b, j]]                    k rows of W for each example
    dW[i] = Σ_{(b, j): t[b, j] = i} v[b, j] x[b]      rows of x, for each neuron those examples that keep it

No product of matrices is left. B k rows are read for each sum, from the cache as far as it holds them, which is what
decides: at B = 1024, 8192 -> 8192, k = 32, float32, they are 1.07 GB, of a W of 268 MB. So programs run through a panel
of columns for all examples, or all neurons, before the next panel begins: 2 KB of each row, 17 MB of that W, which stay
in an H200's L2 cache of 60 MB. Sums are float32 in all types, and never rounded to TF32: nothing here runs on tensor
cores.

For dW the pairs (b, j) are needed neuron by neuron. Up to `_FEW` of them each program looks through all for its own,
one launch in all; else they are sorted by neuron first, by a stable sort. In both, the examples of a neuron are added
up in their order, by one program, so the same input gives the same bits. Who would rather spare the sort, and the order
with it, takes `atomic`: kernel `triton_atomic`. The dense gradient is written in one pass, zeros included.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from meprop_bench.ops.kernels import hybrid_rows

__all__ = ["input_gradient", "weight_gradient"]

_PANEL = 2048
"""Bytes of a row that a program sums up: 16 for each thread of four warps."""
_PAIRS = 16
"""Rows read at once, so that as many reads are under way in each thread."""
_FEW = 2048
"""Pairs up to which every program looks for its own among all; other limits were not measured."""


@triton.jit
def _bags(
    table, t, v, order, starts, out, bags, m, k, table_r, table_m,
    SORTED: tl.constexpr, PAIRS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    # A program has one sum, an example's dx or a neuron's dW, and one panel of COLUMNS; a panel is done for all sums
    # before the next one begins, so that its part of the table stays in the cache.
    bag = (tl.program_id(0) % bags).to(tl.int64)
    column = ((tl.program_id(0) // bags) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    inside = (column < m)[None, :]
    # Its pairs: a run of those sorted by neuron, or the k of its example.
    if SORTED:
        begin, end = tl.load(starts + bag), tl.load(starts + bag + 1)
    else:
        begin, end = bag * k, bag * k + k
    total = tl.zeros((COLUMNS,), tl.float32)
    for first in range(begin, end, PAIRS):
        place = first + tl.arange(0, PAIRS)
        ours = place < end
        if SORTED:
            pair = tl.load(order + place, mask=ours, other=0)
            row = pair // k
        else:
            pair = place
            row = tl.load(t + pair, mask=ours, other=0).to(tl.int64)
        # PAIRS rows of the table at once, (PAIRS, COLUMNS), times their values, added up in a fixed order.
        value = tl.load(v + pair, mask=ours, other=0.0).to(tl.float32)
        rows = tl.load(
            table + row[:, None] * table_r + (column * table_m)[None, :], mask=ours[:, None] & inside, other=0.0
        )
        total += tl.sum(value[:, None] * rows.to(tl.float32), axis=0)
    tl.store(out + bag * m + column, total, mask=column < m)


@triton.jit
def _search(x, t, v, dw, n, m, k, pairs, x_b, x_m, PAIRS: tl.constexpr, COLUMNS: tl.constexpr):
    # A program has one neuron and one panel, and holds the neurons of all pairs in its registers.
    neuron = tl.program_id(0) % n
    column = ((tl.program_id(0) // n) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
    pair = tl.arange(0, PAIRS)
    chosen = tl.load(t + pair, mask=pair < pairs, other=-1)
    # The pairs of its neuron, one after the other, in the order of the examples: the least that is left.
    ours = tl.where(chosen == neuron, pair, PAIRS)
    found = tl.min(ours, axis=0)
    total = tl.zeros((COLUMNS,), tl.float32)
    while found < PAIRS:
        value = tl.load(v + found).to(tl.float32)
        example = (found // k).to(tl.int64)
        total += value * tl.load(x + example * x_b + column * x_m, mask=column < m, other=0.0).to(tl.float32)
        ours = tl.where(ours > found, ours, PAIRS)
        found = tl.min(ours, axis=0)
    tl.store(dw + neuron.to(tl.int64) * m + column, total, mask=column < m)


def input_gradient(t: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """Return dx `(B, m)` for neurons t and values v `(B, k)`, and W `(n, m)`."""
    return _sum_bags(w, t, v, None, None, t.shape[0])


def weight_gradient(t: Tensor, v: Tensor, x: Tensor, n: int, as_rows: bool) -> Tensor:
    """Return dW `(n, m)`, dense or as sparse rows, whose number is known on the device alone: the host waits for it.

    t and v are neurons and values, `(B, k)`, t of a type whose largest value is no less than n.
    """
    if t.numel() <= _FEW and not as_rows:
        return _search_all(t, v, x, n)
    if as_rows:  # pairs without a gradient come last, as if of a neuron n
        neurons, order = t.masked_fill(v == 0, n).view(-1).sort(stable=True)
        hits, counts = torch.unique_consecutive(neurons, return_counts=True)
        hits = hits[: int((hits < n).sum())].long()
        starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        return hybrid_rows(hits, _sum_bags(x, t, v, order, starts, len(hits)), n)
    neurons, order = t.view(-1).sort(stable=True)
    starts = torch.searchsorted(neurons, torch.arange(n + 1, dtype=t.dtype, device=t.device))
    return _sum_bags(x, t, v, order, starts, n)


def _sum_bags(table: Tensor, t: Tensor, v: Tensor, order: Tensor | None, starts: Tensor | None, bags: int) -> Tensor:
    """Return, `(bags, m)`, sums of rows of a table: for each example, or for each run of the sorted pairs."""
    m = table.shape[1]
    columns = _PANEL // table.element_size()
    out = torch.empty(bags, m, dtype=table.dtype, device=table.device)
    _bags[(bags * triton.cdiv(m, columns),)](
        table, t, v, t if order is None else order, t if starts is None else starts, out, bags, m, t.shape[1],
        table.stride(0), table.stride(1), SORTED=order is not None, PAIRS=_PAIRS, COLUMNS=columns, num_warps=4,
    )  # fmt: skip
    return out


def _search_all(t: Tensor, v: Tensor, x: Tensor, n: int) -> Tensor:
    m = x.shape[1]
    columns = _PANEL // x.element_size()
    dw = torch.empty(n, m, dtype=x.dtype, device=x.device)
    _search[(n * triton.cdiv(m, columns),)](
        x, t, v, dw, n, m, t.shape[1], t.numel(), x.stride(0), x.stride(1),
        PAIRS=triton.next_power_of_2(t.numel()), COLUMNS=columns, num_warps=4,
    )  # fmt: skip
    return dw
