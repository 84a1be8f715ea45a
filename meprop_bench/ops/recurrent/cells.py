"""The equations of the recurrent cells, forward and backward, in the layouts and gate order of `torch.nn`.

A cell has G gates, each with h neurons. Its linear maps give a = W_ih x + b_ih and b = W_hh h + b_hh, both `(n, G h)`,
and everything else is element-wise (σ the logistic function, ⊙ understood, ' the step before):

    lstm        i f o = σ(a + b)    g = tanh(a_g + b_g)    c = f c' + i g                 h = o tanh c
    gru         r z = σ(a + b)      n = tanh(a_n + r b_n)                                 h = n + z (h' - n)
    tanh, relu                                                                            h = tanh(a + b), max(0, a + b)

`forward` saves what `backward` needs, the tape, as tensors of n rows. `backward` takes the gradients of the states
after the step and gives those at the *pre-activations* of the gates, which is where the selection acts: once as the
gradient of a, once as that of b. The two are one tensor but for the new gate of the GRU, whose b is multiplied by r;
and it gives what goes to the states before the step by element-wise paths, not through W_hh. Both are made of
differentiable operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["CELLS", "RecurrentCell", "Tensors"]

Tensors = tuple[Tensor, ...]
AtGates = tuple[Tensor, Tensor, tuple[Tensor | None, ...]]
"""Gradients of a, of b, and of the states before, but for what b gives them."""


class RecurrentCell(Protocol):
    """One kind of cell."""

    name: str
    gates: int  # G; rows g h to (g + 1) h of the weights belong to gate g
    states: int  # 1 for h, 2 for h and c

    def forward(self, a: Tensor, b: Tensor, before: Tensors) -> tuple[Tensors, Tensors]:
        """Return the states after the step, each (n, h), and the tape, for a and b (n, G h)."""
        ...

    def backward(self, d_after: Tensors, h_before: Tensor, tape: Tensors) -> AtGates:
        """Return the gradients: `AtGates`, of a and b (n, G h)."""
        ...


class _LSTM:
    name, gates, states = "lstm", 4, 2

    def forward(self, a: Tensor, b: Tensor, before: Tensors) -> tuple[Tensors, Tensors]:
        i, f, g, o = (a + b).chunk(4, 1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c = f * before[1] + i * g
        t = c.tanh()
        return (o * t, c), (torch.cat((i, f, g, o), 1), before[1], t)

    def backward(self, d_after: Tensors, h_before: Tensor, tape: Tensors) -> AtGates:
        dh, dc = d_after
        activated, c_before, t = tape
        i, f, g, o = activated.chunk(4, 1)
        dc = dc + dh * o * (1 - t * t)
        d = torch.cat(
            (dc * g * i * (1 - i), dc * c_before * f * (1 - f), dc * i * (1 - g * g), dh * t * o * (1 - o)), 1
        )
        return d, d, (None, dc * f)


class _GRU:
    name, gates, states = "gru", 3, 1

    def forward(self, a: Tensor, b: Tensor, before: Tensors) -> tuple[Tensors, Tensors]:
        (h_before,) = before
        (a_r, a_z, a_n), (b_r, b_z, b_n) = a.chunk(3, 1), b.chunk(3, 1)
        r, z = (a_r + b_r).sigmoid(), (a_z + b_z).sigmoid()
        n = (a_n + r * b_n).tanh()
        return (n + z * (h_before - n),), (torch.cat((r, z, n), 1), b_n)

    def backward(self, d_after: Tensors, h_before: Tensor, tape: Tensors) -> AtGates:
        (dh,) = d_after
        activated, b_n = tape
        r, z, n = activated.chunk(3, 1)
        d_n = dh * (1 - z) * (1 - n * n)
        d_z = dh * (h_before - n) * z * (1 - z)
        d_r = d_n * b_n * r * (1 - r)
        return torch.cat((d_r, d_z, d_n), 1), torch.cat((d_r, d_z, d_n * r), 1), (dh * z,)


class _Plain:
    """h = f(a + b), whose derivative follows from h."""

    gates, states = 1, 1

    def __init__(self, name: str, f: Callable[[Tensor], Tensor], back: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.name, self._f, self._back = name, f, back

    def forward(self, a: Tensor, b: Tensor, before: Tensors) -> tuple[Tensors, Tensors]:
        h = self._f(a + b)
        return (h,), (h,)

    def backward(self, d_after: Tensors, h_before: Tensor, tape: Tensors) -> AtGates:
        d = self._back(d_after[0], tape[0])
        return d, d, (None,)


_TANH = _Plain("tanh", torch.tanh, lambda dh, h: dh * (1 - h * h))
_RELU = _Plain("relu", torch.relu, lambda dh, h: torch.where(h <= 0, 0, dh))  # NaN in h lets dh pass, as in torch's own

CELLS: Mapping[str, RecurrentCell] = {cell.name: cell for cell in (_LSTM(), _GRU(), _TANH, _RELU)}
