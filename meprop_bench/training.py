"""Training as phases: forward, backward, update; one step is the three in this order, and nothing else.

    forward   loss = cross_entropy(model(images), labels)      images (B, features), labels (B,) -> ()
    backward  d loss / d parameter, for every parameter        what meProp makes cheaper
    update    the optimizer moves the parameters               often the largest part once backward is cheap

The phases are separate calls so that whoever measures can put a clock between them; training itself knows no clock.
The loop over these steps is in `tasks.run`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meprop_bench.nn.evaluation import evaluation_mode

__all__ = ["Step", "evaluate"]


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
    """Return the accuracy in percent of a model from images (N, features) to logits (N, classes), labels (N,).

    The model is put into evaluation mode, and each of its modules back into its own. `chunk` examples at a time bound
    the memory and do not change the result.
    """
    with evaluation_mode(model), torch.no_grad():
        hits = sum(
            int((model(x).argmax(dim=1) == y).sum())
            for x, y in zip(torch.split(images, chunk), torch.split(labels, chunk), strict=True)
        )
    return 100 * hits / len(labels)
