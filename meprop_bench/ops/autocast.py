"""What autocast does to the inputs of a layer, done here.

A custom `autograd.Function` is not on autocast's list of operators. Its inputs are cast before it instead, by
differentiable casts, so that autograd casts the gradients back.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["cast_to", "lower_precision"]

_Maybe = TypeVar("_Maybe", Tensor, Tensor | None)


def lower_precision(x: Tensor) -> torch.dtype | None:
    """Return the dtype that autocast would cast to on x's device, or None where it is off."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def cast_to(tensor: _Maybe, dtype: torch.dtype) -> _Maybe:
    """Cast, but leave float64 as it is, as autocast does."""
    return tensor if tensor is None or tensor.dtype == torch.float64 else tensor.to(dtype)
