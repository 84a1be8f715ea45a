"""Kernel `masked`: the dense backward pass of torch on dy with the positions that were not selected put to zero.

It saves nothing and costs the selection on top. It is the kernel for every device, dtype and empty shape, and the one
made of differentiable operators, which double backward and torch.func go through. A non-finite x or w spreads as in a
dense layer (0 · inf = NaN).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from meprop_bench.ops.conv.geometry import Geometry
from meprop_bench.ops.conv.kernels import Request
from meprop_bench.ops.kernels import Gradients
from meprop_bench.ops.selection import keep, select

__all__ = ["KERNEL", "Masked"]


class Masked:
    """See the module."""

    name = "masked"

    def unsupported(self, x: Tensor, w: Tensor, geometry: Geometry) -> str | None:
        """None: it supports everything."""
        return None

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, geometry: Geometry, request: Request) -> Gradients:
        """Gradients for dy (B, N, OH, OW), x (B, G C, H, W), w (N, C, kh, kw)."""
        batch, n, *size = dy.shape
        maps = dy.reshape(batch * n, math.prod(size))
        with torch.no_grad():  # not `detach`, which batched gradients have not
            idx = select(maps, request.k, request.selection)
        kept = keep(maps, idx).reshape(dy.shape)
        stride, padding, dilation, groups = geometry
        need = [request.need_dx, request.need_dw, False]
        dx, dw = None, None
        if any(need):
            dx, dw, _ = torch.ops.aten.convolution_backward(
                kept, x, w, None, stride, padding, dilation, False, (0, 0), groups, need
            )
        return dx, dw, dy.sum((0, 2, 3)) if request.need_db else None


KERNEL = Masked()
