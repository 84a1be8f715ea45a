"""A linear layer whose backward pass keeps k entries of the incoming gradient.

    forward     y  = x Wᵀ + b                                  exactly `F.linear`
    backward    dx = S(dy) W,  dW = S(dy)ᵀ x,  db = Σ dy       S keeps k entries of dy: see `selection`

Three things are kept apart: the *kernels* (ways to compute this backward), the pure function `linear_backward`, which brings any
shape into the kernels' two dimensions, and two *registrations* with autograd, which both call it:

* eager: an `autograd.Function`. At B = 10 the whole layer takes some 30 microseconds, so what it adds to `F.linear` counts.
* `torch.compile` and `torch.func`: the operators `meprop_bench::linear` and `meprop_bench::linear_backward`, opaque to the
  compiler. A Function would not do: under `torch.func.grad` Dynamo drops its backward without a word (pytorch issue 193279) and
  the layer would become dense.

Double backward differentiates the sparsified gradient with the selection held fixed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from meprop_bench.ops import kernels
from meprop_bench.ops.kernels import Gradients, Kernel, Request
from meprop_bench.ops.selection import check_selection, resolve_k

__all__ = ["linear", "linear_backward"]


def linear(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    k: float,
    selection: str = "example",
    sparse: bool = False,
    kernel: str = "auto",
) -> Tensor:
    """Apply `F.linear(x, w, b)`, with a backward pass through k of the n outputs.

    Args:
        x: input, `(*, m)`; all leading dimensions are the batch.
        w: weight, `(n, m)`.
        b: bias, `(n,)`; its gradient stays full.
        k: outputs kept: an int >= 1, or a ratio of n in (0, 1]. k >= n is exactly the dense layer.
        selection: "example", "unified", "random" or "random-unified": see `meprop_bench.ops.selection`.
        sparse: give the weight gradient as sparse rows, which `SGD`, `Adagrad` and `SparseAdam` accept.
        kernel: a name in `meprop_bench.ops.kernels.KERNELS`.

    Raises:
        ValueError: for a k, selection or kernel that does not exist, or a kernel that does not support this case.

    """
    check_selection(selection)
    n = w.shape[0]
    kept = resolve_k(k, n)
    chosen = kernels.get(kernel)
    if kept >= n or not torch.is_grad_enabled():
        return F.linear(x, w, b)
    return _Linear.apply(x, w, b, kept, selection, sparse, chosen)  # type: ignore[no-any-return, no-untyped-call]


def linear_backward(dy: Tensor, x: Tensor, w: Tensor, request: Request, kernel: Kernel) -> Gradients:
    """Gradients of x `(*, m)`, w `(n, m)` and the bias for dy `(*, n)`, as asked for in `request`."""
    shape = x.shape
    if x.dim() != 2:
        x = x.unsqueeze(0) if x.dim() == 1 else x.flatten(0, -2)
        dy = dy.unsqueeze(0) if dy.dim() == 1 else dy.flatten(0, -2)
    if not (x.numel() and dy.numel()):
        kernel = kernels.get("masked")
    dx, dw, db = kernel.backward(dy, x, w, request)
    return dx if dx is None or len(shape) == 2 else dx.view(shape), dw, db


class _Linear(torch.autograd.Function):
    """Eager registration."""

    @staticmethod
    def forward(ctx, x, w, b, k, selection, sparse, kernel):  # type: ignore[no-untyped-def]  # noqa: D102
        ctx.save_for_backward(x, w)
        need_dx, need_dw, need_db = ctx.needs_input_grad[:3]
        ctx.request = Request(k, selection, sparse, need_dx, need_dw, need_db)
        ctx.kernel = kernel
        return F.linear(x, w, b)

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]  # noqa: D102
        x, w = ctx.saved_tensors
        return *linear_backward(dy, x, w, ctx.request, ctx.kernel), None, None, None, None
