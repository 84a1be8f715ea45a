"""What goes along with training: meSimp, meAct, schedules of k, alternation; each behind the same calls of the loop.

    running = algorithm.start(task, model, optimizer, steps)      before the first step
    running.before_step(t)                                 t = 0, 1, …
    with running.batch(batch): forward, backward, update
    running.after_step(batch)
    running.after_epoch(e)                                 e = 1, 2, … epochs are over
    running.figures()                                      goes into the history at each evaluation

An `Algorithm` is a frozen description, equal for equal trainings, which is made and checked without torch; a `Running`
has the state, which a checkpoint holds. A selection alone (meProp, unified, random k) needs none of this: it is in the
model's layers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from meprop_bench.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from meprop_bench.algorithms.meact import MeAct, ParameterChange
    from meprop_bench.algorithms.mesimp import MeSimp
    from meprop_bench.algorithms.schedule import KScheduler
    from meprop_bench.tasks.task import Task

__all__ = ["ALGORITHMS", "UPDATE", "Algorithm", "Running", "Watched"]

UPDATE = "update"
"""The figure of `Watched`."""


class Running:
    """An algorithm at work; this one does nothing."""

    def before_step(self, step: int) -> None:
        """Say that a step, counted from 0 through all epochs, begins."""

    def batch(self, batch: Any) -> AbstractContextManager[object]:
        """Return the context of a batch's step."""
        return nullcontext()

    def after_step(self, batch: Any) -> None:
        """Say that the optimizer has made its step on a batch."""

    def after_epoch(self, epochs: int) -> None:
        """Say that so many epochs are over."""

    def figures(self) -> dict[str, float]:
        """Return what is worth a place in the history."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what another one, started alike, needs to go on: tensors, numbers, text, lists and dictionaries."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a state over and give the model the sizes it had; its parameters are loaded after this."""

    def close(self) -> None:
        """Take all hooks off the model."""


class _Stateful(Running):
    """One whose state is that of a part of `meprop_bench.algorithms`, or of another one."""

    def __init__(self, inner: Any, task: Task) -> None:
        self.inner, self.task = inner, task

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self.inner.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.inner.load_state_dict(state)

    def close(self) -> None:
        self.inner.close()


