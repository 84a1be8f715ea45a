"""Which entries of the incoming gradient survive: the only approximation that meProp makes.

A linear layer `y = x Wᵀ + b` gets dy of shape `(B, n)` from above. Of it, a *selection* keeps k entries per example:

    example          the k greatest |dy| of each example (ICML paper, section 2.1)           idx (B, k)
    unified          the k neurons with the greatest Σ_batch |dy|, the same for all examples  idx (k,)
    random           k neurons drawn without replacement for each example, not rescaled       idx (B, k)
    random-unified   one such draw for the whole batch                                        idx (k,)

The unified selections trade fidelity for dense, gathered matrix products; the random ones are the control experiment.
NaN counts as the greatest magnitude, and the random selections draw non-finite entries before all others: an overflow
upstream shows in the gradients, as it would without meProp. Which of equal magnitudes are taken, and the order within
idx, are unspecified but the same for the same input.

Run `python -m pytest tests/ops/test_selection.py`.
"""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor

from meprop_bench.ops.plain import memory, unwatched

__all__ = ["SELECTIONS", "check_k", "check_selection", "column_statistics", "keep", "resolve_k", "select", "survivors"]

SELECTIONS = ("example", "unified", "random", "random-unified")

# Elements of dy whose magnitudes are held at once, 2 MB of float32. abs() of a whole (1024, 8192) gradient maps 33 MB
# of fresh memory, whose page faults cost more than the arithmetic: Σ|dy| took 9-17 ms, and 1.0 ms in slices through one
# buffer (x86-64, 2 cores, torch 2.13).
_SLICE = 1 << 19

# From this size on, and with 9 entries or more for each one taken, the selection in two levels pays for its launches:
# one thread, (1024, 8192), k = 8 / 32 / 512: 67 / 82 / 171 ms with topk alone, 14 / 27 / 97 ms in two levels; (64,
# 1024), k = 16: a draw at 0.5 ms; (50, 500), k = 30: 0.36 against 0.44 ms (same machine).
_TWO_LEVELS = 1 << 17


def check_k(k: float) -> None:
    """Check a k: an int >= 1, or a ratio of the layer's outputs in (0, 1]; ValueError for anything else.

    "Keep nothing" is among it: a layer without gradient silently trains nothing.
    """
    if not isinstance(k, bool):
        if isinstance(k, Integral):
            if k >= 1:
                return
        elif isinstance(k, Real) and 0 < k <= 1:
            return
    raise ValueError(f"k must be an int >= 1 or a ratio in (0, 1], not {k!r}")


def check_selection(selection: str) -> None:
    """Raise ValueError if no selection has that name."""
    if selection not in SELECTIONS:
        raise ValueError(f"selection must be one of {', '.join(SELECTIONS)}, not {selection!r}")


def resolve_k(k: float, n: int) -> int:
    """Return how many of n entries k keeps: an int is taken as it is; a ratio gives k · n rounded half up, at least 1.

    ValueError: see `check_k`.
    """
    if type(k) is int and k >= 1:  # the common case, and on the path of every call
        return k
    check_k(k)
    return int(k) if isinstance(k, Integral) else max(1, math.floor(k * n + 0.5))


def select(dy: Tensor, k: int, selection: str = "example", generator: torch.Generator | None = None) -> Tensor:
    """Select the entries of dy `(B, n)` that are propagated.

    Args:
        dy: incoming gradient, `(B, n)`.
        k: entries to keep, 1 <= k <= n.
        selection: one of `SELECTIONS`, else ValueError.
        generator: source of the random selections; by default torch's global one, which `torch.manual_seed` seeds.

    Returns:
        int64 indices of neurons, distinct within a row: `(B, k)`, or `(k,)` for the unified selections.

    """
    if selection == "example":
        if _in_slices(dy, _TWO_LEVELS) and dy.shape[1] >= 9 * k:
            return _select_in_two_levels(dy, k)
        return dy.abs().topk(k, dim=1, sorted=False).indices
    if selection == "unified":
        return column_statistics(dy, sums=False)[0].topk(k, sorted=False).indices
    check_selection(selection)
    wild = ~(dy.isfinite() if selection == "random" else dy.isfinite().all(0))
    if memory.plain(dy):
        keys = torch.rand(wild.shape, generator=generator, device=dy.device)
    else:
        keys = torch.rand_like(wild, dtype=torch.float32)  # of dy's own kind
    # The k greatest of uniform keys, in [0, 1), are a draw without replacement; 2 puts a non-finite entry first.
    return keys.masked_fill(wild, 2.0).topk(k, dim=-1, sorted=False).indices


