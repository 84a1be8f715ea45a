"""Train one model for a task: the one loop, for dense and every method; killed and resumed, it ends the same.

    result = run(MNIST(), Recipe("mnist", method="meprop", k=30), seed=3, checkpoint=Path("checkpoint.pt"))
    result.iterations, result.best_dev, result.test_at_best         the papers' "Iter", "Dev" and "Test"

Every random choice follows from the seed: the initial weights (the task's model), the batches (the task's epochs) and
what a model or a method draws while training (torch's global state, which is seeded and put back). So the dense
baseline and a method differ in the backward pass alone, and a difference in quality is the method's.

The model is evaluated on the development set at the end of each epoch, or more often, and at the end; whenever it is
better there than ever before, on the test set, too. The papers report that test figure, and after how many epochs it
came.

A checkpoint holds all that the next step depends on: parameters, the optimizer's state, the random state, the place in
the epoch, the algorithm's records and structure. On the CPU a training that was killed and resumed ends with the same
parameters, to the bit, and the same history. It is written beside the old one, synced and put in its place, so that a
kill at any moment leaves one of the two; it is read with `weights_only=True`: it cannot run code.

The loop keeps the losses as tensors until they are needed, since a number would make a GPU wait, and asks for no
threads: those are the caller's.
"""

from __future__ import annotations

import itertools
import math
import pickle
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from meprop_bench.atomic import replacing
from meprop_bench.errors import UserError
from meprop_bench.tasks.checks import check_count
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.tasks.task import Split, Task

__all__ = [
    "FORMAT", "Evaluation", "Progress", "TrainingResult", "describe", "difference_of", "read_checkpoint", "run",
    "write_checkpoint",
]  # fmt: skip

SAVE_S = 30.0
"""Seconds between checkpoints: what a kill costs at most."""
_PROGRESS_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Where training stood after some step."""

    step: int  # steps done
    epoch: float  # the same in epochs
    loss: float  # mean of the training batches since the evaluation before
    dev: float
    test: float | None = None  # only if this is the best one so far
    seconds: float = 0.0  # spent in steps so far, on whatever else the machine did
    figures: Mapping[str, float] = field(default_factory=dict)  # what the algorithm says of itself, sizes for instance

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object; a loss that is not finite is null."""
        return {**asdict(self), "loss": self.loss if math.isfinite(self.loss) else None}


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """One trained model."""

    seed: int
    steps: int
    steps_per_epoch: int
    history: tuple[Evaluation, ...]
    best_step: int  # steps until the best evaluation on the development set, the first of equals
    best_dev: float  # its metric there
    test_at_best: float  # its metric on the test set
    final_dev: float  # at the end
    seconds: float = field(compare=False)  # spent in steps, evaluations and checkpoints not counted
    model: nn.Module = field(compare=False, repr=False)  # as it is at the end

    @property
    def iterations(self) -> float:
        """Epochs until the best evaluation: the papers' "Iter"."""
        return self.best_step / self.steps_per_epoch

    @property
    def figures(self) -> Mapping[str, float]:
        """What the algorithm said at the best evaluation."""
        return next(found.figures for found in self.history if found.step == self.best_step)


@dataclass(frozen=True)
class Progress:
    """Where a run is: steps done of all, evaluations so far, and about how many seconds are left."""

    step: int
    steps: int
    history: tuple[Evaluation, ...]
    left_s: float


_DESCRIBED = ("method", "k", "gradient", "kernel", "optimizer", "epochs", "steps", "evaluations", "best_after")
_LATER = {"schedule": "constant", "leave": None, "k_by_layer": None, "world_size": 1, "exchange": None}
"""What descriptions that were stored do not know, and had."""


def describe(task: Task, recipe: Recipe, seed: int) -> dict[str, Any]:
    """Return all that a training depends on, as JSON has it: two with the same description end alike.

    What an algorithm has besides, and is None, is left out: descriptions that were stored do not know it.
    """
    found = {"task": task.name, **task.options, **{name: getattr(recipe, name) for name in _DESCRIBED}, "seed": seed}
    found |= {name: value for name in _LATER if (value := getattr(recipe, name)) != _LATER[name]}
    if (along := recipe.along) is not None:
        found |= {"algorithm": type(along).__name__}
        found |= {name: value for name, value in vars(along).items() if value is not None}
    return found


