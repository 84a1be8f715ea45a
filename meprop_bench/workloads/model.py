"""Any model in training: a user's own (`tasks.own`), or that of a task, dense against sparsified.

    forward    loss of the batch, or of all batches of an update
    backward   `loss.backward()`, likewise
    update     the optimizer, with clipping where there is some
    step       the three together

Both sides are built from the same seed and see the same batches, which are in memory and on the device before anything
is timed: what loading them costs is not a matter of the method. The learning rate stays what it is.

The check is made in the model itself: each sparsified layer's gradients are compared with their definition, on the
input and dy that it has in a step on the first batch, and the first losses of both sides with each other. What was left
dense is named with its share of the backward pass's operations, since it bounds what a step can gain (Amdahl). Floors
are left out: those of the linear layers alone would not be the model's.

The workload `transformer` is this one with a model of ours, whose sizes are axes: the GPT of the task `language`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from meprop_bench.errors import UserError
from meprop_bench.nn import MePropLinear, convertible, kinds_and_k
from meprop_bench.nn.conversion import survey
from meprop_bench.nn.sparsified import Sparsified
from meprop_bench.results.schema import PASSED
from meprop_bench.tasks.build import seeded
from meprop_bench.tasks.mistakes import checked_loss
from meprop_bench.tasks.own import Own
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.tasks.task import Task
from meprop_bench.training import Step
from meprop_bench.workloads import LayerTensors, Prepared
from meprop_bench.workloads.case import Case, recipe_of
from meprop_bench.workloads.check import check_layer, losses_differ
from meprop_bench.workloads.compiled import compile_steps
from meprop_bench.workloads.dense_side import DenseSide
from meprop_bench.workloads.flops import COUNTED, Work
from meprop_bench.workloads.layer_calls import LayerCall, record, record_all
from meprop_bench.workloads.steps import PHASES, WALK, TrainingSide, own_batches, sides, tensors_of

__all__ = ["prepare", "setup"]

_SAME = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Relative difference of two first losses that is rounding; of coarser arithmetic `_COARSE`."""
_COARSE = 1e-2

_TENTH = 0.1


def setup(case: Case, how: DenseSide) -> Prepared:
    """Load the model, and build both sides."""
    recipe = recipe_of(case)
    return prepare(case, recipe.load(), recipe, how)


def prepare(case: Case, task: Task, recipe: Recipe, how: DenseSide) -> Prepared:
    """Return the two sides of a task's model in training, by the recipe and by its dense side."""
    dense, sparse = (_step(task, each, case, how) for each in (recipe.dense(), recipe))
    stream = _batches(task, case.seed, dense.accumulate)
    with seeded(case.seed):
        first_losses = [_first_loss(task, step, stream[0]) for step in (dense, sparse)]
        work = Work.of(dense, stream[0])
    names = {name for name, layer in sparse.model.named_modules() if isinstance(layer, Sparsified)}
    with seeded(case.seed):
        calls = record_all(sparse, stream, names)
    kernels = dict.fromkeys(_kernel(call) for call in calls.values())
    share = work.share(names & calls.keys())
    compiled = [step for step, whether in ((dense, how.compiled), (sparse, case.compile == "on")) if whether]
    differs = compile_steps(compiled, stream[0], case.seed)
    with seeded(case.seed):
        baseline, method = TrainingSide(dense, stream), TrainingSide(sparse, stream)
    for side in (baseline, method):
        if side.step in compiled:
            side.walk()
    return Prepared(
        **sides(baseline, method),
        phases=PHASES,
        check=lambda: differs() or _check(case, calls, names, first_losses),
        kernel="+".join(kernels) or "dense",
        k=case.k,
        layers=lambda: _layers(case, method, stream[0]),
        exchanged=lambda: tensors_of(sparse.model, case),
        data_published=task.data_published,
        convertible=kinds_and_k(sparse.model),
        converted=share,
        notes=(*task.notes, *_remarks(task, sparse, names, calls, work)),
    )


