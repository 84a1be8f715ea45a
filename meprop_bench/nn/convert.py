"""Turn the linear layers of a model into `MePropLinear`, in place.

A layer's class is changed, not the layer: its parameters, hooks, training flag and every reference to it (a second
place in the model, an optimizer, a plain list) stay what they were. `torch.nn.utils.parametrize` changes modules in the
same way.

Which layers: those whose class is exactly `nn.Linear`. A subclass has its own idea of what it does, and two of torch's
show why that matters: the output projection of `nn.MultiheadAttention` is a subclass whose forward is never called, so
that it would stay dense without a word, and a parametrized layer has a class made for it. (Parametrize after
converting.)

The papers leave the output layer dense: it has few neurons, and its gradient is the error itself. By default it is
taken to be the last linear layer, of any kind, in the order of registration, which is `model.modules()`. Where that is
wrong, and wherever else, a filter decides:

    convert(model, k=0.05, filter=lambda module, name: name.startswith("encoder."))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import nn

from meprop_bench.nn.linear import MePropLinear

__all__ = ["convert"]


def convert(
    model: nn.Module,
    *,
    k: float,
    selection: str = "example",
    sparse: bool = False,
    kernel: str = "auto",
    filter: Callable[[nn.Module, str], bool] | None = None,
) -> dict[str, MePropLinear]:
    """Turn the linear layers of `model` into `MePropLinear`.

    Args:
        model: any module; changed in place.
        k: outputs kept in each layer: an int >= 1, or a ratio of the layer's outputs in (0, 1].
        selection: as for `MePropLinear`.
        sparse: as for `MePropLinear`.
        kernel: as for `MePropLinear`.
        filter: called with each layer that can be turned and its qualified name; turned are those for which it is true.
            By default all but the output layer.

    Returns:
        the layers that were turned, by qualified name; one that is used in several places is under the first.

    Raises:
        ValueError: for a k, selection or kernel that does not exist (nothing is changed then), or if the model itself
        is
            a linear layer and no filter says what is wanted.

    """
    MePropLinear(1, 1, device="meta", k=k, selection=selection, kernel=kernel)  # checks them before anything is changed
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if filter is None:
        if isinstance(model, nn.Linear):
            raise ValueError("the model is one linear layer, its own output layer: use MePropLinear.from_linear")
        layers = layers[:-1]
    turned = {}
    for name, layer in layers:
        if _can_be_turned(layer) and (filter is None or filter(layer, name)):
            layer.__class__ = MePropLinear
            turned[name] = cast(MePropLinear, layer)
            turned[name].configure(k=k, selection=selection, sparse=sparse, kernel=kernel)
    return turned


def _can_be_turned(layer: nn.Linear) -> bool:
    """Whether the layer is an `nn.Linear` and uses that class's forward, which some tools replace on the instance."""
    return type(layer) is nn.Linear and "forward" not in vars(layer)
