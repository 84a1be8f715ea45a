"""Kernel `masked`: the dense backward pass of torch on dy with the positions that were not selected put to zero.

It saves nothing and costs the selection on top. It is the kernel for every device, dtype and empty shape, and the one
made of differentiable operators, which double backward and torch.func go through. A non-finite x or w spreads as in a
dense layer (0 · inf = NaN).
"""

from __future__ import annotations

import torch
from torch import Tensor

from meprop_bench.ops.conv.geometry import Geometry
from meprop_bench.ops.conv.kernels import Kernel
from meprop_bench.ops.kernels import Gradients, Request
from meprop_bench.ops.selection import survivors

__all__ = ["KERNEL", "Masked"]


class Masked(Kernel):
    """See the module."""

    name = "masked"

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, geometry: Geometry, request: Request) -> Gradients:
        """Gradients for dy (B, N, OH, OW), x (B, G C, H, W), w (N, C, kh, kw)."""
        sparse = survivors(dy, request.k, request.selection, 2)
        stride, padding, dilation, groups = geometry
        need = [request.need_dx, request.need_dw, False]
        dx, dw = None, None
        if any(need):
            dx, dw, _ = torch.ops.aten.convolution_backward(
                sparse, x, w, None, stride, padding, dilation, False, (0, 0), groups, need
            )
        return dx, dw, dy.sum((0, 2, 3)) if request.need_db else None


KERNEL = Masked()
