"""A recurrent layer through time, forward and sparsified backward, in torch's operators: for any device and dtype.

Sequences are *packed*: row r of x `(N, m)` is one time step of one example, time step by time step, the examples of a
step in order of decreasing length, as in `torch.nn.utils.rnn.PackedSequence`. A padded batch is the case where all
lengths are equal. `Steps` says which rows a step has, and in which direction the layer runs.

    forward     a = x W_ihᵀ + b_ih                  one product for all time steps
                b = h' W_hhᵀ + b_hh, cell           step by step
    backward    d = cell's gradients of a, b        step by step, t = selected entries of d, k for each gate
                dh' = S(d) W_hh                     step by step
                dx = S(d) W_ih, dW_ih = S(d)ᵀ x, dW_hh = S(d)ᵀ h', db = Σ d       one product each for all time steps

What forward saves for backward, the *tape*, is one tensor of N rows for each thing, so that either direction of time,
and the compiled loops of `native`, can do with the same. All is made of differentiable operators if the kernel is
`masked`.

`sparsified` is the same layer for what is not plain memory: torch differentiates forward, whose gradients at a and b
lose what is not selected on their way back (see `ops.sparsified`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from meprop_bench.ops import kernels
from meprop_bench.ops.kernels import Gradients, Request
from meprop_bench.ops.recurrent.cells import RecurrentCell, Tensors
from meprop_bench.ops.selection import column_statistics, keep, select
from meprop_bench.ops.sparsified import sparsified as on_the_way_back

__all__ = ["Steps", "Weights", "backward", "forward", "select_in_gates", "sparsified", "with_the_zeros_of_select"]

Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""w_ih (G h, m), w_hh (G h, h), b_ih and b_hh (G h,) or None."""


class Steps(NamedTuple):
    """Which rows belong together."""

    sizes: tuple[int, ...]  # how many examples each time step has: not increasing, the first is the whole batch
    reverse: bool  # whether the layer starts at the last step of each example

    def order(self) -> range:
        """Return the time steps in the order in which the layer takes them."""
        return range(len(self.sizes))[:: -1 if self.reverse else 1]


