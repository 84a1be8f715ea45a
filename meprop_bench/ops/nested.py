"""Nested tensors as input of a linear layer: all their rows are one batch, as leading dimensions are.

Such a tensor holds examples of different lengths. Its rows, in one matrix, are an ordinary input, and what comes out is
put into the same form: for the layout "jagged" with the very offsets of the input, so that the two can be added.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["by_rows"]


def by_rows(x: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a layer `(*, m)` -> `(*, n)` to a nested tensor, contiguous if it is jagged."""
    if x.layout is torch.jagged:
        return torch.nested.nested_tensor_from_jagged(layer(x.values()), x.offsets())  # type: ignore[attr-defined]
    parts = x.unbind()
    rows = [part.reshape(-1, part.shape[-1]) for part in parts]
    ys = torch.split(layer(torch.cat(rows)), [len(part) for part in rows])
    return torch.nested.as_nested_tensor(
        [y.reshape(*part.shape[:-1], y.shape[1]) for y, part in zip(ys, parts, strict=True)]
    )
