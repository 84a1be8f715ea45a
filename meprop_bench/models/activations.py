"""The activation functions behind the models' hidden layers, by name."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["ACTIVATIONS", "Cube", "activation_of"]


class Cube(nn.Module):
    """Chen and Manning's activation (2014, section 2.2): x³."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `x³`, of any shape."""
        return x**3


ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "cube": Cube}


def activation_of(name: str) -> nn.Module:
    """Return a module; `ValueError` for a name that is not in `ACTIVATIONS`."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {name!r}")
    return ACTIVATIONS[name]()
