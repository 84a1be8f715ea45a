"""A linear layer whose backward pass keeps k entries of the incoming gradient.

    forward     y  = x Wᵀ + b                                  exactly `F.linear`
    backward    dx = S(dy) W,  dW = S(dy)ᵀ x,  db = Σ dy       S keeps k entries of dy: see `selection`

Three things are kept apart: the *kernels* (ways to compute this backward), the pure function `linear_backward`, which
brings any shape into the kernels' two dimensions, and the *registrations* with autograd, which all call it:

* `_Linear`, eager. At B = 10 a whole layer takes some 30 microseconds, so what this adds to `F.linear` counts.
* the same in C++, for the kernel "native", where it is built: see `node`.
* `_Transformable`, under `torch.func`: made of differentiable operators, since its gradients are themselves traced.
* the operators `meprop_bench::linear` and `meprop_bench::linear_backward`, opaque, under `torch.compile`. An
  `autograd.Function` would not do there: within `torch.func.grad` Dynamo drops its backward without a word (pytorch
  issue 193279) and the layer would become dense. An operator raises in that place.

Double backward differentiates the sparsified gradient with the selection held fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from meprop_bench.ops import kernels, node
from meprop_bench.ops.autocast import cast_to, lower_precision
from meprop_bench.ops.kernels import Gradients, Kernel, Request
from meprop_bench.ops.kernels.auto import Auto
from meprop_bench.ops.selection import check_selection, resolve_k
from meprop_bench.ops.tracing import is_tracing

__all__ = ["linear", "linear_backward"]

_What = tuple[int, str, bool]
"""What `Request` holds besides the needs: k, selection, rows."""


def linear(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    k: float,
    selection: str = "example",
    sparse: bool = False,
    kernel: str = "auto",
) -> Tensor:
    """Apply `F.linear(x, w, b)`, with a backward pass through k of the n outputs.

    Args:
        x: input, `(*, m)`; all leading dimensions are the batch.
        w: weight, `(n, m)`.
        b: bias, `(n,)`; its gradient stays full.
        k: outputs kept: an int >= 1, or a ratio of n in (0, 1]. k >= n is exactly the dense layer.
        selection: "example", "unified", "random" or "random-unified": see `meprop_bench.ops.selection`.
        sparse: give the weight gradient as sparse rows, which `SGD`, `Adagrad` and `SparseAdam` accept. Such a layer
            breaks a compiled graph, and does not go with `torch.func`.
        kernel: a name in `meprop_bench.ops.kernels.KERNELS`. Double backward and `torch.func` always take "masked".

    Raises:
        ValueError: for a k, selection or kernel that does not exist, or a kernel that does not support this case.

    """
    if not torch.compiler.is_compiling():
        y = _node.ask(x, w, b, k, selection, sparse, kernel)
        if y is not None:
            return y
    check_selection(selection)
    if is_tracing():
        return F.linear(x, w, b)
    n = w.shape[0]
    kept = resolve_k(k, n)
    chosen = kernels.get(kernel)
    if kept >= n or not torch.is_grad_enabled():
        return F.linear(x, w, b)
    if torch._C._is_any_autocast_enabled():
        x, w, b = _autocast(x, w, b, sparse)
    if torch.compiler.is_compiling():
        return _compiled(x, w, b, (kept, selection, sparse), kernel)
    if torch._C._are_functorch_transforms_active():
        return _transformed(x, w, b, (kept, selection, sparse))
    return _apply(x, w, b, ((kept, selection, sparse), chosen))


def linear_backward(dy: Tensor, x: Tensor, w: Tensor, request: Request, kernel: Kernel) -> Gradients:
    """Return the gradients of x `(*, m)`, w `(n, m)` and the bias for dy `(*, n)`, as far as `request` wants them."""
    if x.dim() == 2 and x.numel() and dy.numel():
        return kernel.backward(dy, x, w, request)
    if not (x.numel() and dy.numel()):
        kernel = kernels.get("masked")
    dx, dw, db = kernel.backward(_matrix(dy), _matrix(x), w, request)
    return dx if dx is None else dx.reshape(x.shape), dw, db


def _matrix(tensor: Tensor) -> Tensor:
    """Make all leading dimensions one: `(*, m)` to `(B, m)`."""
    return tensor.unsqueeze(0) if tensor.dim() == 1 else tensor.flatten(0, -2)


def _autocast(x: Tensor, w: Tensor, b: Tensor | None, sparse: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast as autocast does for `F.linear`."""
    dtype = lower_precision(x)
    if dtype is None:
        return x, w, b
    w = _CastRows.apply(w, dtype) if sparse else cast_to(w, dtype)  # type: ignore[no-untyped-call]
    return cast_to(x, dtype), w, cast_to(b, dtype)


