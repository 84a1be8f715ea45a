"""A model of the user's own as a task: what `build()` returns (`training.Training`), behind the interface of all tasks.

    task = load_task("my_model.py:build")
    result = run(task, Recipe("my_model.py:build", method="unified", k=0.05, optimizer="own"))

So whatever can be done with a task (timed, trained, compared, tuned) can be done with it. `build` is called anew for
each model, with the random numbers seeded; batches, loss and `evaluate` of a model are those of the call that made it.
The order of batches follows from the seed alone, whatever else draws random numbers meanwhile.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from meprop_bench.errors import UserError
from meprop_bench.nn.evaluation import evaluation_mode
from meprop_bench.optimizers import make_optimizer
from meprop_bench.tasks.build import Stream, call, failed, find, out_of_memory, seeded, source_of
from meprop_bench.tasks.checks import on_device
from meprop_bench.tasks.task import Sparsifier, Split, Task
from meprop_bench.training import Step, Training

__all__ = ["Own"]

_LONGEST = 10_000
"""Batches of an epoch at most, where their number is not known: an endless stream has no end to wait for."""


_READ = 8
"""Steps whose batches are read to see whether they are the same when they are read again."""


class Own(Task):
    """A user's model.

    Args:
        name: of the function that builds it, as `tasks.build` has it.
        device: where to train.

    """

    def __init__(self, name: str, *, device: str = "cpu") -> None:
        self.name = name
        self.device = on_device(device)
        self.options = {"device": str(self.device), "source": source_of(name)}
        self._build = find(name)
        self._trainings: WeakKeyDictionary[nn.Module, Training] = WeakKeyDictionary()
        self._last: Training | None = None
        self._made: dict[int, dict[str, Tensor]] = {}
        self._steps: int | None = None
        self._evaluated: tuple[ref[nn.Module], float] | None = None

    @property
    def training(self) -> Training:
        """What `build` returned last; it is called if it was not yet."""
        if self._last is None:
            self.build(0)
        assert self._last is not None
        return self._last

    @property
    def metric(self) -> str:  # type: ignore[override]
        """What `evaluate` returns."""
        return self.training.metric

    @property
    def kinds(self) -> tuple[type[nn.Module], ...]:  # type: ignore[override]
        """Classes of the layers that a method converts."""
        return self.training.kinds

    @property
    def evaluates(self) -> bool:
        """Whether it says how good a model is."""
        return self.training.evaluate is not None

    @property
    def batch(self) -> int:  # type: ignore[override]
        """Examples of the first batch: the length of its first tensor."""
        return self.size(next(iter(self.epoch(0, 0))))

    @property
    def steps_per_epoch(self) -> int:
        """Updates that one pass over the batches makes."""
        if self._steps is None:
            batches = self.training.batches
            try:
                count = len(batches)  # type: ignore[arg-type]
            except TypeError:
                count = sum(1 for _ in itertools.islice(Stream(batches, 0), _LONGEST))
            if count < self.training.accumulate:
                wanted = f", fewer than the {self.training.accumulate} of one update" if count else ""
                raise UserError(f"{self.name} has {count} batches{wanted}: give it some")
            self._steps = count // self.training.accumulate
        return self._steps

    def build(self, seed: int) -> nn.Module:
        """Return the dense model on the task's device.

        `UserError`: `build` fails, returns the same model again, or another one for the same seed.
        """
        training = call(self.name, self._build, seed)
        model = training.model
        if any(model is other for other in self._trainings) or _shared(model, self._trainings):
            raise UserError(
                f"{self.name} returns the same model, or parameters, each time: make it inside the function"
            )
        self._compare(seed, model)
        model.to(self.device, training.dtype)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UserError(f"{self.name} returns a model without parameters that are trained")
        self._trainings[model] = self._last = training
        return model

    def _compare(self, seed: int, model: nn.Module) -> None:
        """Compare the model with the first one of the same seed."""
        sums = {name: p.detach().double().sum() for name, p in model.named_parameters() if not _lazy(p)}
        known = self._made.setdefault(seed, sums)
        for name, value in sums.items():
            if name not in known or not torch.equal(value, known[name]):
                raise UserError(
                    f"{self.name} builds another model each time, though torch, random and NumPy are seeded: {name}"
                    " differs; seed what else it draws from"
                )

    def sparsify(self, model: nn.Module, recipe: Sparsifier) -> None:
        """Convert the layers that are chosen, in place."""
        training = self._of(model)
        recipe.sparsify(model, training.kinds, filter=training.filter, each=training.k or {})

    def step(self, model: nn.Module, recipe: Sparsifier, steps: int | None = None) -> Step:
        """Return a training step: with the training's own optimizer, unless the recipe names another one."""
        training = self._of(model)
        try:
            if recipe.optimizer == "own":
                make = training.optimizer or _adamw
                optimizer = make(parameter for parameter in model.parameters() if parameter.requires_grad)
            else:
                optimizer = make_optimizer(recipe.optimizer, model.parameters(), gradient=recipe.gradient, fused=True)
            schedule = None
            if steps is not None and training.schedule is not None:
                schedule = training.schedule(optimizer, steps)
        except UserError:
            raise
        except Exception as error:
            raise failed(self.name, "failed to make its optimizer", error) from error
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise UserError(f"the optimizer of {self.name} is of type {type(optimizer).__name__}: it has to return a"
                            " torch.optim.Optimizer")  # fmt: skip
        return _OwnStep(model, optimizer, self, training, schedule=schedule)

    def epoch(self, seed: int, epoch: int) -> Iterator[Any]:
        """Yield the batches of one epoch; those of one update together where gradients are accumulated."""
        training, steps = self.training, self.steps_per_epoch
        batches = Stream(training.batches, seed * 1_000_003 + epoch)
        for step in range(steps):
            found = []
            for _ in range(training.accumulate):
                try:
                    found.append(self._moved(next(batches), training.dtype))
                except StopIteration:
                    raise UserError(
                        f"the batches of {self.name} ran out after {step} of {steps} steps, though there were more"
                        " before: an iteration has to begin anew each time"
                    ) from None
                except UserError:
                    raise
                except Exception as error:
                    raise failed(self.name, "failed to give a batch", error) from error
            yield found[0] if training.accumulate == 1 else tuple(found)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of a batch."""
        training = self._of(model)
        try:
            with _autocast(self.device, training.autocast):
                return training.loss(model, batch)
        except Exception as error:
            if isinstance(error, UserError) or out_of_memory(error):
                raise
            raise failed(self.name, "failed in its loss", error) from error

    def checked_loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of a batch; `UserError` unless it is what one can train with."""
        loss: Any = self.loss(model, batch)
        if not isinstance(loss, Tensor):
            raise UserError(
                f"the loss of {self.name} is of type {type(loss).__name__}: return a tensor with one number"
            )
        if loss.numel() != 1:
            shape = " x ".join(map(str, loss.shape))
            raise UserError(f"the loss of {self.name} has {shape} numbers: return their mean, a scalar")
        if not loss.requires_grad:
            raise UserError(f"the loss of {self.name} has no graph: do not detach it, and train some parameters")
        if not bool(torch.isfinite(loss)):
            raise UserError(
                f"the loss of {self.name} is {loss.item()} on its first batch: nothing can be learnt from it"
            )
        return loss

    def evaluate(self, model: nn.Module, split: Split) -> float:
        """Return what the user's `evaluate` does; it has one set of data, so "test" is what "dev" was last.

        What is not finite is refused by who knows when it came: `tasks.run`, `examine`.
        """
        training = self._of(model)
        if training.evaluate is None:
            raise UserError(f"{self.name} does not say how good a model is: add evaluate= to its Training")
        if split == "test" and self._evaluated is not None and self._evaluated[0]() is model:
            return self._evaluated[1]
        try:
            with seeded(0), evaluation_mode(model), torch.no_grad(), _autocast(self.device, training.autocast):
                found: Any = training.evaluate(model)
        except Exception as error:
            if isinstance(error, UserError) or out_of_memory(error):
                raise
            raise failed(self.name, "failed in its evaluate", error) from error
        value = _number(found)
        if value is None:
            raise UserError(f"evaluate of {self.name} returned {found!r}: it has to return a finite number")
        self._evaluated = (ref(model), value)
        return value

    def size(self, batch: Any) -> int:
        """Return how many examples a batch has: the length of its first tensor."""
        first = next(_tensors(batch), None)
        return 1 if first is None or not first.dim() else len(first)

    def examine(self) -> Mapping[str, Any]:
        """Build it twice, take batches twice, compute a loss, gradients and a step, and evaluate, to find mistakes.

        Returns what is known of it then: whether it `evaluates`, its `metric`, and its steps in an epoch.
        """
        models = [self.build(0) for _ in range(2)]
        passes = [list(itertools.islice(self.epoch(0, 0), _READ)) for _ in range(2)]
        first = [found[0] for found in passes]
        if not _equal(*passes):
            raise UserError(
                f"the batches of {self.name} are others each time, though torch, random and NumPy are seeded: seed"
                " what else they draw from"
            )
        part = first[0][0] if self.training.accumulate > 1 else first[0]
        losses = []
        for model in (*models, models[0]):
            with seeded(0):
                losses.append(self.checked_loss(model, part).item())
        if not all(abs(loss - losses[0]) <= _ROUNDING * abs(losses[0]) for loss in losses):
            raise UserError(
                f"the loss of {self.name} differs from one call to the next, though torch, random and NumPy are seeded:"
                f" {', '.join(f'{loss:.7g}' for loss in losses)}"
            )
        if self.evaluates and not math.isfinite(figure := self.evaluate(models[0], "dev")):
            raise UserError(f"evaluate of {self.name} returned {figure}: it has to return a finite number")
        return {"evaluates": self.evaluates, "metric": self.metric, "steps": self.steps_per_epoch}

    def _of(self, model: nn.Module) -> Training:
        return self._trainings[model]

    def _moved(self, value: Any, dtype: torch.dtype | None) -> Any:
        """Move a batch to the device, whatever holds its tensors."""
        if isinstance(value, Tensor):
            return value.to(self.device, dtype if value.is_floating_point() else None)
        if self.device.type == "cpu" and dtype is None:
            return value
        if isinstance(value, Mapping):
            return {key: self._moved(one, dtype) for key, one in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self._moved(one, dtype) for one in value))
        if isinstance(value, list | tuple):
            return type(value)(self._moved(one, dtype) for one in value)
        return value.to(self.device) if hasattr(value, "to") else value


_ROUNDING = 1e-3
"""Relative difference of two losses of the same numbers, in any arithmetic, that is no other randomness."""


@dataclass(frozen=True, eq=False)
class _OwnStep(Step):
    task: Own
    training: Training

    @property
    def autocast(self) -> torch.dtype | None:
        return self.training.autocast

    @property
    def accumulate(self) -> int:
        return self.training.accumulate

    def forward(self, batch: Any) -> Tensor:
        return self.task.loss(self.model, batch)

    def backward(self, loss: Tensor) -> None:
        super().backward(loss if self.accumulate == 1 else loss / self.accumulate)

    def update(self) -> None:
        if self.training.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip)
        super().update()


def _adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, fused=True)


def _autocast(device: torch.device, dtype: torch.dtype | None) -> Any:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _lazy(parameter: Tensor) -> bool:
    return isinstance(parameter, nn.UninitializedParameter)


def _shared(model: nn.Module, others: Any) -> bool:
    known = {id(parameter) for other in others for parameter in other.parameters()}
    return any(id(parameter) in known for parameter in model.parameters())


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def _equal(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(_tensors(one), _tensors(other), strict=True))
