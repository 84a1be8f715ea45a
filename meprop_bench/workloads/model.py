"""Any model in training: a user's own (`tasks.own`), or that of a task, dense against sparsified.

    forward    loss of the batch, or of all batches of an update
    backward   `loss.backward()`, likewise
    update     the optimizer, with clipping where there is some
    step       the three together

Both sides are built from the same seed and see the same batches, which are in memory and on the device before anything
is timed: what loading them costs is not a matter of the method. The learning rate stays what it is.

The check is made in the model itself: each sparsified layer's gradients are compared with their definition, on the
input and dy that it has in a step on the first batch, and the first losses of both sides with each other. What was left
dense is named with its share of the backward pass's operations, since it bounds what a step can gain (Amdahl).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.flop_counter import FlopCounterMode

from meprop_bench import optimizers
from meprop_bench.nn import MePropLinear
from meprop_bench.nn.conversion import survey
from meprop_bench.nn.sparsified import Sparsified
from meprop_bench.ops import resolve_k
from meprop_bench.ops.cost import recurrent_backward
from meprop_bench.ops.kernels import Request
from meprop_bench.results.schema import PASSED
from meprop_bench.tasks.build import seeded
from meprop_bench.tasks.own import Own
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.tasks.task import Task
from meprop_bench.training import Step
from meprop_bench.workloads import Layer, Prepared
from meprop_bench.workloads.baseline import Baseline, Unavailable
from meprop_bench.workloads.case import Case, recipe_of
from meprop_bench.workloads.check import check_layer
from meprop_bench.workloads.compiled import compile_steps
from meprop_bench.workloads.linear import kernel_that_runs
from meprop_bench.workloads.steps import PHASES, WALK, Side, sides

__all__ = ["prepare", "setup"]

_SAME = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Relative difference of two first losses that is rounding; of coarser arithmetic `_COARSE`."""
_COARSE = 1e-2

_flops: Any = torch.utils.flop_counter  # which has no types
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: _flops.sdpa_flop_count(
        *shapes[:3]
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: (
        _flops.sdpa_backward_flop_count(*shapes[:4])
    ),
}
"""Operators that torch (2.13) counts as 0: without them a transformer's linear layers would seem to be all there is."""


def setup(case: Case, how: Baseline) -> Prepared:
    """Load the model, and build both sides."""
    recipe = recipe_of(case)
    return prepare(case, recipe.load(), recipe, how)


def prepare(case: Case, task: Task, recipe: Recipe, how: Baseline) -> Prepared:
    """Return the two sides of a task's model in training, by the recipe and by its dense side."""
    dense, sparse = (_step(task, each, case.seed, fused=how.fused) for each in (recipe.dense(), recipe))
    stream = _batches(task, case.seed, dense.accumulate)
    with seeded(case.seed):
        first_losses = [_first_loss(task, step, stream[0]) for step in (dense, sparse)]
        work = _Work.of(dense, stream[0])
    with seeded(case.seed):
        calls = _record(sparse, stream[0])
    names = {name for name, layer in sparse.model.named_modules() if isinstance(layer, Sparsified)}
    kernels = dict.fromkeys(_kernel(call) for call in calls.values())
    share = work.share(names & calls.keys())
    compiled = [step for step, whether in ((dense, how.compiled), (sparse, case.compile == "on")) if whether]
    differs = compile_steps(compiled, stream[0], case.seed)
    with seeded(case.seed):
        baseline, method = Side(dense, stream), Side(sparse, stream)
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
        data_published=task.data_published,
        converted=share,
        notes=(*task.notes, *_remarks(task, sparse, names, calls, work)),
    )


def _step(task: Task, recipe: Recipe, seed: int, *, fused: bool) -> Step:
    """Build one side's model, and return its step, with a fused optimizer if gradients are such that it takes them."""
    model = task.build(seed)
    task.sparsify(model, recipe)
    step = task.step(model, recipe)
    if not fused or recipe.gradient == "rows":
        return step
    if (optimizer := optimizers.fused(step.optimizer)) is None:
        raise Unavailable(f"the optimizer of {task.name} cannot be fused, or is")
    return replace(step, optimizer=optimizer)