class _CastRows(torch.autograd.Function):
    """A cast whose gradient may be sparse rows, which the derivative of `Tensor.to` refuses."""

    @staticmethod
    def forward(ctx, w, dtype):  # type: ignore[no-untyped-def]
        ctx.dtype = w.dtype
        return cast_to(w, dtype)

    @staticmethod
    def backward(ctx, dw):  # type: ignore[no-untyped-def]
        return dw.to(ctx.dtype), None


def _check_supported(kernel: Kernel, y: Tensor, x: Tensor, w: Tensor, request: Request) -> None:
    """Raise ValueError if the kernel cannot do this; y stands for dy, which is like it."""
    if y.numel() and x.numel() and (reason := kernel.unsupported(_matrix(y), _matrix(x), w, request)):
        raise ValueError(f"kernel {kernel.name!r} does not support this case: {reason}")


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
        ctx.save_for_backward(x, w)
        # What the kernels take as it is needs no look at its shape in the backward pass.
        ctx.call = request, kernel, x.dim() == 2 and x.numel() > 0 and y.numel() > 0
        return y

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        x, w = ctx.saved_tensors
        request, kernel, plain = ctx.call
        if plain and not torch.is_grad_enabled():
            dx, dw, db = kernel.backward(dy, x, w, request)
        else:
            dx, dw, db = _backward_of_any(dy, x, w, request, kernel)
        return dx, dw, db, None


def _backward_of_any(dy: Tensor, x: Tensor, w: Tensor, request: Request, kernel: Kernel) -> Gradients:
    if torch.is_grad_enabled():  # under create_graph=True alone: then every step has to be differentiable itself
        kernel = kernels.get("masked")
    return linear_backward(dy, x, w, request, kernel)


# `Function.apply` serves torch.func as well, whose cases never come here; without it the call takes half the overhead.
_apply: Callable[..., Tensor] = super(torch.autograd.Function, _Linear).apply


class _Node:
    """The C++ registration, or nothing; it is looked for when the first case comes that it might take."""

    def __init__(self) -> None:
        self.ask: Callable[..., Tensor | None] = self._first

    def _first(self, x: Tensor, w: Tensor, b: Tensor | None, *what: Any) -> Tensor | None:
        cpu = isinstance(w, Tensor) and w.dtype == torch.float32 and w.device.type == "cpu"
        if not cpu or what[-1] not in ("auto", "native") or not torch.is_grad_enabled():
            return None
        self.ask = node.load(_plan, _backward_beside) or _nothing
        return self.ask(x, w, b, *what)


def _nothing(*_: Any) -> None:
    """Stand where there is no C++ node."""


def _plan(
    threads: int, x: Tensor, w: Tensor, k: float, selection: str, sparse: bool, name: str
) -> tuple[int, int, int, int, bool] | None:
    """Tell the C++ node what to do with a shape: see `node.load`."""
    n, m = w.shape
    kept, kernel = resolve_k(k, n), kernels.get(name)
    if kept >= n:
        return None
    if isinstance(kernel, Auto):
        kernel = kernel.choose(x, x, w, Request(kept, selection, sparse, True, True, True))
    if kernel.name != "native":
        return None
    from meprop_bench.ops.kernels.native import plan, uncountable

    b = x.numel() // m
    # Too large: in Python another kernel takes it, or an error says why not.
    return None if uncountable(selection, b, n, kept) else (kept, *plan(selection, threads, b, n, m, kept))


