"""The kernels made of torch's operators: `masked`, `coo`, `embedding_bag` and `gather`.

The last three take 2 B k m operations for each product instead of 2 B n m; what then bounds them is memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from meprop_bench.ops.kernels import Gradients, Kernel, Request, hybrid_rows, unified_rows
from meprop_bench.ops.selection import column_statistics, keep, select

__all__ = ["COO", "EMBEDDING_BAG", "GATHER", "MASKED", "bag_starts", "bags", "unified_products"]


class _Masked(Kernel):
    """The dense products of dy with the entries that were not selected put to zero.

        S(dy) = dy ⊙ mask        dx = S(dy) W̄        dW = S(dy)ᵀ x̄        (conjugates, where numbers are complex)

    It saves nothing, since a dense product takes as long for a zero as for any other number, and it costs the selection
    on top. It is here as the measured answer to "why not just mask?", as the kernel for every device, dtype and empty
    shape, and as the one made of differentiable operators, which double backward and torch.func go through. A
    non-finite x or w spreads as in a dense layer (0 · inf = NaN).
    """

    name = "masked"

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Gradients:
        with torch.no_grad():  # not `detach`, which batched gradients have not
            idx = select(dy, request.k, request.selection)
        return self.products(idx, dy, x, w, request)

    def products(self, idx: Tensor, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Gradients:
        """Gradients through entries selected before: idx, (B, k) or (k,)."""
        survivors = keep(dy, idx)
        dx = survivors @ w.conj() if request.need_dx else None
        dw = None
        if request.need_dw and request.rows:
            rows = survivors.any(0).nonzero().squeeze(1)
            dw = hybrid_rows(rows, survivors.index_select(1, rows).t() @ x.conj(), dy.shape[1])
        elif request.need_dw:
            dw = survivors.t() @ x.conj()
        return dx, dw, dy.sum(0) if request.need_db else None


class _Coo(Kernel):
    """As the authors' PyTorch code did it: dy as a sparse matrix of coordinates, times a dense one.

        S = {(b, t[b, j]): v[b, j]}  (B, n), sparse        dx = S W        dW = Sᵀ x

    The general format pays for its generality: indices are built, transposed and, in the product, sorted, and the
    product of a few entries a row is not what the library is tuned for. It is here for comparison with the published
    speed-ups.
    """

    name = "coo"

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Gradients:
        batch, n = dy.shape
        t = select(dy, request.k, request.selection)
        t = t.expand(batch, -1)  # (B, k), a unified selection being the same for each example
        v = dy.gather(1, t).flatten()
        neurons = t.flatten()
        examples = torch.arange(batch, device=dy.device).repeat_interleave(request.k)
        dx = _matrix(examples, neurons, v, (batch, n)) @ w if request.need_dx else None
        dw = None
        if request.need_dw and request.rows:
            some = v != 0
            rows, place = torch.unique(neurons[some], return_inverse=True)
            dw = hybrid_rows(rows, _matrix(place, examples[some], v[some], (len(rows), batch)) @ x, n)
        elif request.need_dw:
            dw = _matrix(neurons, examples, v, (n, batch)) @ x
        return dx, dw, dy.sum(0) if request.need_db else None


def _matrix(i: Tensor, j: Tensor, v: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_coo_tensor(torch.stack((i, j)), v, shape, check_invariants=False)


class _EmbeddingBag(Kernel):
    """For selections per example: weighted sums of a few rows, which is what an embedding bag is.

    With the selected neurons t `(B, k)` and their gradients v `(B, k)`, v[b, j] = dy[b, t[b, j]]:

        dx[b]  =  Σ_j                      v[b, j] W[t[b, j]]      a bag for each example, of rows of W
        dW[i]  =  Σ_{(b, j): t[b, j] = i}  v[b, j] x[b]            a bag for each neuron, of rows of x

    The second takes the B k selected entries sorted by neuron; rows of the gradient are the bags that are not empty.
    Each is one operator of torch whose inner loop is vectorised over m. A row is read for each entry selected, from the
    cache as far as W, or x, fits.

    A dense gradient is made of operators of static shapes, so that on a GPU the host need not wait for one and a CUDA
    graph can hold them; how many rows a sparse one has is known on the device alone, and waited for.
    """

    name = "embedding_bag"

    def unsupported(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> str | None:
        if request.selection in ("example", "random"):
            return None
        return f"it needs a selection for each example, not {request.selection!r}"

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Gradients:
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


class _Gather(Kernel):
    """For the unified selections: gather k columns of dy and k rows of W, then two small dense products.

        t = selected neurons (k,)        g = dy[:, t]  (B, k)
        dx = g W[t]                      (B, k) (k, m)
        dW[t] = gᵀ x                     (k, B) (B, m)

    W being `(n, m)` makes the gathered rows contiguous. What remains is memory: the statistics read dy once, with the
    bias gradient in the same pass, and a dense dW has n rows to clear, which at 8192 x 8192 costs more than all the
    arithmetic; rows avoid that.
    """

    name = "gather"

    def unsupported(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> str | None:
        if request.selection in ("unified", "random-unified"):
            return None
        return f"it needs a unified selection, not {request.selection!r}"

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Gradients:
        k, selection, as_rows, _, _, need_db = request
        if selection == "unified":
            magnitudes, db = column_statistics(dy, sums=need_db)
            t = magnitudes.topk(k, sorted=False).indices
        else:
            t = select(dy, k, selection)
            db = dy.sum(0) if need_db else None
        dx, dw = unified_products(t.sort().values if as_rows else t, dy, x, w, request)
        return dx, dw, db


def unified_products(
    t: Tensor, dy: Tensor, x: Tensor, w: Tensor, request: Request, zeros: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """Return dx and dW through neurons selected before: t, (k,), ascending for a gradient as rows.

    A dense dW is `zeros`, if they are given: (n, m), zero but for rows t, into which the gradient is written.
    """
    g = dy.index_select(1, t)
    dx = g @ w.index_select(0, t) if request.need_dx else None
    dw = None
    if request.need_dw:
        values = g.t() @ x  # (k, m)
        n, m = dy.shape[1], x.shape[1]
        if request.rows:
            dw = unified_rows(t, values, dy, n)
        else:
            dw = (values.new_zeros(n, m) if zeros is None else zeros).index_copy_(0, t, values)
    return dx, dw


MASKED, COO, EMBEDDING_BAG, GATHER = _Masked(), _Coo(), _EmbeddingBag(), _Gather()
