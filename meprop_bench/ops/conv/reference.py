"""The oracle of convolutions: TKDE, section 3.3.2, one selected entry of dy after the other, in float64.

Written from the definition of a convolution, as a sum over the patch of each output position. Nothing may import it but
tests and checks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from meprop_bench.ops import reference
from meprop_bench.ops.conv.geometry import Geometry

__all__ = ["backward", "select"]


def select(dy: Tensor, k: int) -> Tensor:
    """Return the k positions of greatest |dy| in each map of dy `(B, N, OH, OW)`: `(B, N, k)`."""
    return torch.stack([reference.select(maps.flatten(1), k, "example") for maps in dy])


def backward(dy: Tensor, x: Tensor, w: Tensor, geometry: Geometry, idx: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (dx, dw, db), in float64, for dy `(B, N, OH, OW)`, x `(B, G C, H, W)` and w `(N, C, kh, kw)`.

    idx, `(B, N, k)`, are the positions to propagate.
    """
    dy, w = dy.double(), w.double()
    (top, left), (n, c, kh, kw) = geometry.padding, w.shape
    height, width = x.shape[2:]
    padded = torch.nn.functional.pad(x.double(), (left, left, top, top))
    dx, dw = torch.zeros_like(padded), torch.zeros_like(w)
    for b in range(len(dy)):
        for i in range(n):
            group = i // (n // geometry.groups)
            channels = slice(group * c, (group + 1) * c)
            for p in idx[b, i].tolist():
                y, z = divmod(p, dy.shape[3])
                rows = [y * geometry.stride[0] + tap * geometry.dilation[0] for tap in range(kh)]
                columns = [z * geometry.stride[1] + tap * geometry.dilation[1] for tap in range(kw)]
                for u, row in enumerate(rows):
                    for v, column in enumerate(columns):
                        dw[i, :, u, v] += dy[b, i, y, z] * padded[b, channels, row, column]
                        dx[b, channels, row, column] += dy[b, i, y, z] * w[i, :, u, v]
    return dx[:, :, top : top + height, left : left + width], dw, dy.sum((0, 2, 3))
