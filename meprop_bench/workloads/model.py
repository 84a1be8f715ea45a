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

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.flop_counter import FlopCounterMode

from meprop_bench.nn import MePropLinear, convertible, kinds_and_k
from meprop_bench.nn.conversion import survey
from meprop_bench.nn.sparsified import Sparsified
from meprop_bench.ops import resolve_k
from meprop_bench.ops.kernels import Request
from meprop_bench.results.schema import PASSED
from meprop_bench.tasks.build import seeded
from meprop_bench.tasks.own import Own
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.tasks.task import Task
from meprop_bench.training import Step
from meprop_bench.workloads import Layer, Prepared
from meprop_bench.workloads.baseline import Baseline
from meprop_bench.workloads.case import Case, recipe_of
from meprop_bench.workloads.check import check_layer
from meprop_bench.workloads.compiled import compile_steps
from meprop_bench.workloads.linear import kernel_that_runs
from meprop_bench.workloads.steps import PHASES, WALK, Side, sides

__all__ = ["prepare", "setup"]

_SAME = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Relative difference of two first losses that is rounding; of coarser arithmetic `_COARSE`."""
_COARSE = 1e-2

_TRANSPOSED, _WANTED = 4, 7
"""Among the arguments of a convolution's backward pass, behind its weight: whether it is a transposed one, and which of
dx, dw and db are wanted."""

_flops: Any = torch.utils.flop_counter  # which has no types
_OPERATORS = {
    torch.ops.aten.convolution_backward: lambda dy, x, w, *more, **_: (
        2 * math.prod(x if more[_TRANSPOSED] else dy) * math.prod(w[1:]) * sum(more[_WANTED][:2])
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: _flops.sdpa_flop_count(
        *shapes[:3]
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: (
        _flops.sdpa_backward_flop_count(*shapes[:4])
    ),
}
"""Operators of which torch (2.13) counts nothing, as if a transformer's linear layers were all there is, and one whose
groups it does not know."""

_COUNTED: tuple[type[nn.Module], ...] = (nn.modules.conv._ConvNd, nn.RNNBase)
"""Layers whose share of the operations is named where they are left dense, besides all that can be converted."""

_BATCHED = 3
"""Dimensions of a recurrent layer's input with several examples."""

_TENTH = 0.1

_BATCHES = 4
"""That are tried for a gradient to reach each sparsified layer: one batch may not need all of the model's experts."""


def setup(case: Case, how: Baseline) -> Prepared:
    """Load the model, and build both sides."""
    recipe = recipe_of(case)
    return prepare(case, recipe.load(), recipe, how)


def prepare(case: Case, task: Task, recipe: Recipe, how: Baseline) -> Prepared:
    """Return the two sides of a task's model in training, by the recipe and by its dense side."""
    dense, sparse = (_step(task, each, case, how) for each in (recipe.dense(), recipe))
    stream = _batches(task, case.seed, dense.accumulate)
    with seeded(case.seed):
        first_losses = [_first_loss(task, step, stream[0]) for step in (dense, sparse)]
        work = _Work.of(dense, stream[0])
    names = {name for name, layer in sparse.model.named_modules() if isinstance(layer, Sparsified)}
    with seeded(case.seed):
        calls = _record_all(sparse, stream, names)
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
        convertible=kinds_and_k(sparse.model),
        converted=share,
        notes=(*task.notes, *_remarks(task, sparse, names, calls, work)),
    )


def _step(task: Task, recipe: Recipe, case: Case, how: Baseline) -> Step:
    """Build one side's model, and return its step, with the dense side's optimizer if its gradients are dense."""
    model = task.build(case.seed)
    task.sparsify(model, recipe)
    step = task.step(model, recipe)
    return step if recipe.gradient == "rows" else replace(step, optimizer=how.made_of(step.optimizer, case))


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
    """One call of a layer in a step: what it was given, and the gradient that reached its output."""

    layer: Any
    x: Any
    dy: Tensor
    needs_dx: bool


_Arrival = Callable[[str, nn.Module, tuple[Any, ...], Tensor, Tensor], None]
"""Called in a backward pass with a layer's name, the layer, its arguments, its output and the gradient of that."""


