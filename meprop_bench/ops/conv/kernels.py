"""The kernels of the sparsified backward pass of a convolution: what they get and give, and their registry.

As in `meprop_bench.ops.kernels`, they differ in cost alone, are all held against one oracle, and none is ever exchanged
silently for another, except by `auto`, whose job that is.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import NamedTuple, Protocol, cast

from torch import Tensor

from meprop_bench.ops.conv.geometry import Geometry
from meprop_bench.ops.kernels import Gradients, compiled
from meprop_bench.ops.selection import select

__all__ = ["KERNELS", "SELECTIONS", "Kernel", "Request", "check_kernel", "check_selection", "get", "select_positions"]

KERNELS = ("masked", "gather", "native", "auto")
SELECTIONS = ("example", "random")
"""The k positions of greatest |dy| in each map of each example, or k drawn by chance, as in `ops.selection`."""


class Request(NamedTuple):
    """What one backward pass has to deliver."""

    k: int
    """Positions kept of each map, resolved: 1 <= k < P."""
    selection: str
    need_dx: bool
    need_dw: bool
    need_db: bool


class Kernel(Protocol):
    """One implementation of the backward pass; the module of that name holds an instance named `KERNEL`."""

    name: str

    def unsupported(self, x: Tensor, w: Tensor, geometry: Geometry) -> str | None:
        """Why this kernel cannot do the case, or None. Reads shapes, dtypes and devices alone, never values."""
        ...

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, geometry: Geometry, request: Request) -> Gradients:
        """Gradients for dy (B, N, OH, OW), x (B, G C, H, W), w (N, C, kh, kw), contiguous or not, none empty."""
        ...


@cache
def _load(name: str) -> Kernel:
    find = compiled.require if name == "native" else import_module
    return cast(Kernel, find(f"meprop_bench.ops.conv.{name}").KERNEL)


def get(name: str) -> Kernel:
    """Look a kernel up; its module is imported when it is first asked for (Numba costs seconds).

    Raises:
        ValueError: convolutions have no kernel of that name, or it cannot be used here.

    """
    check_kernel(name)
    try:
        return _load(name)
    except ImportError as error:
        raise ValueError(str(error)) from error


def check_kernel(name: str) -> None:
    """Check the name of a kernel.

    Raises:
        ValueError: convolutions have no kernel of that name.

    """
    if name not in KERNELS:
        raise ValueError(f"unknown kernel {name!r} for convolutions: choose from {', '.join(KERNELS)}")


def check_selection(selection: str) -> None:
    """Check the name of a selection.

    Raises:
        ValueError: convolutions have no selection of that name.

    """
    if selection not in SELECTIONS:
        raise ValueError(f"selection must be one of {', '.join(SELECTIONS)} for convolutions, not {selection!r}")


def select_positions(dy: Tensor, request: Request) -> Tensor:
    """Select in each map of dy `(B, N, OH, OW)`; returns positions `(B, N, k)`, int64."""
    return select(dy.flatten(2).flatten(0, 1), request.k, request.selection).view(*dy.shape[:2], request.k)
