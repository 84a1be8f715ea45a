"""Memory by its address, as compiled kernels take it: a tensor's, and some to work in.

The latter stays from call to call: fresh memory costs more than the work done in it.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

__all__ = ["address", "is_read_at_once", "scratch"]


class _Scratch(threading.local):
    """One block for each thread that calls."""

    def __init__(self) -> None:
        self.block = torch.empty(0, dtype=torch.uint8)


_scratch = _Scratch()


def scratch(size: int) -> int:
    """Return the address of `size` bytes, whose content nobody relies on after the call."""
    if _scratch.block.numel() < size:
        _scratch.block = torch.empty(size, dtype=torch.uint8)
    return _scratch.block.data_ptr()


def is_read_at_once(tensor: Tensor) -> bool:
    """Whether the host can read a tensor without waiting for its device."""
    return tensor.is_cpu


def address(tensor: Tensor | None) -> int:
    """Return the address of a tensor's numbers, 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()