class _Products(Protocol):
    """What a kernel does here: products through entries selected before."""

    name: str

    def products(self, idx: Tensor, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Gradients: ...


def forward(
    cell: RecurrentCell,
    x: Tensor,
    states: Tensors,
    weights: Weights,
    steps: Steps,
    at_gates: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda a, b: (a, b),
) -> tuple[Tensor, Tensors, Tensors]:
    """Run a layer in one direction on x `(N, m)`, from the initial states, each `(B, h)`.

    a and b of each step go to the cell through `at_gates`. Returns the output `(N, h)`, the final states, each
    `(B, h)`, and what `backward` needs, each of N rows.
    """
    w_ih, w_hh, b_ih, b_hh = weights
    a = F.linear(x, w_ih, b_ih).split_with_sizes(steps.sizes)
    outputs, tape = [], []
    for t in steps.order():
        size = steps.sizes[t]
        before = tuple(s[:size] for s in states)
        after, saved = cell.forward(*at_gates(a[t], F.linear(before[0], w_hh, b_hh)), before)
        outputs.append(after[0])
        tape.append((before[0], *saved))
        states = _update(states, after, size)
    by_time = slice(None, None, -1 if steps.reverse else 1)
    return torch.cat(outputs[by_time]), states, tuple(torch.cat(part[by_time]) for part in zip(*tape, strict=True))


def sparsified(
    cell: RecurrentCell, x: Tensor, states: Tensors, weights: Weights, steps: Steps, k: int, selection: str
) -> tuple[Tensor, Tensors]:
    """Run a layer as `forward` does, with gradients through k entries of each gate; returns output and states."""
    w_ih, w_hh, *biases = weights
    b_ih, b_hh = (None if b is None else b.detach() for b in biases)

    def selected(d_a: Tensor, d_b: Tensor) -> Tensors:
        with torch.no_grad():
            idx = select_in_gates(d_a, cell.gates, k, selection)
        return keep(d_a, idx), keep(d_b, idx)

    def at_gates(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        a, b = on_the_way_back(selected, a, b, *biases)
        return a, b

    y, last, _ = forward(cell, x, states, (w_ih, w_hh, b_ih, b_hh), steps, at_gates)
    return y, last


def backward(
    cell: RecurrentCell,
    dy: Tensor,
    d_states: Tensors,
    x: Tensor,
    weights: tuple[Tensor, Tensor],
    tape: Tensors,
    steps: Steps,
    request: Request,
    kernel: str,
) -> tuple[tuple[Tensor | None, ...], Tensors, tuple[Tensor, Tensor]]:
    """Differentiate what `forward` computed, through k entries of each gate.

    Args:
        cell, x, steps: as for `forward`.
        dy, d_states: gradients of the output, `(N, h)`, and of the final states, each `(B, h)`.
        weights: w_ih and w_hh.
        tape: what `forward` saved.
        request: k entries of each gate, the selection, and which of x, weights and biases need a gradient.
        kernel: "masked" or "embedding_bag".

    Returns:
        the gradients of x, w_ih, w_hh, b_ih and b_hh, None where it is not needed; those of the initial states; and
        what was selected of what: the gradients at the gates `(N, G h)`, and int64 columns of it `(N, G k)`.

    """
    w_ih, w_hh = weights
    chosen = cast(_Products, kernels.get(kernel))
    parts = [part.split_with_sizes(steps.sizes) for part in (dy, *tape)]
    k, selection, _, need_dx, need_dw, need_db = request
    all_gates = Request(cell.gates * k, selection, False, True, False, False)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for t in reversed(steps.order()):
        dy_t, h_before, *saved = (part[t] for part in parts)
        size = steps.sizes[t]
        d_after = (d_states[0][:size] + dy_t, *(d[:size] for d in d_states[1:]))
        d_a, d_b, direct = cell.backward(d_after, h_before, tuple(saved))
        with torch.no_grad():
            idx = select_in_gates(d_a, cell.gates, k, selection)
        (dh, *_) = chosen.products(idx, d_b, h_before, w_hh, all_gates)
        assert dh is not None
        d_before = (dh if direct[0] is None else dh + direct[0], *cast(Tensors, direct[1:]))
        d_states = _update(d_states, d_before, size)
        found.append((idx, d_a, d_b))
    idx, d_a, d_b = (torch.cat(part[:: 1 if steps.reverse else -1]) for part in zip(*found, strict=True))
    ours = all_gates._replace(need_dx=need_dx, need_dw=need_dw, need_db=need_db)
    dx, dw_ih, db_ih = chosen.products(idx, d_a, x, w_ih, ours)
    _, dw_hh, db_hh = chosen.products(idx, d_b, tape[0], w_hh, ours._replace(need_dx=False))
    return (dx, dw_ih, dw_hh, db_ih, db_hh), d_states, (d_a, idx)


def select_in_gates(d: Tensor, gates: int, k: int, selection: str) -> Tensor:
    """Select k entries, 1 <= k <= h, of each gate of the gradients of one time step at the pre-activations, `(n, G h)`.

    Returns int64 indices into the G h rows of the weights, `(n, G k)`.
    """
    n, width = d.shape
    h = width // gates
    unified = selection in ("unified", "random-unified")
    rows = column_statistics(d, sums=False)[0] if unified else d
    within = select(rows.reshape(-1, h), k, "random" if selection.startswith("random") else "example")
    first = torch.arange(0, width, h, device=d.device).unsqueeze(1)  # (G, 1)
    idx = (within.view(-1, gates, k) + first).reshape(-1, gates * k)  # not `flatten`, which batched gradients have not
    return idx.expand(n, -1).contiguous() if unified else idx


def with_the_zeros_of_select(
    d: Tensor, idx: Tensor, cell: RecurrentCell, k: int, selection: str, steps: Steps
) -> Tensor:
    """Return idx `(N, G k)`, selected of d `(N, G h)`, with those zeros that `select` would take, where gates have any.

    They contribute nothing, and the compiled selection takes others; who counts zeros should find the same by either.
    """
    parts = []
    for rows, chosen in zip(d.split_with_sizes(steps.sizes), idx.split_with_sizes(steps.sizes), strict=True):
        zero = rows.gather(1, chosen) == 0
        if selection == "unified":
            zero = zero.all(0, keepdim=True)
        short = zero.view(-1, cell.gates, k).any(2, keepdim=True)
        others = select_in_gates(rows, cell.gates, k, selection)
        parts.append(torch.where(short, others.view(-1, cell.gates, k), chosen.view(-1, cell.gates, k)).flatten(1))
    return torch.cat(parts)


def _update(states: Tensors, new: Tensors, size: int) -> Tensors:
    """Replace the states of the first `size` examples; those of the others, which have no such step, stay."""
    if size == states[0].shape[0]:
        return new
    return tuple(torch.cat((n, s[size:])) for n, s in zip(new, states, strict=True))
