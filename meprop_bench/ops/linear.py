"""A linear layer whose backward pass uses k entries of the incoming gradient.

    forward     y  = x Wᵀ + b                                  exactly `F.linear`
    backward    dx = S(dy) W,  dW = S(dy)ᵀ x,  db = Σ dy       S keeps k entries of dy: see `selection`

Three things stand apart: the *kernels* (ways to compute this backward), the pure function `linear_backward`, which
brings any shape into the kernels' two dimensions, and the *registrations* with autograd, which all call it:

* `_Linear`, eager. At B = 10 a whole layer takes some 30 microseconds, so what this adds to `F.linear` counts.
* the same in C++, for the kernel "native", where it is built: see `node`.
* `sparsified`, torch's own layer and operators, for what is not plain memory and under `torch.func`: see there.
* the operators `meprop_bench::linear` and `meprop_bench::linear_backward`, opaque, under `torch.compile`: see `graph`.

Double backward differentiates the sparsified gradient with the selection held fixed.

What is saved is what `F.linear` saves: x for dW alone and W for dx alone, W and an x of other than two dimensions as
views, which keep the numbers of the forward pass when a variable gets other `.data`, and notice changes in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from meprop_bench.ops import chosen, kernels, node
from meprop_bench.ops.autocast import autocast
from meprop_bench.ops.graph import break_graph, is_plain, is_tracing, operators
from meprop_bench.ops.kernels import Gradients, Kernel, Request, check_supported
from meprop_bench.ops.kernels.auto import Auto
from meprop_bench.ops.plain import memory, transformed, undisturbed, unwatched
from meprop_bench.ops.saved import attached, fit, pinned
from meprop_bench.ops.selection import check_selection, resolve_k, survivors
from meprop_bench.ops.sparsified import sparsified

__all__ = ["linear", "linear_backward"]

_What = tuple[int, str, bool]
"""What `Request` holds besides the needs: k, selection, rows."""
_NO_ROWS = (
    "sparse=True does not go with torch.func, batched gradients, complex numbers, or tensors that are not plain memory:"
    " take the dense weight gradient (sparse=False)"
)


def linear(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    k: float,
    selection: str = "example",
    sparse: bool = False,
    kernel: str = "auto",
    choose: chosen.Selector | None = None,
) -> Tensor:
    """Apply `F.linear(x, w, b)`, with a backward pass through k of the n outputs.

    Args:
        x: input, `(*, m)`; all leading dimensions are the batch.
        w: weight, `(n, m)`.
        b: bias, `(n,)`; its gradient stays full.
        k: outputs selected: an int >= 1, or a ratio of n in (0, 1]. k >= n is exactly the dense layer.
        selection: "example", "unified", "random" or "random-unified": see `meprop_bench.ops.selection`.
        sparse: give the weight gradient as sparse rows, which `SGD`, `Adagrad` and `SparseAdam` accept: of the neurons
            that have a selected entry other than zero, with every kernel; but on a GPU, where the host would wait for
            their number, of all k neurons of a unified selection (zeros: `optim.RowAdam` leaves them as they are,
            `SparseAdam` moves them by their momentum). Such a layer breaks a compiled graph, and needs tensors that are
            plain memory, outside `torch.func`. Otherwise it is dense, from the kernels "native" and "triton_kept" in
            memory that is kept from step to step, which gradients set to None between steps can use: see
            `ops.kernels.kept`.
        kernel: a name in `meprop_bench.ops.kernels.KERNELS`. Double backward, `torch.func` and tensors that are not
            plain memory (see `meprop_bench.ops.plain`) always take "masked".
        choose: makes a unified selection in place of the layer: see `ops.chosen`.

    Raises:
        ValueError: for a k, selection or kernel that does not exist, or a kernel that does not support this case.

    """
    compiling = torch.compiler.is_compiling()
    if choose is not None and selection == "unified":
        return _chosen(x, w, b, k, sparse, kernel, choose)
    if not compiling:
        y: Tensor | None = _node.call(x, w, b, k, selection, sparse, kernel)
        if y is not None:
            return y
    check_selection(selection)
    if is_tracing():
        return F.linear(x, w, b)
    n = w.shape[0]
    count = resolve_k(k, n)
    implementation = kernels.get(kernel)
    if count >= n or not torch.is_grad_enabled():
        return F.linear(x, w, b)
    what = count, selection, sparse
    if not compiling and (transformed() or not (memory.plain(x) and memory.plain(w))):
        return _in_operators(x, w, b, what, kernel)
    if torch._C._is_any_autocast_enabled():
        x, w, b = autocast(x, w, b, rows=sparse)
    return _compiled(x, w, b, what, kernel) if compiling else _apply(x, w, b, (what, implementation))


def _chosen(
    x: Tensor, w: Tensor, b: Tensor | None, k: float, sparse: bool, kernel: str, choose: chosen.Selector
) -> Tensor:
    """Apply the layer with a selection that is made elsewhere."""
    if torch.compiler.is_compiling() and not is_tracing():
        return cast(Tensor, break_graph(_chosen, x, w, b, k, sparse, kernel, choose))
    n = w.shape[0]
    count = resolve_k(k, n)
    if is_tracing() or count >= n or not torch.is_grad_enabled():
        return F.linear(x, w, b)
    if transformed() or not (memory.plain(x) and memory.plain(w)):
        raise ValueError("a selection that processes make together needs tensors that are plain memory")
    if torch._C._is_any_autocast_enabled():
        x, w, b = autocast(x, w, b, rows=sparse)
    return chosen.linear(x, w, b, count, sparse, kernel, choose)


def linear_backward(dy: Tensor, x: Tensor | None, w: Tensor | None, request: Request, kernel: Kernel) -> Gradients:
    """Return the gradients of x `(*, m)`, w `(n, m)` and the bias for dy `(*, n)`, as far as `request` needs them.

    x may be None where dW is not needed, and w where dx is not.
    """
    if dy.layout is not torch.strided:
        dy = dy.to_dense()
    if not (dy.numel() and (x is None or x.numel()) and (w is None or w.numel())):
        kernel = kernels.get("masked")
    if dy.dim() == 2:
        return kernel.backward(dy, cast(Tensor, x), cast(Tensor, w), request)
    dx, dw, db = kernel.backward(_matrix(dy), cast(Tensor, x if x is None else _matrix(x)), cast(Tensor, w), request)
    return dx if dx is None else dx.reshape(*dy.shape[:-1], dx.shape[1]), dw, db


def _matrix(tensor: Tensor) -> Tensor:
    """Make all leading dimensions one: `(*, m)` to `(B, m)`."""
    return tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1])


def _in_operators(x: Tensor, w: Tensor, b: Tensor | None, what: _What, kernel: str) -> Tensor:
    """Apply the layer by torch's operators alone."""
    k, selection, sparse = what
    if getattr(x, "is_nested", False) and (x.layout is torch.strided or x.is_contiguous()):  # F.linear refuses others
        return _by_rows(x, lambda rows: linear(rows, w, b, k=k, selection=selection, sparse=sparse, kernel=kernel))
    if sparse:
        raise ValueError(_NO_ROWS)
    y = F.linear(x, w, None if b is None else b.detach())
    return sparsified(lambda dy: (survivors(dy, k, selection),), y, b)[0]


