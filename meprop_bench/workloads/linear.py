"""One layer as two subjects, for every workload that is one, and the linear one, `y = x Wᵀ + b`: dense by torch's own
function, against the sparsified one, on the same numbers.

    forward    y from x (B, m), W (n, m), b (n,), with the graph that training needs
    backward   (dx, dW, db) for dy (B, n), normal, for the method with its selection: autograd's engine on (y, dy),
               again and again on one graph

That is what a training step pays: autograd's own call, and new tensors for all gradients, as after
`zero_grad(set_to_none=True)`, in memory that each side takes as it does in training (`kernels.kept`).
It is not all that a training step sees: dy has no exact zeros, where a ReLU above would
make some, and at small shapes the caches are warm. The forward phase of the method goes through our function, so that
what this adds to torch's is in the figures.

The method "dense" is the baseline against itself, to measure the instrument instead of the papers:

    A/A        both sides are one step of one dense layer: y = x Wᵀ + b, then (dx, dW, db) of dy, in one call
    slowdown   the second side then waits for a share s of that time:  speed-up = 1 / (1 + s)

Two such sides differ by nothing, so what a run says of them is its error: the spread of the speed-up over repeats is
what the instrument resolves, and the share of repeats that are called slower is its rate of false alarms. With a
slowdown of known size the same repeats say how often one of that size is seen. The wait is a loop that reads the
clock: a sleep takes 50 µs at least, and an operation in its place would change the caches, too. Around nothing it takes
0.25 µs (AMD EPYC), so a slowdown is that much larger than requested: 0.1% of a step of 0.3 ms. How long to wait is
found in each process by its first call, when it has the machine to itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypedDict, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from meprop_bench.measure.arithmetic import tensor_type
from meprop_bench.measure.clock import Clock
from meprop_bench.measure.paired import Subject
from meprop_bench.ops import linear, resolve_k, select
from meprop_bench.ops.cost import linear_backward, linear_forward
from meprop_bench.ops.kernels import KERNELS, Request
from meprop_bench.ops.kernels.auto import Auto
from meprop_bench.results.schema import PASSED
from meprop_bench.stats import median
from meprop_bench.workloads import Call, LayerTensors, Prepared
from meprop_bench.workloads.case import Case
from meprop_bench.workloads.check import check_linear, compare
from meprop_bench.workloads.compiled import as_eager, function
from meprop_bench.workloads.dense_side import DenseSide

__all__ = ["LayerSide", "LayerSides", "Slowed", "draw", "kernel_that_runs", "setup", "subject", "timed_backward"]

_WARM_NS = 50_000_000
_SEARCH_NS = 200_000_000
_LEAST, _MOST = 5, 1000
"""Calls behind the median that a slowdown is a share of."""


class LayerSide:
    """One side of a layer, eager or compiled, by its forward pass, which gives y of the shape of dy.

    Args:
        forward: the forward pass.
        inputs: all that gradients are computed of.
        dy: incoming gradient.
        compiled: whether it goes through torch.compile, here and now.

    """

    def __init__(self, forward: Callable[[], Tensor], inputs: Sequence[Tensor], dy: Tensor, *, compiled: bool) -> None:
        self._eager, self._inputs, self._dy, self._compiled = forward, tuple(inputs), dy, compiled
        self.forward = function(forward) if compiled else forward
        self.backward = timed_backward(self.forward(), self._inputs, dy)
        if compiled:  # what the first call may leave to the compiler
            self.backward()
        self.subject = subject(forward=self.forward, backward=self.backward)

    def differs(self, seed: int) -> str | None:
        """Say what a compiled side computes otherwise than the same one run eagerly; None where nothing differs."""
        return as_eager(self.forward, self._eager, self._inputs, self._dy, seed) if self._compiled else None


class LayerSides:
    """Both sides of a layer, compiled or not as the case and its baseline say, from their forward passes."""

    def __init__(
        self,
        case: Case,
        dense_side: DenseSide,
        dense: Callable[[], Tensor],
        sparsified: Callable[[], Tensor],
        inputs: Sequence[Tensor],
        dy: Tensor,
    ) -> None:
        self._seed = case.seed
        self.dense = LayerSide(dense, inputs, dy, compiled=dense_side.compiled)
        self.method = LayerSide(sparsified, inputs, dy, compiled=case.compile == "on")

    def prepared(self) -> _LayerSides:
        """Return what `Prepared` has of them."""
        dense, method = self.dense, self.method
        return {
            "phases": ("forward", "backward"),
            "baseline": dense.subject,
            "method": method.subject,
            "memory": {"forward": (dense.forward, method.forward), "backward": (dense.backward, method.backward)},
        }

    def differ(self) -> str | None:
        """Say what a compiled side computes otherwise than it does eagerly; None where nothing differs."""
        return self.dense.differs(self._seed) or self.method.differs(self._seed)


class _LayerSides(TypedDict):
    phases: tuple[str, ...]
    baseline: Subject
    method: Subject
    memory: Mapping[str, tuple[Call, Call]]


def timed_backward(y: Tensor, inputs: tuple[Tensor, ...], dy: Tensor) -> Callable[[], Any]:
    """Return the call that computes the gradients of `inputs` from a retained graph.

    It is the call of autograd's engine itself. `torch.autograd.grad` first spends some 70 microseconds of Python on its
    arguments, as much as a small layer takes, which a training step pays once for all of its layers.
    """
    engine = torch.autograd.graph._engine_run_backward
    return lambda: engine((y,), (dy,), True, False, inputs, allow_unreachable=False, accumulate_grad=False)


def draw(case: Case) -> Callable[..., Tensor]:
    """Return what draws normal numbers of a shape, times a scale: seeded, the same on every device."""
    on_host = draw_on_host(case.seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return on_host(*shape, scale=scale).to(case.device, tensor_type(case.dtype))

    return normal


def draw_on_host(seed: int) -> Callable[..., Tensor]:
    """Return what draws these numbers, in float32, before they go to a device."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator).mul_(scale)

    return normal


