"""What every task has: data in parts, a dense model for a seed, the layers that a method turns, batches, loss, measure.

    task = MNIST(batch=10)
    model = task.build(seed)                 dense; the initial weights depend on the seed alone
    task.sparsify(model, Method("meprop", 30))
    for batch in task.epoch(seed, 0): ...    the same batches in the same order for every method
    task.evaluate(model, "dev")              in percent (BLEU for translation), higher is better

A task knows neither optimizer nor clock; what trains it is in `tasks.run`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

__all__ = ["Method", "Split", "Task"]

Split = Literal["dev", "test"]


@dataclass(frozen=True)
class Method:
    """How the backward pass of the task's hidden layers is sparsified.

    Attributes:
        name: "dense", "meprop", "unified", "random" or "random-unified".
        k: a count or a ratio; None for dense.

    """

    name: str = "dense"
    k: int | float | None = None


class Task(ABC):
    """One task with its data loaded.

    Attributes:
        name: what the command line calls it.
        metric: "accuracy", "UAS" or "BLEU".
        batch: B, examples in a mini-batch.
        steps_per_epoch: batches of one epoch.

    """

    name: ClassVar[str]
    metric: ClassVar[str]
    batch: int

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Batches of one epoch."""

    @abstractmethod
    def build(self, seed: int) -> nn.Module:
        """Return the dense model; its initial weights depend on the seed alone."""

    @abstractmethod
    def sparsify(self, model: nn.Module, method: Method) -> None:
        """Turn the layers that the papers sparsify, in place; dense leaves the model as it is."""

    @abstractmethod
    def epoch(self, seed: int, epoch: int) -> Iterable[Any]:
        """Yield the batches of one epoch, on the task's device; they depend on seed and epoch alone."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean loss of a batch, a scalar that holds the graph."""

    @abstractmethod
    def evaluate(self, model: nn.Module, split: Split) -> float:
        """Return the metric, 0 to 100, higher is better; the model is put into evaluation mode and back."""

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        return torch.device("cpu")
