"""The papers' models in plain PyTorch; a method is applied to them afterwards (`meprop_bench.nn.convert`).

They are made on the meta device, since torch's own initial weights would use up its global random state, and get theirs
from a generator of their own, so that they depend on nothing but the seed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["check", "draw"]


def check(dropout: float = 0.0, **sizes: int) -> None:
    """Raise ValueError for a size below 1, by its name, or a dropout outside [0, 1)."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), not {dropout}")


def draw(model: nn.Module, seed: int, bound: Callable[[nn.Module, Tensor], float]) -> None:
    """Give a model on the meta device its parameters, on the CPU.

    Each is drawn from U(±bound(the module that has it, the parameter)), in order; where that is 0, nothing is drawn.
    """
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                limit = bound(module, parameter)
                if limit:
                    parameter.uniform_(-limit, limit, generator=generator)
                else:
                    parameter.zero_()