def keep(dy: Tensor, idx: Tensor) -> Tensor:
    """Return S(dy): dy `(B, n)` with zero where idx, `(B, k)` or `(k,)`, does not point. Differentiable by dy.

    Of zeros alone nothing is selected, and the derivative is that of all entries: `torch.autograd.functional.jvp`, for
    one, differentiates at dy = 0, for the sake of the layer's forward pass.
    """
    each = idx if idx.dim() == 2 else idx.expand(dy.shape[0], -1)
    selected = torch.zeros_like(dy).scatter(1, each, dy.gather(1, each))
    if not torch.is_grad_enabled():
        return selected
    zero = dy == 0
    return torch.where(zero.all(1, keepdim=True) if idx.dim() == 2 else zero.all(), dy, selected)


def survivors(dy: Tensor, k: int, selection: str, dims: int = 1) -> Tensor:
    """Return S(dy), differentiable, for a selection among the last `dims` dimensions of dy, each for all others."""
    rows = dy.reshape(math.prod(dy.shape[:-dims]), math.prod(dy.shape[-dims:]))
    with torch.no_grad():  # not `detach`, which batched gradients have not
        idx = select(rows, k, selection)
    return keep(rows, idx).reshape(dy.shape)


def column_statistics(dy: Tensor, *, sums: bool) -> tuple[Tensor, Tensor | None]:
    """Return Σ_batch |dy| and, with `sums`, Σ_batch dy, which is the bias gradient, from one pass over dy `(B, n)`.

    Magnitudes are added and returned in float32 (float64 for float64), so that half precision does not overflow. The
    plain sums come in dy's dtype.
    """
    wide = torch.float64 if dy.dtype in (torch.float64, torch.complex128) else torch.float32
    if not _in_slices(dy, _SLICE):
        return dy.abs().sum(0, dtype=wide), dy.sum(0) if sums else None
    parts = torch.split(dy, _slice_rows(dy.shape[1]))
    magnitudes = dy.new_zeros(dy.shape[1], dtype=wide)
    totals = torch.zeros_like(magnitudes)
    buffer = dy.new_empty(parts[0].shape)
    for part in parts:
        magnitudes += torch.abs(part, out=buffer[: part.shape[0]]).sum(0, dtype=wide)
        if sums:
            totals += part.sum(0, dtype=wide)
    return magnitudes, totals.to(dy.dtype) if sums else None


def _in_slices(dy: Tensor, size: int) -> bool:
    """Whether dy is worth slicing: large, on the CPU, and plain, since results are written into buffers."""
    return dy.numel() > size and dy.device.type == "cpu" and unwatched() and memory.plain(dy)


def _slice_rows(n: int) -> int:
    return max(1, _SLICE // n)


def _select_in_two_levels(dy: Tensor, k: int) -> Tensor:
    """Indices `(B, k)` of the k greatest |dy| of each row, from G groups of g columns each.

    The k groups with the greatest maxima hold k greatest entries: an entry of another group is no greater than its
    group's maximum, hence than k maxima. So topk, which costs some 10 ns an entry, sees G + k g of them instead of n =
    G g; the best g is √(n / k). A group is a column of the row seen as `(g, G)`, so that the maxima are vectorised.
    """
    n = dy.shape[1]
    g = round(math.sqrt(n / k))
    groups = -(-n // g)
    rows = min(_slice_rows(n), dy.shape[0])
    buffer = dy.new_full((rows, g * groups), -1.0)  # what fills the last group up is less than any magnitude
    chosen = []
    for part in torch.split(dy, rows):
        magnitudes = buffer[: part.shape[0]]
        torch.abs(part, out=magnitudes[:, :n])
        grid = magnitudes.view(-1, g, groups)
        best = grid.amax(1).topk(k, dim=1, sorted=False).indices  # (rows, k) groups
        candidates = grid.gather(2, best.unsqueeze(1).expand(-1, g, -1)).flatten(1)  # (rows, g k)
        place = candidates.topk(k, dim=1, sorted=False).indices
        chosen.append(best.gather(1, place % k).add_(place // k, alpha=groups))
    return torch.cat(chosen)
