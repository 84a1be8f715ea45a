from __future__ import annotations

from itertools import count

import pytest
import torch

from meprop_bench.data import load_images
from meprop_bench.errors import UserError
from meprop_bench.measure.clock import WallClock
from meprop_bench.measure.memory import peaks_of
from meprop_bench.nn import MePropLinear
from meprop_bench.ops.cost import linear_backward
from meprop_bench.training import FusedStep
from meprop_bench.workloads import After, Case, setup
from meprop_bench.workloads.mlp import build_model

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")


def _case(**changes: object) -> Case:
    small = {"k": 4, "batch": 8, "in_features": 64, "out_features": 16, "threads": 1, "method": "unified"}
    return Case(workload="mlp", **{"data": "digits", **small, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "meprop"},
        {"method": "random"},
        {"k": 0.5},
        {"k": 16},
        {"gradient": "rows", "optimizer": "sgd"},
        {"gradient": "rows", "optimizer": "adagrad", "baseline": "fused"},
        {"gradient": "rows", "optimizer": "rowadam", "baseline": "fused"},
        {"fused_step": "method", "gradient": "rows", "optimizer": "adagrad", "baseline": "fused"},
        {"fused_step": "both", "method": "meprop", "baseline": "fused"},
        {"fused_step": "both", "k": 16},
    ],
)
def test_it_passes_its_check(changes: dict[str, object]) -> None:
    prepared = setup(_case(**changes))
    assert prepared.check() == "passed"
    assert prepared.k == changes.get("k", 4)


def test_a_case_says_that_its_data_are_not_the_published_ones(other_mnist: object) -> None:
    prepared = setup(_case(data="mnist", in_features=784))
    assert prepared.data_published is False
    assert any("not the published mnist data" in note for note in prepared.notes)
    assert setup(_case()).data_published is None


def test_the_hidden_layers_are_sparsified_and_the_weights_shared() -> None:
    data = load_images("digits")
    dense, sparse = (build_model(_case(), data, sparsified=s, seed=5) for s in (False, True))
    assert [isinstance(layer, MePropLinear) for layer in sparse if hasattr(layer, "weight")] == [True, True, False]
    assert all(torch.equal(a, b) for a, b in zip(dense.parameters(), sparse.parameters(), strict=True))


def test_a_fused_step_is_of_the_side_that_the_case_says() -> None:
    found = {
        which: [isinstance(side.step, FusedStep) for side in (prepared.baseline, prepared.method)]
        for which in ("none", "method", "both")
        for prepared in [setup(_case(fused_step=which, baseline="fused"))]
    }
    assert found == {"none": [False, False], "method": [False, True], "both": [True, True]}
    said = {which: setup(_case(fused_step=which, baseline="fused")).dense_side for which in found}
    assert said == {
        "none": "eager, fused optimizer",
        "method": "eager, fused optimizer",
        "both": "fused step, fused optimizer",
    }
    assert "fused step of both" in _case(fused_step="both").label
    prepared = setup(_case(fused_step="method"))
    assert "linear-backward" not in prepared.phases
    assert any("in a fused step" in note for note in prepared.notes)


def test_a_fused_step_that_is_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = setup(_case(fused_step="method"))
    right = FusedStep.backward

    def wrong(self: FusedStep, loss: torch.Tensor) -> None:
        right(self, loss)
        next(self.model.parameters()).grad.mul_(1.1)

    monkeypatch.setattr(FusedStep, "backward", wrong)
    assert prepared.check().startswith("the fused step and its modules differ: linear0.weight is off by 1.0e-01")


def test_a_fused_step_leaves_nothing_to_compile() -> None:
    with pytest.raises(UserError, match=r"a fused step leaves nothing to torch\.compile"):
        _case(fused_step="method", compile="on")


@pytest.mark.parametrize("loops", [1, 5, 70])
def test_the_phases_add_up_to_the_step(loops: int) -> None:
    side = setup(_case()).method
    ticks = count()
    found = side(loops, WallClock(timer=lambda: float(next(ticks))))
    assert tuple(found) == ("forward", "backward", "update", "step", "linear-backward")
    assert found["forward"] == found["backward"] == found["update"] == 1.0
    assert found["step"] == 3.0