def _batches(task: Task, seed: int, accumulate: int) -> list[Any]:
    """Return the batches of as many steps as a side walks through, or all that there are."""
    found: list[Any] = []
    for batch in islice(task.epoch(seed, 0), WALK):
        found += batch if accumulate > 1 else (batch,)
    return found


def _first_loss(task: Task, step: Step, batch: Any) -> Tensor:
    with seeded(0):  # dropout draws the same on both sides
        loss = task.checked_loss(step.model, batch) if isinstance(task, Own) else step.forward(batch)
    return loss.detach()


@dataclass(frozen=True, eq=False)
class _Call:
    """A layer's first call in a step: what it was given, and the gradient that reached its output."""

    layer: Any
    x: Any
    dy: Tensor


def _record(step: Step, batch: Any, kinds: tuple[type[nn.Module], ...] = (Sparsified,)) -> dict[str, _Call]:
    """Run a forward and a backward pass, and return name -> first call, of the layers that ran and got a gradient."""
    inputs: dict[str, Any] = {}
    gradients: dict[str, Tensor] = {}

    def listen(name: str, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        y = output[0] if isinstance(output, tuple) else output
        y = y.data if isinstance(y, PackedSequence) else y
        if name not in inputs and args and isinstance(y, Tensor) and y.requires_grad:
            inputs[name] = args[0] if len(args) == 1 else args
            y.register_hook(partial(_note, gradients, name))  # type: ignore[no-untyped-call]

    layers = {name: module for name, module in step.model.named_modules() if isinstance(module, kinds)}
    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(partial(listen, name)).remove)
        step.backward(step.forward(batch))
    step.optimizer.zero_grad(set_to_none=True)
    return {name: _Call(layers[name], x, gradients[name]) for name, x in inputs.items() if name in gradients}


def _note(found: dict[str, Tensor], name: str, dy: Tensor) -> None:
    """Store the gradient, and, as a hook has to, put nothing in its place."""
    found.setdefault(name, dy.detach())


def _check(case: Case, calls: dict[str, _Call], names: set[str], losses: list[Tensor]) -> str:
    """Compare each sparsified layer's gradients with their definition, and the two sides' first losses."""
    if names and not calls:
        return f"none of the sparsified layers gets a gradient in a step: {', '.join(sorted(names))}"
    for name, call in calls.items():
        if (found := check_layer(call.layer, call.x, call.dy, seed=case.seed)) != PASSED:
            return f"{name}: {found}"
    calls.clear()  # as large as the activations of a step
    dense, sparse = (loss.double().item() for loss in losses)
    if not abs(dense - sparse) <= _SAME.get(losses[0].dtype, _COARSE) * abs(dense):
        return f"the first losses differ: {dense:.7g} and {sparse:.7g}"
    return PASSED


def _kernel(call: _Call) -> str:
    """Return the name of the kernel that runs; of layers that are no linear ones, what was chosen."""
    return _flat(call, needs_dx=True).kernel if isinstance(call.layer, MePropLinear) else str(call.layer.kernel)


def _flat(call: _Call, *, needs_dx: bool) -> Layer:
    """Return what goes into a linear layer's backward pass, with one dimension for all examples."""
    layer, x, dy = call.layer, call.x.detach(), call.dy
    dy, x = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1]).to(dy.dtype)
    w = layer.weight.detach().to(dy.dtype)
    b = torch.zeros_like(w[:, 0]) if layer.bias is None else layer.bias.detach().to(dy.dtype)
    request, kernel = None, "dense"
    if isinstance(layer, MePropLinear):
        k = resolve_k(layer.k, layer.out_features)
        wanted = Request(k, layer.selection, layer.sparse, needs_dx, layer.weight.requires_grad, layer.bias is not None)
        kernel = kernel_that_runs(layer.kernel, dy, x, w, wanted)
        request = None if kernel == "dense" else wanted
    return Layer(dy=dy, x=x, w=w, b=b, need_dx=needs_dx, request=request, kernel=kernel)


