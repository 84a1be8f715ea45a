"""Memory that compiled kernels work in, kept from call to call: fresh memory costs more than the work done in it."""

from __future__ import annotations

import threading

import torch

__all__ = ["address"]


class _Scratch(threading.local):
    """One block for each thread that calls."""

    def __init__(self) -> None:
        self.block = torch.empty(0, dtype=torch.uint8)


_scratch = _Scratch()


def address(size: int) -> int:
    """Return the address of `size` bytes, whose content nobody relies on after the call."""
    if _scratch.block.numel() < size:
        _scratch.block = torch.empty(size, dtype=torch.uint8)
    return _scratch.block.data_ptr()
