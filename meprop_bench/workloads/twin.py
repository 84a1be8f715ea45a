"""A layer's numbers without what was put on it, and its gradients: what `check` runs in place of a user's layer.

A twin shares the parameters' memory and has nothing else of the layer: no hooks, no counts, no `.grad`, no dropout,
which two sides could not draw alike. Weights that are computed (parametrized, pruned) are what they are now.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from meprop_bench.nn.sparsified import Sparsified

__all__ = ["Gradients", "gradients", "twin"]

Gradients = dict[str, Tensor]
"""By name: "dx", "dw" and "db", or for a layer with other parameters "dx" and the name of each."""

_SHORT = {"weight": "dw", "bias": "db"}
_OF_ATTENTION = (*(f"{name}_proj_weight" for name in ("in", "q", "k", "v")), "in_proj_bias", "bias_k", "bias_v")


def twin(layer: Any, dtype: torch.dtype, *, plain: bool = False) -> Any:
    """Return a layer of this package with the numbers of `layer`, or the `plain` one of which that is derived."""
    package = Sparsified.__module__.rpartition(".")[0]
    ours = [
        kind for kind in type(layer).__mro__ if issubclass(kind, Sparsified) and kind.__module__.startswith(package)
    ]
    kind: Any = next(kind for kind in type(layer).__mro__ if not issubclass(kind, Sparsified)) if plain else ours[0]
    if isinstance(layer, nn.RNNBase):
        made = _copy(layer, kind, layer._flat_weights_names, dtype)
        made._init_flat_weights()
    elif isinstance(layer, nn.MultiheadAttention):
        made = _copy(layer, kind, _OF_ATTENTION, dtype)
        made.out_proj = _copy(layer.out_proj, nn.Linear, ("weight", "bias"), dtype)
    else:
        return _copy(layer, kind, ("weight", "bias"), dtype)
    made.dropout = 0.0
    return made


def _copy(layer: Any, kind: type[nn.Module], names: Any, dtype: torch.dtype) -> Any:
    made: Any = object.__new__(kind)
    tensors = {name: getattr(layer, name) for name in names}
    unwanted = {"forward", "activeness", *names}
    vars(made).update({name: value for name, value in vars(layer).items() if name not in unwanted}, **vars(nn.Module()))
    made._parameters = {
        name: t if t is None else nn.Parameter(t.detach().to(dtype), t.requires_grad) for name, t in tensors.items()
    }
    return made


def gradients(layer: nn.Module, inputs: Any, dy: Tensor, seed: int, keywords: Any = None) -> Gradients:
    """Return the gradients of the input, of all further inputs that have one, and of the parameters that are trained.

    `inputs` is the first argument of the layer's `forward`, or a tuple of all; numbers are cast to the layer's dtype.
    dy is of the first output, or its data if that is packed.
    """
    dtype = next((p.dtype for p in layer.parameters()), dy.dtype)
    taken: dict[int, Tensor] = {}
    leaves: Gradients = {}

    def take(argument: Any) -> Any:
        if isinstance(argument, PackedSequence):
            return argument._replace(data=take(argument.data))
        if isinstance(argument, tuple | list):
            return tuple(map(take, argument))
        if isinstance(argument, Tensor) and id(argument) not in taken:  # one that comes twice stays one
            first = not taken
            numbers = argument.detach().to(dtype if first or argument.is_floating_point() else argument.dtype)
            taken[id(argument)] = numbers
            if first or argument.requires_grad:
                leaves[f"dx{len(leaves) or ''}"] = numbers.requires_grad_()
        return taken.get(id(argument), argument)

    arguments = take(inputs if type(inputs) is tuple else (inputs,))
    named = {name: take(argument) for name, argument in (keywords or {}).items()}
    short = _SHORT if {name for name, _ in layer.named_parameters()} <= {*_SHORT} else {}
    leaves |= {short.get(name, name): p for name, p in layer.named_parameters() if p.requires_grad}
    torch.manual_seed(seed)
    y = layer.forward(*arguments, **named)
    y = y[0] if type(y) is tuple else y
    y = y.data if isinstance(y, PackedSequence) else y
    return dict(zip(leaves, torch.autograd.grad(y, [*leaves.values()], dy.to(dtype)), strict=True))
