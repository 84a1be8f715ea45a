"""Kernel `auto`: the fastest kernel for the case, and what was measured.

Backward time of torch's dense convolution divided by that of `native`, selection included; dy is normally distributed,
B x C x H x W -> N maps, 3x3 taps with padding 1 unless said otherwise (5x5 without); 2 cores (AMD EPYC, AVX-512),
torch 2.13 with oneDNN, float32, glibc's retained arena, medians of interleaved pairs:

| layer | dense, ms | k/P = 0.01 | 0.05 | 0.1 | 0.2 | 0.5 |
| --- | --- | --- | --- | --- | --- | --- |
| the papers' first: 10x1x28x28 -> 16, 5x5, no dx | 0.10 | 2.0 | 1.4 | 1.1 | 0.8 | 0.5 |
| the papers' second: 10x16x12x12 -> 32, 5x5 | 0.31 | 4.0 | 3.5 | 2.9 | 2.0 | 1.2 |
| the same, B = 50 | 0.98 | 3.3 | 2.8 | 2.0 | 1.5 | 0.8 |
| 10x32x8x8 -> 64 | 0.35 | 2.8 | 2.4 | 2.0 | 1.4 | 0.9 |
| 32x64x16x16 -> 64 | 5.9 | 6.0 | 3.5 | 1.8-2.4 | 1.2-1.5 | 0.6-0.7 |
| 32x64x32x32 -> 128 | 50 | 7.6 | 4.6 | 2.8 | 1.7 | 0.8 |
| 32x256x8x8 -> 256 | 21 | 5.2 | 3.5 | 2.5 | 1.5 | 0.7 |
| 32x256x16x16 -> 64, 1x1 | 4.1 | 2.4 | 1.9 | 1.5 | 1.2 | 0.8 |
| 32x64x256 -> 64, one dimension, 3 taps | 2.5 | 3.6 | 2.3 | 1.7 | 1.3 | 0.8 |
| 32x3x32x32 -> 64, with dx | 4.2 | 2.6 | 1.6 | 1.1 | 0.7 | 0.3 |
| 32x3x32x32 -> 64, no dx | 1.0 | 0.8 | 0.6 | 0.5 | 0.4 | 0.2 |
| 32x64x32x32 -> 64, 64 groups | 3.0 | 0.8 | 0.7 | 0.6 | 0.4 | 0.3 |

The rule: it pays against the dense layer up to k/P = 0.2 where a patch has some 150 numbers or more, and up to 0.1 in
shorter ones that torch is slow for (the papers' first layer, or three channels with dx). It never pays for short
patches that torch is fast for, as in the first layer of a network of colour images, or in a depthwise layer: there the
dense products cost no more than the selection, some 0.5 ns an entry, which no sparsity saves. At a ratio of 0.01 the
selection, and turning images into pixels and back, is nearly all there is. Zeros are not selected, so that there is
less to do after ReLU and pooling, which leave a quarter of dy (papers' second layer, 0.5: 2.2 times).

What `auto` chooses among are kernels of the *same* gradient, so that it compares with `masked`, not with the dense
layer: where meProp does not pay it is slower than dense whatever it takes. With M numbers in a patch, counted once for
each of dx and dW, an entry of dy costs `native` about 0.5 + 0.024 M k/P ns and `masked` 4.5 + 0.010 M, since torch's
topk is slow: hence `native` up to k/P = 0.38 + 160 / M. Without Numba, or in another dtype, `gather` is faster than
`masked` for large layers and small ratios.
"""

from __future__ import annotations

from torch import Tensor

from meprop_bench.ops.conv.geometry import Geometry
from meprop_bench.ops.conv.kernels import ConvKernel, get
from meprop_bench.ops.kernels import Gradients, Request, compiled

__all__ = ["KERNEL", "AutoConv"]

_NATIVE = "meprop_bench.ops.conv.native"
_GATHER_UP_TO = 0.1
_GATHER_FROM = 1 << 18
"""Ratio up to which `gather` is faster than `masked`, and from how many entries of dy on: 8.1 against 8.8 ms at 0.1 and
12.6 against 9.1 at 0.2 for 32x64x16x16 -> 64; 1.3 ms each at 0.01 for the papers' second layer with B = 50. In
float64 and bfloat16 the ratio is between 0.05 and 0.1; in float16 masked is slower at all of them."""


class AutoConv(ConvKernel):
    """See the module."""

    name = "auto"

    def choose(self, dy: Tensor, x: Tensor, w: Tensor, geometry: Geometry, request: Request) -> ConvKernel:
        """Return the kernel that `backward` runs; there is always one."""
        positions = dy.shape[2] * dy.shape[3]
        numbers = w[0].numel() * (request.need_dx + request.need_dw)
        there = x.device.type == "cpu" and compiled.load(_NATIVE) is not None
        if there and get("native").unsupported(x, w, geometry) is None:
            native = request.k * numbers <= positions * (0.38 * numbers + 160)
            return get("native" if native else "masked")
        few = request.k <= _GATHER_UP_TO * positions
        if few and dy.numel() >= _GATHER_FROM and geometry.groups == 1 and x.device.type == "cpu":
            return get("gather")
        return get("masked")

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, geometry: Geometry, request: Request) -> Gradients:
        """Gradients for dy (B, N, OH, OW), x (B, G C, H, W), w (N, C, kh, kw)."""
        return self.choose(dy, x, w, geometry, request).backward(dy, x, w, geometry, request)


KERNEL = AutoConv()
