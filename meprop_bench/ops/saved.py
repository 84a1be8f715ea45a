"""What a layer saves of a variable, so that its backward pass is that of its forward pass.

Autograd saves a variable itself, so that `w.data = other` between the two changes what is read: its values, and even
its size. `F.linear` multiplies by a transposed view, and it is the view that is saved: that keeps the old numbers, and
shares the version counter by which a change in place is noticed. `pinned` saves a view just so, without the node in the
graph that a view costs; `attached` puts the node there when gradients of gradients are needed, and not before.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["attached", "fit", "pinned"]


def pinned(variable: Tensor) -> Tensor:
    """Return an alias to be saved in place of a variable, within the forward pass of an `autograd.Function`."""
    if variable.grad_fn is None:
        return variable.detach()
    with torch.enable_grad():
        return variable.view_as(variable)


def attached(saved: Tensor | None, edge: tuple[Any, int]) -> Tensor | None:
    """Return what was saved as a differentiable function of its variable, whose edge in the graph is given."""
    node, _ = edge
    if saved is None or saved.requires_grad or node is None:
        return saved
    return cast(Tensor, _Attached.apply(node.variable, saved))  # type: ignore[no-untyped-call]


def fit(dy: Tensor, x: Tensor | None, w: Tensor | None) -> bool:
    """Whether shapes of a linear layer go together: what was saved may have got other data, or come from a hook."""
    return (x is None or x.shape[:-1] == dy.shape[:-1]) and (
        w is None or (w.shape[0] == dy.shape[-1] and (x is None or x.shape[-1] == w.shape[1]))
    )


class _Attached(torch.autograd.Function):
    generate_vmap_rule = True  # a level of torch.func may have been opened since the forward pass

    @staticmethod
    def forward(variable, saved):  # type: ignore[no-untyped-def]
        return saved.detach()

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        pass

    @staticmethod
    def backward(ctx, d):  # type: ignore[no-untyped-def]
        return d, None

    @staticmethod
    def jvp(ctx, tangent, _):  # type: ignore[no-untyped-def]
        return tangent
