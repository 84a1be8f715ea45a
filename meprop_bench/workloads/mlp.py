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

Both sides start from the same weights and see the same batches. Training changes the figures (neurons die, moments
become denormal numbers, which are slow), so a side goes back, outside the timed region, to where it started after
each `_WALK` steps. What was timed is thus the beginning of training, on both sides alike.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from meprop_bench.data import Batch, ImageData, batches, load_images
from meprop_bench.measure.clock import Clock
from meprop_bench.models.mlp import MLP
from meprop_bench.nn import MePropLinear, convert
from meprop_bench.ops import resolve_k
from meprop_bench.ops.cost import (
    Cost,
    adagrad_update,
    adam_update,
    expected_rows,
    linear_backward,
    linear_forward,
    sgd_update,
)
from meprop_bench.ops.kernels import Request
from meprop_bench.training import Step, make_optimizer
from meprop_bench.workloads.case import Case
from meprop_bench.workloads.check import check_linear
from meprop_bench.workloads.linear import kernel_that_runs, timed_backward
from meprop_bench.workloads.prepared import PASSED, After, Layer, Prepared

__all__ = ["build_model", "setup"]

_WALK = 32
"""Steps (and batches) of a side before it starts again: no favourite batch, and all of them fit in memory."""

_WARM_STEPS = 8
"""Steps before the state that a side starts from: the optimizer's moments are no longer zero."""

_PHASES = ("forward", "backward", "update", "step", "linear-backward")

_UPDATES = {"adam": adam_update, "adagrad": adagrad_update, "sgd": sgd_update}


def build_model(case: Case, data: ImageData, *, sparsified: bool, seed: int) -> nn.Module:
    """Return one side's model; the initial weights depend on the seed alone."""
    model = MLP(data.features, case.out_features, data.classes, layers=case.layers, seed=seed)
    if sparsified:
        convert(model, k=case.k, selection=case.selection, sparse=case.gradient == "rows", kernel=case.kernel)
    return model.to(case.device)


def setup(case: Case) -> Prepared:
    """Load the data, build both sides and bring them to where they start from."""
    assert case.data is not None
    data = load_images(case.data).to(case.device)
    stream = list(batches(data.train, case.batch, seed=case.seed, steps=_WALK))
    baseline, method = (
        _Side(case, build_model(case, data, sparsified=s, seed=case.seed), stream) for s in (False, True)
    )
    layers = tuple(_layers(case, method))
    return Prepared(
        phases=_PHASES,
        baseline=baseline,
        method=method,
        check=lambda: _check(case, baseline, method),
        kernel="+".join(dict.fromkeys(layer.kernel for layer in layers if layer.request)) or "dense",
        k=case.k,
        costs=_costs(case, data),
        memory={
            "step": (baseline.whole_step, method.whole_step),
            "linear-backward": (baseline.linear_backward, method.linear_backward),
            "forward": (baseline.first_forward, method.first_forward),
            "backward": (
                After(baseline.first_forward, baseline.first_backward),
                After(method.first_forward, method.first_backward),
            ),
            "update": (After(baseline.first_pass, baseline.step.update), After(method.first_pass, method.step.update)),
        },
        steady={"step": (baseline.next_step, method.next_step)},
        layers=layers,
    )


class _Layer:
    """A copy of a linear layer (training moves the original) with input and dy of a real step, and its graph, kept."""

    def __init__(self, module: nn.Linear, x: Tensor, dy: Tensor, first: bool) -> None:
        self.module, self.dy = copy.deepcopy(module), dy
        self.x = x.detach().requires_grad_(not first)
        inputs = (*(() if first else (self.x,)), *self.module.parameters())
        self.backward = timed_backward(self.module(self.x), inputs, dy)


