"""Registration of a recurrent layer with autograd: see `ops.linear` for why there are several.

* the LSTM of several time steps in one direction, in C++ where it is built: see `lstm` and `node`.
* `_Layer`, eager. It saves what the forward pass made, with the weights of the forward pass (see `ops.saved`), and the
  inputs, as torch's own LSTM does; differentiating its gradients once more, it computes the
  forward pass anew by differentiable operators, and the selection is held fixed.
* `through_time.sparsified`, under `torch.func` and for what is not plain memory: differentiated by torch itself.
* `torch.compile` breaks the graph here, as it does at torch's own recurrent layers, or raises under `fullgraph=True`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from meprop_bench.ops import node
from meprop_bench.ops.autocast import autocast
from meprop_bench.ops.graph import break_graph
from meprop_bench.ops.kernels import Request, check_supported, compiled
from meprop_bench.ops.plain import memory, transformed, undisturbed, unwatched
from meprop_bench.ops.recurrent import fused, through_time
from meprop_bench.ops.recurrent.cells import CELLS, RecurrentCell, Tensors
from meprop_bench.ops.recurrent.through_time import Steps, Weights
from meprop_bench.ops.saved import attached, pinned
from meprop_bench.ops.selection import check_selection, resolve_k

__all__ = ["KERNELS", "SelectionRecord", "check_kernel", "choose", "lstm", "recurrent"]

KERNELS = ("masked", "embedding_bag", "native", "auto")
"""Kernels that take a selection made before, which is what a time step and then all of them together need."""

_DENSE_FROM = {"native": 0.6, "embedding_bag": 0.25}
"""Share k / h above which `masked` is faster. Backward of an LSTM, 200 -> 500, T = 25, in ms, native / embedding_bag /
masked (2 cores, AVX-512, torch 2.13): B = 32, k = 20: 6.6 / 25 / 53; k = 100: 20 / 50 / 56; k = 250: 49 / 96 / 60;
B = 1, k = 250: 2.3 / 8.3 / 8.0. torch's own, dense: 24 at B = 32, so that from about k = 0.2 h on no kernel gains
there; 2.8 at B = 1."""
_NATIVE = "meprop_bench.ops.recurrent.native"


class SelectionRecord(Protocol):
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

    cell: RecurrentCell
    steps: Steps
    k: int
    selection: str
    forward: Any
    kernel: str
    record: SelectionRecord | None = None


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
    record: SelectionRecord | None = None,
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
    steps = Steps(sizes, reverse)
    forward, kernel = choose(kernel, count, selection, weights, x, *states)
    if kernel == "native" and fused.applies(cell, weights, x, steps):
        forward = fused.forward
    call = _Call(CELLS[cell], steps, count, selection, forward, kernel, record)
    y, *last = _Layer.apply(call, x, *weights, *states)  # type: ignore[no-untyped-call]
    return y, tuple(last)


def lstm(
    x: Tensor, states: tuple[Tensor, Tensor] | None, weights: Weights, *, k: float, selection: str, kernel: str
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Run an LSTM in one direction as torch.nn has it, in a single call; None where `recurrent` has to take the case.

    Args:
        x: `(T, B, m)`.
        states: the initial h and c, each `(1, B, h)`; None for zeros.
        weights, k, selection, kernel: as for `recurrent`.

    Returns:
        the output `(T, B, h)`, and the final h and c, each `(1, B, h)`.

    """
    if torch.compiler.is_compiling():
        return None
    found: tuple[Tensor, Tensor, Tensor] | None = _node.call(
        x, *(states or (None, None)), *weights, k, selection, kernel
    )
    return found


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
    call: _Call,
    needs: tuple[bool, ...],
    d: Tensors,
    inputs: Any,
    tape: Tensors,
    kernel: str,
    record: SelectionRecord | None,
) -> Any:
    """Compute the gradients of all inputs; `inputs` are x, the four weights and the initial states."""
    x, w_ih, w_hh, *_ = inputs
    need_x, need_ih, need_hh, need_b_ih, need_b_hh, *_ = needs
    request = Request(call.k, call.selection, False, need_x, need_ih or need_hh, need_b_ih or need_b_hh)
    common = (call.cell, d[0], d[1:], x, (w_ih, w_hh), tape, call.steps, request)
    if kernel == "native":
        from meprop_bench.ops.recurrent import native

        grads, d_states, selected = native.backward(*common, call.forward is fused.forward)
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
        with _no_autocast(x):
            y, last, tape = undisturbed(call.forward, call.cell, x, states, weights, call.steps)
        ctx.save_for_backward(x, *(pinned(w) for w in weights[:2]), *inputs[3:], *tape)
        ctx.set_materialize_grads(False)
        ctx.call = call, [t.shape for t in (*inputs, *tape) if t is not None]
        return y, *last

    @staticmethod
    def backward(ctx, *d):  # type: ignore[no-untyped-def]
        call, shapes = ctx.call
        if all(grad is None for grad in d):
            return (None,) * len(ctx.needs_input_grad)
        saved = ctx.saved_tensors  # once: activation checkpointing gives them no second time
        count = 5 + call.cell.states
        inputs, tape = saved[:count], saved[count:]
        if torch.is_grad_enabled():
            weights = (attached(w, ctx.next_functions[1 + i]) for i, w in enumerate(inputs[1:3]))
            inputs = (inputs[0], *weights, *inputs[3:])
        as_saved = shapes == [t.shape for t in saved if t is not None]
        return None, *_backward_of_any(call, ctx.needs_input_grad[1:], d, inputs, tape, as_saved)


