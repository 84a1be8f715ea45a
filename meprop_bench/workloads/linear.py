"""One linear layer, `y = x Wᵀ + b`: dense by torch's own `F.linear`, against the sparsified layer, on the same numbers.

    forward    y from x (B, m), W (n, m), b (n,)
    backward   (dx, dW, db) for dy (B, n), normal; for the method with its selection

How they are timed is in `layer`; the method "dense", which has no selection, is in `identical`.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from meprop_bench.measure.arithmetic import tensor_type
from meprop_bench.ops import linear, resolve_k, select
from meprop_bench.ops.cost import Cost, linear_backward, linear_forward
from meprop_bench.ops.kernels import KERNELS, Request
from meprop_bench.ops.kernels.auto import Auto
from meprop_bench.workloads import Layer, Prepared, identical
from meprop_bench.workloads.case import Case
from meprop_bench.workloads.check import check_linear
from meprop_bench.workloads.layer import draw_on_host, sides

__all__ = ["kernel_that_runs", "setup"]


def setup(case: Case) -> Prepared:
    """Draw the numbers, build both graphs, and return the two sides."""
    x, w, b, dy = _numbers(case)
    if case.method == "dense":
        return identical.prepare(case, x, w, b, dy)
    k = resolve_k(case.k, case.out_features)
    how = {"k": k, "selection": case.selection, "sparse": case.gradient == "rows", "kernel": case.kernel}

    def dense() -> Tensor:
        return F.linear(x, w, b)

    def sparsified() -> Tensor:
        return linear(x, w, b, **how)  # type: ignore[arg-type]

    request = Request(k, case.selection, case.gradient == "rows", True, True, True)
    kernel = kernel_that_runs(case.kernel, dy, x, w, request)
    return Prepared(
        **sides(dense, sparsified, (x, w, b), dy),
        check=lambda: check_linear(x, w, b, dy, seed=case.seed, **how),  # type: ignore[arg-type]
        kernel=kernel,
        k=k,
        costs=_costs(case, k, dy),
        layers=(
            Layer(
                dy=dy,
                x=x.detach(),
                w=w.detach(),
                b=b.detach(),
                need_dx=True,
                request=request if k < case.out_features else None,
                kernel=kernel,
            ),
        ),
    )


def kernel_that_runs(name: str, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> str:
    """Return the name of the kernel that computes the backward pass: what "auto" chooses, "dense" when k keeps all."""
    if request.k >= w.shape[0]:
        return "dense"
    kernel = KERNELS[name]
    return (kernel.choose(dy, x, w, request) if isinstance(kernel, Auto) else kernel).name


def _numbers(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (B, m), W (n, m), b (n,) that need gradients, and dy (B, n): seeded, the same on every device."""
    drawn = _on_host if case.device == "cpu" else _cached_on_host
    numbers = drawn(case.seed, case.batch, case.in_features, case.out_features)
    x, w, b, dy = (tensor.to(case.device, tensor_type(case.dtype)) for tensor in numbers)
    return x.requires_grad_(), w.requires_grad_(), b.requires_grad_(), dy


def _on_host(seed: int, B: int, m: int, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    normal = draw_on_host(seed)
    return normal(B, m), normal(n, m, scale=m**-0.5), normal(n), normal(B, n)


_cached_on_host = lru_cache(maxsize=1)(_on_host)
"""A GPU's cases of one shape follow one another, and drawing 8192 x 8192 numbers takes half a second (AMD EPYC), as
long as measuring a case. Each case has copies on its device."""


def _costs(case: Case, k: int, dy: Tensor) -> dict[str, tuple[Cost, Cost]]:
    shape = (case.batch, case.in_features, case.out_features, dy.element_size())
    rows = None
    if k < case.out_features and case.method in ("meprop", "random"):
        rows = torch.unique(select(dy, k, case.selection)).numel()
    sparse = linear_backward(*shape, case.method, k, case.gradient, rows)
    return {"forward": (linear_forward(*shape),) * 2, "backward": (linear_backward(*shape), sparse)}