def subject(**phases: Call) -> Subject:
    """Return the subject that times each phase in a loop of its own."""

    def timed(loops: int, clock: Clock) -> Mapping[str, float]:
        return {phase: clock.time(call, loops) for phase, call in phases.items()}

    return timed


def setup(case: Case, dense_side: DenseSide) -> Prepared:
    """Draw the numbers, build both graphs, and return the two sides."""
    x, w, b, dy = _numbers(case)
    if case.method == "dense":
        return _identical(case, x, w, b, dy)
    k = resolve_k(case.k, case.out_features)
    how = {"k": k, "selection": case.selection, "sparse": case.gradient == "rows", "kernel": case.kernel}

    def dense() -> Tensor:
        return F.linear(x, w, b)

    def sparsified() -> Tensor:
        return linear(x, w, b, **how)  # type: ignore[arg-type]

    request = Request(k, case.selection, case.gradient == "rows", True, True, True)
    kernel = kernel_that_runs(case.kernel, dy, x, w, request)
    numbers = {name: tensor.detach() for name, tensor in (("dy", dy), ("x", x), ("w", w), ("b", b))}
    shape = (case.batch, case.in_features, case.out_features, dy.element_size())
    rows = None
    if k < case.out_features and case.method in ("meprop", "random"):
        rows = torch.unique(select(dy, k, case.selection)).numel()
    sparse = linear_backward(*shape, case.method, k, case.gradient, rows)
    layer = LayerTensors(**numbers, need_dx=True, request=request if k < case.out_features else None, kernel=kernel)
    both = LayerSides(case, dense_side, dense, sparsified, (x, w, b), dy)
    return Prepared(
        **both.prepared(),
        check=lambda: both.differ() or check_linear(x, w, b, dy, seed=case.seed, **how),  # type: ignore[arg-type]
        kernel=kernel,
        k=k,
        costs={"forward": (linear_forward(*shape),) * 2, "backward": (linear_backward(*shape), sparse)},
        layers=lambda: (layer,),
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


class Slowed:
    """A call that then waits for a share of its median time; `now` gives nanoseconds of a monotonic clock."""

    def __init__(self, call: Call, share: float, now: Callable[[], int] = time.perf_counter_ns) -> None:
        self._call, self._share, self._now = call, share, now
        self._wait_ns: int | None = None

    def __call__(self) -> object:
        """Make the call and wait; the first time, find out how long."""
        if self._wait_ns is None:
            self._wait_ns = round(self._share * self._usual_ns())
        found = self._call()
        now = self._now
        end = now() + self._wait_ns
        while now() < end:
            pass
        return found

    def _usual_ns(self) -> float:
        call, now = self._call, self._now
        begun = now()
        taken: list[int] = []
        while len(taken) < _LEAST or (now() - begun < _SEARCH_NS and len(taken) < _MOST):
            start = now()
            call()
            if (end := now()) - begun > _WARM_NS or end - start > _WARM_NS:
                taken.append(end - start)
        return median(taken)


def _identical(case: Case, x: Tensor, w: Tensor, b: Tensor, dy: Tensor) -> Prepared:
    """Return the two sides of a case whose method is "dense"."""

    def dense() -> Tensor:
        return F.linear(x, w, b)

    side = LayerSide(dense, (x, w, b), dy, compiled=case.compile == "on")
    forward = side.forward

    def step() -> object:
        return timed_backward(forward(), (x, w, b), dy)()

    again: Call = Slowed(step, case.slowdown) if case.slowdown else step

    def check() -> str:
        mine, expected = (list(cast("tuple[Tensor, ...]", call())) for call in (again, step))
        return side.differs(case.seed) or compare(mine, expected) or PASSED

    shape = (case.batch, case.in_features, case.out_features, dy.element_size())
    cost = linear_forward(*shape) + linear_backward(*shape)
    return Prepared(
        phases=("step",),
        baseline=subject(step=step),
        method=subject(step=again),
        check=check,
        kernel="dense",
        k=case.k,
        costs={"step": (cost, cost)},
        memory={"step": (step, again)},
    )
