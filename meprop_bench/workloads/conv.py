"""One convolution, x (B, m, s, s) -> y (B, n, s - f + 1, s - f + 1): dense by torch's own `F.conv2d`, against the one
that selects k positions of each map.

    forward    y from x, W (n, m, f, f), b (n,)
    backward   (dx, dW, db) for dy, normal; for the method with its selection

How they are timed is in `linear`.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from meprop_bench.ops import resolve_k
from meprop_bench.ops.conv import conv2d, get
from meprop_bench.ops.conv.auto import AutoConv
from meprop_bench.ops.conv.geometry import Geometry
from meprop_bench.ops.cost import conv_backward, conv_forward
from meprop_bench.ops.kernels import Request
from meprop_bench.workloads import Prepared
from meprop_bench.workloads.case import Case
from meprop_bench.workloads.check import check_conv
from meprop_bench.workloads.dense_side import DenseSide
from meprop_bench.workloads.linear import LayerSides, draw

__all__ = ["setup"]

_PLAIN = Geometry((1, 1), (0, 0), (1, 1), 1)


def setup(case: Case, dense_side: DenseSide) -> Prepared:
    """Draw the numbers, build both graphs, and return the two sides."""
    assert case.size is not None
    assert case.filter is not None
    normal, maps = draw(case), case.size - case.filter + 1
    x_shape = (case.batch, case.in_features, case.size, case.size)
    w_shape = (case.out_features, case.in_features, case.filter, case.filter)
    fan_in = case.in_features * case.filter**2
    drawn = (normal(*x_shape), normal(*w_shape, scale=fan_in**-0.5), normal(case.out_features))
    x, w, b = (tensor.requires_grad_() for tensor in drawn)
    dy = normal(case.batch, case.out_features, maps, maps)
    k = resolve_k(case.k, maps * maps)
    how = {"k": k, "selection": case.selection, "kernel": case.kernel}

    def dense() -> Tensor:
        return F.conv2d(x, w, b)

    def sparsified() -> Tensor:
        return conv2d(x, w, b, **how)  # type: ignore[arg-type]

    both = LayerSides(case, dense_side, dense, sparsified, (x, w, b), dy)
    itemsize = dy.element_size()
    forward = conv_forward(x_shape, w_shape, itemsize)
    return Prepared(
        **both.prepared(),
        check=lambda: both.differ() or check_conv(x, w, b, dy, seed=case.seed, **how),  # type: ignore[arg-type]
        kernel=_kernel_that_runs(case, dy, x, w, k),
        k=k,
        costs={
            "forward": (forward, forward),
            "backward": (conv_backward(x_shape, w_shape, itemsize), conv_backward(x_shape, w_shape, itemsize, k)),
        },
    )


def _kernel_that_runs(case: Case, dy: Tensor, x: Tensor, w: Tensor, k: int) -> str:
    if k >= dy[0, 0].numel():
        return "dense"
    kernel = get(case.kernel)
    request = Request(k, case.selection, False, True, True, True)
    return (kernel.choose(dy, x, w, _PLAIN, request) if isinstance(kernel, AutoConv) else kernel).name
