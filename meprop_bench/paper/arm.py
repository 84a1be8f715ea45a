"""Train one arm from one seed: the published setting as a task, a method, an optimizer and what goes along with them.

    meprop, unified, random   the task's hidden layers, turned
    mesimp                    top k, and `tasks.algorithm.Simplification`: 5 epochs with, 5 without, as in the paper
    meact                     `tasks.algorithm.Activation`
    by turns                  parts of a subject that is trained so, `tasks.algorithm.Alternation`

The best model of meSimp is chosen after its first simplification, that of meAct after its masks are fixed: before that
there is nothing of either in the model. Of a run too short for a stage of ten epochs half simplifies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from meprop_bench.algorithms.meact import ParameterChange
from meprop_bench.paper.experiment import Arm
from meprop_bench.paper.subjects import subject_of
from meprop_bench.paper.trainings import Evaluation, Trained
from meprop_bench.tasks import load_task
from meprop_bench.tasks.algorithm import Activation, Algorithm, Alternation, Running, Simplification
from meprop_bench.tasks.run import Progress, Result, RunSettings, run
from meprop_bench.tasks.task import Method, Task

__all__ = ["settings_of", "task_of", "train_arm"]

_STAGE = 5
"""Epochs of half a stage of meSimp (TKDE, section 3.1)."""


def task_of(arm: Arm, device: str = "cpu") -> Task:
    """Load the task of an arm with what its setting says of the model and the batch."""
    names = [name for name in subject_of(arm.task).options if getattr(arm.setting, name)]
    options: dict[str, Any] = {name: getattr(arm.setting, name) for name in names}
    if arm.examples is not None:
        options["examples"] = arm.examples
    return load_task(arm.task, **options, device=device)


def settings_of(arm: Arm, seed: int) -> RunSettings:
    """Return how an arm is trained from a seed."""
    setting = arm.setting
    algorithm: Algorithm | None = None
    name, best_after = setting.method or "dense", 0
    if name == "mesimp":
        assert setting.rate is not None
        best_after = min(_STAGE, max(1, arm.epochs // 2))
        algorithm = Simplification(rate=setting.rate, simplify=best_after, normal=best_after)
        name = "meprop"
    elif name == "meact":
        assert setting.share is not None
        assert setting.masked_after is not None
        algorithm, best_after = Activation(setting.share, setting.masked_after), setting.masked_after
        name = "dense"
    elif name != "dense" and subject_of(arm.task).by_turns:
        algorithm = Alternation()
    if arm.watched and setting.method == "mesimp":
        raise ValueError("parameters that meSimp removes cannot be watched")
    if arm.watched:
        algorithm = Watched(algorithm)
    return RunSettings(
        method=Method(name, None if name == "dense" else setting.k),
        optimizer=setting.optimizer or "adam",
        epochs=arm.epochs,
        seed=seed,
        best_after=best_after if best_after < arm.epochs else 0,
        algorithm=algorithm,
    )


def train_arm(
    arm: Arm,
    seed: int,
    *,
    device: str = "cpu",
    environment_id: str = "unknown",
    progress: Callable[[Progress], None] | None = None,
) -> Trained:
    """Train, and return what is kept of it.

    Raises:
        UserError: the task or its data are not there, or the setting does not fit it.

    """
    task = task_of(arm, device)
    return _kept(arm, task, run(task, settings_of(arm, seed), progress=progress), environment_id)


def _kept(arm: Arm, task: Task, result: Result, environment_id: str) -> Trained:
    evaluations = tuple(
        Evaluation(found.epoch, found.loss if math.isfinite(found.loss) else -1.0, found.dev)
        for found in result.history
    )
    return Trained(
        arm_id=arm.arm_id,
        seed=result.seed,
        evaluations=evaluations,
        best_epoch=result.iterations,
        best_dev=result.best_dev,
        test=result.test_at_best,
        final_dev=result.final_dev,
        sizes={name: size for name, size in result.figures.items() if name.split()[0] in ("size", "nonzeros")},
        updates=tuple(found.figures[_UPDATE] for found in result.history if _UPDATE in found.figures),
        seconds=result.seconds,
        environment_id=environment_id,
        data_published=task.data_published,
    )


_UPDATE = "update"


@dataclass(frozen=True)
class Watched(Algorithm):
    """Another algorithm, or none, with the mean absolute change of a parameter at an update (TKDE, figure 4, right)."""

    inner: Algorithm | None = None

    def start(self, task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> Running:
        """Begin both."""
        inner = Running() if self.inner is None else self.inner.start(task, model, optimizer, steps)
        return _Watching(inner, ParameterChange(model.parameters()))


class _Watching(Running):
    def __init__(self, inner: Running, change: ParameterChange) -> None:
        self.inner, self.change = inner, change

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
        return {**self.inner.figures(), _UPDATE: self.change.take()}

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.inner.load_state_dict(state)

    def close(self) -> None:
        self.inner.close()