def _by_rows(x: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a layer `(*, m)` -> `(*, n)` to a nested tensor, contiguous if it is jagged: all its rows are one batch.

    The output has the form of the input: for the layout "jagged" its very offsets, so that the two can be added.
    """
    if x.layout is torch.jagged:
        return torch.nested.nested_tensor_from_jagged(layer(x.values()), x.offsets())  # type: ignore[attr-defined]
    parts = x.unbind()
    rows = [part.reshape(-1, part.shape[-1]) for part in parts]
    ys = torch.split(layer(torch.cat(rows)), [len(part) for part in rows])
    return torch.nested.as_nested_tensor(
        [y.reshape(*part.shape[:-1], y.shape[1]) for y, part in zip(ys, parts, strict=True)]
    )


def _check_supported(kernel: Kernel, y: Tensor, x: Tensor, w: Tensor, request: Request) -> None:
    """Raise ValueError if the kernel cannot do this; y stands for dy, which is like it."""
    if y.numel() and x.numel():
        check_supported(kernel.name, kernel.unsupported(y, x, w, request))


class _Linear(torch.autograd.Function):
    """Eager registration."""

    @staticmethod
    def forward(ctx, x, w, b, call):  # type: ignore[no-untyped-def]
        y = F.linear(x, w, b)
        what, kernel = call
        request = Request(*what, *ctx.needs_input_grad[:3])
        if kernel.name == "auto":
            kernel = kernel.choose(y, x, w, request)  # y stands for dy; here, since backward is what is being shortened
        else:
            _check_supported(kernel, y, x, w, request)
        if request.need_dw and not request.rows:
            kernel = kernel.keeping(w)
        ctx.save_for_backward(
            None if not request.need_dw else x if x.dim() == 2 else pinned(x), pinned(w) if request.need_dx else None
        )
        ctx.set_materialize_grads(False)
        ctx.call = request, kernel
        return y

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        if dy is None:
            return None, None, None, None
        x, w = ctx.saved_tensors
        if torch.is_grad_enabled():
            x, w = attached(x, ctx.next_functions[0]), attached(w, ctx.next_functions[1])
        return *_backward_of_any(dy, x, w, *ctx.call), None


def _backward_of_any(dy: Tensor, x: Tensor | None, w: Tensor | None, request: Request, kernel: Kernel) -> Gradients:
    # Gradients are recorded under create_graph=True alone: then every step has to be differentiable itself.
    if torch.is_grad_enabled() or not (unwatched() and memory.plain(dy, x, w) and fit(dy, x, w)):
        kernel = kernels.get("masked")
        if request.rows and dy.layout is torch.strided and not (dy.is_neg() or memory.plain(dy)):
            raise ValueError(_NO_ROWS)
    return undisturbed(linear_backward, dy, x, w, request, kernel)


# `Function.apply` serves torch.func as well, whose cases never come here; without it the call takes half the overhead.
_apply: Callable[..., Tensor] = super(torch.autograd.Function, _Linear).apply


def _plan(
    threads: int, x: Tensor, w: Tensor, k: float, selection: str, sparse: bool, name: str
) -> tuple[int, int, int, int, bool] | None:
    """Tell the C++ node what to do with a shape: see `node.load`."""
    n, m = w.shape
    count, kernel = resolve_k(k, n), kernels.get(name)
    if count >= n:
        return None
    if isinstance(kernel, Auto):
        kernel = kernel.choose(x.new_empty(0, n), x, w, Request(count, selection, sparse, True, True, True))
    if kernel.name != "native":
        return None
    from meprop_bench.ops.kernels.native import plan, uncountable

    b = x.numel() // m
    # Too large: in Python another kernel takes it, or an error says why not.
    return None if uncountable(selection, b, n, count) else (count, *plan(selection, threads, b, n, m, count, sparse))


def _backward_beside(dy: Tensor, x: Tensor | None, w: Tensor | None, *request: Any) -> Gradients:
    """Compute what the C++ node leaves to Python."""
    return _backward_of_any(dy, x, w, Request(*request), kernels.get("native"))


_node = node.Registration("linear", _plan, _backward_beside)


def _compiled(x: Tensor, w: Tensor, b: Tensor | None, what: _What, kernel: str) -> Tensor:
    k, selection, sparse = what
    if sparse or not is_plain(x, w):  # the number of rows is known too late
        return cast(Tensor, break_graph(linear, x, w, b, k=k, selection=selection, sparse=sparse, kernel=kernel))
    return cast(Tensor, _linear_op(x, w, b, k, selection, kernel))


def _check_in_graph(x: Tensor, w: Tensor, y: Tensor, k: int, selection: str, kernel: str) -> None:
    _check_supported(kernels.get(kernel), y, x, w, Request(k, selection, False, True, True, True))


def _backward_in_graph(
    dy: Tensor, x: Tensor | None, w: Tensor | None, k: int, selection: str, kernel: str, need: list[bool]
) -> Gradients:
    return linear_backward(dy, x, w, Request(k, selection, False, *need), kernels.get(kernel))


def _shapes(dy: Tensor, x: Tensor | None, w: Tensor | None) -> tuple[tuple[int, ...], ...]:
    n = dy.shape[-1]
    return () if w is None else (*dy.shape[:-1], w.shape[1]), () if x is None else (n, x.shape[-1]), (n,)


_linear_op, _linear_backward_op = operators(
    "linear",
    "SymInt k, str selection, str kernel",
    lambda x, w, b, *_: F.linear(x, w, b),
    _check_in_graph,
    _backward_in_graph,
    _shapes,
    saves_both=False,
)
