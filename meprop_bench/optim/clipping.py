"""Clipping by the norm of all gradients together, dense ones and rows: `nn.utils.clip_grad_norm_` refuses rows."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from meprop_bench.optim.table import each_once

__all__ = ["clip_grad_norm_"]


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scale all gradients, dense and by rows, down to a norm of all of them together; return the norm before.

    As `nn.utils.clip_grad_norm_`, and the same numbers as that for the dense gradients. Behind
    `meprop_bench.distributed.DataParallel` all ranks have the same gradients, so that each finds the same norm.

    Args:
        parameters: one or several; those without a gradient are left out.
        max_norm: largest norm.
        norm_type: the p of a p-norm, `math.inf` for the largest magnitude.
        error_if_nonfinite: raise RuntimeError where the norm is NaN or infinite.

    """
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    if not any(p.grad is not None and p.grad.is_sparse for p in parameters):
        return nn.utils.clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite)
    numbers = []
    for p in parameters:
        if p.grad is not None and p.grad.is_sparse:
            p.grad = each_once(p, p.grad)
            numbers.append(p.grad._values())
        elif p.grad is not None:
            numbers.append(p.grad)
    norm: Tensor = nn.utils.get_total_norm(numbers, norm_type, error_if_nonfinite)
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for device in {each.device for each in numbers}:
        torch._foreach_mul_([each for each in numbers if each.device == device], factor.to(device))
    return norm
