"""The kernels made of torch's operators: `masked` and `gather`."""

from __future__ import annotations

import torch
from torch import Tensor

from meprop_bench.ops.conv.geometry import Geometry, Sizes, sizes
from meprop_bench.ops.conv.kernels import ConvKernel, select_positions
from meprop_bench.ops.kernels import Gradients, Request
from meprop_bench.ops.kernels.operators import bag_starts, bags
from meprop_bench.ops.selection import survivors

__all__ = ["GATHER", "MASKED"]


class _MaskedConv(ConvKernel):
    """The dense backward pass of torch on dy with the positions that were not selected put to zero.

    It saves nothing and costs the selection on top. It is the kernel for every device, dtype and empty shape, and the
    one made of differentiable operators, which double backward and torch.func go through. A non-finite x or w spreads
    as in a dense layer (0 · inf = NaN).
    """

    name = "masked"

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, geometry: Geometry, request: Request) -> Gradients:
        sparse = survivors(dy, request.k, request.selection, 2)
        stride, padding, dilation, groups = geometry
        need = [request.need_dx, request.need_dw, False]
        dx, dw = None, None
        if any(need):
            dx, dw, _ = torch.ops.aten.convolution_backward(
                sparse, x, w, None, stride, padding, dilation, False, (0, 0), groups, need
            )
        return dx, dw, dy.sum((0, 2, 3)) if request.need_db else None


class _GatherConv(ConvKernel):
    """The runs of the selected patches are rows of a table, summed up in bags.

    With the images pixel by pixel (`geometry`), a patch has R runs of L consecutive numbers, and the run that begins at
    pixel q is row q of a table T of x; the rows of W are cut alike. A selected entry s is map n, value v and first
    pixel q:

        dW[n, r]   =  Σ_{s of map n}                v_s T[q_s + o_r]        a bag for each map and run
        dT[q]      =  Σ_{s, r : q_s + o_r = q}      v_s W[n_s, r]           a bag for each pixel, entries sorted by it
        dx         =  the runs of dT, added up where they overlap

    The table costs kw times the memory of x, dT the same of dx, and the sort R entries for each one selected: hence the
    compiled kernel `native` reads x in place instead.
    """

    name = "gather"

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, geometry: Geometry, request: Request) -> Gradients:
        at = sizes(x.shape, w.shape, geometry, x.device)
        idx = select_positions(dy, request)
        v = dy.flatten(2).gather(2, idx).transpose(0, 1).flatten(1)  # (N, B k)
        rows = _runs(idx, w.shape[0], at, geometry.groups)  # (N, R, B k)
        v = v.unsqueeze(1).expand_as(rows).flatten()
        dx = _input_gradient(rows, v, x, w, at, geometry) if request.need_dx else None
        dw = _weight_gradient(rows, v, x, w, at, geometry) if request.need_dw else None
        return dx, dw, dy.sum((0, 2, 3)) if request.need_db else None


def _runs(idx: Tensor, n: int, at: Sizes, groups: int) -> Tensor:
    """Return the pixels, counted over all images, where the runs of the selected patches begin: `(N, R, B k)`."""
    first = at.patches[idx]  # (B, N, k)
    image = torch.arange(at.images, device=idx.device).view(-1, groups, 1)  # (B, groups, 1)
    image = image.expand(-1, -1, n // groups).flatten(1)  # (B, N)
    first = first.add_(image.unsqueeze(2), alpha=at.padded[0] * at.padded[1]).transpose(0, 1).flatten(1)  # (N, B k)
    return first.unsqueeze(1) + at.runs.unsqueeze(1)


def _inside(pixels: Tensor, x: torch.Size, geometry: Geometry) -> Tensor:
    """Return padded images `(B G, Hp, Wp, C)` without the padding, as `(B G, C, H, W)`, for the shape of x."""
    (top, left), (height, width) = geometry.padding, x[2:]
    return pixels[:, top : top + height, left : left + width].permute(0, 3, 1, 2)


def _weight_gradient(rows: Tensor, v: Tensor, x: Tensor, w: Tensor, at: Sizes, geometry: Geometry) -> Tensor:
    n, c, kh, kw = w.shape
    images = x.reshape(at.images, c, *x.shape[2:])
    pixels = x.new_zeros(at.images, *at.padded, c)
    _inside(pixels, x.shape, geometry).copy_(images)
    table = pixels.as_strided((pixels.numel() // c - at.run + 1, at.run * c), (c, 1))
    starts = torch.arange(0, rows.numel(), rows.shape[2], device=rows.device)
    return bags(table, rows.flatten(), starts, v).view(n, kh, kw, c).permute(0, 3, 1, 2).contiguous()


def _input_gradient(rows: Tensor, v: Tensor, x: Tensor, w: Tensor, at: Sizes, geometry: Geometry) -> Tensor:
    n, c = w.shape[:2]
    table = w.permute(0, 2, 3, 1).reshape(n * rows.shape[1], at.run * c)
    pixels, order = rows.flatten().sort(stable=True)  # stable: the same sums each time
    starts = bag_starts(pixels, at.images * at.padded[0] * at.padded[1])
    runs = bags(table, order // rows.shape[2], starts, v[order])  # (pixels, L)
    dx = runs[:, :c].contiguous()
    for tap in range(1, at.run):
        dx[tap:] += runs[:-tap, tap * c : (tap + 1) * c]
    return _inside(dx.view(at.images, *at.padded, c), x.shape, geometry).reshape(x.shape)


MASKED, GATHER = _MaskedConv(), _GatherConv()
