"""Kernels `triton`, `triton_gather`, `triton_atomic` and `triton_kept`: the backward pass on NVIDIA's GPUs.

They are written in Triton and compute in float32 (exact or TF32), bfloat16 and float16.

Dense products got far faster over the years than memory did, so what is left of the sparse ones is bytes and launches.
The least bytes of a unified backward pass with rows are dy, x and dx once and k rows of W and dW, 101 MB at B = 1024,
8192 -> 8192, k = 8, float32: some 21 microseconds at an H200's 4.8 TB/s, and a launch costs one or two even in a graph.
A dense dW adds 268 MB of zeros, 56 microseconds, which nothing can avoid that returns fresh memory; `triton_kept`
returns memory that it keeps.

| unified | launches | bytes, beside what is small |
| --- | --- | --- |
| `largest.column_sums` | 1 | dy: magnitudes and bias gradient |
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

Measured on an H100 (docs/log, "CUDA kernels, measured for the first time"): as a graph, unified with rows takes
91 microseconds at that size with k = 8, where the memory allows 31. `triton_gather` has the same statistics and
selection, and torch's products. Nothing here is imported before it is needed: the package works without Triton.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from meprop_bench.ops.kernels import Gradients, Kernel, Request, kept, unified_rows
from meprop_bench.ops.kernels.operators import GATHER as GATHER_OF_TORCH
from meprop_bench.ops.kernels.operators import unified_products
from meprop_bench.ops.kernels.triton.launch import unavailable_reason
from meprop_bench.ops.selection import select

__all__ = ["ATOMIC", "GATHER", "KEPT", "KERNEL", "each_example"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_NO_ORDER = (
    "it adds the weight gradient up in no fixed order, and deterministic algorithms are asked for: take 'triton'"
)
_IN_A_GRAPH = "a graph has memory of its own, and whoever replays it could not say who holds that: take 'triton_gather'"


class _Triton(Kernel):
    """Kernel `triton`: see the module."""

    name = "triton"

    def unsupported(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> str | None:
        if reason := unavailable_reason(dy.device):
            return reason
        if dy.dtype not in _DTYPES:
            return f"it computes in float32, bfloat16 or float16, not {dy.dtype}".replace("torch.", "")
        unified = request.selection in ("unified", "random-unified")
        if request.rows and not unified and _capturing(dy):
            return "a graph cannot wait for the number of sparse rows: take the dense gradient"
        return None

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Gradients:
        with _on_device_of(dy):
            if request.selection not in ("example", "random"):
                return _unified(dy, x, w, request)
            from meprop_bench.ops.kernels.triton.example import weight_gradient

            return each_example(dy, x, w, request, weight_gradient)


class _TritonGather(_Triton):
    """Kernel `triton_gather`: selects as `triton` does, and multiplies as `gather` does.

    What a product of tiles is worth beside the library's cannot be told from its bytes. Reading W's rows where they lie
    spares a copy of k rows, and a launch; a strict float32 product keeps the arithmetic units busy from k = 32 or so
    on, and there the library's tiles should be hard to beat. The one pass over dy and the selection in registers need
    no such doubt: torch's operators move four times the bytes for the first, and read the sums sixteen times over for
    the second. On an H100 the library's products are the faster ones from k = 32 on, in TF32 by far (LOG, "part by
    part").
    """

    name = "triton_gather"

    def unsupported(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> str | None:
        return super().unsupported(dy, x, w, request) or GATHER_OF_TORCH.unsupported(dy, x, w, request)

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Gradients:
        with _on_device_of(dy):
            t, db = _select_unified(dy, request)
            return *unified_products(t, dy, x, w, request), db


class _TritonAtomic(_Triton):
    """Kernel `triton_atomic`: as `triton` for a selection of each example's own, but that it adds dW up atomically.

    The sort is spared, and the last bits of dW differ from run to run (`atomic`); dx, db and what is selected are the
    same, bit for bit. Which one is faster depends on the layer: on an H100, call by call, this one at 8192 neurons,
    neither at 2048 (LOG, "part by part"). Where `torch.use_deterministic_algorithms` is set, a weight gradient is
    refused, as torch's own operators of this kind do, or with `warn_only` warned of.
    """

    name = "triton_atomic"

    def unsupported(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> str | None:
        if reason := super().unsupported(dy, x, w, request):
            return reason
        if request.selection not in ("example", "random"):
            return f"it needs a selection for each example, not {request.selection!r}, where one program writes a row"
        if _needs_order(request) and not torch.is_deterministic_algorithms_warn_only_enabled():
            return _NO_ORDER
        return None

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Gradients:
        if _needs_order(request):  # deterministic algorithms were set since the forward pass
            if not torch.is_deterministic_algorithms_warn_only_enabled():
                raise RuntimeError(f"kernel {self.name!r} does not support this case: {_NO_ORDER}")
            warnings.warn(f"kernel {self.name!r}: {_NO_ORDER}", stacklevel=2)
        with _on_device_of(dy):
            from meprop_bench.ops.kernels.triton.atomic import weight_gradient

            return each_example(dy, x, w, request, weight_gradient)


class _TritonKept(_TritonGather):
    """Kernel `triton_kept`: as `triton_gather`, but with a dense dW in memory that is kept from step to step (`kept`).

    It spares the zeros, 268 MB at 8192 x 8192 in float32, for a launch more and the host's bookkeeping: where launches
    are the limit it loses. No GPU has run it yet, and so `auto` does not take it. Two things are its user's:

    * A gradient that is read on another stream after `p.grad` was dropped. Whoever relies on `record_stream` for that
      has to take another kernel: the allocator sees such a use, but this memory does not go back to the allocator.
    * CUDA graphs, which it refuses.

    Rows, weights without a record, and compiled graphs have the memory of `triton_gather`.
    """

    name = "triton_kept"

    def __init__(self, record: kept.Record | None = None) -> None:
        self._record = record

    def keeping(self, w: Tensor) -> Kernel:
        record = kept.record(w)
        return self if record is None else _TritonKept(record)

    def unsupported(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> str | None:
        if reason := super().unsupported(dy, x, w, request):
            return reason
        return _IN_A_GRAPH if request.need_dw and not request.rows and _capturing(dy) else None

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Gradients:
        if self._record is None or request.rows or not request.need_dw:
            return super().backward(dy, x, w, request)
        if _capturing(dy):  # since the forward pass
            raise RuntimeError(f"kernel {self.name!r} does not support this case: {_IN_A_GRAPH}")
        from meprop_bench.ops.kernels.triton.zeros import blanked

        with _on_device_of(dy):
            t, db = _select_unified(dy, request)
            dx, dw = kept.computed(
                self._record, dy.shape[1], x.shape[1], x,
                lambda target: unified_products(t, dy, x, w, request, blanked(target, t, x)),
            )  # fmt: skip
        return dx, dw, db


def _needs_order(request: Request) -> bool:
    return request.need_dw and torch.are_deterministic_algorithms_enabled()


def _capturing(tensor: Tensor) -> bool:
    """Whether a CUDA graph is being captured on a tensor's device."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Have Triton launch on a tensor's device: it launches on the current one."""
    if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


def _unified(dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Gradients:
    from meprop_bench.ops.kernels.triton.unified import products

    t, db = _select_unified(dy, request)
    if not (request.need_dx or request.need_dw):
        return None, None, db
    dx, dw = products(dy, t, x, w, request.need_dx, request.need_dw, request.rows)
    return dx, dw if dw is None or not request.rows else unified_rows(t, dw, dy, dy.shape[1]), db


def _select_unified(dy: Tensor, request: Request) -> tuple[Tensor, Tensor | None]:
    """Return the neurons selected, ascending int64 `(k,)`, and the bias gradient if it is needed."""
    if request.selection != "unified":
        t = select(dy, request.k, request.selection).sort().values
        return t, dy.sum(0) if request.need_db else None
    from meprop_bench.ops.kernels.triton.largest import column_sums, columns

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


KERNEL, GATHER, ATOMIC, KEPT = _Triton(), _TritonGather(), _TritonAtomic(), _TritonKept()
