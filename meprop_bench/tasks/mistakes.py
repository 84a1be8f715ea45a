"""What is wrong with a user's model, each in one line that names it.

    examine(task)        built twice, its batches read twice, losses computed: before anything is measured
    differs(task)        whether a seed changes anything: where qualities are compared over several
    checked_loss(...)    the first loss that a model gives, which has to be one to train with
    Builds, check_...    what its function, optimizer and schedule return, whenever they are called

What a `Training` is made of is checked by itself (`training`), and what is wrong in finding, importing and calling the
function by `tasks.build`.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from meprop_bench.errors import UserError
from meprop_bench.nn.sparsified import Sparsified
from meprop_bench.tasks.batch import equal, tensors
from meprop_bench.tasks.build import seeded
from meprop_bench.tasks.task import Task

if TYPE_CHECKING:
    from meprop_bench.training import Training

__all__ = ["Builds", "Examined", "check_optimizer", "check_schedule", "checked_loss", "differs", "examine"]

_READ = 8
"""Steps whose batches are read to see whether they are the same when they are read again."""

_ROUNDING = 1e-3
"""Relative difference of two losses of the same numbers, in any arithmetic, that is no other randomness."""


class Builds:
    """The models that a function has returned: each is a new one, and of one seed they are the same."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._models: WeakSet[nn.Module] = WeakSet()
        self._first: dict[int, dict[str, float]] = {}  # seed -> what its parameters add up to

    def add(self, seed: int, model: nn.Module) -> None:
        """Take another one, before it is moved; `UserError` if it cannot be trained, or is not what it has to be."""
        if model in self._models or _shared(model, self._models):
            raise UserError(
                f"{self._name} returns the same model, or parameters, each time: make it inside the function"
            )
        for wrong, problem in _problems(model):
            if wrong:
                raise UserError(f"{self._name} returns a model {problem}")
        sums = {name: _sum(p) for name, p in model.named_parameters() if not isinstance(p, nn.UninitializedParameter)}
        known = self._first.setdefault(seed, sums)
        unlike = (name for name in {**known, **sums} if repr(sums.get(name)) != repr(known.get(name)))
        if (name := next(unlike, None)) is not None:
            raise UserError(
                f"{self._name} builds a different model each time, though torch, random and NumPy are seeded: {name}"
                " differs; seed what else it draws from"
            )
        self._models.add(model)

    def same(self, seed: int, other: int) -> bool:
        """Whether the models of two seeds, which were both built, are equal."""
        return repr(self._first[seed]) == repr(self._first[other])

    def __contains__(self, seed: int) -> bool:
        return seed in self._first


class Examined(Task):
    """What is examined: the task of a user's model (`tasks.own`)."""

    builds: Builds

    @property
    @abstractmethod
    def training(self) -> Training:
        """What the function returned last."""


def examine(task: Examined) -> tuple[Mapping[str, Any], list[nn.Module]]:
    """Build it twice, take the batches of each twice, compute losses, and evaluate, to find mistakes.

    Returns what is known of it then, whether it `evaluates` and its `metric`, and the two models.
    """
    models, passes = [], []
    for _ in range(2):
        models.append(task.build(0))
        passes += [_batches(task, 0) for _ in range(2)]
    if not all(equal(passes[0], other) for other in passes[1:]):
        raise UserError(
            f"the batches of {task.name} differ each time, though torch, random and NumPy are seeded: seed"
            " what else they draw from, and have each iteration start from the beginning"
        )
    losses = []
    for model, batches in zip(models, (passes[0], passes[-1]), strict=True):
        one = _first(task, batches)
        before = [found.clone() for found in tensors(one)]
        with seeded(0):
            losses.append(checked_loss(task, model, one).item())
        if not equal(before, list(tensors(one))):
            raise UserError(
                f"the loss of {task.name} changes its batch, which is used again: make a copy of what it changes"
            )
    if not all(abs(loss - losses[0]) <= _ROUNDING * abs(losses[0]) for loss in losses):
        raise UserError(
            f"the loss of {task.name} differs from one call to the next, though torch, random and NumPy are seeded:"
            f" {', '.join(f'{loss:.7g}' for loss in losses)}; seed what else it, or its batches, draw from"
        )
    if task.evaluates and not math.isfinite(figure := task.evaluate(models[0], "dev")):
        raise UserError(f"evaluate of {task.name} returned {figure}: it has to return a finite number")
    return {"evaluates": task.evaluates, "metric": task.metric}, models


