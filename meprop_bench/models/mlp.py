"""The papers' multilayer perceptron: in - h - ... - h - out, ReLU behind the hidden layers (784-500-500-10 on MNIST).

    y_0 = x                                   # (B, in)
    y_l = relu(y_{l-1} W_lᵀ + b_l)            # (B, h), l = 1 ... layers
    logits = y_L W_outᵀ + b_out               # (B, out)

`layers` counts the hidden layers, as the papers' tables do (the authors' PyTorch code counts the output layer, too).
ReLU is what the journal paper and both of the authors' programs have; the ICML paper names no activation, and its
figures for small k are out of ReLU's reach but not of the logistic function's (docs/log), so there is a choice.

Initialisation follows the authors' PyTorch code: weights and biases of a layer with n *outputs* from U(-1/sqrt(n),
1/sqrt(n)). (PyTorch's own `nn.Linear` takes the number of inputs instead: 0.036 rather than 0.045 for 784 -> 500, and
0.045 rather than 0.316 for the output layer 500 -> 10. Their C# code draws from a normal distribution; the PyTorch code
is the one with the unified selection and the GPU tables, so we take its.)
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import cast

import torch
from torch import nn

from meprop_bench.models import check, draw
from meprop_bench.models.activations import activation_of

__all__ = ["MLP"]


class MLP(nn.Sequential):
    """A multilayer perceptron that returns logits `(B, out_features)`, of `layers` hidden layers of h neurons.

    `dropout` is of the hidden activations, in training; `activation` a name in `models.activations`. ValueError: a size
    below 1, a dropout outside [0, 1), or an unknown activation.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        out_features: int,
        *,
        layers: int = 2,
        dropout: float = 0.0,
        activation: str = "relu",
        seed: int = 0,
    ) -> None:
        check(dropout, in_features=in_features, hidden=hidden, out_features=out_features, layers=layers)
        widths = [in_features, *[hidden] * layers]
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        with torch.device("meta"):
            for i in range(layers):
                modules[f"linear{i}"] = nn.Linear(widths[i], hidden)
                modules[f"{activation}{i}"] = activation_of(activation)
                if dropout:
                    modules[f"dropout{i}"] = nn.Dropout(dropout)
            modules["output"] = nn.Linear(hidden, out_features)
        super().__init__(modules)
        draw(self, seed, lambda linear, _: 1 / math.sqrt(cast(nn.Linear, linear).out_features))
