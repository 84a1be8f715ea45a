"""The papers' models, and a GPT, in plain PyTorch; a method is applied to them afterwards (`meprop_bench.nn.convert`).

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


def draw(model: nn.Module, seed: int, spread: Callable[[nn.Module, Tensor], float], *, normal: bool = False) -> None:
    """Give a model on the meta device its parameters, on the CPU.

    Each is drawn, in order, from U(±s) or N(0, s²), s = spread(the module that has it, the parameter); where that is 0,
    nothing is drawn.
    """
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                if not (size := spread(module, parameter)):
                    parameter.zero_()
                elif normal:
                    parameter.normal_(0, size, generator=generator)
                else:
                    parameter.uniform_(-size, size, generator=generator)
