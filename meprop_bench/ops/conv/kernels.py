"""The kernels of the sparsified backward pass of a convolution: what they get and give, and their registry.

They differ in cost alone, are all held against one oracle, and are looked up as in `meprop_bench.ops.kernels`.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from meprop_bench.ops.conv.geometry import Geometry
from meprop_bench.ops.kernels import Gradients, Registry, Request
from meprop_bench.ops.selection import select

__all__ = ["KERNELS", "SELECTIONS", "ConvKernel", "check_kernel", "check_selection", "get", "select_positions"]

SELECTIONS = ("example", "random")
"""The k positions of greatest |dy| in each map of each example, or k drawn by chance, as in `ops.selection`."""


class ConvKernel(Protocol):
    """One implementation of the backward pass of a convolution."""

    name: str

    def unsupported(self, x: Tensor, w: Tensor, geometry: Geometry) -> str | None:
        """Why this kernel cannot do the case, or None. Reads shapes, dtypes and devices alone, never values."""
        return None

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, geometry: Geometry, request: Request) -> Gradients:
        """Gradients for dy (B, N, OH, OW), x (B, G C, H, W), w (N, C, kh, kw), contiguous or not, none empty."""
        ...


_PLACES = {"masked": "operators:MASKED", "gather": "operators:GATHER", "native": "native", "auto": "auto"}
KERNELS: Registry[ConvKernel] = Registry(
    {name: f"meprop_bench.ops.conv.{place}" for name, place in _PLACES.items()}, " for convolutions"
)
get, check_kernel = KERNELS.usable, KERNELS.check


def check_selection(selection: str) -> None:
    """Raise ValueError if convolutions have no selection of that name."""
    if selection not in SELECTIONS:
        raise ValueError(f"selection must be one of {', '.join(SELECTIONS)} for convolutions, not {selection!r}")


def select_positions(dy: Tensor, request: Request) -> Tensor:
    """Select in each map of dy `(B, N, OH, OW)`; returns positions `(B, N, k)`, int64."""
    return select(dy.flatten(2).flatten(0, 1), request.k, request.selection).view(*dy.shape[:2], request.k)