def _backward_of_any(
    call: _Call, needs: tuple[bool, ...], d: tuple[Tensor | None, ...], inputs: Any, tape: Tensors, as_saved: bool
) -> tuple[Tensor | None, ...]:
    some = next(grad for grad in d if grad is not None)
    if any(grad is None for grad in d):
        rows = sum(call.steps.sizes), *[call.steps.sizes[0]] * call.cell.states
        d = tuple(some.new_zeros(n, some.shape[1]) if grad is None else grad for grad, n in zip(d, rows, strict=True))
    grads = cast(Tensors, d)
    # What was saved may have got other data, or come from a hook.
    ordinary = unwatched() and memory.plain(*grads, *inputs, *tape) and as_saved
    # Gradients are recorded under create_graph=True alone: then every step has to be differentiable itself.
    kernel = call.kernel if ordinary and not torch.is_grad_enabled() else "masked"
    with _no_autocast(some):
        if torch.is_grad_enabled() or (kernel != "native" and call.forward is fused.forward):
            if any(t.dim() != 2 for t in inputs[:3]):
                raise RuntimeError("what was saved of a recurrent layer has come back with other dimensions")
            states = tuple(state.reshape(-1, state.shape[-1]) for state in inputs[5:])  # as the C++ node has them
            _, _, tape = through_time.forward(call.cell, inputs[0], states, inputs[1:5], call.steps)
        record = call.record if ordinary else None
        return cast(
            tuple[Tensor | None, ...],
            undisturbed(_gradients, call, needs, grads, inputs, tape, kernel, record),
        )


def _no_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Switch autocast off for a tensor's device, where anything is on: that takes microseconds."""
    return torch.autocast(tensor.device.type, enabled=False) if torch._C._is_any_autocast_enabled() else nullcontext()


def _plan(
    threads: int, steps: int, batch: int, m: int, h: int, k: float, selection: str, kernel: str
) -> tuple[int, int, int] | None:
    """Tell the C++ node what to do with a shape: see `node.load`."""
    count = resolve_k(k, h)
    if count >= h:
        return None
    shape = torch.empty(1)
    x, weights = shape.expand(steps * batch, m), (shape.expand(4 * h, m), shape.expand(4 * h, h), None, None)
    if choose(kernel, count, selection, weights, x)[1] != "native":
        return None
    from meprop_bench.ops.recurrent import native

    if fused.applies("lstm", weights, x, Steps((batch,) * steps, False)):
        return count, fused.leading_dimension(batch, m, h) or 0, native.shares_of_cells(threads, steps * batch, h)
    return (count, 0, native.shares_alone(threads, 4 * h, h)) if batch == 1 else None


def _backward_beside(
    d: tuple[Tensor | None, ...], inputs: Any, tape: Tensors, steps: int, batch: int, k: int, selection: str,
    by_torch: bool, as_saved: bool, needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Compute the gradients for the C++ node, whose initial states have a dimension for the layer."""
    call = _call_beside(steps, batch, k, selection, by_torch)
    return _backward_of_any(call, needs, d, inputs, tape, as_saved)


@lru_cache(maxsize=256)
def _call_beside(steps: int, batch: int, k: int, selection: str, by_torch: bool) -> _Call:
    from meprop_bench.ops.recurrent import native

    forward = fused.forward if by_torch else native.forward
    return _Call(CELLS["lstm"], Steps((batch,) * steps, False), k, selection, forward, "native")


_node = node.Registration("lstm", _plan, _backward_beside)
