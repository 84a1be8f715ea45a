"""`tune`: the search in Python, and what it returns.

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

from meprop_bench.api.keywords import as_keywords, in_python
from meprop_bench.durations import seconds_of
from meprop_bench.errors import ExitCode, one_of
from meprop_bench.measure.environment import machine_slug
from meprop_bench.progress import lines, state_before, watcher
from meprop_bench.report.markdown import escaped
from meprop_bench.results.axes import default_threads
from meprop_bench.results.store import Store
from meprop_bench.tasks import TASKS
from meprop_bench.tasks.build import check_name, is_model, named
from meprop_bench.tasks.recipe import Recipe, by_layer_text
from meprop_bench.tuning.arms import Arm
from meprop_bench.tuning.document import advice, as_json, doubt, markdown
from meprop_bench.tuning.run import Result, TuneRequest, folder_name

if TYPE_CHECKING:
    from meprop_bench.training import Training

__all__ = ["Tuned", "tune"]


@dataclass(frozen=True, repr=False)
class Tuned:
    """What came of a search."""

    result: Result

    @property
    def sentence(self) -> str:
        """The answer in words."""
        return as_keywords(self.result.sentence)

    @property
    def doubt(self) -> str:
        """How busy the machine was, and what that means for the answer; empty where it was not."""
        return doubt(self.result)

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
        return "\n\n".join(filter(None, (self.doubt, self.sentence)))

    def __repr__(self) -> str:
        return str(self)

    def _repr_markdown_(self) -> str:
        return "\n\n".join(filter(None, (escaped(self.doubt), markdown(self.result))))


def tune(
    model: str | Callable[[], Training],
    *,
    margin: float | None = None,
    budget: float | str | None = None,
    method: str | Iterable[str] = (),
    k: float | Iterable[float] = (),
    gradient: str | Iterable[str] = (),
    leave: str | Iterable[str] = (),
    k_by_layer: str | Mapping[str, float] | None = None,
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
    progress: bool | Callable[[str], None] = True,
) -> Tuned:
    """Find the method and k that pay for a model, or that none does; as `meprop-bench tune` does.

    Args:
        model: a function that returns a `Training`, its name (`my_model.py:build`), or that of a task.
        margin: loss of quality that is allowed, in the metric's unit; half a point of a percentage if nothing is said,
            of another metric half a percent of dense's figure.
        budget: wall-clock time of the whole search, in seconds or as `20m`, the default; with `budgets` as much as it
            needs.
        method, k, gradient: what to try; the usual ones if nothing is said.
        leave: layers that every arm leaves dense, patterns of their names; if nothing is said, that is searched, too.
        k_by_layer: k of some layers in every arm, by patterns of their names; likewise.
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
        progress: show a line for each thing that is done; or what is called with it.

    Raises:
        UserError: an argument that cannot be used, a model that cannot be trained, or nothing could be measured.

    """
    line = progress if callable(progress) else lines() if progress else lambda _: None
    with in_python(), named(model) as name:
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
        request = TuneRequest(
            recipe,
            margin,
            methods=_many(method),
            ks=_many(k),
            gradients=_many(gradient),
            leave=tuple(name for each in _many(leave) for name in each.split(";")),
            k_by_layer=by_layer_text(k_by_layer.items()) if isinstance(k_by_layer, Mapping) else k_by_layer,
            steps=steps,
            seeds=seeds,
            threads=threads,
            processes=processes,
            budgets=tuple(_seconds(each) for each in budgets),
            real_clock=real_clock,
        )
        root, machine = Path(out), machine_slug(str(recipe.options.get("device") or "cpu"))
        folder = folder_name(request)
        call = f"meprop_bench.tune({name!r})"
        with Store.begun(root, folder, machine, call, request.to_json(), resume=resume) as store:
            seconds = math.inf if budget is None and request.budgets else _seconds(budget or "20m")
            state_before(request.threads or default_threads(), line)  # what counts is stored when something is timed
            return Tuned(request.run(store, seconds, watcher(line)))


def _many(value: Any) -> tuple[Any, ...]:
    return (value,) if isinstance(value, str | int | float) else tuple(value)


def _seconds(value: float | str) -> float:
    return seconds_of(value if isinstance(value, str) else f"{value:g}")