def _backward_beside(dy: Tensor, x: Tensor, w: Tensor, *request: Any) -> Gradients:
    """Compute what the C++ node leaves to Python."""
    return _backward_of_any(dy, x, w, Request(*request), kernels.get("native"))


_node = _Node()


class _Transformable(torch.autograd.Function):
    """Registration for torch.func: grad, vmap and their compositions."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, w, b, what):  # type: ignore[no-untyped-def]
        return F.linear(x, w, b)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        x, w, _, ctx.what = inputs
        ctx.save_for_backward(x, w)

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        x, w = ctx.saved_tensors
        return *linear_backward(dy, x, w, Request(*ctx.what, *ctx.needs_input_grad[:3]), kernels.get("masked")), None


def _transformed(x: Tensor, w: Tensor, b: Tensor | None, what: _What) -> Tensor:
    if what[2]:
        raise ValueError("sparse=True does not go with torch.func: take the dense weight gradient (sparse=False)")
    return cast(Tensor, _Transformable.apply(x, w, b, what))  # type: ignore[no-untyped-call]


def _compiled(x: Tensor, w: Tensor, b: Tensor | None, what: _What, kernel: str) -> Tensor:
    k, selection, sparse = what
    if sparse:
        from meprop_bench.ops.uncompiled import cannot_be_compiled  # the number of rows is known too late

        return cast(Tensor, cannot_be_compiled(linear, x, w, b, k=k, selection=selection, sparse=True, kernel=kernel))
    return cast(Tensor, _linear_op(x, w, b, k, selection, kernel))


@torch.library.custom_op(
    "meprop_bench::linear",
    mutates_args=(),
    schema="(Tensor x, Tensor w, Tensor? b, SymInt k, str selection, str kernel) -> Tensor",
)
def _linear_op(x: Tensor, w: Tensor, b: Tensor | None, *what: Any) -> Tensor:
    y = F.linear(x, w, b)
    k, selection, kernel = what
    _check_supported(kernels.get(kernel), y, x, w, Request(k, selection, False, True, True, True))
    return y


@_linear_op.register_fake
def _(x: Tensor, w: Tensor, b: Tensor | None, *what: Any) -> Tensor:
    return F.linear(x, w, b)


@torch.library.custom_op(
    "meprop_bench::linear_backward",
    mutates_args=(),
    schema=(
        "(Tensor dy, Tensor x, Tensor w, SymInt k, str selection, str kernel, bool[] need) -> (Tensor, Tensor, Tensor)"
    ),
)
def _linear_backward_op(dy: Tensor, x: Tensor, w: Tensor, *what: Any) -> tuple[Tensor, Tensor, Tensor]:
    k, selection, kernel, need = what
    grads = linear_backward(dy, x, w, Request(k, selection, False, *need), kernels.get(kernel))
    dx, dw, db = (dy.new_empty(0) if grad is None else grad for grad in grads)  # an operator cannot return None
    return dx, dw, db


@_linear_backward_op.register_fake
def _(dy: Tensor, x: Tensor, w: Tensor, *what: Any) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (x.shape, w.shape, w.shape[:1])
    dx, dw, db = (dy.new_empty(shape if wanted else 0) for shape, wanted in zip(shapes, what[-1], strict=True))
    return dx, dw, db


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, _, *ctx.what = inputs
    ctx.save_for_backward(x, w)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, w = ctx.saved_tensors
    need = list(ctx.needs_input_grad[:3])
    grads = _linear_backward_op(dy, x, w, *ctx.what, need)
    return *(grad if wanted else None for grad, wanted in zip(grads, need, strict=True)), None, None, None


_linear_op.register_autograd(_backward, setup_context=_setup_context)
