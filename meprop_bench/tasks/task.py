"""What every task has: data in parts, a dense model for a seed, the kinds of layers that a method converts, batches,
loss, measure.

    task = MNIST(batch=10)
    model = task.build(seed)                 dense; the initial weights depend on the seed alone
    task.sparsify(model, Recipe("mnist", method="meprop", k=30))
    for batch in task.epoch(seed, 0): ...    the same batches in the same order for every method
    task.evaluate(model, "dev")              of `task.metric`, higher is better

A task knows neither optimizer nor clock; what trains it is in `tasks.run`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from meprop_bench.errors import UserError
from meprop_bench.optimizers import make_optimizer, make_schedule
from meprop_bench.tasks import TASKS, TaskEntry
from meprop_bench.training import Step

if TYPE_CHECKING:
    from meprop_bench.tasks.recipe import Recipe

__all__ = ["Split", "Task"]

Split = Literal["dev", "test"]


class Task(ABC):
    """One task with its data loaded.

    Its constructor takes sizes of the model; `batch`, B; `examples`, how many of the training ones to use, the first;
    `files`, of the user's own; `device`, where to train. It raises `UserError` for a value that is not allowed, a
    device that is not there, a package that is not installed, data that are missing or damaged.
    """

    name: str  # what the command line calls it
    metric: str  # "accuracy", "UAS", "BLEU", "-bits/character"
    kinds: tuple[type[nn.Module], ...] = (nn.Linear,)  # of layers that a method converts
    made_up: bool = False  # whether its own sentences are those of a small grammar (`data.treebank`)
    batch: int  # B, examples in a mini-batch
    examples: int  # how many there are to train on
    options: Mapping[str, Any]  # the constructor's keywords with their values, in JSON: what tells trainings apart
    device: torch.device = torch.device("cpu")  # where the batches are
    data_published: bool | None = None  # by their SHA-256; None where none is known (made up, the user's own)
    evaluates: bool = True  # whether it says how good a model is
    notes: tuple[str, ...] = ()  # what a reader of a result should know of the data

    @property
    def entry(self) -> TaskEntry:
        """What is known of it before it is loaded."""
        return TASKS.get(self.name, TaskEntry("", "", "", percent=False))

    @property
    def percent(self) -> bool:
        """Whether the metric is a percentage, so that differences are points."""
        return self.entry.percent

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one epoch, the last one perhaps smaller."""
        return -(-self.examples // self.batch)

    @abstractmethod
    def build(self, seed: int) -> nn.Module:
        """Return the dense model on the task's device; its initial weights depend on the seed alone."""

    def sparsify(self, model: nn.Module, recipe: Recipe) -> None:
        """Convert the layers that the papers sparsify, in place; dense leaves the model as it is."""
        recipe.sparsify(model, self.kinds)

    def step(self, model: nn.Module, recipe: Recipe, steps: int | None = None) -> Step:
        """Return a training step of a model of this task.

        `steps` are those of the whole training, which a learning rate may be fitted to; None for a few that are timed.
        """
        rate, parameters = self.entry.rates.get(recipe.optimizer), model.parameters()
        optimizer = make_optimizer(recipe.optimizer, parameters, gradient=recipe.gradient, fused=True, rate=rate)
        schedule = None if steps is None else make_schedule(recipe.schedule, optimizer, steps)
        return _TaskStep(model, optimizer, self, recipe.parts, schedule=schedule)

    @abstractmethod
    def epoch(self, seed: int, epoch: int) -> Iterable[Any]:
        """Yield the `steps_per_epoch` batches of one epoch, on the task's device; they depend on seed and epoch alone.

        A training that is resumed in the midst of an epoch throws away those that it has had.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean loss of a batch, a scalar that holds the graph."""

    @abstractmethod
    def evaluate(self, model: nn.Module, split: Split) -> float:
        """Return the metric, a finite number, higher is better; the model is put into evaluation mode and back."""

    def check_evaluates(self) -> None:
        """Raise `UserError` if it cannot say how good a model is: before it is trained for nothing."""
        if not self.evaluates:
            raise UserError(f"{self.name} does not say how good a model is: add evaluate= to its Training")

    def size(self, batch: Any) -> int:
        """Return how many examples a batch has; override it where its second entry has not one for each."""
        return len(batch[1])

    def numbers(self, batch: Any) -> Tensor:
        """Return the numbers of a batch's examples, 0 to `examples` - 1, int64 `(B,)`: the same in every epoch.

        `UserError`: the task does not number its examples, and so cannot be trained by what needs that (meAct).
        """
        raise UserError(f"the task {self.name} does not number its examples, which meAct needs: use mnist or digits")


@dataclass(frozen=True, eq=False)
class _TaskStep(Step):
    task: Task
    parts: int  # equal ones of a batch, each of which passes through the model by itself

    def forward(self, batch: Any) -> Tensor:
        if self.parts == 1:
            return self.task.loss(self.model, batch)
        each = zip(*(torch.chunk(tensor, self.parts) for tensor in batch), strict=True)
        return torch.stack([self.task.loss(self.model, part) for part in each]).mean()
