"""The workloads that train a model, besides the mlp: what they set up, what their checks notice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from meprop_bench.algorithms.meact import MeAct
from meprop_bench.measure.clock import WallClock
from meprop_bench.models.translator import Translator
from meprop_bench.nn import MePropLSTM
from meprop_bench.ops.kernels import compiled
from meprop_bench.workloads import Case, mesimp, setup
from meprop_bench.workloads.steps import TrainingSide

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

_PERCEPTRON = {"data": "digits", "in_features": 64, "out_features": 24, "batch": 8, "threads": 1}
_PHASES = {"forward", "backward", "update", "step"}


def _case(workload: str, **changes: Any) -> Case:
    common = {"k": 4, "method": workload} if workload.startswith("me") else {"k": 4}
    base = {"batch": 2, "out_features": 8, "length": 4, "threads": 1} if workload == "seq2seq" else _PERCEPTRON
    return Case(workload=workload, **{**base, **common, **changes})


@pytest.mark.parametrize(
    ("workload", "changes", "more"),
    [
        ("mesimp", {}, {"decode"}),
        ("mesimp", {"optimizer": "sgd", "layers": 1, "rate": 0.3}, {"decode"}),
        ("mesimp", {"optimizer": "adagrad"}, {"decode"}),
        ("meact", {}, set()),
        ("meact", {"share": 0.05, "optimizer": "adagrad", "batch": 50}, set()),
        ("seq2seq", {}, set()),
        ("seq2seq", {"method": "unified", "layers": 1, "optimizer": "sgd"}, set()),
    ],
)
def test_it_passes_its_check_and_times_its_phases(workload: str, changes: dict[str, Any], more: set[str]) -> None:
    prepared = setup(_case(workload, **changes))
    assert prepared.check() == "passed"
    for side in (prepared.baseline, prepared.method):
        assert set(side(2, WallClock())) == set(prepared.phases) == _PHASES | more
    assert prepared.notes
    for call in prepared.steady["step"]:
        call()


def test_mesimp_leaves_a_smaller_model() -> None:
    prepared = setup(_case("mesimp"))
    assert isinstance(prepared.method, TrainingSide)
    first, second, _ = (m for m in prepared.method.step.model.modules() if isinstance(m, nn.Linear))
    assert first.out_features < 24
    assert second.in_features == first.out_features
    assert f"left {first.out_features}, {second.out_features} of 24, 24" in prepared.notes[0]
    dense, sparse = prepared.costs["decode"]
    assert sparse.flops < dense.flops


def test_removal_that_is_not_masking_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = setup(_case("mesimp"))
    right = mesimp.MeSimp

    def wrong(*args: Any, mode: str, rate: float, **keywords: Any) -> Any:
        return right(*args, mode=mode, rate=rate if mode == "mask" else rate * 2, **keywords)

    monkeypatch.setattr(mesimp, "MeSimp", wrong)
    assert "removal and masking" in prepared.check()


def test_masks_that_are_not_applied_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = setup(_case("meact", share=0.05))
    assert 0 < prepared.k < 24
    right = MeAct.active

    def wrong(self: MeAct, layer: str, ids: Tensor) -> Tensor:
        return torch.ones_like(right(self, layer, ids))

    monkeypatch.setattr(MeAct, "active", wrong)
    assert "is off by" in prepared.check()


def test_meact_says_what_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    native = compiled.load("meprop_bench.ops.kernels.native.active") is not None
    prepared = setup(_case("meact", share=0.05))
    assert prepared.kernel == ("native" if native else "masks")
    assert setup(_case("meact", share=1e-9)).kernel == "masks"  # most neurons are active
    monkeypatch.setattr(compiled, "load", lambda _: None)
    without = setup(_case("meact", share=0.05))
    assert without.kernel == "masks"
    assert without.check() == "passed"
    assert without.k == pytest.approx(prepared.k, abs=0.5)


def test_encoder_and_decoder_take_turns() -> None:
    prepared = setup(_case("seq2seq"))
    assert isinstance(prepared.method, TrainingSide)
    model = prepared.method.step.model
    assert isinstance(model, Translator)
    seen = []
    for _ in range(2):
        call = prepared.steady["step"][1]
        call()
        seen.append([layer.k for layer in model.modules() if isinstance(layer, MePropLSTM)])
    assert seen in ([[4, 1.0], [1.0, 4]], [[1.0, 4], [4, 1.0]])


def test_an_odd_hidden_size_cannot_be_split_in_two_directions() -> None:
    with pytest.raises(ValueError, match="hidden must be even"):
        setup(_case("seq2seq", out_features=7))
