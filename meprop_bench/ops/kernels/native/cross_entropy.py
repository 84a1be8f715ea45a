"""Cross entropy and its gradient in one pass over the logits: the softmax is computed once. Float32 on the CPU.

    loss = mean_e log Σ_c exp(z[e, c]) - z[e, y_e],   dz = (softmax(z) - onehot(y)) / B     z (B, C), y (B,)

over the examples that count; those labelled -100 do not, and their rows of dz are zero. For few logits: torch's
operators are launched four times, and are the faster where there are many, since their exponential is vectorised.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import types
from torch import Tensor

from meprop_bench.ops.kernels.native.compiler import function, view

__all__ = ["cross_entropy"]

_IGNORED = -100
"""The label of an example that does not count: torch's default."""


@function(types.int64(*[types.int64] * 6))
def _run(logits, labels, gradient, loss, b, c):
    """Compute both; all are addresses but the sizes. Returns which example has a label that is no class, or -1."""
    z, dz = view(logits, (b, c), np.float32), view(gradient, (b, c), np.float32)
    y = view(labels, b, np.int64)
    counted = 0
    for e in range(b):
        if y[e] != _IGNORED:
            if y[e] < 0 or y[e] >= c:
                return e
            counted += 1
    share, total = np.float32(1) / np.float32(counted), np.float64(0)
    for e in range(b):
        row, out = z[e], dz[e]
        highest = row[0]
        for j in range(1, c):
            if row[j] > highest or row[j] != row[j]:  # NaN is to be found in the loss
                highest = row[j]
        exponentials = np.float32(0)
        for j in range(c):
            out[j] = np.exp(row[j] - highest)
            exponentials += out[j]
        scale = np.float32(0) if y[e] == _IGNORED else share
        scale /= exponentials
        for j in range(c):
            out[j] *= scale
        if y[e] != _IGNORED:
            out[y[e]] -= share
            total += np.log(exponentials) - (row[y[e]] - highest)
    view(loss, 1, np.float32)[0] = total / counted
    return -1


def cross_entropy(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss, (), and dz `(B, C)` for logits z `(B, C)` and labels y, int64 `(B,)`; contiguous, not empty.

    IndexError, as torch has it, for a label that is no class.
    """
    loss, dz = z.new_empty(()), torch.empty_like(z)
    wrong = _run(z.data_ptr(), y.data_ptr(), dz.data_ptr(), loss.data_ptr(), *z.shape)
    if wrong >= 0:
        raise IndexError(f"Target {int(y[wrong])} is out of bounds.")
    return loss, dz
