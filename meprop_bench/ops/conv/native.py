"""Kernel `native`: only what survives, compiled; float32 on the CPU, with Numba. See `ops.kernels.native.conv`.

It works in memory that stays from call to call: a padded copy of x, two of W, eight bytes for each selected entry.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from meprop_bench.ops import memory
from meprop_bench.ops.conv.geometry import Geometry, sizes
from meprop_bench.ops.conv.kernels import ConvKernel, select_positions
from meprop_bench.ops.kernels import Gradients, Request
from meprop_bench.ops.kernels.native import conv as compiled
from meprop_bench.ops.kernels.native.threads import OPENMP, shares
from meprop_bench.ops.memory import address

__all__ = ["KERNEL", "NativeConv", "case"]

_TILE = 1 << 18
"""Bytes of images that one pass over all maps reads: they stay in the second-level cache meanwhile."""
_SELECTED = 4
"""What selecting from an entry of dy costs, in multiply-adds."""
_COUNTED = 1 << 31
"""Pixels, padding included, and numbers of a patch are counted in 32 bits."""


class NativeConv(ConvKernel):
    """See the module."""

    name = "native"

    def unsupported(self, x: Tensor, w: Tensor, geometry: Geometry) -> str | None:
        """Say why not: another dtype or device, or a batch too large to count."""
        if w.device.type != "cpu":
            return f"it runs on the CPU, not on {w.device.type}"
        if not x.dtype == w.dtype == torch.float32:
            return f"it computes in float32, not {w.dtype}".replace("torch.", "")
        height, width = (size + 2 * more for size, more in zip(x.shape[2:], geometry.padding, strict=True))
        if max(x.shape[0] * geometry.groups * height * width, compiled.LANES * w[0].numel()) >= _COUNTED:
            return f"it counts in 32 bits, and {x.shape[0]} padded images of {height} x {width} are too many pixels"
        return None

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, geometry: Geometry, request: Request) -> Gradients:
        """Gradients for dy (B, N, OH, OW), x (B, G C, H, W), w (N, C, kh, kw)."""
        dy, x, w = dy.contiguous(), x.contiguous(), w.contiguous()
        threads = torch.get_num_threads() if OPENMP else 1
        plan = case(x.shape, w.shape, geometry, request.k, threads)
        idx = select_positions(dy, request) if request.selection == "random" else None
        dx = torch.empty_like(x) if request.need_dx else None
        dw = torch.empty_like(w) if request.need_dw else None
        db = dy.new_empty(w.shape[0]) if request.need_db else None
        compiled.backward(
            OPENMP, compiled.PIXELS, compiled.MAPS, compiled.IMAGES, plan.shares, plan.plan, dy.data_ptr(),
            address(idx), x.data_ptr(), w.data_ptr(), address(dx), address(dw), address(db),
            memory.scratch(plan.scratch),
        )  # fmt: skip
        return dx, dw, db


class _Case:
    """What the compiled code needs to know of a shape: the address of its `Plan`, and how it is shared out."""

    def __init__(self, x: torch.Size, w: torch.Size, geometry: Geometry, k: int, threads: int) -> None:
        at = sizes(x, w, geometry)
        (batch, _, height, width), (n, c, kh, kw) = x, w
        (hp, wp), lanes = at.padded, compiled.LANES
        full, rest = divmod(at.run * c, lanes)
        starts = 4 * c * at.runs.numpy()
        runs = len(starts)
        places = [starts[r] + 4 * lanes * i for r in range(runs) for i in range(full)]
        if rest:
            places += list(starts + 4 * lanes * full)
        self.places = np.array(places, np.int64)
        run, tap = np.divmod(np.arange(kh * kw), at.run)
        vector, lane = np.divmod(tap * c + np.arange(c)[:, None], lanes)  # (C, taps)
        vector = np.where(vector < full, run * full + vector, runs * full + run)
        self.slots = (vector * lanes + lane).astype(np.int32)
        self.patches = at.patches.numpy().astype(np.int32)
        tile = max(1, _TILE // (4 * hp * wp * c * geometry.groups))
        plan = compiled.Plan(
            batch, geometry.groups, c, height, width, hp, wp, *geometry.padding, n, len(self.patches), k, kh * kw,
            full=runs * full, rest=rest, vectors=len(places), tile=tile, place=self.places.ctypes.data,
            slot=self.slots.ctypes.data, patch=self.patches.ctypes.data,
        )  # fmt: skip
        self.words = np.array(plan, np.int64)
        self.plan: int = self.words.ctypes.data
        work = batch * n * (_SELECTED * len(self.patches) + 2 * k * c * kh * kw)
        self.shares: int = min(shares(threads, work), max(n, at.images))
        self.scratch: int = compiled.scratch_bytes(self.plan, self.shares)


case = lru_cache(maxsize=256)(_Case)

KERNEL = NativeConv()
