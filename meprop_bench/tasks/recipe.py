"""A training in words: what the command line says and a worker process is told, before torch or any data are loaded.

recipe = Recipe("mnist", {"batch": 10}, method="meprop", k=30, algorithm="mesimp", details={"rate": 0.1})
run(recipe.load(), recipe.settings(seed=1))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Self

from meprop_bench.errors import UserError
from meprop_bench.tasks import load_task

if TYPE_CHECKING:
    from meprop_bench.tasks.run import RunSettings
    from meprop_bench.tasks.task import Task

__all__ = ["ALGORITHMS", "Recipe"]

ALGORITHMS = {"mesimp": "Simplification", "meact": "Activation", "schedule": "ScheduledK", "alternating": "Alternation"}
"""Name -> class in `tasks.algorithm`."""


@dataclass(frozen=True)
class Recipe:
    """What to train and how, as text and numbers.

    Attributes:
        task: a name in `TASKS`.
        options: of the task.
        method: a name in `task.METHODS`; it and the next three are a `Method`.
        k: None for dense.
        gradient: "dense" or "rows".
        kernel: "auto", or a name.
        optimizer: this and the next three are of `RunSettings`.
        epochs: passes over the data.
        evaluations: in an epoch.
        best_after: epochs before the first evaluation that may be the best.
        algorithm: a key of `ALGORITHMS`, or None.
        details: fields of the algorithm.

    """

    task: str
    options: Mapping[str, Any] = field(default_factory=dict)
    method: str = "dense"
    k: int | float | None = None
    gradient: str = "dense"
    kernel: str = "auto"
    optimizer: str = "adam"
    epochs: int = 20
    evaluations: int = 1
    best_after: int = 0
    algorithm: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Task:
        """Load the task; raises `UserError` as `load_task` does."""
        return load_task(self.task, **self.options)

    def settings(self, seed: int) -> RunSettings:
        """Return the settings for a seed.

        Raises:
            UserError: one of them is not allowed, or is of another algorithm.

        """
        from meprop_bench.tasks.run import RunSettings
        from meprop_bench.tasks.task import Method

        return RunSettings(
            method=Method(self.method, self.k, self.gradient, self.kernel),
            optimizer=self.optimizer,
            epochs=self.epochs,
            seed=seed,
            evaluations=self.evaluations,
            best_after=self.best_after,
            algorithm=self._algorithm(),
        )

    def _algorithm(self) -> Any:
        from meprop_bench.tasks import algorithm as algorithms

        if self.algorithm is None:
            if self.details:
                raise UserError(f"{next(iter(self.details)).replace('_', '-')} needs an algorithm: name it")
            return None
        if self.algorithm not in ALGORITHMS:
            raise UserError(f"there is no algorithm {self.algorithm!r}: choose from {', '.join(ALGORITHMS)}")
        kind = getattr(algorithms, ALGORITHMS[self.algorithm])
        known = [spec.name for spec in fields(kind)]
        for name in self.details:
            if name not in known:
                told = ", ".join(known) or "no options"
                raise UserError(f"the algorithm {self.algorithm} has no {name.replace('_', '-')}: it has {told}")
        try:
            return kind(**self.details)
        except TypeError:
            missing = next(name for name in known if name not in self.details)
            raise UserError(f"the algorithm {self.algorithm} needs {missing}") from None

    @property
    def label(self) -> str:
        """What tells it apart on one line."""
        words = [self.task, self.method, *([] if self.k is None else [f"k={self.k:g}"]), self.algorithm or ""]
        return " ".join(word for word in words if word)

    def dense(self) -> Self:
        """Return the baseline: the same without method and algorithm."""
        return replace(
            self, method="dense", k=None, gradient="dense", kernel="auto", algorithm=None, details={}, best_after=0
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return asdict(self)
