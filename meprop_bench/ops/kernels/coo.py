"""Kernel `coo`, as the authors' PyTorch code did it: dy as a sparse matrix of coordinates, times a dense one.

    S = {(b, t[b, j]): v[b, j]}  (B, n), sparse        dx = S W        dW = Sᵀ x

The arithmetic is 2 B k m instead of 2 B n m for each product, but the general format pays for its generality: indices
are built, transposed and, in the product, sorted, and the product of a few entries a row is not what the library is
tuned for. It is here for comparison with the published speed-ups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from meprop_bench.ops.kernels import Gradients, Kernel, Request, hybrid_rows
from meprop_bench.ops.selection import select

__all__ = ["KERNEL", "Coo"]


class Coo(Kernel):
    """See the module."""

    name = "coo"

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Gradients:
        """Gradients for dy (B, n), x (B, m), w (n, m)."""
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


KERNEL = Coo()
