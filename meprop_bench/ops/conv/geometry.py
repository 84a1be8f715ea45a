"""Where the patches of a convolution lie: sizes, and the places of patches and of their runs in a padded image.

The kernels that gather keep images pixel by pixel: `(B G, Hp, Wp, C)`, padded, with the channels of one group next to
each other, and each group an image of its own. There a patch is a few *runs* of consecutive numbers: kh runs of kw C
numbers, or, where the taps of a row are dilated, kh kw runs of C.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Geometry", "Sizes", "sizes"]

_Pair = tuple[int, int]
_CPU = torch.device("cpu")


class Geometry(NamedTuple):
    """The arguments of a convolution that are not tensors, each for height and width."""

    stride: _Pair
    padding: _Pair
    dilation: _Pair
    groups: int

    def output(self, height: int, width: int, kernel: _Pair) -> _Pair:
        """Return the height and width of the output; not positive where the padded image is smaller than a patch."""
        oh, ow = (
            (size + 2 * pad - dilation * (tap - 1) - 1) // stride + 1
            for size, tap, stride, pad, dilation in zip(
                (height, width), kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )
        return oh, ow


class Sizes(NamedTuple):
    """What follows from the shapes; tables are int64."""

    images: int  # B G
    channels: int  # C, of one group
    padded: _Pair  # Hp, Wp
    run: int  # taps in a run: kw, or 1 where they are dilated
    runs: Tensor  # where the runs of a patch begin, in pixels from its first, (R,)
    patches: Tensor  # where the patch of an output position begins, in pixels of the image, (P,)


def sizes(x: torch.Size, w: torch.Size, geometry: Geometry, device: torch.device = _CPU) -> Sizes:
    """Return the sizes for x `(B, G C, H, W)` and w `(N, C, kh, kw)`, with tables on a device."""
    # A GPU's are made where they are needed: copies to it are waited for, and a CUDA graph has memory of its own.
    return _cached(x, w, geometry, device) if device == _CPU else _sizes(x, w, geometry, device)


def _sizes(x: torch.Size, w: torch.Size, geometry: Geometry, device: torch.device) -> Sizes:
    (batch, _, height, width), (_, channels, kh, kw) = x, w
    stride, padding, dilation, groups = geometry
    oh, ow = geometry.output(height, width, (kh, kw))
    hp, wp = height + 2 * padding[0], width + 2 * padding[1]
    run = kw if dilation[1] == 1 else 1
    count = partial(torch.arange, device=device)
    runs = count(kh).unsqueeze(1) * (dilation[0] * wp) + count(0, kw, run) * dilation[1]
    patches = count(oh).unsqueeze(1) * (stride[0] * wp) + count(ow) * stride[1]
    return Sizes(batch * groups, channels, (hp, wp), run, runs.flatten(), patches.flatten())


_cached = lru_cache(maxsize=256)(_sizes)
