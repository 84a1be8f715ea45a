"""What the cells of a recurrent layer selected: recorded, judged, and followed by the same cells in plain operators.

Which gradients there are to select from follows from what a layer computes itself, step by step, so that rounding may
exchange two of the smallest that it selects, and all that comes after differs. So the selection is judged by what it
was made of, and the rest by a reference that takes it for given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from meprop_bench.ops.recurrent import recurrent, through_time
from meprop_bench.ops.recurrent.cells import CELLS
from meprop_bench.ops.selection import keep
from meprop_bench.ops.sparsified import sparsified

__all__ = ["Selected", "recording"]


class Selected:
    """What one cell of a recurrent layer selected, and the same cell by definition, through just that."""

    enabled = True

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes
        self.dy: Tensor | None = None  # at the gates, (N, G h)
        self.idx: Tensor | None = None  # its columns, (N, G k)

    def __call__(self, dy: Tensor, idx: Tensor) -> None:
        """Take what a backward pass selected: see `ops.recurrent.function.SelectionRecord`."""
        self.dy, self.idx = dy, idx

    def fault(self, k: int, selection: str, neurons: int) -> str | None:
        """Say what is wrong with the selection of k of each gate's neurons, if anything is."""
        if self.dy is None or self.idx is None:
            return "no gradient reaches one of its cells"
        chosen = torch.zeros_like(self.dy, dtype=torch.bool).scatter_(1, self.idx, True)
        by_gate = chosen.view(len(chosen), -1, neurons)
        if (by_gate.sum(2) != k).any():
            return f"it does not select {k} neurons of each gate"
        if "unified" in selection and not all(step.eq(step[0]).all() for step in chosen.split_with_sizes(self.sizes)):
            return "it does not select the same neurons for all examples of a time step"
        if selection.startswith("random"):
            return None
        size, slack = self.dy.abs().view_as(by_gate).to(torch.float64), 0.0
        if selection == "unified":  # whose sums are of any order
            steps = size.split_with_sizes(self.sizes)
            size, slack = torch.cat([step.sum(0, keepdim=True).expand_as(step) for step in steps]), 1e-5
        least, most = size.masked_fill(~by_gate, math.inf).amin(2), size.masked_fill(by_gate, 0).amax(2)
        return f"it selects others than the {k} greatest of a gate" if (least < most * (1 - slack)).any() else None

    def run(
        self, cell: str, x: Tensor, states: Any, weights: Any, *, sizes: tuple[int, ...], reverse: bool, **_: Any
    ) -> Any:
        """Run the cell as `ops.recurrent.recurrent` does."""
        steps, (w_ih, w_hh, *biases) = through_time.Steps(sizes, reverse), weights
        idx = cast(Tensor, self.idx).split_with_sizes(sizes)
        following = (idx[t] for t in steps.order())

        def at_gates(a: Tensor, b: Tensor) -> Any:
            chosen = next(following)
            return sparsified(lambda d_a, d_b: (keep(d_a, chosen), keep(d_b, chosen)), a, b, *biases)

        detached = (b if b is None else b.detach() for b in biases)
        y, last, _tape = through_time.forward(CELLS[cell], x, states, (w_ih, w_hh, *detached), steps, at_gates)
        return y, last


def recording(cells: list[Selected]) -> Callable[..., Any]:
    """Return `ops.recurrent.recurrent` that adds what each cell selects in its backward pass to `cells`."""

    def recorded(*args: Any, sizes: tuple[int, ...], record: object, **how: Any) -> Any:
        cells.append(Selected(sizes))
        return recurrent(*args, sizes=sizes, record=cells[-1], **how)

    return recorded
