"""One layer as two subjects: the dense one by torch's own function, the sparsified one, on the same numbers.

    forward    y, with the graph that training needs
    backward   the gradients of input and parameters: autograd's engine on (y, dy), again and again on one graph

That is what a training step pays: autograd's own call, and fresh tensors for all gradients, as after
`zero_grad(set_to_none=True)`. It is not all that a training step sees: dy has no exact zeros, where a ReLU above would
make some, and at small shapes the caches are warm. The forward phase of the method goes through our function, so that
what this adds to torch's is in the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor

from meprop_bench.measure.arithmetic import tensor_type
from meprop_bench.measure.clock import Clock
from meprop_bench.measure.paired import Subject
from meprop_bench.workloads import Call
from meprop_bench.workloads.case import Case

__all__ = ["draw", "draw_on_host", "sides", "timed_backward"]


class _Sides(TypedDict):
    phases: tuple[str, ...]
    baseline: Subject
    method: Subject
    memory: Mapping[str, tuple[Call, Call]]


def sides(
    dense: Callable[[], Tensor], sparsified: Callable[[], Tensor], inputs: Sequence[Tensor], dy: Tensor
) -> _Sides:
    """Return what `Prepared` wants of the two sides of a layer.

    Args:
        dense: the forward pass of the baseline, which gives y.
        sparsified: that of the method.
        inputs: all that gradients are computed of, the same for both.
        dy: incoming gradient, of the shape of y.

    """
    calls = [(forward, timed_backward(forward(), tuple(inputs), dy)) for forward in (dense, sparsified)]
    return {
        "phases": ("forward", "backward"),
        "baseline": _subject(*calls[0]),
        "method": _subject(*calls[1]),
        "memory": {"forward": (calls[0][0], calls[1][0]), "backward": (calls[0][1], calls[1][1])},
    }


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


def _subject(forward: Call, backward: Call) -> Subject:
    def subject(loops: int, clock: Clock) -> Mapping[str, float]:
        return {"forward": clock.time(forward, loops), "backward": clock.time(backward, loops)}

    return subject