def _step(task: Task, recipe: Recipe, case: Case, how: DenseSide) -> Step:
    """Build one side's model, and return its step, with the dense side's optimizer if its gradients are dense."""
    model = task.build(case.seed)
    task.sparsify(model, recipe)
    step = task.step(model, recipe)
    return step if recipe.gradient == "rows" else replace(step, optimizer=how.made_of(step.optimizer, case))


def _batches(task: Task, seed: int, accumulate: int) -> list[Any]:
    """Return the batches of as many steps as a side walks through, or all that there are."""
    found: list[Any] = []
    for batch in islice(own_batches(task.epoch(seed, 0)), WALK):
        found += batch if accumulate > 1 else (batch,)
    if not found:
        raise UserError("the data make fewer batches than there are ranks: take a smaller --batch")
    return found


def _first_loss(task: Task, step: Step, batch: Any) -> Tensor:
    with seeded(0):  # dropout draws the same on both sides
        loss = checked_loss(task, step.model, batch) if isinstance(task, Own) else step.forward(batch)
    return loss.detach()


def _check(case: Case, calls: dict[str, LayerCall], names: set[str], losses: list[Tensor]) -> str:
    """Compare each sparsified layer's gradients with their definition, and the two sides' first losses."""
    if names and not calls:
        return f"none of the sparsified layers gets a gradient in a step: {', '.join(sorted(names))}"
    for name, call in calls.items():
        if (found := check_layer(call.layer, call.x, call.dy, seed=case.seed)) != PASSED:
            return f"{name}: {found}"
    calls.clear()  # as large as the activations of a step
    dense, sparse = (loss.double().item() for loss in losses)
    return losses_differ(dense, sparse, _SAME.get(losses[0].dtype, _COARSE)) or PASSED


def _kernel(call: LayerCall) -> str:
    """Return the name of the kernel that runs; of layers that are no linear ones, what was chosen."""
    return call.flat().kernel if isinstance(call.layer, MePropLinear) else str(call.layer.kernel)


def _layers(case: Case, side: TrainingSide, batch: Any) -> tuple[LayerTensors, ...]:
    """Run a step anew and give every linear layer's numbers; none where what is sparsified is of other kinds."""
    with seeded(case.seed):
        calls = record(side.step, batch, (nn.Linear,))
    side.restart()
    found = tuple(call.flat() for call in calls.values())
    return found if any(layer.request is not None for layer in found) else ()


def _remarks(task: Task, step: Step, names: set[str], calls: Mapping[str, LayerCall], work: Work) -> Iterator[str]:
    """Say what was sparsified, what was not, and how much of the backward pass that is."""

    def part(found: set[str]) -> str:
        share = work.share(found)
        if share is None:
            return ""
        return f" ({100 * share:.{0 if share > _TENTH else 1}f}% of the backward pass's operations)"

    kinds = (*convertible(), *COUNTED)
    found = {name for name, layer, _ in survey(step.model, kinds) if isinstance(layer, kinds)}
    left = sorted(found - names, key=lambda name: (-work.layers.get(name, 0.0), name))
    yield f"{len(names)} of {len(found | names)} layers are sparsified{part(names)}"
    if left:
        shown = ", ".join(f"{name}{part({name})}" for name in left[:3])
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        yield f"left dense: {shown}{more}"
    if never := sorted(names - calls.keys()):
        yield f"no gradient reaches {', '.join(never)} in the first batches: sparsified for nothing, and not checked"
    if not step.model.training:
        yield "the model is in evaluation mode, as it was built: call its train(), unless that is meant"
    if isinstance(task, Own) and (dtype := task.training.autocast or task.training.dtype) is not None:
        how = "autocast to" if task.training.autocast else "in"
        yield f"the model is trained {how} {str(dtype).removeprefix('torch.')}"
