"""An arm of a table: one recipe, trained from every seed of its scale, under an id that stored trainings have.

    meprop, unified, random   the task's hidden layers, sparsified
    mesimp                    top k, and removal of neurons: 5 epochs with, 5 without, as in the paper
    meact                     each example's own neurons, after `masked_after` epochs
    alternating               parts of a subject that is trained so, an epoch each

The best model of meSimp is chosen after its first simplification, that of meAct after its masks are fixed: before that
there is nothing of either in the model. Of a run too short for a stage of ten epochs half simplifies.

Nothing here imports torch before something is trained.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from meprop_bench.methods import METHODS
from meprop_bench.paper.published import PublishedSetting
from meprop_bench.paper.records import ArmEvaluation, TrainedArm
from meprop_bench.tasks import TASKS, task_options
from meprop_bench.tasks.algorithm import UPDATE
from meprop_bench.tasks.recipe import Recipe

if TYPE_CHECKING:
    from meprop_bench.tasks.run import Progress

__all__ = ["PaperArm", "train_arm"]

_STAGE = 5
"""Epochs of half a stage of meSimp (TKDE, section 3.1)."""


@dataclass(frozen=True)
class PaperArm:
    """One configuration to train: the setting of a row, with what the scale changed.

    `data` are "mnist", "digits", …; `examples` how many of the training examples, None for all; `watched` says whether
    the change of the parameters is measured at every update, which takes time.
    """

    task: str
    data: str
    setting: PublishedSetting
    epochs: int
    examples: int | None = None
    watched: bool = False

    @property
    def arm_id(self) -> str:
        """12 hexadecimal digits; the same for the same training."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def trained_alike(self) -> tuple[str, ...]:
        """The ids of the arms whose trainings are this one's, too: its own, and that of the same under watch."""
        return tuple(dict.fromkeys((self.arm_id, replace(self, watched=True).arm_id)))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, without what is not set: a field that is added later leaves stored ids alone."""
        found = {name: value for name, value in asdict(self).items() if value is not None}
        return {**found, "setting": {name: value for name, value in found["setting"].items() if value is not None}}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> PaperArm:
        """Build from a JSON object."""
        return cls(**{**record, "setting": PublishedSetting(**record["setting"])})

    @property
    def label(self) -> str:
        """What tells it from others, on one line."""
        setting = self.setting
        known = {"h": setting.hidden, "k": setting.k, "layers": setting.layers, "p": setting.rate}
        known |= {"share": setting.share, "e": setting.masked_after, "B": setting.batch}
        words = [f"{name}={value:g}" for name, value in known.items() if value is not None]
        return " ".join([self.task, setting.method or "", *words, setting.optimizer or ""]).strip()

    def recipe(self, device: str = "cpu") -> Recipe:
        """Return what is trained, as the setting says; `UserError` if that makes no sense."""
        setting = self.setting
        method, best_after, details, algorithm = setting.method or "dense", 0, dict[str, Any](), None
        if method == "mesimp":
            best_after = min(_STAGE, max(1, self.epochs // 2))
            details = {"rate": setting.rate, "simplify": best_after, "normal": best_after}
        elif method == "meact":
            best_after = setting.masked_after or 0
            details = {"share": setting.share, "pretrain": best_after}
        elif method != "dense" and TASKS[self.task].alternated:
            algorithm = "alternating"
        options = {name: value for name in task_options(self.task) if (value := getattr(setting, name, None))}
        return Recipe(
            self.task,
            options | ({} if self.examples is None else {"examples": self.examples}) | {"device": device},
            method,
            None if METHODS[method].selection is None else setting.k,
            optimizer=setting.optimizer or "adam",
            epochs=self.epochs,
            best_after=best_after if best_after < self.epochs else 0,
            algorithm=algorithm,
            details=details,
            watched=self.watched,
        )


def train_arm(
    arm: PaperArm,
    seed: int,
    *,
    device: str = "cpu",
    environment_id: str = "unknown",
    progress: Callable[[Progress], None] | None = None,
) -> TrainedArm:
    """Train, and return what is stored; `UserError` without the task or its data, or if the setting does not fit."""
    from meprop_bench.tasks.run import run

    recipe = arm.recipe(device)
    task = recipe.load()
    result = run(task, recipe, seed, progress=progress)
    return TrainedArm(
        arm_id=arm.arm_id,
        seed=seed,
        evaluations=tuple(
            ArmEvaluation(found.epoch, found.loss if math.isfinite(found.loss) else -1.0, found.dev)
            for found in result.history
        ),
        best_epoch=result.iterations,
        best_dev=result.best_dev,
        test=result.test_at_best,
        final_dev=result.final_dev,
        sizes={name: size for name, size in result.figures.items() if name.split()[0] in ("size", "nonzeros")},
        updates=tuple(found.figures[UPDATE] for found in result.history if UPDATE in found.figures),
        seconds=result.seconds,
        steps=result.steps,
        environment_id=environment_id,
        data_published=task.data_published,
    )