@contextmanager
def _listening(model: nn.Module, kinds: tuple[type[nn.Module], ...], arrived: _Arrival) -> Iterator[list[str]]:
    """Call a function whenever a gradient reaches the output of a layer; give the names of those that ran, in order.

    A layer that is computed once more in the backward pass (activation checkpointing) gets its gradient once. Of a
    recurrent layer of which the final state alone is used, the gradient of the outputs is zeros.
    """
    ran: list[str] = []

    def listen(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        given = _by_position(layer, args, kwargs)
        whole, state = output if isinstance(layer, nn.RNNBase) else (output, ())
        whole = whole[0] if isinstance(layer, nn.MultiheadAttention) else whole  # and weights
        y = whole.data if isinstance(whole, PackedSequence) else whole
        ran.append(name)
        come = False

        def note(zero: bool, dy: Tensor) -> None:
            nonlocal come
            if not come or not zero:
                come = True
                arrived(name, layer, given, y, torch.zeros_like(y) if zero else dy.detach())

        for zero, tensors in ((False, [y]), (True, state if isinstance(state, tuple) else [state])):
            for tensor in tensors:
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    tensor.register_hook(partial(note, zero))  # type: ignore[no-untyped-call]

    with ExitStack() as stack:
        for name, layer in model.named_modules():
            if isinstance(layer, kinds):
                stack.callback(layer.register_forward_hook(partial(listen, name), with_kwargs=True).remove)
        yield ran


def _by_position(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return all arguments of a layer's `forward` in order, those by name with what is left out before them."""
    if not kwargs:
        return args
    bound = signature(layer.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.args


def _record(step: Step, batch: Any, kinds: tuple[type[nn.Module], ...] = (Sparsified,)) -> dict[str, _Call]:
    """Run a forward and a backward pass, and return name -> a call, of the layers that ran and got a gradient."""
    found: dict[str, _Call] = {}

    def arrived(name: str, layer: nn.Module, given: tuple[Any, ...], _: Tensor, dy: Tensor) -> None:
        found[name] = _Call(layer, given[0] if len(given) == 1 else given, dy, _requires_grad(given))

    with _listening(step.model, kinds, arrived) as ran:
        step.backward(step.forward(batch))
    step.optimizer.zero_grad(set_to_none=True)
    return {name: found[name] for name in dict.fromkeys(ran) if name in found}


def _record_all(step: Step, stream: list[Any], names: set[str]) -> dict[str, _Call]:
    """Return name -> a call of each sparsified layer that a gradient reaches in one of the first batches."""
    calls: dict[str, _Call] = {}
    for batch in stream[:_BATCHES]:
        calls = {**_record(step, batch), **calls}
        if names <= calls.keys():
            break
    return calls


def _requires_grad(given: tuple[Any, ...]) -> bool:
    x = given[0].data if isinstance(given[0], PackedSequence) else given[0]
    return bool(x.requires_grad)


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
    return _flat(call).kernel if isinstance(call.layer, MePropLinear) else str(call.layer.kernel)


def _flat(call: _Call) -> Layer:
    """Return what goes into a linear layer's backward pass, with one dimension for all examples."""
    layer, x, dy, needs_dx = call.layer, call.x.detach(), call.dy, call.needs_dx
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
    """Run a step anew and give every linear layer's numbers."""
    with seeded(case.seed):
        calls = _record(side.step, batch, (nn.Linear,))
    side.restart()
    return tuple(_flat(call) for call in calls.values())


@dataclass(frozen=True)
class _Work:
    """Floating-point operations of a backward pass on the dense side: all, and of each layer."""

    total: float
    layers: Mapping[str, float]

    @classmethod
    def of(cls, step: Step, batch: Any) -> _Work:
        """Count those of one batch: all of them as torch counts its operators, of layers those of their products.

        What is computed once more (activation checkpointing) is in the backward pass, but not a layer's: no method
        spares it. Of recurrent layers in one operator torch counts nothing. None at all are counted of a loss that its
        counter cannot go along with, such as one with a gradient in it.
        """
        layers: dict[str, float] = {}
        total = uncounted = 0.0

        def arrived(name: str, layer: nn.Module, given: tuple[Any, ...], y: Tensor, _: Tensor) -> None:
            nonlocal uncounted
            work = _backward_flops(layer, given, y)
            layers[name] = layers.get(name, 0.0) + work
            if isinstance(layer, nn.RNNBase) and layer in opaque:
                uncounted += work

        with ExitStack() as stack, suppress(Exception):  # the loss itself worked before
            counter = stack.enter_context(FlopCounterMode(display=False, custom_mapping=_OPERATORS))
            opaque = stack.enter_context(_opaque(step.model, counter))
            stack.enter_context(_listening(step.model, (*convertible(), *_COUNTED), arrived))
            loss = step.forward(batch)
            forward = counter.get_total_flops()
            step.backward(loss)
            total = counter.get_total_flops() - forward + uncounted
        step.optimizer.zero_grad(set_to_none=True)
        return cls(total, layers)

    def share(self, names: set[str]) -> float | None:
        """Return the part of the operations that these layers have; None where none were counted."""
        if not self.total:
            return None
        return min(1.0, sum(self.layers.get(name, 0.0) for name in names) / self.total)


@contextmanager
def _opaque(model: nn.Module, counter: FlopCounterMode) -> Iterator[set[nn.Module]]:
    """Collect the recurrent layers of whose forward pass torch counts nothing: they are one operator to it."""
    found: set[nn.Module] = set()
    before = 0

    def enter(*_: Any) -> None:
        nonlocal before
        before = counter.get_total_flops()

    def leave(layer: nn.Module, *_: Any) -> None:
        if counter.get_total_flops() == before:
            found.add(layer)

    with ExitStack() as stack:
        for layer in model.modules():
            if isinstance(layer, nn.RNNBase):
                stack.callback(layer.register_forward_pre_hook(enter).remove)
                stack.callback(layer.register_forward_hook(leave).remove)
        yield found


def _backward_flops(layer: Any, given: tuple[Any, ...], y: Tensor) -> float:
    """Return the operations of the products in a layer's backward pass: dw, and dx where that is needed."""
    x = given[0]
    if isinstance(layer, nn.RNNBase):
        return _recurrent(layer, x)
    # Not of `weight`, which a parametrized layer computes anew each time.
    trained = any(p.requires_grad for name, p in layer.named_parameters() if not name.endswith("bias"))
    products = trained + bool(x.requires_grad)
    if isinstance(layer, nn.MultiheadAttention):
        into = sum(
            x.numel() * (trained + x.requires_grad) for x in given[:3]
        )  # the projections of query, key and value
        return float(2 * layer.embed_dim * (into + y.numel() * (trained + 1)))
    if not isinstance(layer, nn.modules.conv._ConvNd):
        inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.nx  # transformers' Conv1D
        return float(2 * y.numel() * inputs * products)
    each, channels = (x, layer.out_channels) if layer.transposed else (y, layer.in_channels)
    return float(2 * each.numel() * (channels // layer.groups) * math.prod(layer.kernel_size) * products)


def _recurrent(layer: nn.RNNBase, x: Any) -> float:
    """Return the operations of a recurrent layer's backward pass, all of its layers and directions: both dw, dx where
    it is needed, and dh but of the initial state.
    """
    if isinstance(x, PackedSequence):
        rows, batch, needs_dx = len(x.data), int(x.batch_sizes[0]), x.data.requires_grad
    else:
        rows, needs_dx = math.prod(x.shape[:-1]), x.requires_grad
        batch = 1 if x.dim() < _BATCHED else x.shape[0 if layer.batch_first else 1]
    n = {"LSTM": 4, "GRU": 3}.get(layer.mode, 1) * layer.hidden_size
    total, directions = 0.0, 1 + layer.bidirectional
    for number in range(layer.num_layers):
        m = layer.hidden_size * directions if number else layer.input_size
        inputs = rows * m * (1 + (number > 0 or needs_dx))
        total += 2.0 * directions * n * (inputs + (2 * rows - batch) * layer.hidden_size)
    return total


def _remarks(task: Task, step: Step, names: set[str], calls: Mapping[str, _Call], work: _Work) -> Iterator[str]:
    """Say what was sparsified, what was not, and how much of the backward pass that is."""

    def part(found: set[str]) -> str:
        share = work.share(found)
        if share is None:
            return ""
        return f" ({100 * share:.{0 if share > _TENTH else 1}f}% of the backward pass's operations)"

    kinds = (*convertible(), *_COUNTED)
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
