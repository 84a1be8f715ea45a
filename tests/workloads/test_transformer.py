"""The transformer in training: what it sets up, and that it is the task's model by the task's step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from meprop_bench.data.characters import auto_text
from meprop_bench.errors import UserError
from meprop_bench.measure.clock import WallClock
from meprop_bench.models.gpt import GPT
from meprop_bench.sweep.plan import plan_axes
from meprop_bench.workloads import Case, setup
from meprop_bench.workloads.case import TEXT, WORKLOADS, recipe_of
from meprop_bench.workloads.steps import TrainingSide

_SMALL = {"data": "made-up", "out_features": 32, "heads": 2, "layers": 2, "length": 16, "batch": 4, "threads": 1}


def _case(**changes: Any) -> Case:
    return Case(workload="transformer", **{**_SMALL, "method": "unified", "k": 0.25, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "meprop", "k": 3},
        {"method": "random"},
        {"gradient": "rows", "optimizer": "sgd"},
        {"gradient": "rows", "optimizer": "rowadamw", "baseline": "fused"},
        {"optimizer": "adamw", "baseline": "fused"},
        {"kernel": "masked", "layers": 1, "heads": 1, "length": 5},
    ],
)
def test_it_passes_its_check_and_times_its_phases(changes: dict[str, Any]) -> None:
    prepared = setup(_case(**changes))
    assert prepared.check() == "passed"
    for side in (prepared.baseline, prepared.method):
        assert set(side(2, WallClock())) == set(prepared.phases) == {"forward", "backward", "update", "step"}
    for call in prepared.steady["step"]:
        call()


def test_both_sides_are_the_model_of_its_sizes() -> None:
    prepared = setup(_case(out_features=24, heads=3))
    for side in (prepared.baseline, prepared.method):
        assert isinstance(side, TrainingSide)
        model = side.step.model
        assert isinstance(model, GPT)
        assert (model.head.in_features, model.length, len(model.blocks)) == (24, 16, 2)
        assert model.blocks[0].attention.heads == 3
    assert len(prepared.layers()) == 9
    assert "8 of 9 layers are sparsified" in prepared.notes[1]
    assert prepared.notes[0].startswith("sentences made up")


def test_the_share_of_attention_is_not_that_of_its_layers() -> None:
    short, long = (setup(_case(length=length, batch=1)).converted for length in (4, 256))
    assert short is not None
    assert long is not None
    assert long < 0.85 < short  # 24 d² of a row's operations are of the linear layers, 4 T d are not


def test_layers_can_be_left_dense() -> None:
    prepared = setup(_case(leave="*.up;*.down"))
    assert "4 of 9 layers are sparsified" in prepared.notes[1]
    assert prepared.check() == "passed"


def test_a_kernel_that_is_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from meprop_bench.nn import MePropLinear

    right = MePropLinear.forward

    def wrong(self: MePropLinear, x: torch.Tensor) -> torch.Tensor:
        y = right(self, x)
        return y + (y - y.detach()) * 0.1 if self.out_features == 96 else y

    monkeypatch.setattr(MePropLinear, "forward", wrong)
    assert "blocks.0.attention.qkv: " in setup(_case()).check()


@pytest.mark.parametrize("data", TEXT)
def test_its_training_is_the_tasks_own(data: str) -> None:
    recipe = recipe_of(_case(data=data, leave="*.up"), 30)
    task, more = TEXT[data]
    assert recipe.task == task
    sizes = {"batch": 4, "hidden": 32, "layers": 2, "heads": 2, "length": 16, "device": "cpu"}
    assert recipe.options == {**sizes, **more}
    assert (recipe.method, recipe.k, recipe.steps, recipe.leave) == ("unified", 0.25, 30, "*.up")


def test_what_is_measured_if_nothing_is_said() -> None:
    cases = plan_axes({"workload": ["transformer"], "data": ["made-up"], "threads": [1]}).cases
    assert {case.k for case in cases} == {0.0625, 0.125, 0.25}
    assert {case.method for case in cases} == {"meprop", "unified"}
    (first, *_) = cases
    assert (first.out_features, first.heads, first.layers, first.length, first.batch) == (256, 4, 4, 128, 16)
    assert first.label == "transformer made-up h=256 T=128 heads=4 B=16 meprop k=0.0625 fused baseline cpu:1"
    small = plan_axes(
        {"workload": ["transformer"], "data": ["made-up"], "threads": [1], "k": [3], "heads": [8], "layers": [2]}
    )
    assert (
        small.cases[0].label == "transformer made-up h=256 T=128 layers=2 heads=8 B=16 meprop k=3 fused baseline cpu:1"
    )


def test_auto_is_real_text_where_it_is_here(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEPROP_BENCH_DATA", str(tmp_path))
    assert auto_text() == "made-up"
    axes = {"workload": ["transformer", "mlp"], "data": ["auto"]}
    assert {case.data for case in plan_axes(axes).cases} == {"made-up", "digits"}
    (tmp_path / "multi30k").mkdir()
    for name in ("train", "val", "test_2016_flickr"):
        (tmp_path / "multi30k" / f"{name}.en").write_text("a\n")
    assert auto_text() == "multi30k"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out_features": 30, "heads": 4}, "hidden 30 is not a multiple of 4 heads"),
        ({"data": "mnist"}, "unknown data 'mnist': choose from multi30k, ud-ewt, made-up"),
        ({"data": None}, "unknown data None"),
        ({"heads": 0}, "heads must be an integer of at least 1"),
        ({"method": "mesimp"}, "method of the workload transformer"),
        ({"optimizer": "own"}, "optimizer own is that of a model of your own"),
        ({"gradient": "rows"}, "optimizer adam takes no gradient as rows"),
        ({"dtype": "bfloat16"}, "dtype 'bfloat16' does nothing in the workload transformer"),
    ],
)
def test_what_it_cannot_do_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _case(**changes)


def test_its_heads_are_no_other_workloads() -> None:
    with pytest.raises(UserError, match="heads 2 does nothing in the workload linear: it is for the workload transf"):
        Case(heads=2)
    assert WORKLOADS["transformer"].trains
