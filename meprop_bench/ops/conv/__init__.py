"""Convolutions whose backward pass uses k positions of each feature map (TKDE, section 3.3.2).

A convolution is a linear layer applied to every patch of the image ("can be resolved to matrix multiplication with
input manipulation"): output position p of example b has the patch x[b, p] of m = C kh kw numbers, and

    y[b, n, p] = W[n] · x[b, p] + bias[n]                                         n of N maps, p of P = OH OW positions

Selection is spatial, "analogous to spatial pooling": of each map of each example, dy[b, n, :] (P,), the k positions
with the greatest |dy| survive. With S(dy) what survives,

    dW[n]     = Σ_{b, p} S(dy)[b, n, p] x[b, p]              (N, m)
    dx[b]     = Σ_{n, p} S(dy)[b, n, p] W[n]                 each added at patch p
    dbias[n]  = Σ_{b, p} dy[b, n, p]                         in full, as in the linear layer

Maps change in size from layer to layer, so the paper gives k as a ratio. An int k is a number of positions, and one
that a map has not got is an error: unlike the width of a linear layer, the size of a map follows from the input, and
"k = 200" would be meProp on one image and dense on another. All positions, or ratio 1, is exactly the dense layer.

`geometry` has sizes and the places of patches, `operators`, `native` and `auto` the kernels, `kernels` their registry,
`function` the registration with autograd, `reference` the oracle. What pays where is measured in `auto`.
"""

from meprop_bench.ops.conv.function import conv1d, conv2d
from meprop_bench.ops.conv.kernels import KERNELS, SELECTIONS, check_kernel, check_selection, get

__all__ = ["KERNELS", "SELECTIONS", "check_kernel", "check_selection", "conv1d", "conv2d", "get"]
