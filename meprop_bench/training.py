"""Training as phases: forward, backward, update; one step is the three in this order, and nothing else.

    forward   loss = cross_entropy(model(images), labels)      images (B, features), labels (B,) -> ()
    backward  d loss / d parameter, for every parameter        what meProp makes cheaper
    update    the optimizer moves the parameters               often the largest part once backward is cheap

The phases are separate calls so that whoever measures can put a clock between them; training itself knows no clock.
The loop over these steps is in `tasks.run`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meprop_bench.errors import UserError
from meprop_bench.nn.evaluation import evaluation_mode
from meprop_bench.optim import RowAdam, RowAdamW

__all__ = ["OPTIMIZERS", "Step", "evaluate", "make_optimizer"]

OPTIMIZERS: Mapping[str, tuple[type[torch.optim.Optimizer], Mapping[str, Any]]] = {
    # The papers' settings (ICML 2017, section 4.1); AdaGrad's rate is the one they give for MNIST.
    "adam": (torch.optim.Adam, {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}),
    # Its epsilon stands under the root, g / sqrt(sum of g² + 1e-6), as in the parser of Chen and Manning (2014),
    # from which the papers have the number. With torch's `eps`, which is added to the root, every weight's first
    # step would be the rate.
    "adagrad": (torch.optim.Adagrad, {"lr": 0.1, "initial_accumulator_value": 1e-6, "eps": 0.0}),
    # Not in the papers: the cheapest update there is. The rate is where the papers' MLP learns MNIST well.
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    # Not in the papers either, and other algorithms than dense Adam, at its settings: see `meprop_bench.optim`.
    "rowadam": (RowAdam, {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}),
    "rowadamw": (RowAdamW, {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}),
}
"""Optimizers by name: the class and its settings."""

_FUSED: Mapping[str, tuple[str, ...]] = {"adam": ("cpu", "cuda"), "sgd": ("cpu", "cuda"), "adagrad": ("cpu",)}
"""Optimizers that have a fused step, and on which devices."""

_TAKES_ROWS = ("adagrad", "sgd", "rowadam", "rowadamw")


def make_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    *,
    gradient: str = "dense",
    fused: bool = False,
    rate: float | None = None,
) -> torch.optim.Optimizer:
    """Return an unmodified optimizer of torch, or one of this package for rows, with the papers' settings.

    Args:
        name: one of `OPTIMIZERS`.
        parameters: what it moves.
        gradient: "dense", or "rows" when some weights get a row-sparse gradient.
        fused: take torch's fused step where there is one: the same mathematics, rounded otherwise, in one pass over the
            parameters, which is several times as fast. Those for rows have none.
        rate: learning rate, for a task whose rate is another one than that of MNIST.

    Raises:
        UserError: an unknown name, or an optimizer that cannot take row gradients.

    """
    if name not in OPTIMIZERS:
        raise UserError(f"there is no optimizer {name!r}: choose from {', '.join(OPTIMIZERS)}")
    if gradient not in ("dense", "rows"):
        raise ValueError(f"gradient must be 'dense' or 'rows', not {gradient!r}")
    if gradient == "rows" and name not in _TAKES_ROWS:
        raise UserError(
            f"{name} does not take row gradients (it moves every row at every step): "
            f"use {', '.join(_TAKES_ROWS)}, or dense gradients"
        )
    kind: Any
    kind, settings = OPTIMIZERS[name]
    parameters = list(parameters)
    if rate is not None:
        settings = {**settings, "lr": rate}
    if fused and gradient == "dense" and all(p.device.type in _FUSED.get(name, ()) for p in parameters):
        settings = {**settings, "fused": True}
    optimizer: torch.optim.Optimizer = kind(parameters, **settings)
    return optimizer


@dataclass(frozen=True, eq=False)
class Step:
    """One training step of a classifier, phase by phase or as a whole; another model has another `forward`."""

    model: nn.Module
    optimizer: torch.optim.Optimizer

    def forward(self, batch: Any) -> Tensor:
        """Return the mean loss over a batch of images and labels, a scalar that holds the graph."""
        images, labels = batch
        return F.cross_entropy(self.model(images), labels)

    def backward(self, loss: Tensor) -> None:
        """Compute the gradient of every parameter."""
        loss.backward()  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Move the parameters and drop their gradients."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def __call__(self, batch: Any) -> Tensor:
        """Run the three phases; return the loss before the update, without its graph."""
        loss = self.forward(batch)
        self.backward(loss)
        self.update()
        return loss.detach()


def evaluate(model: nn.Module, images: Tensor, labels: Tensor, *, chunk: int = 4096) -> float:
    """Return the accuracy of `model` in percent.

    Args:
        model: returns logits (B, classes); put into evaluation mode, and each of its modules back into its own.
        images: (N, features).
        labels: (N,).
        chunk: examples at a time, which bounds the memory and does not change the result.

    """
    with evaluation_mode(model), torch.no_grad():
        hits = sum(
            int((model(x).argmax(dim=1) == y).sum())
            for x, y in zip(torch.split(images, chunk), torch.split(labels, chunk), strict=True)
        )
    return 100 * hits / len(labels)
