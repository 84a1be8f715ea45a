"""The papers' perceptron in training, in - h - ... - h - 10 on real images: where sparsified back propagation has to
pay in the end.

One step, phase by phase, on changing batches:

    forward          loss of the batch
    backward         `loss.backward()`: the papers' "overall backprop time"
    update           the optimizer; the method leaves it as it is, so it bounds what a step can gain (Amdahl)
    step             the three together
    linear-backward  the linear layers' own backward passes: the papers' "backprop time"

The last one is timed apart: for each linear layer the input and dy of a real step are recorded, and then the layers'
gradients are computed one after the other from them, as the workload `linear` does (the first layer needs no dx). All
other phases are the real training step. The hidden layers are sparsified, the output layer is dense.

The axis `fused-step` computes the step of one side, or of both, without autograd (`nn.FusedMLP`): the method's alone
says what a user gains who takes it in place of torch's modules; both, what of that is the method's.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import nn

from meprop_bench.data import Batch, ImageData, batches, load_images
from meprop_bench.models.mlp import MLP
from meprop_bench.nn import MePropLinear, convert
from meprop_bench.ops import resolve_k
from meprop_bench.ops.cost import Cost, expected_rows, linear_backward, linear_forward, update
from meprop_bench.results.schema import PASSED
from meprop_bench.training import Step, fused_step
from meprop_bench.workloads import Prepared
from meprop_bench.workloads.case import Case
from meprop_bench.workloads.check import check_layer, losses_differ
from meprop_bench.workloads.compiled import compile_steps
from meprop_bench.workloads.dense_side import DenseSide
from meprop_bench.workloads.layer_calls import LayerCall, record
from meprop_bench.workloads.linear import timed_backward
from meprop_bench.workloads.same_step import difference, numbers
from meprop_bench.workloads.steps import PHASES, WALK, TrainingSide, own_batches, sides, tensors_of

__all__ = ["build_model", "setup"]

_PHASES = (*PHASES, "linear-backward")

_NOT_APART = {
    "compiled": "linear-backward is not timed: in a compiled model the layers' backward passes are not apart",
    "fused step": "linear-backward is not timed: in a fused step the layers' backward passes are not apart",
}
"""How a side's steps are computed -> why its layers are not timed."""


def build_model(case: Case, data: ImageData, *, sparsified: bool, seed: int) -> nn.Module:
    """Return one side's model; the initial weights depend on the seed alone."""
    model = MLP(data.features, case.out_features, data.classes, layers=case.layers, seed=seed)
    if sparsified:
        convert(model, k=case.k, selection=case.selection, sparse=case.gradient == "rows", kernel=case.kernel)
    return model.to(case.device)


def setup(case: Case, how: DenseSide) -> Prepared:
    """Load the data, build both sides and bring them to where they start from."""
    assert case.data is not None
    data = load_images(case.data).to(case.device)
    stream = list(own_batches(batches(data.train, case.batch, seed=case.seed, steps=WALK * case.world_size)))
    ways = {False: how.way, True: _way(case)}
    whole = [_NOT_APART[way] for way in ways.values() if way in _NOT_APART]
    baseline, method = (
        _Side(
            case,
            build_model(case, data, sparsified=sparsified, seed=case.seed),
            stream,
            how,
            sparsified=sparsified,
            way=ways[sparsified],
            apart=not whole,
        )
        for sparsified in (False, True)
    )
    layers = tuple(call.flat() for call in method.calls)
    apart = {} if whole else {"linear-backward": (baseline.linear_backward, method.linear_backward)}
    return Prepared(
        **sides(baseline, method, **apart),
        phases=PHASES if whole else _PHASES,
        check=lambda: _check(case, baseline, method),
        kernel="+".join(dict.fromkeys(layer.kernel for layer in layers if layer.request)) or "dense",
        k=case.k,
        costs=_costs(case, data),
        layers=lambda: layers,
        exchanged=lambda: tensors_of(method.step.model, case),
        data_published=data.published,
        notes=(*data.notes, *whole[-1:]),
    )


def _way(case: Case) -> str:
    """Return how the method's steps are computed."""
    return "fused step" if case.fused_step != "none" else "compiled" if case.compile == "on" else "eager"


