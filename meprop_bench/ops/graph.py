"""A layer inside a tool that reads the program instead of running it.

*Written down for later* (`torch.export`, ONNX on top of it, `torch.jit.trace`): what such a tool makes is to be run
without this package, and mostly without gradients. So there the layers are torch's plain operators, whether or not
gradients are recorded; a program that is trained after all is trained densely. Not so under `torch.fx`, whose graph
calls the layers, and not in a *compiled graph*, which is for training as well: there a layer is two opaque operators,

    meprop_bench::NAME            (x, w, b, *call)          -> y              torch's own forward pass
    meprop_bench::NAME_backward   (dy, x, w, *call, need)   -> (dx, dw, db)   the sparsified one

An `autograd.Function` would not do there: within `torch.func.grad` Dynamo drops its backward without a word (pytorch
issue 193279) and the layer would become dense. An operator raises in that place. What they cannot stand for breaks the
graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from meprop_bench.ops.kernels import Gradients

__all__ = ["break_graph", "is_plain", "is_tracing", "operators"]


def is_tracing() -> bool:
    """Return whether the operators that run now are being written down for later."""
    if torch.compiler.is_compiling():
        return torch.compiler._is_exporting_flag  # to an older Dynamo `is_exporting()` is true in whatever it compiles
    return torch._C._get_tracing_state() is not None


def is_plain(*tensors: Tensor) -> bool:
    """Whether an operator of ours may stand for a layer of these in a compiled graph: real, and not of a subclass."""
    return all(type(t) in (Tensor, torch.nn.Parameter) and not t.is_complex() for t in tensors)


def break_graph(function: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    """Call a function eagerly, which breaks the graph, or with `fullgraph` is an error."""
    from meprop_bench.ops.uncompiled import cannot_be_compiled

    return cannot_be_compiled(function, *args, **keywords)


def operators(
    name: str,
    arguments: str,
    forward: Callable[..., Tensor],
    check: Callable[..., None],
    backward: Callable[..., Gradients],
    shapes: Callable[..., Sequence[Any]],
    *,
    saves_both: bool,
) -> tuple[Any, Any]:
    """Register a layer; returns the operator of its forward pass, which has a gradient, and that of its backward pass.

    Args:
        name: of the first operator.
        arguments: the schema of `call`, what the layer takes besides x, w and b.
        forward: (x, w, b, *call) -> y.
        check: (x, w, y, *call), raises ValueError for what the kernel cannot do.
        backward: (dy, x, w, *call, need) -> gradients, None where they are not needed; `need` says which are.
        shapes: (dy, x, w) -> the shapes of dx, dw and db; of one that is not needed, anything.
        saves_both: whether backward gets x and w whatever is needed; else x for dw alone, and w for dx alone.

    """

    def run(x: Tensor, w: Tensor, b: Tensor | None, *call: Any) -> Tensor:
        y = forward(x, w, b, *call)
        check(x, w, y, *call)
        return y

    # An operator cannot return None, and what it returns has the strides that the graph was made for.
    def run_backward(dy: Tensor, x: Tensor | None, w: Tensor | None, *call: Any) -> tuple[Tensor, Tensor, Tensor]:
        dx, dw, db = (dy.new_empty(0) if d is None else d.contiguous() for d in backward(dy, x, w, *call))
        return dx, dw, db

    def fake_backward(dy: Tensor, x: Tensor | None, w: Tensor | None, *call: Any) -> tuple[Tensor, Tensor, Tensor]:
        sizes = zip(shapes(dy, x, w), call[-1], strict=True)
        dx, dw, db = (dy.new_empty(shape if needed else 0) for shape, needed in sizes)
        return dx, dw, db

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, w, _, *ctx.call = inputs
        need_dx, need_dw, *_ = ctx.needs_input_grad
        ctx.save_for_backward(x if need_dw or saves_both else None, w if need_dx or saves_both else None)

    def differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        need = list(ctx.needs_input_grad[:3])
        grads = backward_op(dy, *ctx.saved_tensors, *ctx.call, need)
        found = (grad if needed else None for grad, needed in zip(grads, need, strict=True))
        return *found, *(None,) * len(ctx.call)

    whole = f"meprop_bench::{name}"
    forward_schema = f"(Tensor x, Tensor w, Tensor? b, {arguments}) -> Tensor"
    backward_schema = f"(Tensor dy, Tensor? x, Tensor? w, {arguments}, bool[] need) -> (Tensor, Tensor, Tensor)"
    forward_op = torch.library.custom_op(whole, run, mutates_args=(), schema=forward_schema)
    backward_op = torch.library.custom_op(f"{whole}_backward", run_backward, mutates_args=(), schema=backward_schema)
    forward_op.register_fake(forward)
    backward_op.register_fake(fake_backward)
    forward_op.register_autograd(differentiate, setup_context=setup_context)
    return forward_op, backward_op
