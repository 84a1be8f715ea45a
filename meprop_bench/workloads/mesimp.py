"""The papers' perceptron, simplified by meSimp while it was trained, against the one that was not.

What meSimp removes is gone, so that not the backward pass alone gets cheaper:

    decode    the forward pass of a trained model, without a graph: what its users pay        (not part of a step)
    forward, backward, update, step          training goes on, by top k, in the small model

The set-up trains both sides for `_STEPS` steps over the same few batches, the one by top k and with a prune each
`_PRUNE` of them. How many neurons are left then depends on data, k and rate, and is in the row's notes; whether
accuracy holds is a matter of longer runs than this.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from meprop_bench.algorithms.mesimp import MeSimp
from meprop_bench.data import Batch, ImageData, batches, load_images
from meprop_bench.nn import MePropLinear
from meprop_bench.ops.cost import Cost, linear_forward
from meprop_bench.optimizers import make_optimizer
from meprop_bench.results.schema import PASSED
from meprop_bench.training import Step
from meprop_bench.workloads import Prepared
from meprop_bench.workloads.case import Case
from meprop_bench.workloads.dense_side import DenseSide
from meprop_bench.workloads.mlp import build_model
from meprop_bench.workloads.steps import PHASES, WALK, TrainingSide, sides

__all__ = ["setup"]

_STEPS = 10 * WALK
_PRUNE = 2 * WALK


def setup(case: Case, how: DenseSide) -> Prepared:
    """Load the data, train both sides, simplify one of them."""
    assert case.data is not None
    data = load_images(case.data).to(case.device)
    stream = list(batches(data.train, case.batch, seed=case.seed, steps=WALK))
    dense, simplified = (_trained(case, data, stream, simplify=simplify) for simplify in (False, True))
    baseline, method = (_side(case, model, stream, how) for model in (dense, simplified))
    widths = [_widths(model) for model in (dense, simplified)]
    forward = tuple(_forward(case.batch, each) for each in widths)
    decode = (_decoding(dense, stream[0]), _decoding(simplified, stream[0]))
    hidden = [", ".join(map(str, each[1:-1])) for each in widths]
    return Prepared(
        **sides(baseline, method, decode=decode),
        phases=(*PHASES, "decode"),
        check=lambda: _check(case, data, stream),
        kernel="+".join(dict.fromkeys(m.kernel for m in simplified.modules() if isinstance(m, MePropLinear))),
        k=case.k,
        costs={"forward": (forward[0], forward[1]), "decode": (forward[0], forward[1])},
        data_published=data.published,
        notes=(*data.notes, f"{_STEPS} steps with meSimp left {hidden[1]} of {hidden[0]} neurons in the hidden layers"),
    )


def _trained(case: Case, data: ImageData, stream: list[Batch], *, simplify: bool) -> nn.Module:
    model = build_model(case, data, sparsified=simplify, seed=case.seed)
    optimizer = make_optimizer(case.optimizer, model.parameters())
    step = Step(model, optimizer)
    if not simplify:
        for batch in itertools.islice(itertools.cycle(stream), _STEPS):
            step(batch)
        return model
    assert case.rate is not None
    with MeSimp(model, optimizer, interval=_PRUNE * case.batch, rate=case.rate) as simp:
        for batch in itertools.islice(itertools.cycle(stream), _STEPS):
            step(batch)
            simp.after_step(case.batch)
    return model


def _side(case: Case, model: nn.Module, stream: list[Batch], how: DenseSide) -> TrainingSide:
    """Return a model in training, with an optimizer that starts anew, as in the middle of a cycle."""
    decode = _decoding(model, stream[0])
    optimizer = how.optimizer_of(case, model.parameters(), sparsified=False)  # both have dense gradients
    return TrainingSide(Step(model, optimizer), stream, {"decode": decode})


def _decoding(model: nn.Module, batch: Batch) -> Callable[[], Tensor]:
    """Return the forward pass of a copy that is trained no more."""
    frozen, images = copy.deepcopy(model).eval(), batch[0]

    def decode() -> Tensor:
        with torch.inference_mode():
            return frozen(images)  # type: ignore[no-any-return]

    return decode


def _widths(model: nn.Module) -> list[int]:
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return [layers[0].in_features, *(layer.out_features for layer in layers)]


def _forward(batch: int, widths: list[int]) -> Cost:
    return sum((linear_forward(batch, m, n, 4) for m, n in itertools.pairwise(widths)), Cost(0, 0))


def _check(case: Case, data: ImageData, stream: list[Batch]) -> str:
    """Compare removal with masking, prune by prune, in float64, where rounding cannot choose other neurons."""
    assert case.rate is not None
    removed, masked = (build_model(case, data, sparsified=True, seed=case.seed).double() for _ in range(2))
    exact = [(images.double(), labels) for images, labels in stream]
    sides = []
    for model, mode in ((removed, "remove"), (masked, "mask")):
        optimizer = make_optimizer(case.optimizer, model.parameters())
        simp = MeSimp(model, optimizer, interval=4 * case.batch, rate=case.rate, mode=mode)
        sides.append((Step(model, optimizer), simp))
    for batch in exact[:12]:
        losses = []
        for step, simp in sides:
            losses.append(step(batch).item())
            simp.after_step(case.batch)
        if not abs(losses[0] - losses[1]) <= 1e-9 * abs(losses[1]):
            return f"removal and masking differ: losses {losses[0]:.9g} and {losses[1]:.9g}"
    sizes = [simp.sizes for _, simp in sides]
    return PASSED if sizes[0] == sizes[1] else f"removal and masking left other neurons: {sizes[0]} and {sizes[1]}"
