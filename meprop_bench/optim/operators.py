"""How torch's operators move what compiled code does not: other devices, other dtypes, no Numba."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["can_be_fused", "rows_taken"]


@contextmanager
def rows_taken(rows: Tensor, *tensors: Tensor) -> Iterator[list[Tensor]]:
    """Give copies of rows `(r,)` of tensors, in float32 at least, to be changed in place; then write them back.

    Half precision is thus rounded once.
    """
    taken = [t.index_select(0, rows) for t in tensors]
    wide = [t.to(torch.promote_types(t.dtype, torch.float32)) for t in taken]
    yield wide
    for t, moved in zip(tensors, wide, strict=True):
        t.index_copy_(0, rows, moved.to(t.dtype))


def can_be_fused(devices: Collection[str], dtypes: Collection[torch.dtype], *columns: Sequence[Tensor]) -> bool | None:
    """Whether parameters, their dense gradients and states can have torch's fused step, which takes memory as it lies;
    None, which leaves the choice to torch, where they cannot.
    """
    fit = all(
        type(t) in _PLAIN
        and t.device.type in devices
        and t.dtype in dtypes
        and t.dtype == tensors[0].dtype
        and t.shape == tensors[0].shape
        and t.is_contiguous()
        for tensors in zip(*columns, strict=True)
        for t in tensors
    )
    return True if fit else None


_PLAIN = (torch.nn.Parameter, Tensor)
