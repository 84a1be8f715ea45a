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
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet, ref

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from meprop_bench.errors import UserError, out_of_memory
from meprop_bench.nn.evaluation import evaluation_mode
from meprop_bench.nn.sparsified import Sparsified
from meprop_bench.optimizers import make_optimizer, make_schedule
from meprop_bench.tasks.batch import equal, moved, tensors
from meprop_bench.tasks.build import Stream, call, failed, find, seeded, source_of
from meprop_bench.tasks.checks import on_device
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.tasks.task import Split, Task
from meprop_bench.training import Step, Training

__all__ = ["Own"]

_LONGEST = 10_000
"""Batches of an epoch at most, where their number is not known: an endless stream has no end to wait for."""

_NO_MORE = object()

_HELD = "_meprop_bench_training"
"""Attribute of a model that has its training: in a table of them no model would ever be freed, as trainings refer to
their models."""

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
        self._models: WeakSet[nn.Module] = WeakSet()
        self._last: Training | None = None
        self._made: dict[int, dict[str, float]] = {}
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
        if model in self._models or _shared(model, self._models):
            raise UserError(
                f"{self.name} returns the same model, or parameters, each time: make it inside the function"
            )
        for wrong, problem in _problems(model):
            if wrong:
                raise UserError(f"{self.name} returns a model {problem}")
        self._compare(seed, model)
        with self._own(f"cannot be moved to {self.device}"):
            model.to(self.device, training.dtype)
        self._models.add(model)
        vars(model)[_HELD] = _Held(training)
        self._last = training
        return model

    def _compare(self, seed: int, model: nn.Module) -> None:
        """Compare the model with the first one of the same seed."""
        sums = {name: _sum(p) for name, p in model.named_parameters() if not isinstance(p, nn.UninitializedParameter)}
        known = self._made.setdefault(seed, sums)
        differs = (name for name in {**known, **sums} if repr(sums.get(name)) != repr(known.get(name)))
        if (name := next(differs, None)) is not None:
            raise UserError(
                f"{self.name} builds another model each time, though torch, random and NumPy are seeded: {name}"
                " differs; seed what else it draws from"
            )

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
        self._check_made("optimizer", optimizer, torch.optim.Optimizer)
        self._check_moves(optimizer, model)
        schedule: LRScheduler | None = None
        if steps is not None and recipe.schedule != "constant":
            schedule = make_schedule(recipe.schedule, optimizer, steps)
        elif steps is not None and training.schedule is not None:
            with self._own(f"failed to make its schedule of {steps} steps"):
                schedule = training.schedule(optimizer, steps)
            self._check_made("schedule", schedule, LRScheduler)
        if isinstance(schedule, ReduceLROnPlateau):
            raise UserError(f"the schedule of {self.name} waits for a metric, which is not there after each step: take"
                            " one that follows from the number of steps")  # fmt: skip
        return _OwnStep(model, optimizer, self, training, schedule=schedule, accumulate=training.accumulate)

    def _check_made(self, what: str, found: object, kind: type) -> None:
        if not isinstance(found, kind):
            raise UserError(
                f"the {what} of {self.name} is of type {type(found).__name__}: it has to return a torch.optim."
                f"{'lr_scheduler.' if kind is LRScheduler else ''}{kind.__name__}"
            )

    def _check_moves(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        """Refuse an optimizer of other parameters: no measurement puts them back, and no checkpoint has them."""
        own = {id(parameter) for parameter in model.parameters()}
        moved = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        if others := len([each for each in moved if each not in own]):
            raise UserError(
                f"the optimizer of {self.name} has {others} of {len(moved)} parameters that are not the model's: make"
                " it of those that it is called with, and put whatever else is learnt into the model"
            )

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
                        " were more before: an iteration has to begin anew each time"
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

    def checked_loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of a batch; `UserError` unless it is what one can train with."""
        loss: Any = self.loss(model, batch)
        if any(parameter.grad is not None for parameter in model.parameters()):
            raise UserError(
                f"the loss of {self.name} computes gradients: return the loss alone, and leave that to the step"
            )
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

    def examine(self) -> tuple[Mapping[str, Any], list[nn.Module]]:
        """Build it twice, take the batches of each twice, compute losses, and evaluate, to find mistakes.

        Returns what is known of it then, whether it `evaluates` and its `metric`, and the two models.
        """
        models, passes = [], []
        for _ in range(2):
            models.append(self.build(0))
            passes += [list(itertools.islice(self.epoch(0, 0), _READ)) for _ in range(2)]
        first = [passes[0][0], passes[-1][0]]
        if not all(equal(passes[0], other) for other in passes[1:]):
            raise UserError(
                f"the batches of {self.name} are others each time, though torch, random and NumPy are seeded: seed"
                " what else they draw from, and have each iteration begin anew"
            )
        losses = []
        for model, batch in zip(models, first, strict=True):
            one = batch[0] if self.training.accumulate > 1 else batch
            before = [found.clone() for found in tensors(one)]
            with seeded(0):
                losses.append(self.checked_loss(model, one).item())
            if not equal(before, list(tensors(one))):
                raise UserError(
                    f"the loss of {self.name} changes its batch, which is used again: make a copy of what it changes"
                )
        if not all(abs(loss - losses[0]) <= _ROUNDING * abs(losses[0]) for loss in losses):
            raise UserError(
                f"the loss of {self.name} differs from one call to the next, though torch, random and NumPy are seeded:"
                f" {', '.join(f'{loss:.7g}' for loss in losses)}; seed what else it, or its batches, draw from"
            )
        if self.evaluates and not math.isfinite(figure := self.evaluate(models[0], "dev")):
            raise UserError(f"evaluate of {self.name} returned {figure}: it has to return a finite number")
        return {"evaluates": self.evaluates, "metric": self.metric}, models

    def differs(self) -> bool:
        """Whether another seed gives other weights, other batches or, by dropout, say, another loss.

        Where it does not, trainings from several seeds are one training, and tell nothing of how they scatter.
        """
        if self._made.get(0) is None:
            self.build(0)
        batches = list(itertools.islice(self.epoch(0, 0), _READ))
        model = self.build(1)
        if repr(self._made[0]) != repr(self._made[1]):
            return True
        if not equal(list(itertools.islice(self.epoch(1, 0), _READ)), batches):
            return True
        batch, losses = batches[0][0] if self.training.accumulate > 1 else batches[0], []
        for seed in (0, 1):
            with seeded(seed):
                losses.append(self.loss(model, batch).item())
        return losses[0] != losses[1]

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


_ROUNDING = 1e-3
"""Relative difference of two losses of the same numbers, in any arithmetic, that is no other randomness."""


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
            _clip(self.model.parameters(), self.training.clip)
        super().update()


def _clip(parameters: Iterable[nn.Parameter], most: float) -> None:
    """Scale all gradients together down to a norm, as `clip_grad_norm_` does, which refuses gradients as rows."""
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    if not any(parameter.grad.is_sparse for parameter in parameters if parameter.grad is not None):
        nn.utils.clip_grad_norm_(parameters, most)
        return
    values = []
    for parameter in parameters:
        assert parameter.grad is not None
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
        values.append(parameter.grad.values() if parameter.grad.is_sparse else parameter.grad)
    factor = (most / (nn.utils.get_total_norm(values) + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_([value.detach() for value in values], factor)


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
        "that is compiled: return it as it is without torch.compile, and choose that by --compile on",
    )
    yield (
        any(isinstance(module, torch.jit.ScriptModule) for _, module in modules),
        "of torch.jit, whose layers cannot be changed: return the module that it was made of",
    )


def _adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, fused=True)


def _sum(parameter: Tensor) -> float:
    value = parameter.detach()
    return (torch.view_as_real(value) if value.is_complex() else value).sum(dtype=torch.float64).item()


def _shared(model: nn.Module, others: Any) -> bool:
    known = {id(parameter) for other in others for parameter in other.parameters()}
    return any(id(parameter) in known for parameter in model.parameters())


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return None
