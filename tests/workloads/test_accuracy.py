"""Short training runs of both sides."""

from __future__ import annotations

import pytest
import torch

from meprop_bench.errors import UserError
from meprop_bench.workloads import Case
from meprop_bench.workloads.accuracy import accuracies

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

_LEARNING = {
    "mlp": {"method": "unified", "k": 4},
    "mesimp": {"method": "mesimp", "k": 2, "rate": 0.5},
    "meact": {"method": "meact", "share": 0.2},
}


def _case(workload: str = "mlp", **changes: object) -> Case:
    small = {"data": "digits", "batch": 50, "in_features": 64, "out_features": 16, "threads": 1}
    return Case(workload=workload, **{**small, **_LEARNING[workload], **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("workload", _LEARNING)
def test_it_depends_on_the_seeds_alone(workload: str) -> None:
    torch.manual_seed(7)
    first = accuracies(_case(workload), sparsified=True, seeds=[1, 2], steps=90)
    torch.manual_seed(8)
    assert accuracies(_case(workload), sparsified=True, seeds=[1, 2], steps=90) == first
    assert first != accuracies(_case(workload), sparsified=False, seeds=[1, 2], steps=90)


def test_all_of_them_have_the_same_dense_side() -> None:
    dense = [accuracies(_case(workload), sparsified=False, seeds=[1], steps=60) for workload in _LEARNING]
    assert dense[0] == dense[1] == dense[2] == accuracies(_case(k=16), sparsified=True, seeds=[1], steps=60)


def test_meact_needs_an_epoch_to_fix_its_neurons_in() -> None:
    with pytest.raises(UserError, match="nothing of 20 steps"):
        accuracies(_case("meact"), sparsified=True, seeds=[1], steps=20)
