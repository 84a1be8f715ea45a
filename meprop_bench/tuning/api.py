"""The search in Python.

found = tune("my_model.py:build", margin=0.5, budget="20m")
print(found)                    the sentence; in a notebook the whole answer is shown
found.arm                       what to take, or None
print(found.code)               how
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meprop_bench.errors import ExitCode, one_of
from meprop_bench.measure.environment import machine_slug
from meprop_bench.results.store import Store
from meprop_bench.tasks import TASKS
from meprop_bench.tasks.build import check_name, is_model, pickled
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.tuning.arms import Arm
from meprop_bench.tuning.budget import seconds_of
from meprop_bench.tuning.document import advice, as_json, markdown
from meprop_bench.tuning.run import Request, Result, Watcher, folder_name

if TYPE_CHECKING:
    from meprop_bench.training import Training

__all__ = ["Tuned", "tune"]


@dataclass(frozen=True)
class Tuned:
    """What came of a search."""

    result: Result

    @property
    def sentence(self) -> str:
        """The answer in words."""
        return self.result.sentence

    @property
    def decided(self) -> bool:
        """Whether there is one: an arm to take, or to stay dense; or from when on an arm is ahead, or that none is."""
        return self.result.code == ExitCode.OK

    @property
    def arm(self) -> Arm | None:
        """What to take; None where that is dense, or nothing was decided."""
        return None if self.result.answer is None else self.result.answer.decision.arm

    @property
    def code(self) -> str | None:
        """The lines that make a model train like that."""
        return next(iter(advice(self.result)), None)

    @property
    def folder(self) -> Path:
        """Where everything that was measured and trained is."""
        return self.result.folder

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of it."""
        return as_json(self.result)

    def __str__(self) -> str:
        return self.sentence

    def _repr_markdown_(self) -> str:
        return markdown(self.result)


def tune(
    model: str | Callable[[], Training],
    *,
    margin: float | None = None,
    budget: float | str | None = None,
    method: str | Iterable[str] = (),
    k: float | Iterable[float] = (),
    gradient: str | Iterable[str] = (),
    steps: int | None = None,
    seeds: int | None = None,
    budgets: Iterable[float | str] = (),
    options: Mapping[str, Any] | None = None,
    optimizer: str | None = None,
    schedule: str | None = None,
    threads: int | None = None,
    processes: int | None = None,
    real_clock: bool = False,
    out: str | Path = "reports",
    resume: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Tuned:
    """Find the method and k that pay for a model, or that none does; as `meprop-bench tune` does.

    Args:
        model: a function that returns a `Training`, its name (`my_model.py:build`), or that of a task.
        margin: loss of quality that is allowed, in the metric's unit; half a point of a percentage if nothing is said,
            of another metric half a percent of dense's figure.
        budget: wall-clock time of the whole search, in seconds or as `20m`, the default; with `budgets` as much as it
            needs.
        method, k, gradient: what to try; the usual ones if nothing is said.
        steps: of a training; as many as the budget allows if nothing is said.
        seeds: that it is judged by.
        budgets: seconds of training, or `30s`; then quality over these is compared in place of searching.
        options: of a task.
        optimizer: by name; of a model of your own its own, of a task Adam.
        schedule: of the learning rate; of a model of your own its own, of a task "cosine".
        threads: of a timed step; the physical cores if nothing is said.
        processes: trainings that run at the same time.
        real_clock: run the choice and its opponent by the real clock, too.
        out: folder of the results folders.
        resume: go on with the latest search of this kind.
        progress: called with a line for each thing that is done.

    Raises:
        UserError: an argument that cannot be used, a model that cannot be trained, or nothing could be measured.

    """
    name = model if isinstance(model, str) else pickled(model)
    own = is_model(name)
    if own:
        check_name(name)
    else:
        one_of("task", name, tuple(TASKS))
    recipe = Recipe(
        name,
        dict(options or {}),
        optimizer=optimizer or ("own" if own else "adam"),
        schedule=schedule or ("constant" if own else "cosine"),
        steps=steps,
    )
    request = Request(
        recipe,
        margin,
        methods=_many(method),
        ks=_many(k),
        gradients=_many(gradient),
        steps=steps,
        seeds=seeds,
        threads=threads,
        processes=processes,
        budgets=tuple(_seconds(each) for each in budgets),
        real_clock=real_clock,
    )
    root, machine = Path(out), machine_slug(str(recipe.options.get("device") or "cpu"))
    folder = folder_name(request)
    store = Store.find_resumable(root, folder, machine, request.to_json()) if resume else None
    with store or Store.create(root, folder, machine, f"meprop_bench.tune({name!r})", request.to_json()) as store:
        seconds = math.inf if budget is None and request.budgets else _seconds(budget or "20m")
        return Tuned(request.run(store, seconds, Watcher(progress)))


def _many(value: Any) -> tuple[Any, ...]:
    return (value,) if isinstance(value, str | int | float) else tuple(value)


def _seconds(value: float | str) -> float:
    return seconds_of(value if isinstance(value, str) else f"{value:g}")
