"""What autocast does to the inputs of a layer, done here.

A custom `autograd.Function` is not on autocast's list of operators. Its inputs are cast before it instead, by
differentiable casts, so that autograd casts the gradients back. Float64 stays as it is, as under autocast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["autocast"]


def autocast(x: Tensor, *others: Tensor | None, rows: bool = False) -> tuple[Any, ...]:
    """Return the input of a layer and all others, its weight first, as autocast would cast them on x's device.

    With `rows`, the gradient of the weight is sparse rows.
    """
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return x, *others
    dtype = torch.get_autocast_dtype(device)
    weight = others[0] if rows else None

    def cast(t: Tensor | None) -> Any:
        if t is None or t.dtype in (torch.float64, dtype):
            return t
        return _CastRows.apply(t, dtype) if t is weight else t.to(dtype)  # type: ignore[no-untyped-call]

    return tuple(cast(t) for t in (x, *others))


class _CastRows(torch.autograd.Function):
    """A cast whose gradient may be sparse rows, which the derivative of `Tensor.to` refuses."""

    @staticmethod
    def forward(ctx, w, dtype):  # type: ignore[no-untyped-def]
        ctx.dtype = w.dtype
        return w.to(dtype)

    @staticmethod
    def backward(ctx, dw):  # type: ignore[no-untyped-def]
        return dw.to(ctx.dtype), None
