from __future__ import annotations

import pytest

from meprop_bench.errors import UserError
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.tuning.arms import LADDER, METHODS_TRIED, Arm, Layer, arms_of, by_layer, first_of_each, scheduled


def test_every_method_and_k_the_likeliest_first() -> None:
    arms = arms_of()
    assert len(arms) == len(set(arms)) == len(LADDER) * len(METHODS_TRIED)
    assert arms[0] == Arm("unified", 1 / 8)
    assert arms[1] == Arm("meprop", 1 / 8)


def test_rows_where_the_optimizer_takes_them() -> None:
    assert {arm.gradient for arm in arms_of(optimizer="adagrad")} == {"dense", "rows"}
    assert {arm.gradient for arm in arms_of(optimizer="adam")} == {"dense"}
    assert {arm.gradient for arm in arms_of(gradients=("rows",), optimizer="adam")} == {"rows"}


@pytest.mark.parametrize(
    ("method", "k"), [("dense", 0.1), ("mesimp", 0.1), ("unify", 0.1), ("unified", 0), ("unified", 1.5)]
)
def test_what_is_no_arm_is_refused(method: str, k: float) -> None:
    with pytest.raises(UserError):
        Arm(method, k)


def test_an_arm_is_the_whole_difference_from_dense() -> None:
    dense = Recipe("mnist", {"batch": 50}, steps=100, schedule="cosine", optimizer="sgd")
    arm = Arm("unified", 0.5, "rows", end=0.125, left=("linear0", "linear1"))
    recipe = arm.recipe(dense)
    assert recipe.dense() == dense
    assert (recipe.method, recipe.k, recipe.gradient, recipe.leave) == ("unified", 0.5, "rows", "linear0;linear1")
    assert (recipe.algorithm, recipe.details["end"]) == ("schedule", 0.125)


def test_json_and_back() -> None:
    for arm in (Arm("unified", 0.5), Arm("meprop", 30, "rows"), Arm("unified", 0.5, end=0.125, left=("a", "b"))):
        assert Arm.from_json(arm.to_json()) == arm
        assert Arm.from_json(arm.to_json()).key == arm.key


def test_labels_tell_them_apart() -> None:
    arms = [*arms_of(optimizer="sgd"), Arm("unified", 0.5, end=0.125), Arm("unified", 0.125, left=("a",))]
    assert len({arm.label for arm in arms}) == len(arms)


def test_the_smallest_k_of_each_group() -> None:
    arms = [
        Arm("unified", 0.5),
        Arm("unified", 0.125),
        Arm("meprop", 0.25),
        Arm("unified", 10),
        Arm("unified", 0.5, end=0.1),
    ]
    assert first_of_each(arms) == [Arm("unified", 0.125), Arm("meprop", 0.25), Arm("unified", 10)]


def test_k_moves_in_both_directions_between_the_ends_of_a_group() -> None:
    found = scheduled([Arm("unified", 0.25), Arm("unified", 0.5), Arm("unified", 0.125), Arm("meprop", 0.5)])
    assert found == [Arm("unified", 0.5, end=0.125), Arm("unified", 0.125, end=0.5)]


def test_variants_leave_the_smallest_layers_and_never_all() -> None:
    layers = (Layer("a", 10), Layer("b", 100), Layer("c", 100), Layer("d", 1000), Layer("head", 1, converted=False))
    arm = Arm("unified", 0.125)
    assert [variant.left for variant in by_layer(arm, layers)] == [("a",), ("a", "b", "c")]
    assert by_layer(arm, layers[1:3]) == []
    assert [variant.left for variant in by_layer(Arm("unified", 0.1, left=("a",)), layers)] == [("a", "b", "c")]
