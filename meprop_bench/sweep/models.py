"""Users' models, examined before anything is measured: in a process of its own, as all of the user's code is run.

    examine    {cases}   ->  evaluates, metric, steps of each model; or an error of one line that names the mistake

Each is built twice, its batches are read twice, its loss is computed, and it takes a training step in each way in which
it is going to be measured. So a mistake costs seconds, and not the cases before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from meprop_bench.errors import UserError
from meprop_bench.measure.worker import WorkerError
from meprop_bench.sweep.worker import Session, start_for
from meprop_bench.tasks.build import check_name, failed, is_model, out_of_memory, seeded, source_of
from meprop_bench.workloads.case import Case, recipe_of

__all__ = ["check_models", "examine"]

_LONGEST_S = 600.0
"""Seconds after which a model that is not examined counts as hung."""

_examined: dict[tuple[object, ...], Mapping[str, Any]] = {}


def check_models(cases: Sequence[Case]) -> dict[str, Mapping[str, Any]]:
    """Examine the users' models among the cases, and return what is known of each.

    Raises:
        UserError: what is wrong with one, in one line.

    """
    found = {}
    for model in dict.fromkeys(case.model for case in cases if case.model is not None and is_model(case.model)):
        check_name(model)
        own = [case for case in cases if case.model == model]
        ways = list({_way(case): case for case in own}.values())
        key = (model, source_of(model), *map(_way, ways))
        if key not in _examined:
            worker = start_for(own[0])
            try:
                answer = worker.request({"do": "examine", "cases": [case.to_json() for case in ways]}, _LONGEST_S)
            except WorkerError as died:
                raise UserError(f"{model} cannot be examined: {died.sentence('its process')}") from None
            finally:
                worker.close()
            if answer.get("error") is not None:
                raise UserError(str(answer["error"]))
            _examined[key] = answer
        found[model] = _examined[key]
    return found


def _way(case: Case) -> tuple[object, ...]:
    """Return what decides whether a step can be taken at all: whatever k and seed."""
    return (case.method, case.gradient, case.optimizer, case.kernel, case.leave, case.device)


def examine(session: Session, cases: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Answer a worker's request: look for mistakes in a model."""
    import torch

    from meprop_bench.tasks.own import Own

    first, *_ = made = [Case.from_json(case) for case in cases]
    assert first.model is not None
    torch.set_num_threads(first.threads)
    task = Own(first.model, device=first.device)
    found = task.examine()
    for recipe in [way for case in made for way in (recipe_of(case).dense(), recipe_of(case))]:
        model = task.build(0)
        task.sparsify(model, recipe)
        try:
            with seeded(0):
                task.step(model, recipe, steps=1)(next(iter(task.epoch(0, 0))))
        except Exception as error:
            if isinstance(error, UserError) or out_of_memory(error):
                raise
            if recipe.gradient == "rows" and "sparse" in str(error).lower():
                raise UserError(
                    f"{task.name} cannot be trained with gradients as rows, as its optimizer or clipping takes none"
                    f" ({str(error).splitlines()[0]}): use torch.optim.SGD or Adagrad, meprop_bench.optim.RowAdam, or"
                    " --gradient dense"
                ) from error
            raise failed(task.name, f"failed in a training step by {recipe.method}", error) from error
    return found
