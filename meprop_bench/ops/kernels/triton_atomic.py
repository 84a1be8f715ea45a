"""Kernel `triton_atomic`: as kernel `triton` for a selection of each example's own, but that it adds dW up atomically.

Both give the same numbers but for the order of the additions. In `triton` it is fixed: the pairs of example and neuron
are sorted first, and the same input gives the same bits. Here it is not: the sort is spared, and the last bits of dW
differ from run to run (`triton.atomic`); dx, db and what is selected are the same, bit for bit. Which one is faster
depends on the layer: on an H100, call by call, this one at 8192 neurons, neither at 2048 (LOG, "part by part").

Where `torch.use_deterministic_algorithms` asks for it, a weight gradient is refused, as torch's own operators of this
kind do, or with `warn_only` warned of.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from meprop_bench.ops.kernels import Gradients, Request
from meprop_bench.ops.kernels import triton as tritons

__all__ = ["KERNEL", "TritonAtomic"]

_NO_ORDER = (
    "it adds the weight gradient up in no fixed order, and deterministic algorithms are asked for: take 'triton'"
)


class TritonAtomic:
    """See the module."""

    name = "triton_atomic"

    def unsupported(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> str | None:
        """Say why not: what `triton` cannot do, nothing to add atomically, or an order that has to be fixed."""
        if reason := tritons.KERNEL.unsupported(dy, x, w, request):
            return reason
        if request.selection not in ("example", "random"):
            return f"it needs a selection for each example, not {request.selection!r}, where one program writes a row"
        if _order_is_asked_for(request) and not torch.is_deterministic_algorithms_warn_only_enabled():
            return _NO_ORDER
        return None

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Gradients:
        """Gradients for dy (B, n), x (B, m), w (n, m); the last bits of dW differ from run to run.

        Raises:
            RuntimeError: a weight gradient while deterministic algorithms are asked for, since the forward pass.

        """
        if _order_is_asked_for(request):
            if not torch.is_deterministic_algorithms_warn_only_enabled():
                raise RuntimeError(f"kernel {self.name!r} does not support this case: {_NO_ORDER}")
            warnings.warn(f"kernel {self.name!r}: {_NO_ORDER}", stacklevel=2)
        with tritons.on_device_of(dy):
            from meprop_bench.ops.kernels.triton.atomic import weight_gradient

            return tritons.each_example(dy, x, w, request, weight_gradient)


def _order_is_asked_for(request: Request) -> bool:
    return request.need_dw and torch.are_deterministic_algorithms_enabled()


KERNEL = TritonAtomic()
