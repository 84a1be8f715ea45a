"""Is the gradient right? Checked in the process that is about to be timed, on the very shapes, by the very function.

Every kernel must return exactly

    dx = S(dy) W        dW = S(dy)ᵀ x        db = Σ dy

and here it is computed in the obvious way, by dense products of the masked dy: the oracle of the tests
(`ops.reference`) goes entry by entry, which takes hours at the papers' sizes; this costs one dense backward pass, in
float32 where the layer's own arithmetic is coarser: a library may add up long sums of 16-bit numbers in 16 bits. Two
correct kernels may still differ, in rounding (hence tolerances) and in S where two entries tie (hence a *gap*: before
the comparison the entries that the oracle selects are doubled, so that whoever selects otherwise is wrong and not
unlucky).

Two more things have gone wrong in other implementations, silently: k >= n must be the dense gradient, and a NaN in dy
must be seen in the result.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meprop_bench.measure.arithmetic import adopted, is_tf32
from meprop_bench.ops import linear
from meprop_bench.ops.conv import conv2d
from meprop_bench.ops.kernels import hybrid_rows
from meprop_bench.ops.selection import resolve_k, select
from meprop_bench.results.schema import PASSED

__all__ = ["TOLERANCES", "check_conv", "check_linear", "check_recurrent", "compare", "with_gap"]

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Largest |got - oracle| / |oracle|, in Euclidean norm over a whole gradient; the oracle is rounded to the dtype."""

_TF32 = 2e-3
"""The same where float32 products are rounded to TF32: its mantissa is float16's."""

_NAMES = ("dx", "dw", "db")

# Rows of the batch for checks that do not need all of it.
_FEW = 8


def with_gap(dy: Tensor, k: int, selection: str) -> Tensor:
    """Return dy `(B, n)` with its greatest k entries doubled, so that no rounding can change which they are."""
    idx = select(dy, k, "example" if selection == "random" else selection.replace("random-", ""))
    each = idx if idx.dim() == 2 else idx.expand(dy.shape[0], -1)  # (B, k)
    return dy.scatter(1, each, 2 * dy.gather(1, each))


def check_linear(
    x: Tensor, w: Tensor, b: Tensor, dy: Tensor, *, k: int, selection: str, sparse: bool, kernel: str, seed: int
) -> str:
    """Return "passed", or one line that says what is wrong.

    x `(B, m)`, w `(n, m)` and b `(n,)` require gradients; dy is `(B, n)`, and k is resolved. The method is described as
    for `ops.linear`; the seed is for the random selections, which both sides then draw alike.
    """

    def gradients(k: int, x: Tensor, dy: Tensor) -> list[Tensor]:
        torch.manual_seed(seed)
        y = linear(x, w, b, k=k, selection=selection, sparse=sparse, kernel=kernel)
        return list(torch.autograd.grad(y, (x, w, b), dy))

    n = w.shape[0]
    if k < n:
        dy = with_gap(dy, k, selection)
        got = gradients(k, x, dy)
        torch.manual_seed(seed)
        if reason := compare(got, _by_definition(x, w, dy, select(dy, k, selection), sparse)):
            return reason
    few_x, few_dy = x[:_FEW].detach().requires_grad_(), dy[:_FEW]
    if reason := compare(gradients(n, few_x, few_dy), _dense(few_x, w, b, few_dy)):
        return f"k = n is not the dense gradient: {reason}"
    return _hidden_nan(gradients(k, x, _poisoned(dy)))


def check_conv(x: Tensor, w: Tensor, b: Tensor, dy: Tensor, *, k: int, selection: str, kernel: str, seed: int) -> str:
    """Return "passed", or one line that says what is wrong with a convolution without padding.

    x `(B, m, H, W)`, w `(n, m, f, f)` and b `(n,)` require gradients; dy is `(B, n, OH, OW)`, and k is resolved. The
    rest is as for `check_linear`.
    """

    def gradients(k: int, dy: Tensor) -> list[Tensor]:
        torch.manual_seed(seed)
        return list(torch.autograd.grad(conv2d(x, w, b, k=k, selection=selection, kernel=kernel), (x, w, b), dy))

    def dense(dy: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(F.conv2d(x, w, b), (x, w, b), dy))

    positions = dy[0, 0].numel()
    if k < positions:
        maps = with_gap(dy.reshape(-1, positions), k, selection)  # (B n, P)
        torch.manual_seed(seed)
        idx = select(maps, k, selection)
        got, sparse = gradients(k, maps.view_as(dy)), torch.zeros_like(maps).scatter_(1, idx, maps.gather(1, idx))
        if reason := compare(got, [*dense(sparse.view_as(dy))[:2], maps.view_as(dy).sum((0, 2, 3))]):
            return reason
    if reason := compare(gradients(positions, dy), dense(dy)):
        return f"all positions are not the dense gradient: {reason}"
    return _hidden_nan(gradients(k, _poisoned(dy)))


_EXCHANGED = 1e-2
"""Tolerance where the selection follows from what a layer computes itself: rounding may exchange two of the smallest
entries selected, which changes a gradient by about this; a wrong gradient is off by tenths."""


