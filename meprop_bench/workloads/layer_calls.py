"""What reaches the layers of a model in a step: their arguments, their outputs, and the gradients of these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from meprop_bench.nn import MePropLinear
from meprop_bench.nn.sparsified import Sparsified
from meprop_bench.ops import resolve_k
from meprop_bench.ops.kernels import Request
from meprop_bench.training import Step
from meprop_bench.workloads import LayerTensors
from meprop_bench.workloads.linear import kernel_that_runs

__all__ = ["LayerCall", "listening", "record", "record_all"]

_BATCHES = 4
"""That are tried for a gradient to reach each sparsified layer: one batch may not need all of the model's experts."""


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One call of a layer in a step: what it was given, and the gradient that reached its output."""

    layer: Any
    x: Any
    dy: Tensor
    needs_dx: bool

    def flat(self) -> LayerTensors:
        """Return what goes into a linear layer's backward pass, with one dimension for all examples."""
        layer, x, dy = self.layer, self.x.detach(), self.dy
        dy, x = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1]).to(dy.dtype)
        w = layer.weight.detach().to(dy.dtype)
        b = torch.zeros_like(w[:, 0]) if layer.bias is None else layer.bias.detach().to(dy.dtype)
        request, kernel = None, "dense"
        if isinstance(layer, MePropLinear):
            k, needs_dw = resolve_k(layer.k, layer.out_features), layer.weight.requires_grad
            wanted = Request(k, layer.selection, layer.sparse, self.needs_dx, needs_dw, layer.bias is not None)
            kernel = kernel_that_runs(layer.kernel, dy, x, w, wanted)
            request = None if kernel == "dense" else wanted
        return LayerTensors(dy=dy, x=x, w=w, b=b, need_dx=self.needs_dx, request=request, kernel=kernel)


_Arrival = Callable[[str, nn.Module, tuple[Any, ...], Tensor, Tensor], None]
"""Called in a backward pass with a layer's name, the layer, its arguments, its output and the gradient of that."""


@contextmanager
def listening(model: nn.Module, kinds: tuple[type[nn.Module], ...], arrived: _Arrival) -> Iterator[list[str]]:
    """Call a function whenever a gradient reaches the output of a layer; give the names of those that ran, in order.

    A layer that is computed once more in the backward pass (activation checkpointing) gets its gradient once. Of a
    recurrent layer of which the final state alone is used, the gradient of the outputs is zeros.
    """
    ran: list[str] = []

    def listen(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        given = _by_position(layer, args, kwargs)
        whole, state = output if isinstance(layer, nn.RNNBase) else (output, ())
        whole = whole[0] if isinstance(layer, nn.MultiheadAttention) else whole  # and weights
        y = whole.data if isinstance(whole, PackedSequence) else whole
        ran.append(name)
        come = False

        def note(zero: bool, dy: Tensor) -> None:
            nonlocal come
            if not come or not zero:
                come = True
                arrived(name, layer, given, y, torch.zeros_like(y) if zero else dy.detach())

        for zero, tensors in ((False, [y]), (True, state if isinstance(state, tuple) else [state])):
            for tensor in tensors:
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    tensor.register_hook(partial(note, zero))  # type: ignore[no-untyped-call]

    with ExitStack() as stack:
        for name, layer in model.named_modules():
            if isinstance(layer, kinds):
                stack.callback(layer.register_forward_hook(partial(listen, name), with_kwargs=True).remove)
        yield ran


def _by_position(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return all arguments of a layer's `forward` in order, those by name with what is left out before them."""
    if not kwargs:
        return args
    bound = signature(layer.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.args


def record(step: Step, batch: Any, kinds: tuple[type[nn.Module], ...] = (Sparsified,)) -> dict[str, LayerCall]:
    """Run a forward and a backward pass, and return name -> a call, of the layers that ran and got a gradient."""
    found: dict[str, LayerCall] = {}

    def arrived(name: str, layer: nn.Module, given: tuple[Any, ...], _: Tensor, dy: Tensor) -> None:
        found[name] = LayerCall(layer, given[0] if len(given) == 1 else given, dy, _requires_grad(given))

    with listening(step.model, kinds, arrived) as ran:
        step.backward(step.forward(batch))
    step.optimizer.zero_grad(set_to_none=True)
    return {name: found[name] for name in dict.fromkeys(ran) if name in found}


def record_all(step: Step, stream: list[Any], names: set[str]) -> dict[str, LayerCall]:
    """Return name -> a call of each sparsified layer that a gradient reaches in one of the first batches."""
    calls: dict[str, LayerCall] = {}
    for batch in stream[:_BATCHES]:
        calls = {**record(step, batch), **calls}
        if names <= calls.keys():
            break
    return calls


def _requires_grad(given: tuple[Any, ...]) -> bool:
    x = given[0].data if isinstance(given[0], PackedSequence) else given[0]
    return bool(x.requires_grad)
