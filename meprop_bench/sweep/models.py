"""Users' models, examined before anything is measured: in a process of its own, as all of the user's code is run.

    examine    {recipes, threads, differs}   ->  evaluates, metric, differs; or an error of one line that names the
                                                 mistake

Each is built twice, the batches of both are read twice, their losses are computed, and they take a training step in
each way that is going to be measured. So a mistake costs seconds, and not the cases before it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from meprop_bench.errors import UserError, out_of_memory
from meprop_bench.measure.allocator import environment_of
from meprop_bench.measure.worker import WorkerError, WorkerLike
from meprop_bench.sweep.waiting import Waiting
from meprop_bench.sweep.worker import WorkerSession, start_worker
from meprop_bench.tasks.build import check_name, failed, is_model, seeded, source_of, unchanged
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.workloads.case import Case, recipe_of

if TYPE_CHECKING:
    from torch import nn

    from meprop_bench.tasks.task import Task

__all__ = ["check_models", "check_recipes", "examine"]

_LONGEST_S = 600.0
"""Seconds after which a model that is not examined counts as hung."""

_STEPS = 1000
"""That a schedule is fitted to: a part of fewer, such as a warm-up, may be none."""

_SHOWN = 100
"""Characters of what torch says."""

_examined: dict[str, Mapping[str, Any]] = {}


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def check_models(cases: Sequence[Case], *, evaluates: bool = False, say: Callable[[str], object] | None = None) -> None:
    """Examine the users' models among the cases, in every way in which they are to be timed.

    What is waited for is said on standard error, unless there is another `say`.

    Raises:
        UserError: what is wrong with one, in one line.

    """
    own = [case for case in cases if case.model is not None and is_model(case.model)]
    for allocator, threads in dict.fromkeys((case.allocator, case.threads) for case in own):
        together = [case for case in own if (case.allocator, case.threads) == (allocator, threads)]
        ways = {_way(case): case for case in together}
        recipes = [recipe_of(case) for case in ways.values()]
        check_recipes(recipes, threads=threads, allocator=allocator, evaluates=evaluates, differs=evaluates, say=say)


def check_recipes(
    recipes: Sequence[Recipe],
    *,
    threads: int,
    allocator: str,
    evaluates: bool = False,
    differs: bool = False,
    say: Callable[[str], object] | None = None,
    bounded: Callable[[WorkerLike], WorkerLike] = lambda worker: worker,
) -> None:
    """Examine the users' models of recipes, with so many threads; `say` as above.

    `bounded` makes of the process one that has less time than others.

    Raises:
        UserError: what is wrong with one, in one line; also that it has no `evaluate` and is to have one, or is the
            same from every seed and is to differ.

    """
    for name in dict.fromkeys(recipe.task for recipe in recipes if is_model(recipe.task)):
        check_name(name)
        own = [recipe.to_json() for recipe in recipes if recipe.task == name]
        wanted = {"recipes": own, "threads": threads, "differs": differs}
        key = json.dumps([source_of(name), wanted])
        if key not in _examined:
            worker = bounded(start_worker(environment_of(allocator, threads)))
            try:
                with Waiting(say or _say) as waiting:
                    waiting.on(f"examining {name}, which is built twice and takes a step in each way")
                    answer = worker.request({"do": "examine", **wanted}, _LONGEST_S)
            except WorkerError as died:
                raise UserError(f"{name} cannot be examined: {died.sentence('its process')}") from None
            finally:
                worker.close()
            if answer.get("error") is not None:
                exhausted = answer.get("kind") == "out-of-memory"
                doing = f"{name} cannot be examined: out of memory: " if exhausted else ""
                raise UserError(f"{doing}{answer['error']}")
            _examined[key] = answer
        if evaluates and not _examined[key]["evaluates"]:
            raise UserError(f"{name} does not say how good a model is: add evaluate= to its Training")
        if differs and not _examined[key]["differs"]:
            raise UserError(
                f"{name} is the same training from every seed, so that several say no more than one: leave"
                " torch.manual_seed and the like out of it, or shuffle its batches"
            )


def _way(case: Case) -> str:
    """Return what decides whether a step can be taken: not k of all layers, and not the seed."""
    layers = [case.leave, case.k_by_layer]
    return json.dumps([case.model, case.method, case.gradient, case.optimizer, case.kernel, case.device, *layers])


def examine(
    session: WorkerSession, recipes: Sequence[Mapping[str, Any]], threads: int, *, differs: bool = False
) -> Mapping[str, Any]:
    """Answer a worker's request: look for mistakes in a model that is to be trained by these recipes.

    `differs` is whether it is to be found out, by another build, if a seed makes any difference.
    """
    import torch

    from meprop_bench.tasks import mistakes
    from meprop_bench.tasks.own import Own

    made = [Recipe(**recipe) for recipe in recipes]
    torch.set_num_threads(threads)
    task = Own(made[0].task, **made[0].options)
    with unchanged(task.name, "trained"):
        found, models = mistakes.examine(task)
        for recipe in (made[0].dense(), *made):
            _try_step(task, recipe, models.pop() if models else task.build(0))
        return {**found, "differs": mistakes.differs(task) if differs else None}


def _try_step(task: Task, recipe: Recipe, model: nn.Module) -> None:
    """Take a training step."""
    task.sparsify(model, recipe)
    step = task.step(model, recipe, steps=_STEPS)
    try:
        with seeded(0):
            step(next(iter(task.epoch(0, 0))))
    except Exception as error:
        if isinstance(error, UserError) or out_of_memory(error):
            raise
        if recipe.gradient == "rows" and "sparse" in str(error).lower():
            raise UserError(
                f"{task.name} cannot be trained with gradients as rows, as its optimizer takes none"
                f" ({str(error).splitlines()[0][:_SHOWN]}): use RowSGD, RowAdagrad or RowAdam of"
                " meprop_bench.optim, or --gradient dense"
            ) from error
        raise failed(task.name, f"failed in a training step by {recipe.method}", error) from error
