"""A unified selection that is made elsewhere, of the scores of this batch and of what others have.

    s = Σ_batch |dy|            (n,)      the scores
    h = choose(s, k)            (k,)      the neurons, ascending
    dx = dy[:, h] W[h]          (B, m)
    dW[h] = dy[:, h]ᵀ x         (k, m)    as rows, all k of them, also those without any gradient here
    db = Σ_batch dy             (n,)

So several processes, each with a part of a batch, select what one process with all of it would
(`meprop_bench.distributed`). In float32 on the CPU the kernel `native` computes it, else torch's operators.
"""

from __future__ import annotations

import math
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from meprop_bench.ops import kernels
from meprop_bench.ops.kernels import Gradients, Request, check_supported, compiled, hybrid_rows
from meprop_bench.ops.plain import memory, undisturbed, unwatched
from meprop_bench.ops.saved import fit, pinned
from meprop_bench.ops.selection import column_statistics

__all__ = ["Selector", "linear"]

_NATIVE = "meprop_bench.ops.kernels.native"


class Selector(Protocol):
    """What chooses the neurons of one layer."""

    def ran(self, k: int) -> None:
        """Be informed that the layer has run forward, and that k neurons have to be chosen if it runs backward."""

    def __call__(self, scores: Tensor, k: int) -> Tensor:
        """Return k neurons, int64 `(k,)`, ascending, for scores `(n,)`."""
        ...


def linear(x: Tensor, w: Tensor, b: Tensor | None, k: int, sparse: bool, kernel: str, choose: Selector) -> Tensor:
    """Apply a layer; arguments as for `ops.linear`, k < n, of plain memory.

    Raises:
        ValueError: for a kernel that does not support this case.
        RuntimeError: when differentiated twice.

    """
    choose.ran(k)
    return cast(Tensor, _Chosen.apply(x, w, b, (k, sparse, kernel, choose)))  # type: ignore[no-untyped-call]


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, b, call):  # type: ignore[no-untyped-def]
        y = F.linear(x, w, b)
        k, sparse, name, ctx.choose = call
        need = ctx.needs_input_grad
        ctx.request = Request(k, "unified", sparse, *need[:3])
        ctx.native = _native(name, y, x, w, ctx.request)
        ctx.save_for_backward(None if not need[1] else x if x.dim() == 2 else pinned(x), pinned(w) if need[0] else None)
        return y

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        x, w = ctx.saved_tensors
        if torch.is_grad_enabled():
            raise RuntimeError("a selection that processes make together is not differentiable: no create_graph=True")
        if not (unwatched() and memory.plain(dy, x, w) and fit(dy, x, w)):
            raise RuntimeError("a selection that processes make together needs tensors that are plain memory")
        return *undisturbed(_backward, dy, x, w, ctx), None


def _native(name: str, y: Tensor, x: Tensor, w: Tensor, request: Request) -> Any:
    """Return the compiled kernel, or None where torch's operators are to compute; y stands for dy."""
    kernels.KERNELS.check(name)
    if name not in ("auto", "native") or not (y.numel() and x.numel()):
        return None
    if name == "auto" and (y.dtype != torch.float32 or y.device.type != "cpu" or compiled.load(_NATIVE) is None):
        return None
    kernel = kernels.get("native")
    reason = kernel.unsupported(y, x, w, request)
    if name == "native":
        check_supported(name, reason)
    return None if reason else kernel


def _backward(dy: Tensor, x: Tensor | None, w: Tensor | None, ctx: Any) -> Gradients:
    request, shape, n = ctx.request, dy.shape[:-1], dy.shape[-1]
    dy = dy.reshape(math.prod(shape), n)
    x = x if x is None else x.reshape(len(dy), x.shape[-1])
    if ctx.native is None:
        scores, db = column_statistics(dy, sums=request.need_db)
        dx, dw = _products(ctx.choose(scores, request.k), dy, x, w, request)
    else:
        scores, db = ctx.native.scores(dy)
        dx, dw, _ = ctx.native.through(ctx.choose(scores, request.k), dy, x, w, request)
    return dx if dx is None else dx.reshape(*shape, dx.shape[1]), dw, db if request.need_db else None


def _products(
    hits: Tensor, dy: Tensor, x: Tensor | None, w: Tensor | None, request: Request
) -> tuple[Tensor | None, Tensor | None]:
    """Return dx and dW through neurons hits, by torch's operators."""
    g = dy.index_select(1, hits)
    dx = g @ w.index_select(0, hits) if request.need_dx and w is not None else None
    dw = None
    if request.need_dw and x is not None:
        dw, n = g.t() @ x, dy.shape[1]
        dw = hybrid_rows(hits, dw, n) if request.rows else dw.new_zeros(n, x.shape[1]).index_copy_(0, hits, dw)
    return dx, dw
