"""Kernel `triton_gather`: selects as kernel `triton` does, and multiplies as kernel `gather` does.

What a product of tiles is worth beside the library's cannot be told from its bytes. Reading W's rows where they lie
spares a copy of k rows, and a launch; a strict float32 product keeps the arithmetic units busy from k = 32 or so on,
and there the library's tiles should be hard to beat. The one pass over dy and the selection in registers need no such
doubt: torch's operators move four times the bytes for the first, and read the sums sixteen times over for the second.
Measured on an H100, the library's products are the faster ones from k = 32 on, in TF32 by far (LOG, "part by part").
"""

from __future__ import annotations

from torch import Tensor

from meprop_bench.ops.kernels import Gradients, Request
from meprop_bench.ops.kernels import gather as torchs
from meprop_bench.ops.kernels import triton as tritons

__all__ = ["KERNEL", "TritonGather"]


class TritonGather:
    """See the module."""

    name = "triton_gather"

    def unsupported(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> str | None:
        """Say why not: it needs both Triton and one set of neurons for the whole batch."""
        return tritons.KERNEL.unsupported(dy, x, w, request) or torchs.KERNEL.unsupported(dy, x, w, request)

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Gradients:
        """Gradients for dy (B, n), x (B, m), w (n, m)."""
        with tritons.on_device_of(dy):
            t, db = tritons.select_unified(dy, request)
            return *torchs.products(t, dy, x, w, request), db


KERNEL = TritonGather()
