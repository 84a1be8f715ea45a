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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from meprop_bench.errors import UserError
from meprop_bench.nn import convert
from meprop_bench.ops.selection import SELECTIONS, check_k

__all__ = ["DENSE", "METHODS", "Method", "Split", "Task"]

Split = Literal["dev", "test"]

METHODS: Mapping[str, str | None] = {
    "dense": None,
    "meprop": "example",
    **{name: name for name in SELECTIONS if name != "example"},
}
"""The papers' name of a method -> its selection."""


@dataclass(frozen=True)
class Method:
    """How the backward pass of the task's hidden layers is sparsified.

    Attributes:
        name: "dense", "meprop", "unified", "random" or "random-unified".
        k: a count or a ratio; None for dense.
        gradient: "dense", or "rows": weight gradients of linear layers as sparse rows, for optimizers that take them.
        kernel: how it is computed; the kernels differ in rounding alone.

    Raises:
        UserError: a value that is not allowed, in one line.

    """

    name: str = "dense"
    k: int | float | None = None
    gradient: str = "dense"
    kernel: str = "auto"

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise UserError(f"there is no method {self.name!r}: choose from {', '.join(METHODS)}")
        if self.gradient not in ("dense", "rows"):
            raise UserError(f"gradient must be 'dense' or 'rows', not {self.gradient!r}")
        if self.name == "dense":
            if (self.k, self.gradient, self.kernel) != (None, "dense", "auto"):
                raise UserError("the method dense has no k, gradient or kernel: leave them out, or name another method")
            return
        if self.k is None:
            raise UserError(f"the method {self.name} needs k: an integer of at least 1 or a ratio in (0, 1]")
        try:
            check_k(self.k)
        except ValueError as error:
            raise UserError(str(error)) from None

    @property
    def label(self) -> str:
        """What a table calls it: "meprop k=30"."""
        return self.name if self.k is None else f"{self.name} k={self.k:g}"

    def turn(self, model: nn.Module, *, kinds: tuple[type[nn.Module], ...] = (nn.Linear,), **choice: Any) -> None:
        """Turn a model's layers of these kinds by `nn.convert`; the method dense turns none.

        Args:
            model: changed in place.
            kinds: which classes of layers.
            **choice: `filter` of `nn.convert`; by default all layers but the output layer.

        Raises:
            UserError: layers of one of these kinds do not know the method.

        """
        if (selection := METHODS[self.name]) is None:
            return
        assert self.k is not None
        try:
            convert(
                model,
                k=self.k,
                selection=selection,
                sparse=self.gradient == "rows",
                kernel=self.kernel,
                kinds=kinds,
                **choice,
            )
        except ValueError as error:
            raise UserError(f"the method {self.name} does not fit this task's layers: {error}") from None


DENSE = Method()
"""The baseline."""


class Task(ABC):
    """One task with its data loaded.

    Attributes:
        name: what the command line calls it.
        metric: "accuracy", "UAS" or "BLEU".
        batch: B, examples in a mini-batch.
        examples: how many there are to train on.
        rates: optimizer -> learning rate, where it is not that of `training.OPTIMIZERS`.
        turns: parts of the model, by name, that `algorithm.Alternation` sparsifies by turns; none where there are not.
        data_published: whether the data are those that were published, by their SHA-256; None where none is known (made
            up, the user's own).
        notes: what a reader of a result should know of the data.

    """

    name: ClassVar[str]
    metric: ClassVar[str]
    rates: ClassVar[Mapping[str, float]] = {}
    turns: ClassVar[tuple[str, ...]] = ()
    batch: int
    examples: int
    data_published: bool | None = None
    notes: tuple[str, ...] = ()

    @property
    @abstractmethod
    def options(self) -> Mapping[str, Any]:
        """The constructor's keywords with their values, which JSON can hold: what tells one training from another."""

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Batches of one epoch."""

    @abstractmethod
    def build(self, seed: int) -> nn.Module:
        """Return the dense model on the task's device; its initial weights depend on the seed alone."""

    @abstractmethod
    def sparsify(self, model: nn.Module, method: Method) -> None:
        """Turn the layers that the papers sparsify, in place (`method.turn`); dense leaves the model as it is."""

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
        """Return the metric, 0 to 100, higher is better; the model is put into evaluation mode and back."""

    def size(self, batch: Any) -> int:
        """Return how many examples a batch has; override it where not every batch is full."""
        return self.batch

    def numbers(self, batch: Any) -> Tensor:
        """Return the numbers of a batch's examples, 0 to `examples` - 1, int64 `(B,)`: the same in every epoch.

        Raises:
            UserError: the task does not number its examples, and so cannot be trained by what needs that (meAct).

        """
        raise UserError(f"the task {self.name} does not number its examples, which meAct needs: use mnist or digits")

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        return torch.device("cpu")
