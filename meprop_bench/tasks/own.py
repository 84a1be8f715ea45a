"""A model of the user's own as a task: what `build()` returns (`training.Training`), behind the interface of all tasks.

    task = load_task("my_model.py:build")
    result = run(task, Recipe("my_model.py:build", method="unified", k=0.05, optimizer="own"))

So whatever can be done with a task (timed, trained, compared, tuned) can be done with it. `build` is called anew for
each model, with the random numbers seeded; batches, loss and `evaluate` of a model are those of the call that made it.
The order of batches follows from the seed alone, whatever else draws random numbers meanwhile. What may be wrong with
what a user returns is said by `tasks.mistakes`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from meprop_bench.errors import UserError, out_of_memory
from meprop_bench.nn.evaluation import evaluation_mode
from meprop_bench.optim import clip_grad_norm_
from meprop_bench.optimizers import make_optimizer, make_schedule
from meprop_bench.tasks.batch import moved, tensors
from meprop_bench.tasks.build import Stream, call, failed, find, seeded, source_of
from meprop_bench.tasks.checks import on_device
from meprop_bench.tasks.mistakes import Builds, Examined, check_optimizer, check_schedule
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.tasks.task import Split
from meprop_bench.training import Step, Training

__all__ = ["Own"]

_LONGEST = 10_000
"""Batches of an epoch at most, where their number is not known: an endless stream has no end to wait for."""

_NO_MORE = object()

_HELD = "_meprop_bench_training"
"""Attribute of a model that has its training: in a table of them no model would ever be freed, as trainings refer to
their models."""


class Own(Examined):
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
        self.builds = Builds(name)
        self._last: Training | None = None
        self._steps: int | None = None
        self._seen = 0  # steps of the longest pass so far
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
        """What `evaluate` returns, without the sign of a percentage."""
        return self.training.metric.strip().removesuffix("%").rstrip(" ,") or "quality"

    @property
    def percent(self) -> bool:
        """Whether that is a percentage, so that differences are points."""
        return self.training.metric.strip().endswith("%")

    @property
    def kinds(self) -> tuple[type[nn.Module], ...]:  # type: ignore[override]
        """Classes of the layers that a method converts."""
        return self.training.kinds

    @property
    def evaluates(self) -> bool:  # type: ignore[override]
        """Whether it says how good a model is."""
        return self.training.evaluate is not None

    @property
    def batch(self) -> int:  # type: ignore[override]
        """Examples of the first batch: the length of its first tensor."""
        return self.size(next(iter(self.epoch(0, 0))))

    @property
    def steps_per_epoch(self) -> int:
        """Updates that one pass over the batches makes; where they have no length, a whole pass counts them."""
        if self._steps is None:
            steps = self._by_length()
            if steps is None:
                with self._own("failed to give a batch"):
                    steps = self._updates(sum(1 for _ in itertools.islice(Stream(self.training.batches, 0), _LONGEST)))
            self._steps = steps
        return self._steps

    def _by_length(self) -> int | None:
        """Return the updates of a pass by the length of the batches; None where they have none."""
        with self._own("failed to say how many batches there are"):
            try:
                count = len(self.training.batches)  # type: ignore[arg-type]
            except (TypeError, NotImplementedError):
                return None
        return self._updates(count)

    def _updates(self, batches: int) -> int:
        if batches < self.training.accumulate:
            wanted = f", fewer than the {self.training.accumulate} of one update" if batches else ""
            raise UserError(f"{self.name} has {batches} batches{wanted}: give it some")
        return batches // self.training.accumulate

    def build(self, seed: int) -> nn.Module:
        """Return the dense model on the task's device.

        `UserError`: `build` fails, returns the same model again, or another one for the same seed.
        """
        training = call(self.name, self._build, seed)
        model = training.model
        self.builds.add(seed, model)
        with self._own(f"cannot be moved to {self.device}"):
            model.to(self.device, training.dtype)
        vars(model)[_HELD] = _Held(training)
        self._last = training
        return model

    def sparsify(self, model: nn.Module, recipe: Recipe) -> None:
        """Convert the layers that are chosen, in place."""
        training = self._of(model)
        with self._own("failed to choose its layers"):
            recipe.sparsify(model, training.kinds, filter=training.filter, each=training.k or {}, of=self.name)

    def step(self, model: nn.Module, recipe: Recipe, steps: int | None = None) -> Step:
        """Return a training step: with the training's own optimizer and schedule, unless the recipe names others."""
        training = self._of(model)
        with self._own("failed to make its optimizer"):
            if recipe.optimizer == "own":
                make = training.optimizer or _adamw
                optimizer = make([parameter for parameter in model.parameters() if parameter.requires_grad])
            else:
                optimizer = make_optimizer(recipe.optimizer, model.parameters(), gradient=recipe.gradient, fused=True)
        check_optimizer(self.name, optimizer, model)
        schedule: LRScheduler | None = None
        if steps is not None and recipe.schedule != "constant":
            schedule = make_schedule(recipe.schedule, optimizer, steps)
        elif steps is not None and training.schedule is not None:
            with self._own(f"failed to make its schedule of {steps} steps"):
                schedule = training.schedule(optimizer, steps)
            check_schedule(self.name, schedule)
        return _OwnStep(model, optimizer, self, training, schedule=schedule, accumulate=training.accumulate)

    def epoch(self, seed: int, epoch: int) -> Iterator[Any]:
        """Yield the batches of one epoch; those of one update together where gradients are accumulated."""
        training = self.training
        steps = self._by_length() if self._steps is None else self._steps
        with self._own("failed to give batches"):
            batches = Stream(training.batches, seed * 1_000_003 + epoch)
        for step in range(_LONGEST // training.accumulate if steps is None else steps):
            found = []
            for part in range(training.accumulate):
                with self._own("failed to give a batch"):
                    batch = next(batches, _NO_MORE)
                if batch is _NO_MORE:
                    if steps is None and step >= self._seen:
                        self._updates(step * training.accumulate + part)
                        return
                    raise UserError(
                        f"the batches of {self.name} ran out after {step} of {steps or self._seen} steps, though there"
                        " were more before: each iteration has to start from the beginning"
                    )
                found.append(moved(batch, self.device, training.dtype))
            self._seen = max(self._seen, step + 1)
            yield found[0] if training.accumulate == 1 else tuple(found)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of a batch."""
        return self.loss_of(self._of(model), model, batch)

    def loss_of(self, training: Training, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of a batch; this is timed."""
        try:
            if training.autocast is None:
                return training.loss(model, batch)
            with torch.autocast(self.device.type, training.autocast):
                return training.loss(model, batch)
        except Exception as error:
            if isinstance(error, UserError) or out_of_memory(error):
                raise
            raise failed(self.name, "failed in its loss", error) from error

    def evaluate(self, model: nn.Module, split: Split) -> float:
        """Return what the user's `evaluate` does; it has one set of data, so "test" is what "dev" was last.

        What is not finite is refused by who knows when it came: `tasks.run`, `tasks.mistakes`.
        """
        training = self._of(model)
        self.check_evaluates()
        assert training.evaluate is not None
        if split == "test" and self._evaluated is not None and self._evaluated[0]() is model:
            return self._evaluated[1]
        autocast = nullcontext() if training.autocast is None else torch.autocast(self.device.type, training.autocast)
        with self._own("failed in its evaluate"), seeded(0), evaluation_mode(model), torch.no_grad(), autocast:
            found: Any = training.evaluate(model)
        value = _number(found)
        if value is None:
            kind = type(found).__name__
            raise UserError(
                f"evaluate of {self.name} returned something of type {kind}: it has to return a finite number"
            )
        self._evaluated = (ref(model), value)
        return value

    def size(self, batch: Any) -> int:
        """Return how many examples a batch has: the length of its first tensor."""
        first = next(tensors(batch), None)
        return 1 if first is None or not first.dim() else len(first)

    def _of(self, model: nn.Module) -> Training:
        held: _Held = vars(model)[_HELD]
        return held.training

    @contextmanager
    def _own(self, failing: str) -> Iterator[None]:
        """Say in one line what the user's code raises."""
        try:
            yield
        except Exception as error:
            if isinstance(error, UserError) or out_of_memory(error):
                raise
            raise failed(self.name, failing, error) from error


class _Held:
    """A training that a model has with it; it is neither copied nor pickled with the model."""

    def __init__(self, training: Training) -> None:
        self.training = training

    def __deepcopy__(self, _: object) -> _Held:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(None), ())


@dataclass(frozen=True, eq=False)
class _OwnStep(Step):
    task: Own
    training: Training

    @property
    def autocast(self) -> torch.dtype | None:
        return self.training.autocast

    def forward(self, batch: Any) -> Tensor:
        return self.task.loss_of(self.training, self.model, batch)

    def backward(self, loss: Tensor) -> None:
        (loss if self.accumulate == 1 else loss / self.accumulate).backward()  # type: ignore[no-untyped-call]

    def update(self) -> None:
        if self.training.clip is not None:
            clip_grad_norm_(self.model.parameters(), self.training.clip)
        super().update()


def _adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, fused=True)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return None
