"""Which entries of the incoming gradient survive: the only approximation that meProp makes.

A linear layer `y = x Wᵀ + b` gets dy of shape `(B, n)` from above. Of it, a *selection* keeps k entries per example:

    example          the k greatest |dy| of each example (ICML paper, section 2.1): idx (B, k)
    unified          the k neurons with the greatest Σ_batch |dy|, the same for all examples (section 5): idx (k,)
    random           k neurons drawn without replacement for each example, not rescaled (the control experiment): idx (B, k)
    random-unified   one such draw for the whole batch: idx (k,)

The unified selections trade fidelity for dense, gathered matrix products. NaN counts as the greatest magnitude, and the random
selections draw non-finite entries before all others: an overflow upstream shows in the gradients, as it would without meProp.
The order within idx is unspecified but, for one device and one input, always the same.
"""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor

__all__ = ["SELECTIONS", "check_k", "check_selection", "column_statistics", "resolve_k", "select"]

SELECTIONS = ("example", "unified", "random", "random-unified")

# Rows of dy whose magnitudes are held at once. abs() of a whole (1024, 8192) gradient maps 33 MB of fresh memory and pays more for
# the page faults than for the arithmetic: 9-17 ms against 1.0 ms in slices of 64 rows through one buffer (2 cores, torch 2.13).
_SLICE = 64


def check_k(k: float) -> None:
    """Check a k: an int >= 1, or a ratio of the layer's outputs in (0, 1].

    Raises:
        ValueError: for anything else. "Keep nothing" is among it: a layer without gradient trains nothing, silently.

    """
    if isinstance(k, Integral) and not isinstance(k, bool):
        if k >= 1:
            return
    elif isinstance(k, Real) and not isinstance(k, bool) and 0 < k <= 1:
        return
    raise ValueError(f"k must be an int >= 1 or a ratio in (0, 1], not {k!r}")


def check_selection(selection: str) -> None:
    """Check the name of a selection.

    Raises:
        ValueError: no selection has that name.

    """
    if selection not in SELECTIONS:
        raise ValueError(f"selection must be one of {', '.join(SELECTIONS)}, not {selection!r}")


def resolve_k(k: float, n: int) -> int:
    """Return how many of n entries k keeps: k itself if it is an int, else round-half-up of k * n, and at least 1.

    Raises:
        ValueError: see `check_k`.

    """
    if type(k) is int and k >= 1:  # the common case, on the path of every call
        return k
    check_k(k)
    return int(k) if isinstance(k, Integral) else max(1, math.floor(k * n + 0.5))


def select(dy: Tensor, k: int, selection: str = "example", generator: torch.Generator | None = None) -> Tensor:
    """Select the entries of dy `(B, n)` that are propagated.

    Args:
        dy: incoming gradient, `(B, n)`.
        k: entries to keep, 1 <= k <= n.
        selection: one of `SELECTIONS`.
        generator: source of the random selections; torch's global one, hence `torch.manual_seed`, by default.

    Returns:
        int64 indices of neurons, distinct in each row: `(B, k)`, or `(k,)` for the unified selections.

    """
    if selection == "example":
        return _top_per_example(dy, k)
    if selection == "unified":
        return column_statistics(dy, sums=False)[0].topk(k, sorted=False).indices
    check_selection(selection)
    if selection == "random":
        keys = torch.rand(dy.shape, generator=generator, device=dy.device)
        wild = ~dy.isfinite()
    else:
        keys = torch.rand(dy.shape[1], generator=generator, device=dy.device)
        wild = ~dy.isfinite().all(0)
    # Keys lie in [0, 1), so 2 puts a non-finite entry first. The k greatest of uniform keys are a draw without replacement.
    return keys.masked_fill_(wild, 2.0).topk(k, dim=-1, sorted=False).indices


def _top_per_example(dy: Tensor, k: int) -> Tensor:
    """Indices of the k greatest |dy| of each row, `(B, k)`."""
    return dy.abs().topk(k, dim=1, sorted=False).indices


def column_statistics(dy: Tensor, *, sums: bool) -> tuple[Tensor, Tensor | None]:
    """Σ_batch |dy| and, with `sums`, Σ_batch dy (the bias gradient), `(n,)` each, in one pass over dy.

    Magnitudes are added in float32 (float64 for float64), so that half precision does not overflow; the plain sums come in
    dy's dtype, from sums in the wider one.
    """
    wide = torch.float64 if dy.dtype == torch.float64 else torch.float32
    if dy.shape[0] <= _SLICE or dy.device.type != "cpu":
        return dy.abs().sum(0, dtype=wide), dy.sum(0) if sums else None
    magnitudes = dy.new_zeros(dy.shape[1], dtype=wide)
    totals = torch.zeros_like(magnitudes) if sums else None
    buffer = dy.new_empty(_SLICE, dy.shape[1])
    for part in torch.split(dy, _SLICE):
        magnitudes += torch.abs(part, out=buffer[: part.shape[0]]).sum(0, dtype=wide)
        if totals is not None:
            totals += part.sum(0, dtype=wide)
    return magnitudes, None if totals is None else totals.to(dy.dtype)
