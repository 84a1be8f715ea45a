"""One linear layer, `y = x Wᵀ + b`: dense by torch's own `F.linear`, against the sparsified layer, on the same numbers.

    forward    y from x (B, m), W (n, m), b (n,), with the graph that training needs
    backward   (dx, dW, db) = autograd's engine on (y, dy)        dy (B, n), normal; for the method with its selection

The backward phase runs again and again on one prepared graph (`retain_graph=True`), for both sides alike. That is
what a training step pays: autograd's own call, and fresh tensors for all three gradients, as after
`zero_grad(set_to_none=True)`. It is not all that a training step sees: dy has no exact zeros, where a ReLU above
would make some, and at small shapes the caches are warm. The forward phase of the method goes through our function,
so that what this adds to `F.linear` is in the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from meprop_bench.measure.clock import Clock
from meprop_bench.measure.paired import Subject
from meprop_bench.ops import linear, resolve_k, select
from meprop_bench.ops.cost import Cost, linear_backward, linear_forward
from meprop_bench.ops.kernels import KERNELS, Request
from meprop_bench.ops.kernels.auto import Auto
from meprop_bench.workloads.case import Case
from meprop_bench.workloads.check import check_linear
from meprop_bench.workloads.prepared import Layer, Prepared

__all__ = ["kernel_that_runs", "setup", "timed_backward"]

_Call = Callable[[], object]


def setup(case: Case) -> Prepared:
    """Draw the numbers, build both graphs, and return the two sides."""
    x, w, b, dy = _numbers(case)
    k = resolve_k(case.k, case.out_features)
    how = {"k": k, "selection": case.selection, "sparse": case.gradient == "rows", "kernel": case.kernel}

    def dense() -> Tensor:
        return F.linear(x, w, b)

    def sparsified() -> Tensor:
        return linear(x, w, b, **how)  # type: ignore[arg-type]

    request = Request(k, case.selection, case.gradient == "rows", True, True, True)
    kernel = kernel_that_runs(case.kernel, dy, x, w, request)
    calls = [(forward, timed_backward(forward(), (x, w, b), dy)) for forward in (dense, sparsified)]
    return Prepared(
        phases=("forward", "backward"),
        baseline=_subject(*calls[0]),
        method=_subject(*calls[1]),
        check=lambda: check_linear(x, w, b, dy, seed=case.seed, **how),  # type: ignore[arg-type]
        kernel=kernel,
        k=k,
        costs=_costs(case, k, dy),
        memory={"forward": (calls[0][0], calls[1][0]), "backward": (calls[0][1], calls[1][1])},
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


def timed_backward(y: Tensor, inputs: tuple[Tensor, ...], dy: Tensor) -> _Call:
    """Return the call that computes the gradients of `inputs` from a graph that is kept.

    It is the call of autograd's engine itself. `torch.autograd.grad` first spends some 70 microseconds of Python on its
    arguments, as much as a small layer takes, which a training step pays once for all of its layers.
    """
    engine = torch.autograd.graph._engine_run_backward
    return lambda: engine((y,), (dy,), True, False, inputs, allow_unreachable=False, accumulate_grad=False)


def kernel_that_runs(name: str, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> str:
    """Return the name of the kernel that computes the backward pass: what "auto" chooses, "dense" when k keeps all."""
    if request.k >= w.shape[0]:
        return "dense"
    kernel = KERNELS[name]
    return (kernel.choose(dy, x, w, request) if isinstance(kernel, Auto) else kernel).name


def _numbers(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (B, m), W (n, m), b (n,) with gradients wanted, and dy (B, n): seeded, the same on every device."""
    generator = torch.Generator().manual_seed(case.seed)
    B, m, n = case.batch, case.in_features, case.out_features

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator).mul_(scale).to(case.device, getattr(torch, case.dtype))

    x, w, b = normal(B, m), normal(n, m, scale=m**-0.5), normal(n)
    return x.requires_grad_(), w.requires_grad_(), b.requires_grad_(), normal(B, n)


def _subject(forward: _Call, backward: _Call) -> Subject:
    def subject(loops: int, clock: Clock) -> Mapping[str, float]:
        return {"forward": clock.time(forward, loops), "backward": clock.time(backward, loops)}

    return subject


def _costs(case: Case, k: int, dy: Tensor) -> dict[str, tuple[Cost, Cost]]:
    shape = (case.batch, case.in_features, case.out_features, dy.element_size())
    rows = None
    if k < case.out_features and case.method in ("meprop", "random"):
        rows = torch.unique(select(dy, k, case.selection)).numel()
    sparse = linear_backward(*shape, case.method, k, case.gradient, rows)
    return {"forward": (linear_forward(*shape),) * 2, "backward": (linear_backward(*shape), sparse)}