class _Side(TrainingSide):
    """One side in training, with its linear layers' own backward passes beside."""

    def __init__(
        self,
        case: Case,
        model: nn.Module,
        stream: list[Batch],
        how: DenseSide,
        *,
        sparsified: bool,
        way: str,
        apart: bool,
    ) -> None:
        step = Step(model, how.optimizer_of(case, model.parameters(), sparsified=sparsified))
        self.first_loss = step.forward(stream[0]).item()
        self.calls = _recorded(step, stream[0])
        self._again = [_again(call) for call in self.calls]
        self.differs: Callable[[], str | None]
        # Not before, as what is recorded is each layer by itself.
        if way == "fused step":
            modules, step = step, fused_step(model, step.optimizer)
            self.differs = partial(_as_modules, step, modules, stream[0], case.seed)
        else:
            self.differs = compile_steps([step] if way == "compiled" else [], stream[0], case.seed)
        super().__init__(step, stream, {"linear-backward": self.linear_backward} if apart else {})

    def linear_backward(self) -> None:
        """Compute the gradients of every linear layer from its recorded input and dy."""
        for backward in self._again:
            backward()


def _as_modules(step: Step, modules: Step, batch: Batch, seed: int) -> str | None:
    """Compare a fused step with the modules that it is of; one line that says what differs, or None."""
    got, true = (numbers(each, batch, seed) for each in (step, modules))
    return difference(got, true, "the fused step and its modules")


def _recorded(step: Step, batch: Batch) -> list[LayerCall]:
    """Run one step; return what reached the linear layers, with copies of these, as training moves the originals."""
    calls = record(step, batch, (nn.Linear,)).values()
    return [
        replace(call, layer=copy.deepcopy(call.layer), x=call.x.detach().requires_grad_(call.needs_dx))
        for call in calls
    ]


def _again(call: LayerCall) -> Callable[[], object]:
    """Return what computes a recorded layer's gradients, again and again."""
    inputs = (*((call.x,) if call.needs_dx else ()), *call.layer.parameters())
    return timed_backward(call.layer(call.x), inputs, call.dy)


def _check(case: Case, baseline: _Side, method: _Side) -> str:
    """Compare each sparsified layer's gradients with their definition, the two sides' forward passes, and each side
    that is compiled, or a fused step, with its own modules, run eagerly.
    """
    if reason := baseline.differs() or method.differs():
        return reason
    for index, call in enumerate(call for call in method.calls if isinstance(call.layer, MePropLinear)):
        if (found := check_layer(call.layer, call.x, call.dy, seed=case.seed)) != PASSED:
            return f"layer {index}: {found}"
    return losses_differ(baseline.first_loss, method.first_loss) or PASSED


def _costs(case: Case, data: ImageData) -> dict[str, tuple[Cost, Cost]]:
    """Floors of the linear layers alone; what else a step does (ReLU, loss) is small beside them and left out."""
    widths = [data.features, *[case.out_features] * case.layers, data.classes]
    shapes = list(itertools.pairwise(widths))
    forward = sum((linear_forward(case.batch, m, n, 4) for m, n in shapes), Cost(0, 0))
    dense, sparse = (_layers_backward(case, shapes, method) for method in ("dense", case.method))
    dense_update, sparse_update = (
        update(case.optimizer, _moved(case, shapes, gradient), 4) for gradient in ("dense", case.gradient)
    )
    return {
        "forward": (forward, forward),
        "backward": (dense, sparse),
        "update": (dense_update, sparse_update),
        "step": (forward + dense + dense_update, forward + sparse + sparse_update),
        "linear-backward": (dense, sparse),
    }


def _moved(case: Case, shapes: list[tuple[int, int]], gradient: str) -> float:
    """Return how many parameters have a gradient: with rows, those of the hidden layers' selected rows, and biases."""
    total = 0.0
    for index, (m, n) in enumerate(shapes):
        hidden = index < len(shapes) - 1
        total += n + m * (_rows(case, n) if hidden and gradient == "rows" else n)
    return total


def _rows(case: Case, n: int) -> float:
    """Return how many of n rows of a weight are selected."""
    k = min(n, resolve_k(case.k, n))
    return float(n) if k == n else k if "unified" in case.method else expected_rows(case.batch, n, k)


def _layers_backward(case: Case, shapes: list[tuple[int, int]], method: str) -> Cost:
    total = Cost(0, 0)
    for index, (m, n) in enumerate(shapes):
        output = index == len(shapes) - 1
        how = ("dense", None, "dense") if output or method == "dense" else (method, case.k, case.gradient)
        total += linear_backward(case.batch, m, n, 4, *how)
        if index == 0:  # no dx: neither its products, nor reading W, nor writing it
            k, rows = (n, float(n)) if how[1] is None else (min(n, resolve_k(case.k, n)), _rows(case, n))
            total = Cost(total.flops - 2 * case.batch * k * m, total.bytes - round(4 * m * (case.batch + rows)))
    return total
