"""The same backward pass in torch's operators alone, for any tensor: see `plain` for those that need it.

What meProp does to a layer is one thing, whatever the tensors are: on its way back, the gradient of the layer's output
loses the entries that are not selected. So the layer is torch's own, and a node of the graph that is the identity
forward does that:

    forward     y = layer(x, W, detached bias)      torch's
                y = sparsified(y, bias)             y itself
    backward    S(dy) to the layer,  Σ dy to the bias, in full

Everything else is what torch does for that layer and these tensors: conjugation, what is saved, subclasses with
products of their own, forward mode (the layer is linear, and its directional derivative is dense and exact), vmap, and
derivatives of derivatives. Those hold the selection fixed. Forward over reverse (`torch.func.hessian`) differentiates
the *sparsified* gradient, exactly; reverse over reverse goes through the layer's backward pass again, and what comes
through there is sparsified as any gradient is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["sparsified"]


def sparsified(keep: Callable[..., tuple[Tensor, ...]], *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """Return values unchanged, whose gradients, all at once, go through `keep`, which returns what is to be propagated.

    After the values come as many biases that are already added to them, or None: they get the full gradient of their
    value, summed to their shape.
    """
    return cast("tuple[Tensor, ...]", _Sparsified.apply(keep, *tensors))  # type: ignore[no-untyped-call]


class _Sparsified(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(keep: Any, *tensors: Any) -> Any:
        # Not the values themselves: those would be views, which nobody may change in place.
        return tuple(value.detach() for value in tensors[: len(tensors) // 2])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.keep, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.values = [value.shape for value in output]
        ctx.biases = [None if t is None else t.shape for t in tensors[len(tensors) // 2 :]]

    @staticmethod
    def backward(ctx: Any, *d: Any) -> Any:
        some = next((grad for grad in d if grad is not None), None)
        if some is None:
            return (None,) * (1 + 2 * len(d))
        d = tuple(torch.zeros_like(some) if grad is None else grad for grad in d)
        d = tuple(grad if grad.layout is torch.strided else grad.to_dense() for grad in d)
        needed = ctx.needs_input_grad[1 + len(d) :]
        biases = (g.sum_to_size(s) if w else None for g, s, w in zip(d, ctx.biases, needed, strict=True))
        return None, *ctx.keep(*d), *biases

    @staticmethod
    def jvp(ctx: Any, _: Any, *tangents: Any) -> Any:
        values, biases = tangents[: len(tangents) // 2], tangents[len(tangents) // 2 :]
        some = next(t for t in tangents if t is not None)
        values = tuple(some.new_zeros(s) if t is None else t for t, s in zip(values, ctx.values, strict=True))
        return tuple(t if b is None else t + b for t, b in zip(values, biases, strict=True))
