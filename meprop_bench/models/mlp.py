"""The papers' multilayer perceptron: in - h - ... - h - out, ReLU behind the hidden layers (784-500-500-10 on MNIST).

    y_0 = x                                   # (B, in)
    y_l = relu(y_{l-1} W_lᵀ + b_l)            # (B, h), l = 1 ... layers
    logits = y_L W_outᵀ + b_out               # (B, out)

`layers` counts the hidden layers, as the papers' tables do (the authors' PyTorch code counts the output layer, too).
ReLU is what the journal paper and both of the authors' programs have; the ICML paper names no activation, and its
figures for small k are out of ReLU's reach but not of the logistic function's (docs/log), so there is a choice.

The layers are ordinary `nn.Linear`s: a method replaces some of them afterwards and shares their parameters, so the
dense baseline and the method start from the same weights.

Initialisation follows the authors' PyTorch code: weights and biases of a layer with n *outputs* from U(-1/sqrt(n),
1/sqrt(n)). (PyTorch's own `nn.Linear` takes the number of inputs instead: 0.036 rather than 0.045 for 784 -> 500, and
0.045 rather than 0.316 for the output layer 500 -> 10. Their C# code draws from a normal distribution; the PyTorch code
is the one with the unified selection and the GPU tables, so we take its.)
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import nn

from meprop_bench.models.activations import activation_of

__all__ = ["MLP"]


class MLP(nn.Sequential):
    """A multilayer perceptron that returns logits.

    Args:
        in_features: entries of one example.
        hidden: h, neurons of each hidden layer.
        out_features: classes.
        layers: number of hidden layers.
        dropout: probability that a hidden activation is dropped in training.
        activation: a name in `models.activations`, behind each hidden layer.
        seed: of the initial weights, which depend on nothing else.

    Raises:
        ValueError: a size below 1, a dropout outside [0, 1), or an unknown activation.

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
        sizes = {"in_features": in_features, "hidden": hidden, "out_features": out_features, "layers": layers}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, not {size}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), not {dropout}")
        widths = [in_features, *[hidden] * layers]
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        for i in range(layers):
            modules[f"linear{i}"] = _linear(widths[i], hidden)
            modules[f"{activation}{i}"] = activation_of(activation)
            if dropout:
                modules[f"dropout{i}"] = nn.Dropout(dropout)
        modules["output"] = _linear(hidden, out_features)
        super().__init__(modules)
        self.reset_parameters(seed)

    def reset_parameters(self, seed: int) -> None:
        """Draw all weights and biases anew, in order, from a generator of their own."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for module in self:
                if isinstance(module, nn.Linear):
                    bound = 1 / math.sqrt(module.out_features)
                    module.weight.uniform_(-bound, bound, generator=generator)
                    module.bias.uniform_(-bound, bound, generator=generator)


def _linear(in_features: int, out_features: int) -> nn.Linear:
    """Return a linear layer without initial weights: torch's own would use up its global random state."""
    return nn.Linear(in_features, out_features, device="meta").to_empty(device="cpu")
