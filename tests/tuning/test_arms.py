from __future__ import annotations

import pytest

from meprop_bench.errors import UserError
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.tuning.arms import (
    LADDER,
    METHODS_TRIED,
    Arm,
    Layer,
    arms_of,
    by_layer,
    first_of_each,
    leaving,
    scheduled,
)


def test_every_method_and_k_the_likeliest_first() -> None:
    arms = arms_of()
    assert len(arms) == len(set(arms)) == len(LADDER) * len(METHODS_TRIED)
    assert arms[0] == Arm("unified", 1 / 8)
    assert arms[1] == Arm("meprop", 1 / 8)


def test_rows_where_the_optimizer_takes_them() -> None:
    assert {arm.gradient for arm in arms_of()} == {"dense"}
    assert {arm.gradient for arm in arms_of(gradients=("dense", "rows"))} == {"dense", "rows"}


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
    own = Arm("unified", 0.125, ks=(("blocks.1.*", 0.5), ("head", 30)))
    for arm in (Arm("unified", 0.5), Arm("meprop", 30, "rows"), Arm("unified", 0.5, end=0.125, left=("a", "b")), own):
        assert Arm.from_json(arm.to_json()) == arm
        assert Arm.from_json(arm.to_json()).key == arm.key


def test_labels_tell_them_apart() -> None:
    arms = [*arms_of(gradients=("dense", "rows")), Arm("unified", 0.5, end=0.125), Arm("unified", 0.125, left=("a",))]
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
    assert [variant.left for variant in leaving(arm, layers)] == [("a",), ("a", "b", "c")]
    assert leaving(arm, layers[1:3]) == []
    assert [variant.left for variant in leaving(Arm("unified", 0.1, left=("a",)), layers)] == [("a", "b", "c")]


def test_an_arm_that_was_stored_before_k_went_by_layer_is_read() -> None:
    assert Arm.from_json({"method": "unified", "k": 0.5, "left": ["a"]}) == Arm("unified", 0.5, left=("a",))
    assert Arm("unified", 0.5).to_json() == {"method": "unified", "k": 0.5}


GPT = tuple(
    Layer(f"blocks.{number}.{name}", weights)
    for number in range(4)
    for name, weights in (("attention.qkv", 300), ("attention.out", 100), ("up", 400), ("down", 400))
)


def test_k_is_large_near_the_output_or_the_input_or_where_it_costs_little() -> None:
    last, first, small = by_layer(Arm("unified", 0.25), (0.25, 0.125, 0.0625, 0.03125), GPT)
    assert {arm.k for arm in (last, first, small)} == {0.0625}  # a quarter of the arm's, which the others have
    assert last.ks == (("blocks.2.*", 0.25), ("blocks.3.*", 0.25))
    assert first.ks == (("blocks.0.*", 0.25), ("blocks.1.*", 0.25))
    assert small.ks == (("*.attention.*", 0.25),)
    assert last.label == "unified, k = 0.0625 (0.25 in blocks.2.*, blocks.3.*)"
    assert last.recipe(Recipe("language")).k_by_layer == "blocks.2.*=0.25;blocks.3.*=0.25"
    assert [last.k_of(layer) for layer in GPT] == [0.0625] * 8 + [0.25] * 8


def test_by_layer_k_is_one_that_was_tried_and_some_layers_have_at_most_half_of_the_arithmetic() -> None:
    layers = (Layer("0", 100), Layer("2", 1000), Layer("4", 1000), Layer("6", 10, converted=False))
    found = by_layer(Arm("unified", 0.5), (0.5, 0.25), layers)
    assert [(arm.k, arm.ks) for arm in found] == [(0.25, (("4", 0.5),)), (0.25, (("0", 0.5),))]
    # The smallest k that was tried is small in some layers, and a larger one takes its place in the others.
    assert [(arm.k, arm.ks[0][1]) for arm in by_layer(Arm("unified", 8), (8, 16, 64), layers)] == [(8, 64)] * 2
    assert by_layer(Arm("unified", 0.5), (0.5,), layers) == []
    assert by_layer(Arm("unified", 0.5, end=0.25), (0.5, 0.25), layers) == []
    assert by_layer(Arm("unified", 0.5), (0.5, 0.25), layers[1:2]) == []


def test_k_that_the_users_training_gives_a_layer_is_no_matter_of_the_search() -> None:
    layers = (Layer("0", 100, k=3), Layer("2", 100), Layer("4", 100))
    found = by_layer(Arm("unified", 0.5), (0.5, 0.125), layers)
    assert [arm.ks for arm in found] == [(("4", 0.5),), (("2", 0.5),)]
    assert {arm.k_of(layers[0]) for arm in found} == {3}


def test_k_moves_or_goes_by_layer() -> None:
    with pytest.raises(UserError, match="either moves or differs"):
        Arm("unified", 0.5, end=0.25, ks=(("a", 0.25),))
    with pytest.raises(UserError):
        Arm("unified", 0.5, ks=(("a", 2.5),))
    assert scheduled([Arm("unified", k, ks=(("a", 1),)) for k in (0.5, 0.25)]) == []
