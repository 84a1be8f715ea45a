"""The papers' perceptron trained by meAct, each example through its own neurons, against ordinary training.

    forward   loss; a hidden layer's output is 0 where a neuron is not active for an example
    backward, update, step

The masks are what `_PASSES` passes over the examples gave (99 of 500 neurons for an example in the paper). In place of
k a row has the average number of neurons that an example trains. Its kernel is "native" where the active neurons alone
are computed, forward and backward, and "masks" where all are and then masked, which saves nothing.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meprop_bench.algorithms.meact import MeAct
from meprop_bench.data import ImageData, load_images
from meprop_bench.results.schema import PASSED
from meprop_bench.training import Step
from meprop_bench.workloads import Prepared
from meprop_bench.workloads.case import Case
from meprop_bench.workloads.check import compare
from meprop_bench.workloads.dense_side import DenseSide
from meprop_bench.workloads.mlp import build_model
from meprop_bench.workloads.steps import PHASES, WALK, TrainingSide, sides

__all__ = ["setup"]

_PASSES = 5

_Batch = tuple[Tensor, Tensor, Tensor]
"""Images, labels, and the examples' numbers."""


class _Dense(Step):
    def forward(self, batch: Any) -> Tensor:
        images, labels, _ = batch
        return F.cross_entropy(self.model(images), labels)


@dataclass(frozen=True, eq=False)
class _MeActStep(Step):
    """A step through the active neurons of each example; through all of them, and recorded, until these are fixed."""

    act: MeAct

    def forward(self, batch: Any) -> Tensor:
        images, labels, ids = batch
        with self.act.batch(ids):
            return F.cross_entropy(self.model(images), labels)


def setup(case: Case, how: DenseSide) -> Prepared:
    """Load the data, train both sides a little, and fix the masks of one."""
    assert case.data is not None
    assert case.share is not None
    data = load_images(case.data).to(case.device)
    stream, examples = _stream(case, data)
    plain, masked = (build_model(case, data, sparsified=False, seed=case.seed) for _ in range(2))
    act = MeAct(masked, examples)
    optimizers = [how.optimizer_of(case, each.parameters(), sparsified=each is masked) for each in (plain, masked)]
    dense, active = _Dense(plain, optimizers[0]), _MeActStep(masked, optimizers[1], act)
    for batch in itertools.islice(itertools.cycle(stream), _PASSES * len(stream)):
        dense(batch)
        active(batch)
    act.fix(case.share)
    baseline, method = TrainingSide(dense, stream), TrainingSide(active, stream)
    size = act.average_size
    return Prepared(
        **sides(baseline, method),
        phases=PHASES,
        check=lambda: _check(active, stream[0]),
        kernel="+".join(dict.fromkeys(act.kernel(name, stream[0][2]) for name in act.sizes())),
        k=size,
        data_published=data.published,
        notes=(
            *data.notes,
            f"k is the average number of neurons, of {case.out_features} in a layer, that one of {examples} examples "
            f"trains after {_PASSES} passes",
        ),
    )


def _stream(case: Case, data: ImageData) -> tuple[list[_Batch], int]:
    """Return the batches and how many examples they hold: as many as are walked through, or all that there are."""
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(case.seed))[: WALK * case.batch]
    numbers = torch.arange(WALK * case.batch).remainder(len(order))
    order, numbers = order.to(data.train.images.device), numbers.to(data.train.images.device)
    return [
        (data.train.images[order[ids]], data.train.labels[order[ids]], ids) for ids in torch.split(numbers, case.batch)
    ], len(order)


def _check(step: _MeActStep, batch: _Batch) -> str:
    """Compare all gradients with those of Algorithm 3 written out: y ⊙ active, layer by layer."""
    images, labels, ids = batch
    layers = [(name, layer) for name, layer in step.model.named_modules() if isinstance(layer, nn.Linear)]
    parameters = dict(step.model.named_parameters())
    got = torch.autograd.grad(step.forward(batch), list(parameters.values()))
    y = images
    for name, layer in layers[:-1]:
        y = F.relu(F.linear(y, layer.weight, layer.bias) * step.act.active(name, ids))
    loss = F.cross_entropy(layers[-1][1](y), labels)
    expected = torch.autograd.grad(loss, list(parameters.values()))
    return compare(list(got), list(expected), tuple(parameters)) or PASSED