def difference_of(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Say in what the description of a training differs from the one that is wanted, "seed is 1 and not 2"; or None."""
    names = (name for name in (*wanted, *found) if found.get(name) != wanted.get(name))
    name = next(names, None)
    return name and f"{name.replace('_', '-')} is {found.get(name)!r} and not {wanted.get(name)!r}"


def run(
    task: Task,
    recipe: Recipe,
    seed: int = 1,
    *,
    checkpoint: Path | None = None,
    save_s: float = SAVE_S,
    progress: Callable[[Progress], None] | None = None,
    after_step: Callable[[int], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    at_end: bool = False,
) -> TrainingResult:
    """Train one model; return the result, the same one, at once, if the checkpoint is of the end.

    Args:
        task: what to train, and on what: that of the recipe, loaded.
        recipe: how.
        seed: of weights, batches, dropout and random selections.
        checkpoint: a file that is gone on from if it is there, and written every `save_s` seconds and at the end. Its
            "model" and "best_model" are state dicts, at that step and at the best evaluation.
        save_s: seconds between two checkpoints.
        progress: called now and then, and after each evaluation.
        after_step: called with the number of steps done after each. If it raises, the checkpoint is written first: so a
            training is ended at once and without loss.
        clock: in seconds.
        at_end: evaluate at the end alone, where nobody asks what was best on the way: it ends no differently.

    Raises:
        UserError: a seed that is none; the method, optimizer or algorithm does not fit the task; the checkpoint is of
            another training, is damaged or cannot be written.

    """
    check_count("seed", seed, 0)
    cuda = [task.device] if task.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        training = _Training(task, recipe, seed, checkpoint, clock)
        try:
            training.load()
            training.train(save_s, progress, after_step, at_end)
        finally:
            training.close()
        return training.result()


class _Training:
    """A model in training, and where it is."""

    def __init__(
        self, task: Task, recipe: Recipe, seed: int, checkpoint: Path | None, clock: Callable[[], float]
    ) -> None:
        self.task, self.recipe, self.seed, self.checkpoint, self.clock = task, recipe, seed, checkpoint, clock
        self.settings = describe(task, recipe, seed)
        self.model = task.build(seed)
        task.check_evaluates()
        self.per_epoch = task.steps_per_epoch
        self.steps = recipe.epochs * self.per_epoch if recipe.steps is None else recipe.steps
        task.sparsify(self.model, recipe)
        self.take = task.step(self.model, recipe, self.steps)
        along = recipe.along
        self.running = None if along is None else along.start(task, self.model, self.take.optimizer, self.steps)
        self.step = 0
        self.seconds = 0.0
        self.losses: list[Tensor] = []
        self.history: list[Evaluation] = []
        self.best_model: dict[str, Tensor] = {}

    def train(
        self,
        save_s: float,
        progress: Callable[[Progress], None] | None,
        after_step: Callable[[int], None] | None,
        at_end: bool,
    ) -> None:
        """Take the steps that are left."""
        task, take, losses, running, clock = self.task, self.take, self.losses, self.running, self.clock
        per_epoch, often = self.per_epoch, self.recipe.evaluations
        marks = {round(i * per_epoch / often) for i in range(1, often + 1)} if not at_end else set()
        begun, first = clock(), self.step
        since, save_at, report_at = begun, begun + save_s, begun + _PROGRESS_S

        def report() -> None:
            if progress is not None:
                left = (clock() - begun) / max(1, self.step - first) * (self.steps - self.step)
                progress(Progress(self.step, self.steps, tuple(self.history), left))

        while self.step < self.steps:
            epoch, done = divmod(self.step, per_epoch)
            end = min(per_epoch, self.steps - epoch * per_epoch)
            for batch in itertools.islice(task.epoch(self.seed, epoch), done, end):
                if running is None:
                    losses.append(take(batch))
                else:
                    running.before_step(self.step)
                    with running.batch(batch):
                        losses.append(take(batch))
                    running.after_step(batch)
                self.step += 1
                done += 1
                now = clock()
                if done in marks or self.step == self.steps:
                    self.seconds += now - since
                    self.evaluate()
                    report()
                    since = now = clock()
                if running is not None and done == per_epoch:
                    self.seconds += clock() - since
                    running.after_epoch(epoch + 1)
                    since = now = clock()
                if now >= report_at:
                    report()
                    report_at = now + _PROGRESS_S
                if now >= save_at or self.step == self.steps:
                    self.seconds += now - since
                    self.save()
                    since = clock()
                    save_at = since + save_s
                if after_step is not None:
                    try:
                        after_step(self.step)
                    except BaseException:
                        self.save()
                        raise

    def evaluate(self) -> None:
        """Evaluate the model and add that to the history."""
        dev = self._figure("dev")
        best = self.best()
        better = self.step > self.recipe.best_after * self.per_epoch and (best is None or dev > best.dev)
        if self.step == self.steps and best is None:
            better = True  # however few steps there were
        test = self._figure("test") if better else None
        if better and self.checkpoint is not None:
            self.best_model = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.history.append(
            Evaluation(
                step=self.step,
                epoch=self.step / self.per_epoch,
                loss=self._loss(),
                dev=dev,
                test=test,
                seconds=self.seconds,
                figures={} if self.running is None else self.running.figures(),
            )
        )
        self.losses.clear()

    def _figure(self, split: Split) -> float:
        found = self.task.evaluate(self.model, split)
        if not math.isfinite(found):
            loss, why = self._loss(), "it has to return a finite number"
            if not math.isfinite(loss):
                why = f"the loss is {loss}, the training diverged"
            raise UserError(f"evaluate returned {found} after {self.step} steps of seed {self.seed}: {why}")
        return found

    def _loss(self) -> float:
        """Return the mean loss since the evaluation before."""
        return float(torch.stack(self.losses).double().mean())

    def best(self) -> Evaluation | None:
        """Return the best evaluation: the last that was tested."""
        return next((found for found in reversed(self.history) if found.test is not None), None)

    def result(self) -> TrainingResult:
        best = self.best()
        assert best is not None
        assert best.test is not None
        return TrainingResult(
            seed=self.seed,
            steps=self.steps,
            steps_per_epoch=self.per_epoch,
            history=tuple(self.history),
            best_step=best.step,
            best_dev=best.dev,
            test_at_best=best.test,
            final_dev=self.history[-1].dev,
            seconds=self.seconds,
            model=self.model,
        )

    def save(self) -> None:
        """Write the checkpoint, if there is to be one."""
        if self.checkpoint is None:
            return
        cuda = self.task.device.type == "cuda"
        state = {
            "settings": self.settings,
            "step": self.step,
            "seconds": self.seconds,
            "history": [asdict(found) for found in self.history],
            "losses": torch.stack(self.losses) if self.losses else torch.empty(0),
            "model": dict(self.model.state_dict()),
            "best_model": self.best_model,
            "optimizer": self.take.optimizer.state_dict(),
            "algorithm": {} if self.running is None else self.running.state_dict(),
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(self.task.device) if cuda else None,
        }
        write_checkpoint(self.checkpoint, state)

    def load(self) -> None:
        """Take over what the checkpoint holds, if there is one."""
        if self.checkpoint is None or (state := read_checkpoint(self.checkpoint)) is None:
            return
        if difference := difference_of(state["settings"], self.settings):
            raise UserError(
                f"{self.checkpoint} is of another training, whose {difference}: go on with its settings, or choose"
                " another folder"
            )
        if self.running is not None:
            self.running.load_state_dict(state["algorithm"])
        self.model.load_state_dict(state["model"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.take.advance(self.step)
        self.take.optimizer.load_state_dict(state["optimizer"])
        self.history = [Evaluation(**found) for found in state["history"]]
        self.losses = list(state["losses"].to(self.task.device))
        self.best_model = state["best_model"]
        torch.set_rng_state(state["random"])
        if state["cuda_random"] is not None:
            torch.cuda.set_rng_state(state["cuda_random"], self.task.device)

    def close(self) -> None:
        if self.running is not None:
            self.running.close()


FORMAT = "meprop-bench/checkpoint/1"


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint as a whole or not at all; after a `UserError`, an earlier one is still there."""
    try:
        with replacing(path) as file:
            torch.save({"format": FORMAT, **state}, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk in a way of its own
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"cannot write {path}: {reason}; free some space or choose another folder") from None


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return what `write_checkpoint` wrote, on the CPU; None without a file; `UserError` if that is something else."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile):
        found = None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{path} is damaged, or no checkpoint of this version: delete it and train anew")
    return found
