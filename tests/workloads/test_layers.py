"""The workloads of one layer besides `linear`: their checks pass, and notice a wrong gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from meprop_bench.measure.clock import WallClock
from meprop_bench.nn import MePropLSTM, conv
from meprop_bench.workloads import Case, setup

_SMALL = {"batch": 3, "in_features": 5, "out_features": 12, "threads": 1, "k": 4}


def _case(workload: str, **changes: object) -> Case:
    return Case(workload=workload, **{**_SMALL, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("workload", "changes"),
    [
        ("conv", {}),
        ("conv", {"method": "random", "size": 6, "filter": 3}),
        ("conv", {"k": 0.1, "dtype": "float64"}),
        ("conv", {"k": 1.0}),
        ("conv", {"kernel": "masked", "size": 7}),
        ("lstm", {}),
        ("lstm", {"method": "unified", "length": 1}),
        ("lstm", {"k": 12}),
        ("lstm", {"method": "random", "dtype": "float64"}),
        ("gru", {"length": 6}),
        ("gru", {"method": "random-unified", "kernel": "embedding_bag"}),
    ],
)
def test_it_passes_its_check_and_times_both_phases(workload: str, changes: dict[str, object]) -> None:
    prepared = setup(_case(workload, **changes))
    assert prepared.check() == "passed"
    assert prepared.kernel != "auto"
    for side in (prepared.baseline, prepared.method):
        assert set(side(1, WallClock())) == set(prepared.phases) == set(prepared.memory) == {"forward", "backward"}
    assert set(prepared.costs) == {"forward", "backward"}
    dense, sparse = prepared.costs["backward"]
    assert sparse.flops <= dense.flops


def test_a_convolutions_wrong_gradient_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = conv.conv2d

    def wrong(x: Tensor, w: Tensor, b: Tensor, *args: Any, k: float, selection: str, kernel: str) -> Tensor:
        return right(x, w, b, *args, k=k if k == 1.0 else k + 1, selection=selection, kernel=kernel)

    prepared = setup(_case("conv"))
    monkeypatch.setattr(conv, "conv2d", wrong)
    assert prepared.check().startswith("dx is off by")


def test_a_recurrent_layer_that_is_dense_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = setup(_case("lstm"))
    monkeypatch.setattr(MePropLSTM, "forward", torch.nn.LSTM.forward)
    assert prepared.check() == "it gives the dense gradient"
