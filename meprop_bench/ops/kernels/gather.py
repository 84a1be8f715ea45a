"""Kernel `gather`, for the unified selections: gather k columns of dy and k rows of W, then two small dense products.

    t = selected neurons (k,)        g = dy[:, t]  (B, k)
    dx = g W[t]                      (B, k) (k, m)
    dW[t] = gᵀ x                     (k, B) (B, m)

2 B k m operations for each product instead of 2 B n m. W being `(n, m)` makes the gathered rows contiguous. What
remains is memory: the statistics read dy once, with the bias gradient in the same pass, and a dense dW has n rows to
clear, which at 8192 x 8192 costs more than all the arithmetic; rows avoid that.
"""

from __future__ import annotations

from torch import Tensor

from meprop_bench.ops.kernels import Gradients, Kernel, Request, unified_rows
from meprop_bench.ops.selection import column_statistics, select

__all__ = ["KERNEL", "Gather", "products"]


class Gather(Kernel):
    """See the module."""

    name = "gather"

    def unsupported(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> str | None:
        """Say why not: it needs one set of neurons for the whole batch."""
        if request.selection in ("unified", "random-unified"):
            return None
        return f"it needs a unified selection, not {request.selection!r}"

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Gradients:
        """Gradients for dy (B, n), x (B, m), w (n, m)."""
        k, selection, as_rows, _, _, need_db = request
        if selection == "unified":
            magnitudes, db = column_statistics(dy, sums=need_db)
            t = magnitudes.topk(k, sorted=False).indices
        else:
            t = select(dy, k, selection)
            db = dy.sum(0) if need_db else None
        dx, dw = products(t.sort().values if as_rows else t, dy, x, w, request)
        return dx, dw, db


def products(t: Tensor, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> tuple[Tensor | None, Tensor | None]:
    """Return dx and dW through neurons selected before: t, (k,), ascending for a gradient as rows."""
    g = dy.index_select(1, t)
    dx = g @ w.index_select(0, t) if request.need_dx else None
    dw = None
    if request.need_dw:
        values = g.t() @ x  # (k, m)
        n, m = dy.shape[1], x.shape[1]
        dw = unified_rows(t, values, dy, n) if request.rows else values.new_zeros(n, m).index_copy_(0, t, values)
    return dx, dw


KERNEL = Gather()
