"""Registration of a recurrent layer with autograd: see `ops.linear` for why there are several.

* `_Layer`, eager. It saves what the forward pass made, with the weights of the forward pass (see `ops.saved`), and the
  inputs, as torch's own LSTM does; differentiating its gradients once more, it computes the
  forward pass anew by differentiable operators, and the selection is held fixed.
* `through_time.sparsified`, under `torch.func` and for what is not plain memory: differentiated by torch itself.
* `torch.compile` breaks the graph here, as it does at torch's own recurrent layers, or raises under `fullgraph=True`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from meprop_bench.ops.autocast import autocast
from meprop_bench.ops.graph import break_graph
from meprop_bench.ops.kernels import Request, check_supported, compiled
from meprop_bench.ops.plain import memory, transformed, undisturbed, unwatched
from meprop_bench.ops.recurrent import through_time
from meprop_bench.ops.recurrent.cells import CELLS, Cell, Tensors
from meprop_bench.ops.recurrent.through_time import Steps, Weights
from meprop_bench.ops.saved import attached, pinned
from meprop_bench.ops.selection import check_selection, resolve_k

__all__ = ["KERNELS", "Record", "check_kernel", "choose", "recurrent"]

KERNELS = ("masked", "embedding_bag", "native", "auto")
"""Kernels that take a selection made before, which is what a time step and then all of them together need."""

_DENSE_FROM = {"native": 0.6, "embedding_bag": 0.25}
"""Share k / h above which `masked` is faster. Backward of an LSTM, 200 -> 500, T = 25, in ms, native / embedding_bag /
masked (2 cores, AVX-512, torch 2.13): B = 32, k = 20: 6.6 / 25 / 53; k = 100: 20 / 50 / 56; k = 250: 49 / 96 / 60;
B = 1, k = 250: 2.3 / 8.3 / 8.0. torch's own, dense: 24 at B = 32, so that from about k = 0.2 h on no kernel gains
there; 2.8 at B = 1."""
_NATIVE = "meprop_bench.ops.recurrent.native"


class Record(Protocol):
    """What counts the selections, as `meprop_bench.algorithms.activeness` does.

    If it has an attribute `count_zeros` that is true, it gets the zeros that `select` takes, whichever the kernel.
    """

    @property
    def enabled(self) -> bool:
        """Whether it counts now."""
        ...

    def __call__(self, dy: Tensor, idx: Tensor) -> None:
        """Take the gradients at the gates before selection (N, G h), and what is selected, int64 columns (N, G k)."""
        ...


class _Call(NamedTuple):
    """What one call needs besides tensors."""

    cell: Cell
    steps: Steps
    k: int
    selection: str
    forward: Any
    kernel: str
    record: Record | None = None


def check_kernel(kernel: str) -> None:
    """Raise ValueError if recurrent layers have no kernel of that name."""
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)} for recurrent layers, not {kernel!r}")


def recurrent(
    cell: str,
    x: Tensor,
    states: Tensors,
    weights: Weights,
    *,
    sizes: tuple[int, ...],
    reverse: bool = False,
    k: float,
    selection: str = "example",
    kernel: str = "auto",
    record: Record | None = None,
) -> tuple[Tensor, Tensors]:
    """Run one recurrent layer in one direction, with a backward pass through k neurons of each gate.

    Args:
        cell: "lstm", "gru", "tanh" or "relu".
        x: packed input, `(N, m)`: see `Steps`.
        states: the initial h, `(B, h)`, and for the LSTM c.
        weights: see `Weights`. The gradients of the biases stay full.
        sizes, reverse: see `Steps`.
        k: neurons of each gate that are selected, at each time step: an int >= 1, or a ratio of h in (0, 1].
        selection: "example", "unified", "random" or "random-unified", for each time step anew.
        kernel: one of `KERNELS`. Double backward, `torch.func` and tensors that are not plain memory (see
            `meprop_bench.ops.plain`) always take "masked".
        record: called once in each backward pass of all time steps, in the order of x; not under `torch.func`, nor of
            tensors that are not plain memory.

    Returns:
        the output `(N, h)`, in the order of x, and the final states, each `(B, h)`.

    Raises:
        ValueError: for a cell, k, selection or kernel that does not exist, k >= h (that is the dense layer, which
            `torch.nn` has), or a kernel that does not support this case.

    """
    if cell not in CELLS:
        raise ValueError(f"cell must be one of {', '.join(CELLS)}, not {cell!r}")
    check_selection(selection)
    check_kernel(kernel)
    h = weights[1].shape[1]
    count = resolve_k(k, h)
    if count >= h:
        raise ValueError(f"k = {k!r} keeps all of {h} neurons: take the layer of torch.nn")
    if torch.compiler.is_compiling():
        method = {"k": k, "selection": selection, "kernel": kernel, "record": record}
        broken = break_graph(recurrent, cell, x, states, weights, sizes=sizes, reverse=reverse, **method)
        return cast(tuple[Tensor, Tensors], broken)
    if transformed() or not all(t is None or memory.plain(t) for t in (x, *weights, *states)):
        steps = Steps(sizes, reverse)
        return through_time.sparsified(CELLS[cell], x, states, weights, steps, count, selection)
    if torch._C._is_any_autocast_enabled():
        x, *others = autocast(x, *weights, *states)
        weights, states = cast(Weights, tuple(others[:4])), tuple(others[4:])
    forward, kernel = choose(kernel, count, selection, weights, x, *states)
    call = _Call(CELLS[cell], Steps(sizes, reverse), count, selection, forward, kernel, record)
    y, *last = _Layer.apply(call, x, *weights, *states)  # type: ignore[no-untyped-call]
    return y, tuple(last)


def choose(kernel: str, k: int, selection: str, weights: Weights, *inputs: Tensor) -> tuple[Any, str]:
    """Return the forward pass and the kernel of the backward pass; ValueError if `native`, by name, cannot do it."""
    tensors = [t for t in (*weights, *inputs) if t is not None]
    single = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
    chance = selection.startswith("random")
    gates = weights[1].shape[0] // weights[1].shape[1]
    many = inputs[0].shape[0] * gates * k >= 1 << 31  # entries selected, which it counts in 32 bits
    if kernel == "native" and (chance or not single or many):
        reason = f"it has no selection {selection!r}" if chance else "it computes in float32 on the CPU"
        if single and not chance:
            reason = f"it counts in 32 bits, and k = {k} for {inputs[0].shape[0]} rows are too many"
        check_supported(kernel, reason)
    if not inputs[0].numel() or not unwatched():
        return through_time.forward, "masked"
    native = compiled.load(_NATIVE) if single else None
    if kernel == "native" and native is None:
        raise ValueError(f"kernel 'native' cannot be used: {compiled.unavailable_reason()}")
    if kernel == "auto":
        kernel = "native" if native is not None and not (chance or many) else "embedding_bag"
        if k > _DENSE_FROM[kernel] * weights[1].shape[1]:
            kernel = "masked"
    return through_time.forward if native is None else native.forward, kernel


def _gradients(
    call: _Call, needs: tuple[bool, ...], d: Tensors, inputs: Any, tape: Tensors, kernel: str, record: Record | None
) -> Any:
    """Compute the gradients of all inputs; `inputs` are x, the four weights and the initial states."""
    x, w_ih, w_hh, *_ = inputs
    need_x, need_ih, need_hh, need_b_ih, need_b_hh, *_ = needs
    request = Request(call.k, call.selection, False, need_x, need_ih or need_hh, need_b_ih or need_b_hh)
    common = (call.cell, d[0], d[1:], x, (w_ih, w_hh), tape, call.steps, request)
    if kernel == "native":
        from meprop_bench.ops.recurrent import native

        grads, d_states, selected = native.backward(*common)
    else:
        grads, d_states, selected = through_time.backward(*common, kernel)
    if record is not None and record.enabled:
        at_gates, idx = selected
        if kernel == "native" and getattr(record, "count_zeros", False):
            idx = through_time.with_the_zeros_of_select(at_gates, idx, call.cell, call.k, call.selection, call.steps)
        record(at_gates, idx)
    return (*(grad if need else None for grad, need in zip((*grads, *d_states), needs, strict=True)),)


class _Layer(torch.autograd.Function):
    """Eager registration."""

    @staticmethod
    def forward(ctx, call, *inputs):  # type: ignore[no-untyped-def]
        x, weights, states = inputs[0], inputs[1:5], inputs[5:]
        with torch.autocast(x.device.type, enabled=False):
            y, last, tape = undisturbed(call.forward, call.cell, x, states, weights, call.steps)
        ctx.save_for_backward(x, *(pinned(w) for w in weights[:2]), *inputs[3:], *tape)
        ctx.set_materialize_grads(False)
        ctx.call = call, [t.shape for t in (*inputs, *tape) if t is not None]
        return y, *last

    @staticmethod
    def backward(ctx, *d):  # type: ignore[no-untyped-def]
        call, shapes = ctx.call
        some = next((grad for grad in d if grad is not None), None)
        if some is None:
            return (None,) * len(ctx.needs_input_grad)
        rows = sum(call.steps.sizes), *[call.steps.sizes[0]] * call.cell.states
        d = tuple(some.new_zeros(n, some.shape[1]) if grad is None else grad for grad, n in zip(d, rows, strict=True))
        all_saved = ctx.saved_tensors  # once: activation checkpointing gives them no second time
        saved = [t for t in all_saved if t is not None]
        # What was saved may have got other data, or come from a hook.
        ordinary = unwatched() and memory.plain(*d, *saved) and shapes == [t.shape for t in saved]
        kernel = call.kernel if ordinary else "masked"
        count = 5 + call.cell.states
        inputs, tape = all_saved[:count], all_saved[count:]
        with torch.autocast(d[0].device.type, enabled=False):
            if torch.is_grad_enabled():  # under create_graph=True alone: then every step has to be differentiable
                kernel = "masked"
                weights = (attached(w, ctx.next_functions[1 + i]) for i, w in enumerate(inputs[1:3]))
                inputs = (inputs[0], *weights, *inputs[3:])
                _, _, tape = through_time.forward(call.cell, inputs[0], inputs[5:], inputs[1:5], call.steps)
            record = call.record if ordinary else None
            needs = ctx.needs_input_grad[1:]
            return None, *undisturbed(_gradients, call, needs, d, inputs, tape, kernel, record)