def _layers(case: Case, side: Side, batch: Any) -> tuple[Layer, ...]:
    """Run a step anew and give every linear layer's numbers; the first one in it needs no dx."""
    with seeded(case.seed):
        calls = _record(side.step, batch, (nn.Linear,))
    side.restart()
    return tuple(_flat(call, needs_dx=number > 0) for number, call in enumerate(calls.values()))


@dataclass(frozen=True)
class _Work:
    """Floating-point operations of a backward pass on the dense side: all, and of each layer."""

    total: float
    layers: Mapping[str, float]

    @classmethod
    def of(cls, step: Step, batch: Any) -> _Work:
        """Count those of one batch, as torch counts its operators; of recurrent layers as `ops.cost` does."""
        sizes: dict[str, Tensor] = {}

        def listen(name: str, _: nn.Module, args: tuple[Any, ...], __: object) -> None:
            sizes.setdefault(name, args[0])

        layers = dict(step.model.named_modules())
        recurrent = {name: layer for name, layer in layers.items() if isinstance(layer, nn.RNNBase)}
        with ExitStack() as stack:
            for name, layer in recurrent.items():
                stack.callback(layer.register_forward_hook(partial(listen, name)).remove)
            counter = stack.enter_context(FlopCounterMode(display=False, custom_mapping=_ATTENTION))
            loss = step.forward(batch)
            forward = _counts(counter)
            step.backward(loss)
            both = _counts(counter)
        step.optimizer.zero_grad(set_to_none=True)
        root = type(step.model).__name__
        work = {name: both.get(f"{root}.{name}", 0) - forward.get(f"{root}.{name}", 0) for name in layers if name}
        total = both.get("Global", 0) - forward.get("Global", 0)
        for name, layer in recurrent.items():
            if not work[name] and isinstance(sizes.get(name), Tensor):
                work[name] = _recurrent(layer, sizes[name])
                total += work[name]
        return cls(total, work)

    def share(self, names: set[str]) -> float | None:
        """Return the part of the operations that these layers have; None where none were counted."""
        if not self.total:
            return None
        return min(1.0, sum(self.layers.get(name, 0.0) for name in names) / self.total)


def _counts(counter: FlopCounterMode) -> dict[str, float]:
    return {name: float(sum(counts.values())) for name, counts in counter.get_flop_counts().items()}


def _recurrent(layer: nn.RNNBase, x: Tensor) -> float:
    """Return the operations of a recurrent layer's backward pass, all of its layers and directions."""
    steps, batch = (x.shape[1], x.shape[0]) if layer.batch_first else (x.shape[0], x.shape[1])
    gates = {"LSTM": 4, "GRU": 3}.get(layer.mode, 1)
    total, directions = 0.0, 1 + layer.bidirectional
    for number in range(layer.num_layers):
        inputs = layer.input_size if number == 0 else layer.hidden_size * directions
        sizes = (steps, batch, inputs, layer.hidden_size, gates, x.element_size())
        total += directions * recurrent_backward(*sizes).flops
    return total


def _remarks(task: Task, step: Step, names: set[str], calls: Mapping[str, _Call], work: _Work) -> Iterator[str]:
    """Say what was sparsified, what was not, and how much of the backward pass that is."""

    def part(found: set[str]) -> str:
        share = work.share(found)
        return "" if share is None else f" ({100 * share:.2g}% of the backward pass's operations)"

    kinds = tuple(kind for kind in (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase))
    found = {name for name, layer, _ in survey(step.model, kinds) if isinstance(layer, kinds)}
    left = sorted(found - names, key=lambda name: -work.layers.get(name, 0.0))
    yield f"{len(names)} of {len(found | names)} layers are sparsified{part(names)}"
    if left:
        shown = ", ".join(f"{name}{part({name})}" for name in left[:3])
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        yield f"dense are {shown}{more}"
    if never := sorted(names - calls.keys()):
        yield f"no gradient reaches {', '.join(never)}: sparsified for nothing"
    if isinstance(task, Own) and (dtype := task.training.autocast or task.training.dtype) is not None:
        how = "autocast to" if task.training.autocast else "in"
        yield f"the model is trained {how} {str(dtype).removeprefix('torch.')}"