@dataclass(frozen=True)
class Algorithm(ABC):
    """What to do along with training; `UserError` for a field whose value is not allowed."""

    title: ClassVar[str]

    def start(self, task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> Running:
        """Begin with a new model, whose layers are converted, and its optimizer; `steps` is how long training will be.

        `UserError`: the model, or the task, is not one for this algorithm.
        """
        try:
            return self._start(task, model, optimizer, steps)
        except ValueError as error:
            raise UserError(f"{self.title} does not fit: {error}") from None

    @abstractmethod
    def _start(self, task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> Running:
        """Begin; a ValueError says what does not fit."""


@dataclass(frozen=True)
class Simplification(Algorithm):
    """meSimp: removes the neurons that are seldom in the top k (TKDE, Algorithm 2)."""

    title: ClassVar[str] = "meSimp"
    rate: float = 0.1  # p, the share of examples in whose top k a neuron has to be
    prunes: int = 8  # how often to remove, in an epoch; 8 in the authors' code
    simplify: int = 5  # epochs with simplification in a stage; 5 in the paper
    normal: int = 5  # epochs without; 5 in the paper
    count_zeros: bool = False  # as for `MeSimp`
    spacing: int | None = None  # steps between two removals at least, however few removals in an epoch that leaves

    def __post_init__(self) -> None:
        if isinstance(self.rate, bool) or not 0 < self.rate <= 1:
            raise UserError(f"rate must lie in (0, 1], not {self.rate}")
        for name in ("prunes", "simplify", "normal", "spacing"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")

    def _start(self, task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> Running:
        from meprop_bench.algorithms.mesimp import Cycle, MeSimp

        most = self.prunes if self.spacing is None else max(1, task.steps_per_epoch // self.spacing)
        interval = max(1, task.steps_per_epoch * task.batch // min(self.prunes, most))
        cycle, count = Cycle(self.simplify, self.normal), self.count_zeros
        simp = MeSimp(model, optimizer, interval=interval, rate=self.rate, cycle=cycle, count_zeros=count)
        return _Simplifying(simp, task)


class _Simplifying(_Stateful):
    inner: MeSimp

    def after_step(self, batch: Any) -> None:
        self.inner.after_step(self.task.size(batch))

    def after_epoch(self, epochs: int) -> None:
        self.inner.after_epoch()

    def figures(self) -> dict[str, float]:
        """Return the mean size of the layers, each layer's, and its mean number of non-zero entries of dy."""
        found = {"size": self.inner.mean_size} | {f"size {name}": float(n) for name, n in self.inner.sizes.items()}
        if self.inner.history:
            found |= {f"nonzeros {name}": mean for name, mean in self.inner.history[-1].nonzeros.items()}
        return found


@dataclass(frozen=True)
class MinimalActivation(Algorithm):
    """meAct: trains each example through its own neurons (TKDE, Algorithm 3).

    Attributes:
        share: p, of an example's gradient, from which a neuron is trained.
        pretrain: e, epochs before the neurons of each example are fixed, or their share of all whole epochs, at least
            one; more than 0, since they are what is recorded.

    """

    title: ClassVar[str] = "meAct"
    share: float = 0.004
    pretrain: int | float = 10

    def __post_init__(self) -> None:
        if isinstance(self.share, bool) or not 0 < self.share < 1:
            raise UserError(f"share must lie between 0 and 1, not {self.share}")
        if not (self.pretrain >= 1 if isinstance(self.pretrain, int) else 0 < self.pretrain < 1):
            raise UserError(f"pretrain must be at least 1 epoch, not {self.pretrain}")

    def _start(self, task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> Running:
        from meprop_bench.algorithms.meact import MeAct

        epochs = self.pretrain
        if not isinstance(epochs, int):
            epochs = max(1, int(steps // task.steps_per_epoch * epochs))
        if epochs * task.steps_per_epoch >= steps:
            raise UserError(f"pretrain {epochs} leaves meAct nothing of {steps} steps: take more epochs")
        return _Activating(MeAct(model, task.examples), task, self.share, epochs)


class _Activating(_Stateful):
    inner: MeAct

    def __init__(self, act: MeAct, task: Task, share: float, pretrain: int) -> None:
        super().__init__(act, task)
        self.share, self.pretrain = share, pretrain
        self._size: float | None = None

    def batch(self, batch: Any) -> AbstractContextManager[object]:
        return self.inner.batch(self.task.numbers(batch))

    def after_epoch(self, epochs: int) -> None:
        if epochs == self.pretrain:
            self.inner.fix(self.share)

    def figures(self) -> dict[str, float]:
        """Return the mean number of neurons that an example trains, once they are fixed."""
        if self._size is None and self.inner.fixed:
            self._size = self.inner.average_size
        return {} if self._size is None else {"size": self._size}


@dataclass(frozen=True)
class ScheduledK(Algorithm):
    """k changes while training goes on (`algorithms.schedule`), from the method's to another.

    Attributes:
        end: k at the end: a count if the method's is one, else a ratio.
        shape: "linear", or "cosine", flat at both ends.

    """

    title: ClassVar[str] = "a schedule of k"
    end: int | float
    shape: Literal["linear", "cosine"] = "linear"

    def __post_init__(self) -> None:
        if self.shape not in ("linear", "cosine"):
            raise UserError(f"shape must be 'linear' or 'cosine', not {self.shape!r}")

    def _start(self, task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> Running:
        from meprop_bench.algorithms.schedule import Cosine, KScheduler, Linear, sparsified_layers

        kind = Linear if self.shape == "linear" else Cosine
        layers = sparsified_layers(model)
        return _Scheduling(KScheduler(model, {name: kind(layer.k, self.end, steps) for name, layer in layers.items()}))


class _Scheduling(Running):
    def __init__(self, scheduler: KScheduler) -> None:
        self.scheduler = scheduler

    def before_step(self, step: int) -> None:
        self.scheduler.start_step(step)

    def figures(self) -> dict[str, float]:
        """Return k of each layer."""
        return {f"k {name}": layer.k for name, layer in self.scheduler.layers.items()}


@dataclass(frozen=True)
class Alternation(Algorithm):
    """The task's parts are sparsified alternately, an epoch each: encoder and decoder of a translator (TKDE, 3.3.3)."""

    title: ClassVar[str] = "alternating"

    def _start(self, task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> Running:
        if not task.entry.alternated:
            raise UserError(f"the task {task.name} has no parts that could alternate: alternating is for translation")
        return _Alternating(task, model)


class _Alternating(Running):
    def __init__(self, task: Task, model: nn.Module) -> None:
        from meprop_bench.algorithms.alternating import Alternating
        from meprop_bench.algorithms.schedule import Constant, KScheduler, sparsified_layers

        parts = {name: model.get_submodule(name) for name in task.entry.alternated}
        constant = {
            name: {layer: Constant(found.k) for layer, found in sparsified_layers(part).items()}
            for name, part in parts.items()
        }
        self.alternating = Alternating({name: KScheduler(part, constant[name]) for name, part in parts.items()})
        self.per_epoch = task.steps_per_epoch
        self.epoch: int | None = None

    def before_step(self, step: int) -> None:
        if (epoch := step // self.per_epoch) != self.epoch:
            self.epoch = epoch
            self.alternating.start_epoch(epoch)

    def figures(self) -> dict[str, float]:
        """Return k of each layer, 1 where it is dense."""
        schedulers = self.alternating.parts.items()
        return {f"k {part}.{name}": layer.k for part, found in schedulers for name, layer in found.layers.items()}


@dataclass(frozen=True)
class Watched(Algorithm):
    """Another algorithm, or none, with the mean absolute change of a parameter at an update (TKDE, figure 4, right)."""

    title: ClassVar[str] = "watching"
    other: Algorithm | None = None

    def _start(self, task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> Running:
        from meprop_bench.algorithms.meact import ParameterChange

        inner = Running() if self.other is None else self.other.start(task, model, optimizer, steps)
        return _Watching(inner, task, ParameterChange(model.parameters()))


class _Watching(_Stateful):
    inner: Running

    def __init__(self, inner: Running, task: Task, change: ParameterChange) -> None:
        super().__init__(inner, task)
        self.change = change

    def before_step(self, step: int) -> None:
        self.inner.before_step(step)

    def batch(self, batch: Any) -> AbstractContextManager[object]:
        return self.inner.batch(batch)

    def after_step(self, batch: Any) -> None:
        self.change.after_update()
        self.inner.after_step(batch)

    def after_epoch(self, epochs: int) -> None:
        self.inner.after_epoch(epochs)

    def figures(self) -> dict[str, float]:
        """Return the other's figures, and the mean change since the last evaluation."""
        return {**self.inner.figures(), UPDATE: self.change.take()}


ALGORITHMS: Mapping[str, type[Algorithm]] = {
    "mesimp": Simplification,
    "meact": MinimalActivation,
    "schedule": ScheduledK,
    "alternating": Alternation,
}
"""Name, as the command line has it -> what it is."""
