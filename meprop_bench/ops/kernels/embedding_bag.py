"""Kernel `embedding_bag`, for selections per example: weighted sums of a few rows, which is what an embedding bag is.

With the selected neurons t `(B, k)` and their gradients v `(B, k)`, v[b, j] = dy[b, t[b, j]]:

    dx[b]  =  Σ_j                      v[b, j] W[t[b, j]]      a bag for each example, of rows of W
    dW[i]  =  Σ_{(b, j): t[b, j] = i}  v[b, j] x[b]            a bag for each neuron, of rows of x

The second takes the B k selected entries sorted by neuron. Each costs 2 B k m operations instead of 2 B n m, in one
operator of torch whose inner loop is vectorised over m; rows of the gradient are the bags that are not empty. What
bounds it is memory: a row is read for each entry selected, from the cache as far as W, or x, fits.

A dense gradient is made of operators of static shapes, so that on a GPU the host need not wait for one and a CUDA graph
can hold them; how many rows a sparse one has is known on the device alone, and waited for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from meprop_bench.ops.kernels import Gradients, Kernel, Request, hybrid_rows
from meprop_bench.ops.selection import select

__all__ = ["KERNEL", "EmbeddingBag", "bag_starts", "bags"]


class EmbeddingBag(Kernel):
    """See the module."""

    name = "embedding_bag"

    def unsupported(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> str | None:
        """Say why not: it needs a selection for each example."""
        if request.selection in ("example", "random"):
            return None
        return f"it needs a selection for each example, not {request.selection!r}"

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Gradients:
        """Gradients for dy (B, n), x (B, m), w (n, m)."""
        return self.products(select(dy, request.k, request.selection), dy, x, w, request)

    def products(self, t: Tensor, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Gradients:
        """Gradients through entries selected before: t, (B, k), where k is that of the request."""
        v = dy.gather(1, t).view(-1)
        t = t.view(-1)
        dx = bags(w, t, torch.arange(0, t.numel(), request.k, device=t.device), v) if request.need_dx else None
        dw = _weight_gradient(t, v, x, dy.shape[1], request) if request.need_dw else None
        return dx, dw, dy.sum(0) if request.need_db else None


def _weight_gradient(t: Tensor, v: Tensor, x: Tensor, n: int, request: Request) -> Tensor:
    pairs = None
    if request.rows:
        pairs = v.nonzero().squeeze(1)
        t = t.index_select(0, pairs)
    neurons, order = t.sort(stable=True)  # stable: examples in order within a bag, so that sums are the same each time
    if pairs is not None:
        order = pairs.index_select(0, order)
    examples = order.div(request.k, rounding_mode="floor")
    v = v.index_select(0, order)
    if pairs is not None:
        rows, counts = torch.unique_consecutive(neurons, return_counts=True)
        return hybrid_rows(rows, bags(x, examples, counts.cumsum(0).sub_(counts), v), n)
    return bags(x, examples, bag_starts(t, n), v)


def bag_starts(numbers: Tensor, n: int) -> Tensor:
    """Return where the bag of each of n numbers starts, `(n,)`, once `numbers`, each below n, are sorted."""
    counts = numbers.new_zeros(n).scatter_add_(0, numbers, torch.ones_like(numbers))  # `torch.bincount` waits on a GPU
    return counts.cumsum(0).sub_(counts)


def bags(table: Tensor, indices: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows of a table, by the operator itself: `F.embedding_bag` checks for half as long again."""
    return torch.embedding_bag(table.detach(), indices, starts, False, 0, False, weights)[0]


KERNEL = EmbeddingBag()
