"""k of a layer, which may change while training, also under `torch.compile`.

Dynamo takes a number on a module for a constant and would compile anew for each value, but the size of a tensor only
until it first differs, and then as a variable of the graph. So a layer holds its k as the size of an empty tensor, too:
of all changes only the first compiles again (and the first to k >= n, where the graph is that of the dense layer, and
the first from a count to a ratio).

    count k      size = k                    a linear layer, which knows its n, makes any k a count
    ratio k      size = k · 2^bits           a convolution, whose maps have the size that their input gives them

A ratio is held exactly: a float is 53 binary digits, which are all there with bits = 62 down to k = 2^-10 (and bits is
10 more for each factor of 2^10 below, which is a constant to Dynamo). The graph divides by 2^bits, which is exact, too,
and counts what the ratio means as `resolve_k` does: it keeps as many as the same layer that is not compiled.
"""

from __future__ import annotations

import math
from numbers import Integral

import torch
from torch.compiler import is_dynamo_compiling

from meprop_bench.nn.tools import Sparsified
from meprop_bench.ops.graph import is_tracing

__all__ = ["ChangingK"]

_LEAST = 2.0**-60
"""A smaller ratio keeps one entry of whatever there is, as this one does."""


class ChangingK(Sparsified):
    """A layer whose k is read within `forward` by `_current_k`."""

    _sized_k: torch.Tensor
    _bits: int

    def _set_k(self, k: float) -> None:
        held = self._resolved(k)
        if isinstance(held, Integral):
            size, bits = int(held), 0
        else:
            held = max(float(held), _LEAST)
            bits = 62 + max(0, -math.frexp(held)[1]) // 10 * 10
            size = int(math.ldexp(held, bits))
        # One more: sizes 0 and 1 are always constants.
        self._k, self._bits, self._sized_k = k, bits, torch.empty(size + 1, 0)

    def _resolved(self, k: float) -> float:
        """Return what the layer's function gets of a k that was given."""
        return k

    def _outdated(self) -> bool:
        """Whether what was resolved is of another layer than this is by now."""
        return False

    def _current_k(self) -> float:
        """Return k; in a graph, as one of its variables."""
        if not is_dynamo_compiling() or is_tracing() or self._outdated():
            return self._k
        size = self._sized_k.shape[0] - 1
        return size / 2.0**self._bits if self._bits else size
