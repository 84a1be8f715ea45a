"""Kernel `embedding_bag`, for the per-example selections: weighted sums of a few rows, which is what an embedding bag is.

With the selected neurons t `(B, k)` and their gradients v = dy[b, t[b]]:

    dx[b]  = Σ_j v[b, j] W[t[b, j]]          a bag per example, of rows of W
    dW[i]  = Σ_{(b, j): t[b, j] = i} v[b, j] x[b]    a bag per neuron, of rows of x

The second takes the B k selected entries sorted by neuron. B k m multiplications and additions each instead of B n m, in exact arithmetic and one
operator of torch, whose inner loop is vectorised over m. Rows of the gradient are the bags that are not empty.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from meprop_bench.ops.kernels import Gradients, Request, hybrid_rows
from meprop_bench.ops.selection import select

__all__ = ["KERNEL", "EmbeddingBag"]


class EmbeddingBag:
    """See the module."""

    name = "embedding_bag"

    def unsupported(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> str | None:
        """Say why not: it needs a selection for each example."""
        if request.selection in ("example", "random"):
            return None
        return f"it needs a selection for each example, not {request.selection!r}"

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Gradients:
        """Gradients for dy (B, n), x (B, m), w (n, m)."""
        k, selection, as_rows, need_dx, need_dw, need_db = request
        t = select(dy, k, selection)
        v = dy.gather(1, t)
        dx = F.embedding_bag(t, w, per_sample_weights=v, mode="sum") if need_dx else None
        dw = _weight_gradient(t, v, x, w.shape[0], as_rows) if need_dw else None
        return dx, dw, dy.sum(0) if need_db else None


def _weight_gradient(t: Tensor, v: Tensor, x: Tensor, n: int, as_rows: bool) -> Tensor:
    neurons, order = t.flatten().sort(stable=True)
    examples = order // t.shape[1]
    weights = v.flatten().index_select(0, order)
    if as_rows:
        rows, counts = torch.unique_consecutive(neurons, return_counts=True)
        values = F.embedding_bag(examples, x, counts.cumsum(0) - counts, per_sample_weights=weights, mode="sum")
        return hybrid_rows(rows, values, n)
    starts = torch.searchsorted(neurons, torch.arange(n, device=t.device))
    return F.embedding_bag(examples, x, starts, per_sample_weights=weights, mode="sum")


KERNEL = EmbeddingBag()