def test_a_side_starts_again_from_where_it_started() -> None:
    """However long it is timed: otherwise neurons die and moments become denormal numbers, on one side first."""
    side = setup(_case()).method
    clock = WallClock()
    side(32, clock)
    parameters = list(side.step.model.parameters())  # type: ignore[attr-defined]
    first = [parameter.detach().clone() for parameter in parameters]
    side(32, clock)
    assert all(torch.allclose(a, b) for a, b in zip(first, parameters, strict=True))
    side(40, clock)
    assert not any(torch.allclose(a, b) for a, b in zip(first, parameters, strict=True))


def test_a_steady_side_goes_on_and_starts_again() -> None:
    prepared = setup(_case())
    assert prepared.main is not None
    phase, (_, step) = prepared.main
    assert phase == "step"
    parameters = list(prepared.method.step.model.parameters())  # type: ignore[attr-defined]
    prepared.method(32, WallClock())  # where timing leaves it: at the end of its walk
    end = [parameter.detach().clone() for parameter in parameters]
    step()
    assert not any(torch.allclose(a, b) for a, b in zip(end, parameters, strict=True))
    for _ in range(31):
        step()
    assert all(torch.allclose(a, b) for a, b in zip(end, parameters, strict=True))


def test_forward_and_backward_are_weighed_apart_and_again_and_again() -> None:
    prepared = setup(_case())
    (_, forward), (_, backward) = prepared.memory["forward"], prepared.memory["backward"]
    assert isinstance(backward, After)
    backward()  # the kernel's own buffer is made once and kept
    first = [peaks_of(forward, "cpu").tensor_bytes, peaks_of(backward.call, "cpu", backward.before).tensor_bytes]
    assert first == [
        peaks_of(forward, "cpu").tensor_bytes,
        peaks_of(backward.call, "cpu", backward.before).tensor_bytes,
    ]
    gradients = sum(4 * parameter.numel() for parameter in prepared.method.step.model.parameters())  # type: ignore[attr-defined]
    assert first[0] < gradients <= first[1]  # fresh ones, each time


def test_the_first_layer_has_no_dx_in_the_floor() -> None:
    dense, sparse = setup(_case(layers=1)).costs["linear-backward"]
    output = linear_backward(8, 16, 10, 4)
    hidden = linear_backward(8, 64, 16, 4)
    assert dense.flops == hidden.flops + output.flops - 2 * 8 * 64 * 16
    assert dense.bytes == hidden.bytes + output.bytes - 4 * (16 * 64 + 8 * 64)
    assert sparse.flops < dense.flops
    assert sparse.bytes <= dense.bytes  # all of dW is written, whatever k


def test_the_update_is_counted_for_every_optimizer() -> None:
    parameters = 64 * 16 + 16 + 16 * 16 + 16 + 16 * 10 + 10
    for optimizer, moved in (("adam", 7), ("adagrad", 5), ("sgd", 3)):
        costs = setup(_case(optimizer=optimizer)).costs
        assert [side.bytes for side in costs["update"]] == [4 * moved * parameters] * 2
        parts = [costs[phase][1] for phase in ("forward", "backward", "update")]
        assert costs["step"][1] == parts[0] + parts[1] + parts[2]


def test_rows_spare_the_update_the_rows_that_have_no_gradient() -> None:
    dense, sparse = setup(_case(optimizer="sgd", gradient="rows")).costs["update"]
    assert dense.bytes - sparse.bytes == 4 * 3 * (64 + 16) * (16 - 4)


def test_the_layers_numbers_are_those_of_the_linear_backward() -> None:
    prepared = setup(_case())
    assert [(layer.need_dx, layer.request is None) for layer in prepared.layers()] == [
        (False, False), (True, False), (True, True)
    ]  # fmt: skip
    assert [tuple(layer.w.shape) for layer in prepared.layers()] == [(16, 64), (16, 16), (10, 16)]
    assert not any(tensor.requires_grad for layer in prepared.layers() for tensor in (layer.x, layer.w, layer.b))
    assert all(layer.request is None for layer in setup(_case(k=16)).layers())
