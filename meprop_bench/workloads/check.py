"""Is the gradient right? Asked in the process that is about to be timed, on the very shapes, through the very function.

Every kernel must return exactly

    dx = S(dy) W        dW = S(dy)ᵀ x        db = Σ dy

and here it is computed in the obvious way, by dense products of the masked dy: the oracle of the tests
(`ops.reference`) goes entry by entry, which takes hours at the papers' sizes; this costs one dense backward pass. Two
correct kernels may still differ, in rounding (hence tolerances) and in S where two entries tie (hence a *gap*: before
the comparison the entries that the oracle keeps are doubled, so that whoever selects otherwise is wrong and not
unlucky).

Two more things have gone wrong in other implementations, silently: k >= n must be the dense gradient, and a NaN in dy
must be seen in the result.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from meprop_bench.ops import linear
from meprop_bench.ops.kernels import hybrid_rows
from meprop_bench.ops.selection import select
from meprop_bench.results.schema import PASSED

__all__ = ["TOLERANCES", "check_linear", "with_gap"]

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Largest |got - oracle| / |oracle|, in Euclidean norm over a whole gradient; both are computed in the dtype itself."""

# Rows of the batch for questions that do not need all of it.
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

    Args:
        x: input, `(B, m)`, requires a gradient.
        w: weight, `(n, m)`, requires a gradient.
        b: bias, `(n,)`, requires a gradient.
        dy: incoming gradient, `(B, n)`.
        k: neurons kept, resolved.
        selection: one of `ops.SELECTIONS`.
        sparse: whether dW comes as rows.
        kernel: a name in the registry.
        seed: for the random selections, which both sides then draw alike.

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
        if reason := _compare(got, _by_definition(x, w, dy, select(dy, k, selection), sparse)):
            return reason
    few_x, few_dy = x[:_FEW].detach().requires_grad_(), dy[:_FEW]
    if reason := _compare(gradients(n, few_x, few_dy), _dense(few_x, w, b, few_dy)):
        return f"k = n is not the dense gradient: {reason}"
    poisoned = dy.clone()
    poisoned[0, n // 2] = math.nan
    hidden = [
        name for name, grad in zip(("dx", "dw", "db"), gradients(k, x, poisoned), strict=True) if not _has_nan(grad)
    ]
    return f"a NaN in dy does not show in {', '.join(hidden)}" if hidden else PASSED


@torch.no_grad()
def _by_definition(x: Tensor, w: Tensor, dy: Tensor, idx: Tensor, sparse: bool) -> list[Tensor]:
    each = idx if idx.dim() == 2 else idx.expand(dy.shape[0], -1)  # (B, k)
    kept = torch.zeros_like(dy).scatter_(1, each, dy.gather(1, each))  # S(dy), (B, n)
    if not sparse:
        return [kept @ w, kept.t() @ x, dy.sum(0)]
    rows = torch.unique(idx)
    return [kept @ w, hybrid_rows(rows, kept[:, rows].t() @ x, w.shape[0]), dy.sum(0)]


def _dense(x: Tensor, w: Tensor, b: Tensor, dy: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(F.linear(x, w, b), (x, w, b), dy))


def _compare(got: list[Tensor], true: list[Tensor]) -> str | None:
    """Say which gradient is wrong, or None; overwrites `true`, as another 256 MB would cost more than comparing."""
    for name, mine, wanted in zip(("dx", "dw", "db"), got, true, strict=True):
        error = _relative_error(mine, wanted)
        if not error <= TOLERANCES[mine.dtype]:  # NaN is wrong, too
            return f"{name} is off by {error:.1e}, relative; at most {TOLERANCES[mine.dtype]:.0e} is rounding"
    return None


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


def _has_nan(tensor: Tensor) -> bool:
    # The sum of a tensor is NaN if an entry is: no mask of its size.
    return bool(torch.isnan((tensor.coalesce().values() if tensor.is_sparse else tensor).sum()))
