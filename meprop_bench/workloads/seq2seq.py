"""The papers' translator in training: dense, against encoder and decoder sparsified alternately (TKDE, section 3.3.3).

    forward    loss of a batch of sentences
    backward   the LSTMs are sparsified; embedding, attention and output are not
    update, step

The paper sparsifies the encoder in one epoch and the decoder in the next; here they alternate from batch to batch,
which takes the same time on average. Sentences are random words, all of one length: what a step costs does not depend
on what they say. The vocabulary is `_WORDS` on both sides, so the output layer is a large part of a step, as it is in
translation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from meprop_bench.algorithms.alternating import Alternating
from meprop_bench.algorithms.schedule import Constant, KScheduler
from meprop_bench.models.translator import Translator
from meprop_bench.nn import convert
from meprop_bench.results.schema import PASSED
from meprop_bench.training import Step
from meprop_bench.workloads import Prepared
from meprop_bench.workloads.case import Case
from meprop_bench.workloads.check import check_layer, losses_differ
from meprop_bench.workloads.compiled import as_eager_step, function
from meprop_bench.workloads.dense_side import DenseSide
from meprop_bench.workloads.steps import PHASES, WALK, TrainingSide, sides

__all__ = ["setup"]

_WORDS = 8000
_SPECIAL = 3
"""Padding, begin and end of a sentence: tokens 0, 1 and 2."""

_Batch = tuple[Tensor, Tensor, Tensor, int]
"""Source, lengths, target, and the number of the batch."""


@dataclass(frozen=True, eq=False)
class _Translation(Step):
    """A step of the translator; with an alternation, part by part."""

    alternating: Alternating | None
    loss: Callable[..., Tensor]  # of the model, which may be compiled

    def forward(self, batch: Any) -> Tensor:
        source, lengths, target, number = batch
        if self.alternating is not None:
            self.alternating.start_epoch(number)
        return self.loss(source, lengths, target)


def setup(case: Case, how: DenseSide) -> Prepared:
    """Draw the sentences and build both sides."""
    if case.out_features % 2:
        raise ValueError(f"hidden must be even, half of it for each direction of the encoder, not {case.out_features}")
    stream = _sentences(case)
    baseline = _side(case, stream, how, sparsified=False, compiled=how.compiled)
    method = _side(case, stream, how, sparsified=True, compiled=case.compile == "on")
    return Prepared(
        **sides(baseline, method),
        phases=PHASES,
        check=lambda: _check(case, how, stream, baseline, method),
        kernel=case.kernel,
        k=case.k,
        notes=("encoder and decoder are sparsified alternately, so at most half of their backward passes is saved",),
    )


def _model(case: Case, *, sparsified: bool) -> Translator:
    size = {"embedding": case.out_features, "hidden": case.out_features, "layers": case.layers}
    model = Translator(_WORDS, _WORDS, **size, seed=case.seed)  # type: ignore[arg-type]
    if sparsified:
        convert(model, k=case.k, selection=case.selection, kinds=(nn.LSTM,))
    return model.to(case.device)


def _side(case: Case, stream: list[_Batch], how: DenseSide, *, sparsified: bool, compiled: bool) -> TrainingSide:
    model, alternating = _model(case, sparsified=sparsified), None
    if sparsified:
        k = Constant(case.k)
        alternating = Alternating({"encoder": KScheduler(model.encoder, k), "decoder": KScheduler(model.decoder, k)})
    optimizer = how.optimizer_of(case, model.parameters(), sparsified=sparsified)
    loss = function(model.loss) if compiled else model.loss
    return TrainingSide(_Translation(model, optimizer, alternating, loss), stream)


def _sentences(case: Case) -> list[_Batch]:
    assert case.length is not None
    generator = torch.Generator().manual_seed(case.seed)
    lengths = torch.full((case.batch,), case.length, dtype=torch.int64)
    edges = [torch.full((case.batch, 1), token, device=case.device) for token in (1, 2)]

    def words() -> Tensor:
        return torch.randint(_SPECIAL, _WORDS, (case.batch, case.length), generator=generator).to(case.device)  # type: ignore[arg-type]

    return [(words(), lengths, torch.cat([edges[0], words(), edges[1]], dim=1), number) for number in range(WALK)]


def _check(case: Case, how: DenseSide, stream: list[_Batch], baseline: TrainingSide, method: TrainingSide) -> str:
    """Compare each LSTM's gradients with their definition, the two sides' first losses, and each side that is compiled
    with itself.
    """
    for side, compiled in ((baseline, how.compiled), (method, case.compile == "on")):
        if compiled and (reason := as_eager_step(side.step, stream[0], case.seed)):
            return reason
    fresh = [_model(case, sparsified=sparsified) for sparsified in (False, True)]
    losses = [model.loss(*stream[0][:3]).item() for model in fresh]
    if reason := losses_differ(*losses):
        return reason
    generator = torch.Generator().manual_seed(case.seed)
    for name, layer in fresh[1].named_modules():
        if isinstance(layer, nn.LSTM):
            x = torch.randn(2, case.length or 1, layer.input_size, generator=generator).to(case.device)
            dy = torch.randn(2, case.length or 1, layer.hidden_size * (1 + layer.bidirectional), generator=generator)
            if (found := check_layer(layer, x, dy.to(case.device), seed=case.seed)) != PASSED:
                return f"{name}: {found}"
    return PASSED
