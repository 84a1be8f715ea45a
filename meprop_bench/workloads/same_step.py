"""Whether a training step that is computed in another way (compiled, or without autograd) is the same one: by its loss
and all gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from meprop_bench.training import Step

__all__ = ["Numbers", "difference", "numbers"]

_FINE = 1e-5, 1e-2
_COARSE = 1e-2, 1e-1
"""Largest relative difference of a model's loss, and of one of its gradients, that is rounding; the latter for 16 bits.
Rounding may exchange two entries that are selected, which changes a gradient by about as much; a compiler's fusions
round 16-bit numbers more seldom. A wrong gradient is off by more."""

_NOTHING = 1e-4
"""Share of the norm of all gradients below which one may be nothing but rounding: the bias of an attention's keys."""


@dataclass(frozen=True)
class Numbers:
    """What a step computes of a batch."""

    loss: Tensor
    gradients: dict[str, Tensor]
    coarse: bool  # whether anything is computed in 16 bits


def numbers(step: Step, batch: Any, seed: int) -> Numbers:
    """Compute a forward and a backward pass; parameters stay as they are, and there are no gradients afterwards."""
    parameters = dict(step.model.named_parameters())
    torch.manual_seed(seed)
    step.optimizer.zero_grad(set_to_none=True)
    loss = step.forward(batch)
    step.backward(loss)
    found = {name: each.grad.to_dense() for name, each in parameters.items() if each.grad is not None}
    step.optimizer.zero_grad(set_to_none=True)
    low = (torch.bfloat16, torch.float16)
    return Numbers(loss.detach(), found, step.autocast in low or any(each.dtype in low for each in parameters.values()))


def difference(got: Numbers, true: Numbers, both: str) -> str | None:
    """Return one line that says what differs, or None; `both` names the two."""
    if got.gradients.keys() != true.gradients.keys():
        return f"{both} differ: only one has the gradient of {min(got.gradients.keys() ^ true.gradients.keys())}"
    of_loss, of_gradients = _COARSE if true.coarse else _FINE
    sizes = {name: _norm(each) for name, each in true.gradients.items()}
    least = _NOTHING * math.hypot(*sizes.values())
    off = {"the loss": _norm(got.loss - true.loss) / (_norm(true.loss) or 1.0)}
    off |= {
        name: _norm(got.gradients[name] - true.gradients[name]) / (max(size, least) or 1.0)
        for name, size in sizes.items()
    }
    for name, error in off.items():
        if not error <= (most := of_loss if name == "the loss" else of_gradients):  # NaN is wrong, too
            return f"{both} differ: {name} is off by {error:.1e}, relative; at most {most:.0e} is rounding"
    return None


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
