"""The oracle: the backward pass of meProp written down from the paper, one line for each equation, slow and obvious.

With t_1 … t_k the indices of the k greatest |dy| of one example (ICML paper; its σ' is our dy):

    dW_ij  ←  dy_i x_j          if i ∈ {t_1, …, t_k} else 0                (5), for the whole model (9)
    dx_i   ←  Σ_j Wᵀ_ij dy_j    over j ∈ {t_1, …, t_k}                     (6), for the whole model (10)

Over a batch dW is summed, and the bias gradient is the plain sum of dy. The tests hold every kernel against this
module, and this module against numbers worked out by hand. Nothing here is fast, and nothing else may import it but
tests and checks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["backward", "keep", "select", "top_k"]


def top_k(v: list[float], k: int) -> list[float]:
    """Keep the k entries of v with the greatest magnitudes: top_2(<1, 2, 3, -4>) = <0, 0, 3, -4>."""
    chosen = _greatest(v, k)
    return [value if i in chosen else 0.0 for i, value in enumerate(v)]


def _greatest(v: list[float], k: int) -> list[int]:
    """Indices of the k greatest magnitudes; NaN is greater than all numbers, and of equals the first is taken."""
    return sorted(range(len(v)), key=lambda i: (not math.isnan(v[i]), -abs(v[i])))[:k]


def select(dy: Tensor, k: int, selection: str) -> Tensor:
    """Select as `meprop_bench.ops.selection.select` does, for the two selections without chance."""
    if selection == "unified":
        wide = dy.double()
        return torch.tensor(
            _greatest(sum(wide.abs(), torch.zeros_like(wide[:1].sum(0))).tolist(), k), dtype=torch.int64
        )
    if selection == "example":
        rows = [_greatest(row.tolist(), k) for row in dy]
        return torch.tensor(rows, dtype=torch.int64).reshape(dy.shape[0], k)
    raise ValueError(f"selection must be 'example' or 'unified' for the oracle, not {selection!r}")


def keep(idx: Tensor, batch: int, n: int) -> Tensor:
    """Say of each entry whether idx, `(B, k)` or `(k,)`, holds it: bool, `(B, n)`."""
    mask = torch.zeros(batch, n, dtype=torch.bool)
    for b in range(batch):
        mask[b, idx if idx.dim() == 1 else idx[b]] = True
    return mask


def backward(
    dy: Tensor, x: Tensor, w: Tensor, idx: Tensor, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (dx, dw, db), computed in `dtype`, for dy `(B, n)`, x `(B, m)`, w `(n, m)` and neurons idx to propagate.

    These are `(B, k)`, or `(k,)` for all examples; a neuron named twice counts once.
    """
    dy, x, w = dy.to(dtype), x.to(dtype), w.to(dtype)
    mask = keep(idx, *dy.shape)
    dx, dw, db = torch.zeros_like(x), torch.zeros_like(w), torch.zeros_like(dy[:1].sum(0))
    for b in range(dy.shape[0]):
        for i in range(dy.shape[1]):
            if mask[b, i]:
                dw[i] += dy[b, i] * x[b]  # (5)
                dx[b] += dy[b, i] * w[i]  # (6)
        db += dy[b]
    return dx, dw, db
