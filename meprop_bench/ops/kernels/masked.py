"""Kernel `masked`: the dense products of dy with the entries that were not selected put to zero.

    S(dy) = dy ⊙ mask        dx = S(dy) W̄        dW = S(dy)ᵀ x̄        (conjugates, where numbers are complex)

It saves nothing, since a dense product takes as long for a zero as for any other number, and it costs the selection on
top. It is here as the measured answer to "why not just mask?", as the kernel for every device, dtype and empty shape,
and as the one made of differentiable operators, which double backward and torch.func go through. A non-finite x or w
spreads as in a dense layer (0 · inf = NaN).
"""

from __future__ import annotations

import torch
from torch import Tensor

from meprop_bench.ops.kernels import Gradients, Kernel, Request, hybrid_rows
from meprop_bench.ops.selection import keep, select

__all__ = ["KERNEL", "Masked"]


class Masked(Kernel):
    """See the module."""

    name = "masked"

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Gradients:
        """Gradients for dy (B, n), x (B, m), w (n, m)."""
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


KERNEL = Masked()
