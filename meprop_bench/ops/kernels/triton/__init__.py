"""Kernel `triton`: the backward pass on NVIDIA's GPUs, in Triton; float32 (exact or TF32), bfloat16 and float16.

Dense products got far faster over the years than memory did, so what is left of the sparse ones is bytes and launches.
The least bytes of a unified backward pass with rows are dy, x and dx once and k rows of W and dW, 101 MB at B = 1024,
8192 -> 8192, k = 8, float32: some 21 microseconds at an H200's 4.8 TB/s, and a launch costs one or two even in a graph.
A dense dW adds 268 MB of zeros, 56 microseconds, which nothing can avoid that returns fresh memory.

| unified | launches | bytes, beside what is small |
| --- | --- | --- |
| `statistics` | 1 | dy: magnitudes and bias gradient |
| `largest.columns` | 1 | n numbers, one program |
| columns of dy, from k = 16 on | 1 | B k numbers, 32 bytes for each |
| zeros (dense dW) | 1 | dW |
| `unified.products` | 1, or 2 for few inputs and a long batch | k rows of W, dx; x, k rows of dW |

| each example's own | launches | bytes, beside what is small |
| --- | --- | --- |
| `largest.rows` | 1 | dy: neurons and values |
| `example.input_gradient` | 1 | B k rows of W, which the caches hold in part; dx |
| sort by neuron (from 2048 pairs on), starts | some 8 | B k pairs, two passes |
| `example.weight_gradient` | 1 | B k rows of x, likewise; dW |
| db | 1 | dy, by torch |

Shapes are static and the host waits for nothing, so both can be captured in a CUDA graph, but for the sparse rows of a
selection of each example's own, whose number is known on the device alone. Every sum has a fixed order: the same input
gives the same bits. Kernel `triton_atomic` gives that up for dW of each example's own, and needs no sort. Kernels are
compiled at their first launch, so a graph wants one pass before it is captured; there is no search for the best tiles
at run time.

Measured on an H100 (reports/LOG.md, "CUDA kernels, measured for the first time"): as a graph, unified with rows takes
91 microseconds at that size with k = 8, where the memory allows 31. `triton_gather` has the same statistics and
selection, and torch's products. Nothing here is imported before it is needed: the package works without Triton.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from meprop_bench.ops.kernels import Gradients, Request, unified_rows
from meprop_bench.ops.kernels.triton.launch import unavailable_reason
from meprop_bench.ops.selection import select

__all__ = ["KERNEL", "Triton", "each_example", "on_device_of", "select_unified"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Triton:
    """See the module."""

    name = "triton"

    def unsupported(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> str | None:
        """Say why not: no Triton, another device or dtype, or a number of rows that a graph cannot wait for."""
        if reason := unavailable_reason(dy.device):
            return reason
        if dy.dtype not in _DTYPES:
            return f"it computes in float32, bfloat16 or float16, not {dy.dtype}".replace("torch.", "")
        unified = request.selection in ("unified", "random-unified")
        if request.rows and not unified and dy.is_cuda and torch.cuda.is_current_stream_capturing():
            return "a graph cannot wait for the number of sparse rows: take the dense gradient"
        return None

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Gradients:
        """Gradients for dy (B, n), x (B, m), w (n, m)."""
        with on_device_of(dy):
            if request.selection not in ("example", "random"):
                return _unified(dy, x, w, request)
            from meprop_bench.ops.kernels.triton.example import weight_gradient

            return each_example(dy, x, w, request, weight_gradient)


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Have Triton launch on a tensor's device: it launches on the current one."""
    if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


def _unified(dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Gradients:
    from meprop_bench.ops.kernels.triton.unified import products

    t, db = select_unified(dy, request)
    if not (request.need_dx or request.need_dw):
        return None, None, db
    dx, dw = products(dy, t, x, w, request.need_dx, request.need_dw, request.rows)
    return dx, dw if dw is None or not request.rows else unified_rows(t, dw, dy, dy.shape[1]), db


def select_unified(dy: Tensor, request: Request) -> tuple[Tensor, Tensor | None]:
    """Return the neurons kept, ascending int64 `(k,)`, and the bias gradient if it is wanted."""
    if request.selection != "unified":
        t = select(dy, request.k, request.selection).sort().values
        return t, dy.sum(0) if request.need_db else None
    from meprop_bench.ops.kernels.triton.largest import columns
    from meprop_bench.ops.kernels.triton.statistics import column_sums

    parts, totals, db = column_sums(dy, sums=request.need_db)
    return columns(parts, totals, db, request.k), db


def each_example(
    dy: Tensor,
    x: Tensor,
    w: Tensor,
    request: Request,
    weight_gradient: Callable[[Tensor, Tensor, Tensor, int, bool], Tensor],
) -> Gradients:
    """Gradients for a selection of each example's own; of dW's two ways, `example` and `atomic`, the caller's."""
    from meprop_bench.ops.kernels.triton.example import input_gradient
    from meprop_bench.ops.kernels.triton.largest import rows

    t, v = rows(dy, request.k, request.selection)
    dx = input_gradient(t, v, w) if request.need_dx else None
    dw = weight_gradient(t, v, x, dy.shape[1], request.rows) if request.need_dw else None
    return dx, dw, dy.sum(0) if request.need_db else None


KERNEL = Triton()
