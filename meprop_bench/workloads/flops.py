"""Floating-point operations of a model's backward pass, of all of it and of each layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.flop_counter import FlopCounterMode

from meprop_bench.nn import convertible
from meprop_bench.training import Step
from meprop_bench.workloads.layer_calls import listening

__all__ = ["COUNTED", "Work"]

_TRANSPOSED, _WANTED = 4, 7
"""Among the arguments of a convolution's backward pass, behind its weight: whether it is a transposed one, and which of
dx, dw and db are wanted."""

_flops: Any = torch.utils.flop_counter  # which has no types
_OPERATORS = {
    torch.ops.aten.convolution_backward: lambda dy, x, w, *more, **_: (
        2 * math.prod(x if more[_TRANSPOSED] else dy) * math.prod(w[1:]) * sum(more[_WANTED][:2])
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: _flops.sdpa_flop_count(
        *shapes[:3]
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: (
        _flops.sdpa_backward_flop_count(*shapes[:4])
    ),
}
"""Operators of which torch (2.13) counts nothing, as if a transformer's linear layers were all there is, and one whose
groups it does not know."""

COUNTED: tuple[type[nn.Module], ...] = (nn.modules.conv._ConvNd, nn.RNNBase)
"""Layers whose share of the operations is named where they are left dense, besides all that can be converted."""

_BATCHED = 3
"""Dimensions of a recurrent layer's input with several examples."""


@dataclass(frozen=True)
class Work:
    """Floating-point operations of a backward pass on the dense side: all, and of each layer."""

    total: float
    layers: Mapping[str, float]

    @classmethod
    def of(cls, step: Step, batch: Any) -> Work:
        """Count those of one batch: all of them as torch counts its operators, of layers those of their products.

        What is computed once more (activation checkpointing) is in the backward pass, but not a layer's: no method
        spares it. Of recurrent layers in one operator torch counts nothing. None at all are counted of a loss that its
        counter cannot go along with, such as one with a gradient in it.
        """
        layers: dict[str, float] = {}
        total = uncounted = 0.0

        def arrived(name: str, layer: nn.Module, given: tuple[Any, ...], y: Tensor, _: Tensor) -> None:
            nonlocal uncounted
            work = _backward_flops(layer, given, y)
            layers[name] = layers.get(name, 0.0) + work
            if isinstance(layer, nn.RNNBase) and layer in opaque:
                uncounted += work

        with ExitStack() as stack, suppress(Exception):  # the loss itself worked before
            counter = stack.enter_context(FlopCounterMode(display=False, custom_mapping=_OPERATORS))
            opaque = stack.enter_context(_opaque(step.model, counter))
            stack.enter_context(listening(step.model, (*convertible(), *COUNTED), arrived))
            loss = step.forward(batch)
            forward = counter.get_total_flops()
            step.backward(loss)
            total = counter.get_total_flops() - forward + uncounted
        step.optimizer.zero_grad(set_to_none=True)
        return cls(total, layers)

    def share(self, names: set[str]) -> float | None:
        """Return the part of the operations that these layers have; None where none were counted."""
        if not self.total:
            return None
        return min(1.0, sum(self.layers.get(name, 0.0) for name in names) / self.total)


@contextmanager
def _opaque(model: nn.Module, counter: FlopCounterMode) -> Iterator[set[nn.Module]]:
    """Collect the recurrent layers of whose forward pass torch counts nothing: they are one operator to it."""
    found: set[nn.Module] = set()
    before = 0

    def enter(*_: Any) -> None:
        nonlocal before
        before = counter.get_total_flops()

    def leave(layer: nn.Module, *_: Any) -> None:
        if counter.get_total_flops() == before:
            found.add(layer)

    with ExitStack() as stack:
        for layer in model.modules():
            if isinstance(layer, nn.RNNBase):
                stack.callback(layer.register_forward_pre_hook(enter).remove)
                stack.callback(layer.register_forward_hook(leave).remove)
        yield found


def _backward_flops(layer: Any, given: tuple[Any, ...], y: Tensor) -> float:
    """Return the operations of the products in a layer's backward pass: dw, and dx where that is needed."""
    x = given[0]
    if isinstance(layer, nn.RNNBase):
        return _recurrent(layer, x)
    # Not of `weight`, which a parametrized layer computes anew each time.
    trained = any(p.requires_grad for name, p in layer.named_parameters() if not name.endswith("bias"))
    products = trained + bool(x.requires_grad)
    if isinstance(layer, nn.MultiheadAttention):
        into = sum(
            x.numel() * (trained + x.requires_grad) for x in given[:3]
        )  # the projections of query, key and value
        return float(2 * layer.embed_dim * (into + y.numel() * (trained + 1)))
    if not isinstance(layer, nn.modules.conv._ConvNd):
        inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.nx  # transformers' Conv1D
        return float(2 * y.numel() * inputs * products)
    each, channels = (x, layer.out_channels) if layer.transposed else (y, layer.in_channels)
    return float(2 * each.numel() * (channels // layer.groups) * math.prod(layer.kernel_size) * products)


def _recurrent(layer: nn.RNNBase, x: Any) -> float:
    """Return the operations of a recurrent layer's backward pass, all of its layers and directions: both dw, dx where
    it is needed, and dh but of the initial state.
    """
    if isinstance(x, PackedSequence):
        rows, batch, needs_dx = len(x.data), int(x.batch_sizes[0]), x.data.requires_grad
    else:
        rows, needs_dx = math.prod(x.shape[:-1]), x.requires_grad
        batch = 1 if x.dim() < _BATCHED else x.shape[0 if layer.batch_first else 1]
    n = {"LSTM": 4, "GRU": 3}.get(layer.mode, 1) * layer.hidden_size
    total, directions = 0.0, 1 + layer.bidirectional
    for number in range(layer.num_layers):
        m = layer.hidden_size * directions if number else layer.input_size
        inputs = rows * m * (1 + (number > 0 or needs_dx))
        total += 2.0 * directions * n * (inputs + (2 * rows - batch) * layer.hidden_size)
    return total