class _Side:
    """One side in training: a subject that times its own phases."""

    def __init__(self, case: Case, model: nn.Module, stream: list[Batch]) -> None:
        self._batches = stream
        self._at = 0
        self._loss: Tensor | None = None
        optimizer = make_optimizer(case.optimizer, model.parameters(), gradient=case.gradient)
        self.step = Step(model, optimizer)
        self.first_loss = self.step.forward(stream[0]).item()
        self.layers = _record(self.step, stream[0])
        for batch in stream[:_WARM_STEPS]:
            self.step(batch)
        self._start = [tensor.clone() for tensor in self._state()]

    def __call__(self, loops: int, clock: Clock) -> Mapping[str, float]:
        """Time `loops` steps, phase by phase, and as many backward passes of the linear layers."""
        phases = {"forward": self._forward, "backward": self._backward, "update": self._update}
        totals = dict.fromkeys(phases, 0.0)
        done = 0
        while done < loops:
            count = min(loops - done, _WALK)
            if self._at + count > _WALK:
                self._restart()
            for name, seconds in clock.time_phases(phases, count).items():
                totals[name] += seconds * count / loops
            done += count
        step = sum(totals.values())
        return {**totals, "step": step, "linear-backward": clock.time(self.linear_backward, loops)}

    def linear_backward(self) -> None:
        """Compute the gradients of every linear layer from its recorded input and dy."""
        for layer in self.layers:
            layer.backward()

    def whole_step(self) -> None:
        """Take one training step on the first batch."""
        self.step(self._batches[0])

    def first_forward(self) -> Tensor:
        """Compute the loss of the first batch, without gradients from before."""
        self.step.optimizer.zero_grad(set_to_none=True)
        self._loss = self.step.forward(self._batches[0])
        return self._loss

    def first_backward(self) -> None:
        """Compute all gradients of the first batch, after `first_forward`."""
        self._backward()

    def first_pass(self) -> None:
        """Compute loss and gradients of the first batch."""
        self.first_forward()
        self.first_backward()

    def next_step(self) -> None:
        """Take one training step and go on to the next batch; every `_WALK` steps, start again first."""
        if self._at >= _WALK:
            self._restart()
        self.step(self._batches[self._at])
        self._at += 1

    def _forward(self) -> None:
        self._loss = self.step.forward(self._batches[self._at])

    def _backward(self) -> None:
        assert self._loss is not None
        self.step.backward(self._loss)

    def _update(self) -> None:
        self.step.update()
        self._at += 1

    def _state(self) -> Iterator[Tensor]:
        yield from self.step.model.parameters()
        for state in self.step.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))

    @torch.no_grad()
    def _restart(self) -> None:
        self._at = 0
        self.step.optimizer.zero_grad(set_to_none=True)
        for tensor, start in zip(self._state(), self._start, strict=True):
            tensor.copy_(start)


def _record(step: Step, batch: Batch) -> list[_Layer]:
    """Run one step and keep each linear layer's input and the gradient that reached its output."""
    seen: list[tuple[nn.Linear, Tensor, Tensor]] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Linear)
        output.retain_grad()
        seen.append((module, inputs[0], output))

    hooks = [module.register_forward_hook(keep) for module in step.model.modules() if isinstance(module, nn.Linear)]
    step.backward(step.forward(batch))
    for hook in hooks:
        hook.remove()
    step.optimizer.zero_grad(set_to_none=True)
    return [
        _Layer(module, x, y.grad, first=index == 0) for index, (module, x, y) in enumerate(seen) if y.grad is not None
    ]


def _sparsified(side: _Side) -> Iterator[tuple[_Layer, MePropLinear]]:
    for layer in side.layers:
        if isinstance(layer.module, MePropLinear):
            yield layer, layer.module


def _check(case: Case, baseline: _Side, method: _Side) -> str:
    """Compare each sparsified layer's gradients with their definition, and the two sides' forward passes."""
    for index, (layer, module) in enumerate(_sparsified(method)):
        found = check_linear(
            layer.x.detach().requires_grad_(),
            module.weight,
            module.bias,
            layer.dy,
            k=resolve_k(module.k, module.out_features),
            selection=module.selection,
            sparse=module.sparse,
            kernel=module.kernel,
            seed=case.seed,
        )
        if found != PASSED:
            return f"layer {index}: {found}"
    difference = abs(baseline.first_loss - method.first_loss)
    # The same weights and batch: only the order of additions may differ.
    return PASSED if difference <= 1e-5 * abs(baseline.first_loss) else f"the first losses differ by {difference:.1e}"


def _layers(case: Case, side: _Side) -> Iterator[Layer]:
    """Give every linear layer's numbers, with the kernel that runs where it is sparsified."""
    for index, layer in enumerate(side.layers):
        module, request, kernel = layer.module, None, "dense"
        x, w, b = (tensor.detach() for tensor in (layer.x, module.weight, module.bias))
        if isinstance(module, MePropLinear):
            k = resolve_k(module.k, module.out_features)
            wanted = Request(k, module.selection, module.sparse, index > 0, True, True)
            kernel = kernel_that_runs(case.kernel, layer.dy, x, w, wanted)
            request = None if kernel == "dense" else wanted
        yield Layer(dy=layer.dy, x=x, w=w, b=b, need_dx=index > 0, request=request, kernel=kernel)


def _costs(case: Case, data: ImageData) -> dict[str, tuple[Cost, Cost]]:
    """Floors of the linear layers alone; what else a step does (ReLU, loss) is small beside them and left out."""
    widths = [data.features, *[case.out_features] * case.layers, data.classes]
    shapes = list(itertools.pairwise(widths))
    forward = sum((linear_forward(case.batch, m, n, 4) for m, n in shapes), Cost(0, 0))
    dense, sparse = (_layers_backward(case, shapes, method) for method in ("dense", case.method))
    dense_update, sparse_update = (
        _UPDATES[case.optimizer](_moved(case, shapes, gradient), 4) for gradient in ("dense", case.gradient)
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
