"""Kernel `auto`: the fastest kernel for the case, by rules that follow from measurements (`docs/log`).

| where | selection of each example's own | unified |
| --- | --- | --- |
| float32 on the CPU, with Numba | native | native |
| else | embedding_bag | gather |

On a CUDA device that is "else", too. Called one by one, as users call it, a unified selection is bound by its
launches on an H100, so that `gather` is as fast there as `triton` and `triton_gather`; these win as CUDA graphs alone,
and are had by name. For each example's own selection `triton` was faster than `embedding_bag` in one run of one process
(LOG, "CUDA kernels, part by part"), which is too little to choose by.

A selection of each example's own streams k rows of W and of x for each example, which a dense product reads once for
all of them. So from some share k / n on, the product of the masked gradient (`masked`) is faster, although it saves
nothing against the dense layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from meprop_bench.ops import kernels
from meprop_bench.ops.kernels import Gradients, Kernel, Request, compiled

__all__ = ["KERNEL", "Auto"]

_DENSE_FROM = {"native": 0.35, "embedding_bag": 0.25}
"""Share k / n above which `masked` is faster: measured for B = 10 to 512, 784 -> 500 and 2048 -> 2048."""
_NATIVE = "meprop_bench.ops.kernels.native"


class Auto(Kernel):
    """See the module."""

    name = "auto"

    def choose(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Kernel:
        """Return the kernel that `backward` runs; there is always one."""
        unified = request.selection in ("unified", "random-unified")
        kernel = kernels.KERNELS["gather" if unified else "embedding_bag"]
        if dy.dtype == torch.float32 and dy.device.type == "cpu" and compiled.load(_NATIVE) is not None:
            native = kernels.KERNELS["native"]
            if native.unsupported(dy, x, w, request) is None:
                kernel = native
        if not unified and request.k > _DENSE_FROM[kernel.name] * dy.shape[-1]:
            return kernels.KERNELS["masked"]
        return kernel

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Gradients:
        """Gradients for dy (B, n), x (B, m), w (n, m)."""
        return self.choose(dy, x, w, request).backward(dy, x, w, request)


KERNEL = Auto()