def differs(task: Examined) -> bool:
    """Whether another seed gives other weights, other batches or, by dropout, say, another loss.

    Where it does not, trainings from several seeds are one training, and tell nothing of how they scatter.
    """
    if 0 not in task.builds:
        task.build(0)
    batches = _batches(task, 0)
    model = task.build(1)
    if not task.builds.same(0, 1) or not equal(_batches(task, 1), batches):
        return True
    losses = []
    for seed in (0, 1):
        with seeded(seed):
            losses.append(task.loss(model, _first(task, batches)).item())
    return losses[0] != losses[1]


def checked_loss(task: Task, model: nn.Module, batch: Any) -> Tensor:
    """Return the loss of a batch; `UserError` unless it is what one can train with."""
    loss: Any = task.loss(model, batch)
    if any(parameter.grad is not None for parameter in model.parameters()):
        raise UserError(
            f"the loss of {task.name} computes gradients: return the loss alone, and leave that to the step"
        )
    if not isinstance(loss, Tensor):
        raise UserError(f"the loss of {task.name} is of type {type(loss).__name__}: return a tensor with one number")
    if loss.numel() != 1:
        shape = " x ".join(map(str, loss.shape))
        raise UserError(f"the loss of {task.name} has {shape} numbers: return their mean, a scalar")
    if not loss.requires_grad:
        raise UserError(f"the loss of {task.name} has no graph: do not detach it, and train some parameters")
    if not bool(torch.isfinite(loss)):
        raise UserError(f"the loss of {task.name} is {loss.item()} on its first batch: nothing can be learnt from it")
    return loss


def check_optimizer(name: str, optimizer: object, model: nn.Module) -> None:
    """Refuse what is no optimizer, or moves other parameters: no measurement puts them back, no checkpoint has them."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(_no_such("optimizer", name, optimizer, "Optimizer"))
    own = {id(parameter) for parameter in model.parameters()}
    moved = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    if others := len([each for each in moved if each not in own]):
        raise UserError(
            f"the optimizer of {name} has {others} of {len(moved)} parameters that are not the model's: make"
            " it of those that it is called with, and put whatever else is learnt into the model"
        )


def check_schedule(name: str, schedule: object) -> None:
    """Refuse what is no learning-rate scheduler that follows from the steps alone."""
    if not isinstance(schedule, LRScheduler):
        raise UserError(_no_such("schedule", name, schedule, "lr_scheduler.LRScheduler"))
    if isinstance(schedule, ReduceLROnPlateau):
        raise UserError(
            f"the schedule of {name} waits for a metric, which is not known after each step: use one that depends on"
            " the number of steps alone"
        )


def _no_such(what: str, name: str, found: object, kind: str) -> str:
    return f"the {what} of {name} is of type {type(found).__name__}: it has to return a torch.optim.{kind}"


def _batches(task: Examined, seed: int) -> list[Any]:
    return list(itertools.islice(task.epoch(seed, 0), _READ))


def _first(task: Examined, batches: list[Any]) -> Any:
    """Return the first batch, of several whose gradients are accumulated the first one."""
    return batches[0][0] if task.training.accumulate > 1 else batches[0]


def _problems(model: nn.Module) -> Iterator[tuple[bool, str]]:
    """Yield what may be wrong with a model: whether it is, and how to say so."""
    yield (
        any(parameter.is_meta for parameter in model.parameters()),
        "on the meta device, without numbers: make it on the CPU",
    )
    yield (
        not any(parameter.requires_grad for parameter in model.parameters()),
        "without parameters that are trained",
    )
    modules = [*model.named_modules()]
    sparsified = [name or "the model itself" for name, module in modules if isinstance(module, Sparsified)]
    yield (
        bool(sparsified),
        f"that is sparsified already ({', '.join(sparsified[:3])}): return it dense, as each measurement chooses its"
        " own method and k",
    )
    yield (
        any(module._compiled_call_impl or type(module).__name__ == "OptimizedModule" for _, module in modules),
        "that is compiled: return it without torch.compile, and use --compile on instead",
    )
    yield (
        any(isinstance(module, torch.jit.ScriptModule) for _, module in modules),
        "of torch.jit, whose layers cannot be changed: return the module that it was made from",
    )


def _sum(parameter: Tensor) -> float:
    value = parameter.detach()
    return (torch.view_as_real(value) if value.is_complex() else value).sum(dtype=torch.float64).item()


def _shared(model: nn.Module, others: Any) -> bool:
    known = {id(parameter) for other in others for parameter in other.parameters()}
    return any(id(parameter) in known for parameter in model.parameters())
