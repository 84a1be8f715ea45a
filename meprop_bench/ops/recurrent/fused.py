"""The forward pass of an LSTM by torch's own kernel, oneDNN's: outputs are then those of the dense layer to the bit.

It multiplies by a weight that it has packed once for all time steps, and computes the cells as it goes: at B = 10,
h = 500 it takes three quarters of the time of `native.forward`, at B = 4, h = 100 a quarter (T = 25, 2 cores, AVX-512,
torch 2.13). For backward it leaves a *workspace* of bytes, which begins with the gates, `(T, B, ld)` float32: in the
order in which the layer takes the time steps, i f g o of h numbers each, and padding up to a leading dimension ld. The
rest of the tape follows from gates and outputs (`native.recall`), so that nothing else of the workspace is read.

Where the gates are is not documented, so it is looked up, not assumed: a batch of the same size is run with numbers
drawn for it, and compared with `through_time`, once for each size. Where they are not found, `native.forward` runs.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from meprop_bench.ops.plain import undisturbed
from meprop_bench.ops.recurrent import through_time
from meprop_bench.ops.recurrent.cells import CELLS, RecurrentCell, Tensors
from meprop_bench.ops.recurrent.through_time import Steps, Weights

__all__ = ["applies", "forward", "leading_dimension"]

_LSTM = 2
"""The kind of cell, as torch's operator counts them."""
_STEPS = 3
"""Time steps from which packing the weights pays: 1.4 times as slow as `native.forward` for one, equal for two (B = 10
and 20, h = 500, one thread)."""


def applies(cell: str, weights: Weights, x: Tensor, steps: Steps) -> bool:
    """Return whether this is the forward pass for float32 on the CPU.

    One example is left to `native.forward`: no packing pays there, and it is 1.2 times as fast (h = 500, one thread).
    """
    sizes = steps.sizes
    if cell != "lstm" or len(sizes) < _STEPS or not 1 < sizes[0] == sizes[-1]:
        return False
    w_ih, w_hh, b_ih, b_hh = weights
    if (b_ih is None) != (b_hh is None) or not torch._C._get_mkldnn_enabled():
        return False
    return leading_dimension(sizes[0], w_ih.shape[1], w_hh.shape[1]) is not None


def forward(
    cell: RecurrentCell, x: Tensor, states: Tensors, weights: Weights, steps: Steps
) -> tuple[Tensor, Tensors, Tensors]:
    """Run a layer in one direction: as `through_time.forward`; for the tape see `native.recall`."""
    from meprop_bench.ops.recurrent import native

    b, h = states[0].shape
    ld = leading_dimension(b, x.shape[1], h)
    assert ld is not None
    n, m = x.shape
    y, h_last, c_last, workspace = _run(x.contiguous().view(-1, b, m), states, weights, steps.reverse)
    # Other sizes for what is ours: views, made without recording, could not be changed in place later.
    y, last = y.resize_(n, h), (h_last.resize_(b, h), c_last.resize_(b, h))
    gates = workspace.view(torch.float32)[: n * ld].view(n, ld)
    return y, last, native.recall(gates, y, states, steps)


def _run(x: Tensor, states: Tensors, weights: Weights, reverse: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the output `(T, B, h)`, the final states, `(1, B, h)`, and the workspace."""
    w_ih, w_hh, b_ih, b_hh = weights
    # The operator leaves a workspace where gradients are recorded, which is to be done by us.
    recording = torch.is_grad_enabled()
    torch._C._set_grad_enabled(True)
    try:
        with torch._C._AutoDispatchBelowAutograd():
            h, c = (s.contiguous().unsqueeze(0) for s in states)
            return torch.mkldnn_rnn_layer(
                x, w_ih, w_hh, w_ih if b_ih is None else b_ih, w_hh if b_hh is None else b_hh, h, c, reverse, (), _LSTM,
                w_hh.shape[1], 1, b_ih is not None, False, False, True,
            )  # fmt: skip
    finally:
        torch._C._set_grad_enabled(recording)


@lru_cache(maxsize=1024)
def leading_dimension(batch: int, m: int, h: int) -> int | None:
    """Return how many numbers of the workspace belong to the gates of an example, or None where they are not found."""
    try:
        with torch.autocast("cpu", enabled=False):
            return undisturbed(_search, batch, m, h)
    except RuntimeError:  # oneDNN is not there, or has nothing for such a size
        return None


def _search(batch: int, m: int, h: int) -> int | None:
    candidates = {4 * h, -(-4 * h // 16) * 16, -(-4 * h // 16) * 16 + 16}
    generator, cell, sizes = torch.Generator().manual_seed(0), CELLS["lstm"], (batch, batch)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).mul_(max(m, h) ** -0.5)

    x, states = draw(2 * batch, m), (draw(batch, h), draw(batch, h))
    weights = draw(4 * h, m), draw(4 * h, h), draw(4 * h), draw(4 * h)
    for reverse in (False, True):
        *_, workspace = _run(x.view(2, batch, m), states, weights, reverse)
        if workspace is None or workspace.numel() % 4:
            return None
        numbers = workspace.view(torch.float32)
        with torch.no_grad():
            _, gates, *_ = through_time.forward(cell, x, states, weights, Steps(sizes, reverse))[2]
        by_iteration = gates.view(2, batch, 4 * h).flip(0) if reverse else gates.view(2, batch, 4 * h)
        candidates = {ld for ld in candidates if _found(numbers, ld, by_iteration)}
    return min(candidates, default=None)


def _found(numbers: Tensor, ld: int, gates: Tensor) -> bool:
    """Whether the gates `(T, B, 4 h)` are at the beginning of the numbers."""
    steps, batch, width = gates.shape
    total = steps * batch * ld
    if numbers.numel() < total:
        return False
    return torch.allclose(numbers[:total].view(steps, batch, ld)[..., :width], gates, rtol=1e-3, atol=1e-3)
