"""The same layer through time, compiled: float32 on the CPU, with Numba. See `ops.kernels.native.recurrent`.

The products with W_hh, one for each time step, are most of the forward pass. Where torch is built with oneDNN, its
operator for a weight packed beforehand is taken, the one that compiled graphs call: at B = 10, h = 500 a step's product
takes 0.11 to 0.15 ms instead of 0.27 to 0.35 with `F.linear`, and packing 0.33 ms (2 cores, AVX-512, torch 2.13); at
B = 1, where W_hh is read once either way, there is nothing to gain. torch's GRU, which is not in its library, takes 1.5
to 2 times as long as ours. An LSTM of several examples took 1.25 and 1.13 times as long as `torch.nn.LSTM` (B = 10, 32;
200 -> 500, T = 25), so that `fused` runs it where it can.

Where backward's time goes, LSTM, k = 20, ms of all steps back through time / of the products over all of them:
B = 1: 0.13 / 0.2; B = 10: 1.0 / 1.0; B = 32: 3.4 / 3.0, most of the former for selecting.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from meprop_bench.ops.kernels import Request
from meprop_bench.ops.kernels.native import example, plan, recurrent_backward, recurrent_forward
from meprop_bench.ops.kernels.native.recurrent_backward import BACK_ROWS, CHAINS, PASS_BACK_ROWS
from meprop_bench.ops.kernels.native.recurrent_forward import ALONE, GRU, LSTM, RECALL, RELU, STEP, TANH
from meprop_bench.ops.kernels.native.threads import OPENMP, shares
from meprop_bench.ops.memory import address
from meprop_bench.ops.recurrent.cells import RecurrentCell, Tensors
from meprop_bench.ops.recurrent.through_time import Steps, Weights

__all__ = ["backward", "forward", "recall", "shares_alone", "shares_of_cells"]

_CELL = {"lstm": LSTM, "gru": GRU, "tanh": TANH, "relu": RELU}
_CELL_WORK = 8
"""What a neuron of a cell costs, in multiply-adds: from 4096 neurons on two threads are faster than one."""


def forward(
    cell: RecurrentCell, x: Tensor, states: Tensors, weights: Weights, steps: Steps
) -> tuple[Tensor, Tensors, Tensors]:
    """Run a layer in one direction: as `through_time.forward`."""
    w_ih, w_hh, b_ih, b_hh = weights
    h = w_hh.shape[1]
    threads = torch.get_num_threads() if OPENMP else 1
    gate = F.linear(x, w_ih, b_ih).contiguous()
    states = tuple(s.clone(memory_format=torch.contiguous_format) for s in states)
    y, before = x.new_empty(x.shape[0], h), x.new_empty(x.shape[0], h)
    more = [torch.empty_like(y) for _ in range({"lstm": 2, "gru": 1}.get(cell.name, 0))]
    state, memory = (address(s) for s in (*states, None)[:2])
    other, last = (address(m) for m in (*more, None, None)[:2])
    fixed = (state, memory, gate.data_ptr(), other, last, before.data_ptr(), y.data_ptr())
    kind, rows = _CELL[cell.name], cell.gates * h
    if steps.sizes[0] == 1 and rows >= 4:
        w_hh, b_hh, pre = w_hh.contiguous(), b_hh if b_hh is None else b_hh.contiguous(), gate.new_empty(rows)
        recurrent_forward.alone(
            OPENMP, ALONE, shares_alone(threads, rows, h), kind, h, len(steps.sizes),
            steps.reverse, w_hh.data_ptr(), address(b_hh), pre.data_ptr(), *fixed,
        )  # fmt: skip
        return y, states, (before, gate, *more)
    recur = _product(w_hh, b_hh, steps)
    starts = _tables(steps.sizes)[1].tolist()
    for t in steps.order():
        size = steps.sizes[t]
        pre = recur(states[0][:size])
        few = shares_of_cells(threads, size, h)
        recurrent_forward.step(OPENMP, STEP, few, kind, h, starts[t], size, pre.data_ptr(), *fixed)
    return y, states, (before, gate, *more)


def recall(gates: Tensor, y: Tensor, states: Tensors, steps: Steps) -> Tensors:
    """Return the tape of `forward` for an LSTM that torch has run, all of whose time steps have as many examples.

    Args:
        gates: `(N, ld)`, of each row the first 4 h, in the order in which the steps were taken; they are in the tape.
        y: the output `(N, h)`.
        states: the initial h and c, each `(B, h)`.
        steps: as for `forward`.

    """
    (b, h), t = states[0].shape, len(steps.sizes)
    threads = torch.get_num_threads() if OPENMP else 1
    before, other, more = (torch.empty_like(y) for _ in range(3))
    state, memory = (s.contiguous() for s in states)
    recurrent_forward.recall(
        OPENMP, RECALL, shares_of_cells(threads, b * t, h), h, b, t, steps.reverse, gates.shape[1],
        gates.data_ptr(), y.data_ptr(), state.data_ptr(), memory.data_ptr(), before.data_ptr(), other.data_ptr(),
        more.data_ptr(),
    )  # fmt: skip
    return before, gates, other, more


def shares_of_cells(threads: int, examples: int, h: int) -> int:
    """Return into how many shares the cells of so many examples are cut."""
    return min(examples, shares(threads, _CELL_WORK * examples * h))


def shares_alone(threads: int, rows: int, h: int) -> int:
    """Return into how many shares a time step of a single example is cut, with W_hh (rows, h)."""
    return max(1, min(shares(threads, rows * h), h // 8))


def backward(
    cell: RecurrentCell,
    dy: Tensor,
    d_states: Tensors,
    x: Tensor,
    weights: tuple[Tensor, Tensor],
    tape: Tensors,
    steps: Steps,
    request: Request,
    by_torch: bool = False,
) -> tuple[tuple[Tensor | None, ...], Tensors, tuple[Tensor, Tensor]]:
    """Differentiate what `forward` computed: as `through_time.backward`, for the selections without chance.

    `by_torch` says that it was `fused.forward`.
    """
    w_ih, w_hh = (w.contiguous() for w in weights)
    before, gate, *more = (part.contiguous() for part in tape)  # hooks for saved tensors may give other strides
    (b, h), k = d_states[0].shape, request.k
    threads = torch.get_num_threads() if OPENMP else 1
    x, dy = x.contiguous(), dy.contiguous()
    d_states = tuple(d.clone(memory_format=torch.contiguous_format) for d in d_states)
    d_a = x.new_empty(x.shape[0], cell.gates * h)
    d_b = torch.empty_like(d_a) if cell.name == "gru" else d_a
    idx = torch.empty(x.shape[0], cell.gates * k, dtype=torch.int64)
    alike = request.selection == "unified"
    # Time steps come one after the other where their examples share a selection; else each example has all of its own.
    rows = b if alike else x.shape[0]
    most = min(b, shares(threads, rows * cell.gates * h * (_CELL_WORK + k)))
    scratch = torch.empty(recurrent_backward.scratch_bytes(most, h, k, cell.gates), dtype=torch.uint8)
    sizes, starts = _tables(steps.sizes)
    recurrent_backward.through_time(
        OPENMP, CHAINS, BACK_ROWS, PASS_BACK_ROWS, most, alike, _CELL[cell.name], b, h, k, len(steps.sizes),
        steps.reverse, sizes.data_ptr(), starts.data_ptr(), dy.data_ptr(), gate.data_ptr(),
        *(address(part) for part in (*more, None, None)[:2]), before.data_ptr(), w_hh.data_ptr(),
        *(address(d) for d in (*d_states, None)[:2]), d_a.data_ptr(), d_b.data_ptr(), idx.data_ptr(),
        scratch.data_ptr(), gate.shape[1], by_torch,
    )  # fmt: skip
    inputs = (x, w_ih, request.need_dx)
    if d_b is d_a:
        ((dx, dw_ih), (_, dw_hh)), db_ih = _products(idx, d_a, request, inputs, (before, w_hh, False))
        db_hh = None if db_ih is None else db_ih.clone()
    else:
        ((dx, dw_ih),), db_ih = _products(idx, d_a, request, inputs)
        ((_, dw_hh),), db_hh = _products(idx, d_b, request, (before, w_hh, False))
    return (dx, dw_ih, dw_hh, db_ih, db_hh), d_states, (d_a, idx)


def _products(
    idx: Tensor, d: Tensor, request: Request, *layers: tuple[Tensor, Tensor, bool]
) -> tuple[list[tuple[Tensor | None, Tensor | None]], Tensor | None]:
    """Return, for layers (x, w, whether dx is needed) with the same S(d), all of (dx, dw), and db."""
    (b, n), k = d.shape, idx.shape[1]
    threads = torch.get_num_threads() if OPENMP else 1
    plans = [plan("example", threads, b, n, x.shape[1], k) for x, _, _ in layers]
    few, memory = plans[0].few, torch.empty(plans[0].scratch, dtype=torch.uint8)
    db = d.new_empty(n) if request.need_db else None
    rows = example.pairs(
        OPENMP, example.SELECT, example.SORT, few, d.data_ptr(), idx.data_ptr(), b, n, k, address(db),
        memory.data_ptr(),
    )  # fmt: skip
    grads = []
    for (x, w, need_dx), case in zip(layers, plans, strict=True):
        m = x.shape[1]
        dx = x.new_empty(b, m) if need_dx else None
        dw = w.new_empty(n, m) if request.need_dw else None
        if need_dx or request.need_dw:
            example.products(
                OPENMP, example.SUMS, case.shares, x.data_ptr(), w.data_ptr(), address(dx), address(dw), b, n, k, m,
                rows, 0, memory.data_ptr(), case.streaming, 0, 0,
            )  # fmt: skip
        grads.append((dx, dw))
    return grads, db


def _product(w: Tensor, b: Tensor | None, steps: Steps) -> Callable[[Tensor], Tensor]:
    """Return the function h -> h Wᵀ + b that is called once a time step."""
    operators = torch.ops.mkldnn
    if len(steps.sizes) > 3 and torch._C._get_mkldnn_enabled() and hasattr(operators, "_linear_pointwise"):
        packed = operators._reorder_linear_weight(w.detach(), steps.sizes[0])
        return lambda h: operators._linear_pointwise(h, packed, b, "none", [], "")
    return lambda h: F.linear(h, w, b)


@lru_cache(maxsize=256)
def _tables(sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return how many examples each time step has, and its first row, int64."""
    table = torch.tensor(sizes)
    return table, table.cumsum(0) - table