def check_recurrent(layer: nn.RNNBase, x: Tensor, dy: Tensor, *, seed: int) -> str:
    """Return "passed", or one line that says what is wrong with a recurrent layer of `meprop_bench.nn`.

    It is compared with itself in float64 by the kernel "masked" and, with all neurons selected, with the dense layer,
    for x `(T, B, m)` and dy `(T, B, n)`, twice as wide for two directions.
    """

    def gradients(module: nn.Module, dtype: torch.dtype, dy: Tensor) -> list[Tensor]:
        torch.manual_seed(seed)
        x_ = x.detach().to(dtype).requires_grad_()
        return list(torch.autograd.grad(module(x_)[0], (x_, *module.parameters()), dy.to(dtype)))

    names = ("dx", *(name for name, _ in layer.named_parameters()))
    exact = copy.deepcopy(layer).double()
    exact.kernel = "masked"
    got = gradients(layer, x.dtype, dy)
    expected = [gradient.to(x.dtype) for gradient in gradients(exact, torch.float64, dy)]
    if reason := compare(got, expected, names, max(_EXCHANGED, _tolerance(x))):
        return reason
    whole, plain = copy.deepcopy(layer), copy.deepcopy(layer)
    whole.k = layer.hidden_size
    plain.__class__ = {"LSTM": nn.LSTM, "GRU": nn.GRU}[layer.mode]
    dense = gradients(plain, x.dtype, dy)
    if resolve_k(cast(float, layer.k), layer.hidden_size) < layer.hidden_size and not compare(
        got, [d.clone() for d in dense], names
    ):
        return "it gives the dense gradient"  # as it would in both precisions
    if reason := compare(gradients(whole, x.dtype, dy), dense, names):
        return f"k = n is not the dense gradient: {reason}"
    poisoned = dy.clone()
    poisoned[..., 0] = poisoned[..., -1] = math.nan  # one neuron of each direction
    return _hidden_nan(gradients(layer, x.dtype, poisoned), names)


@torch.no_grad()
def _by_definition(x: Tensor, w: Tensor, dy: Tensor, idx: Tensor, sparse: bool) -> list[Tensor]:
    dtype, wide = dy.dtype, torch.float64 if dy.dtype == torch.float64 else torch.float32
    x, w, dy = (tensor.to(wide) for tensor in (x, w, dy))
    each = idx if idx.dim() == 2 else idx.expand(dy.shape[0], -1)  # (B, k)
    sparse_dy = torch.zeros_like(dy).scatter_(1, each, dy.gather(1, each))  # S(dy), (B, n)
    rows = torch.unique(idx) if sparse else slice(None)
    with adopted("float32"):
        dx, dw, db = ((sparse_dy @ w).to(dtype), (sparse_dy[:, rows].t() @ x).to(dtype), dy.sum(0).to(dtype))
    return [dx, hybrid_rows(rows, dw, w.shape[0]) if isinstance(rows, Tensor) else dw, db]


def _dense(x: Tensor, w: Tensor, b: Tensor, dy: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(F.linear(x, w, b), (x, w, b), dy))


def compare(
    got: list[Tensor], true: list[Tensor], names: Sequence[str] = _NAMES, tolerance: float | None = None
) -> str | None:
    """Say which gradient is wrong, or None; by another tolerance than that of their arithmetic, if there is one.

    What they should be is overwritten, as another 256 MB would cost more than comparing.
    """
    for name, mine, expected in zip(names, got, true, strict=True):
        error, most = _relative_error(mine, expected), tolerance or _tolerance(mine)
        if not error <= most:  # NaN is wrong, too
            return f"{name} is off by {error:.1e}, relative; at most {most:.0e} is rounding"
    return None


def _tolerance(of: Tensor) -> float:
    return _TF32 if of.dtype == torch.float32 and is_tf32() else TOLERANCES[of.dtype]


def _relative_error(got: Tensor, true: Tensor) -> float:
    if got.is_sparse and true.is_sparse:
        got, true = got.coalesce(), true.coalesce()
        if torch.equal(got.indices(), true.indices()):
            got, true = got.values(), true.values()
    # Rows that one side left out and the other filled with zeros (a ReLU's dy has them) are equal all the same.
    got, true = (each.to_dense() if each.is_sparse else each for each in (got, true))
    wide = torch.float64 if got.dtype == torch.float64 else torch.float32
    size = torch.linalg.vector_norm(true, dtype=wide).item()
    distance = torch.linalg.vector_norm(true.sub_(got), dtype=wide).item()
    return float(distance / size if size else distance)


def _poisoned(dy: Tensor) -> Tensor:
    poisoned = dy.clone()
    poisoned.view(-1)[-1] = math.nan
    return poisoned


def _hidden_nan(gradients: list[Tensor], names: Sequence[str] = _NAMES) -> str:
    """Return "passed" if a NaN shows in all gradients, or which it does not show in."""
    dense = (each.coalesce().values() if each.is_sparse else each for each in gradients)
    # The sum of a tensor is NaN if an entry is: no mask of its size.
    hidden = [name for name, each in zip(names, dense, strict=True) if not torch.isnan(each.sum())]
    return f"a NaN in dy does not show in {', '.join(hidden)}" if hidden else PASSED
