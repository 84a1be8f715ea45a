"""k of some layers in place of that of all: one text, wherever it is given."""

from __future__ import annotations

import pytest
from torch import nn

from meprop_bench.errors import UserError
from meprop_bench.nn.sparsified import Sparsified
from meprop_bench.sweep.plan import plan_axes
from meprop_bench.tasks.recipe import Recipe, by_layer, by_layer_text
from meprop_bench.tasks.run import describe
from meprop_bench.workloads.case import Case, recipe_of


def ks(recipe: Recipe, each: dict[str, float] | None = None) -> dict[str, float]:
    """Return what a model of four layers becomes by a recipe: name -> k."""
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    recipe.sparsify(model, (nn.Linear,), each=each)
    return {name: layer.k for name, layer in model.named_modules() if isinstance(layer, Sparsified)}


def test_a_text_is_patterns_with_counts_and_ratios() -> None:
    found = by_layer("blocks.0.* = 0.25; *.up=30;head=1.0")
    assert list(found.items()) == [("blocks.0.*", 0.25), ("*.up", 30), ("head", 1.0)]
    assert isinstance(found["*.up"], int)
    assert isinstance(found["head"], float)
    text = by_layer_text(found.items())
    assert text == "blocks.0.*=0.25;*.up=30;head=1.0"
    assert by_layer(text) == found
    assert by_layer(None) == {}
    assert by_layer_text(()) is None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("0.25", "is written as"),
        ("a=", "is written as"),
        ("=3", "is written as"),
        ("a=0.5;", "is written as"),
        ("a=much", "k of 'a' must be an int >= 1 or a ratio in (0, 1], not 'much'"),
        ("a=0", "not '0'"),
        ("a=-3", "not '-3'"),
        ("a=1.5", "not '1.5'"),
        ("a=nan", "not 'nan'"),
        ("a=0.5;a=0.25", "has 'a' twice"),
    ],
)
def test_what_is_none_is_refused_in_a_line(text: str, line: str) -> None:
    for refuse in (
        lambda: by_layer(text),
        lambda: Recipe("digits", method="unified", k=0.5, k_by_layer=text),
        lambda: Case(workload="model", model="digits", optimizer="adam", k=0.5, k_by_layer=text),
    ):
        with pytest.raises(UserError) as error:
            refuse()
        assert line in str(error.value)
        assert "\n" not in str(error.value)


def test_it_is_the_k_of_these_layers_and_the_first_that_fits_counts() -> None:
    recipe = Recipe("digits", method="unified", k=0.5, k_by_layer="1=3;[12]=0.25")
    assert ks(recipe) == {"0": 0.5, "1": 3, "2": 0.25}
    # What was asked for comes before what the model brings along, which comes before the k of all.
    assert ks(recipe, {"1": 0.75, "0": 0.125}) == {"0": 0.125, "1": 3, "2": 0.25}


def test_a_pattern_that_fits_nothing_is_an_error() -> None:
    recipe = Recipe("digits", method="unified", k=0.5, k_by_layer="head=0.25")
    with pytest.raises(UserError, match="no sparsified layer is called 'head': there are 0, 1, 2"):
        ks(recipe)
    with pytest.raises(UserError, match="no sparsified layer is called '1'"):
        ks(Recipe("digits", method="unified", k=0.5, leave="1", k_by_layer="1=0.25"))


def test_dense_has_none() -> None:
    recipe = Recipe("digits", method="unified", k=0.5, k_by_layer="linear0=0.25")
    assert recipe.dense() == Recipe("digits")
    with pytest.raises(UserError, match="the method dense has no k"):
        Recipe("digits", k_by_layer="linear0=0.25")


def test_it_tells_trainings_apart_and_stored_ones_do_not_have_it() -> None:
    plain = Recipe("digits", {"hidden": 8}, steps=5, method="unified", k=0.5)
    own = Recipe("digits", {"hidden": 8}, steps=5, method="unified", k=0.5, k_by_layer="linear0=0.25")
    assert "k_by_layer" not in plain.to_json()
    assert "k_by_layer" not in describe(plain.load(), plain, 1)
    assert describe(own.load(), own, 1)["k_by_layer"] == "linear0=0.25"
    assert Recipe(**own.to_json()) == own


def test_it_is_an_axis() -> None:
    own: dict[str, list[object]] = {"workload": ["transformer"], "data": ["made-up"], "threads": [1], "k": [0.125]}
    texts = ["blocks.0.*=0.25", "blocks.1.*=0.25;*.up=8"]
    cases = plan_axes({**own, "k-by-layer": texts}).cases
    assert [case.k_by_layer for case in cases if case.method == "unified"] == texts
    assert len({case.case_id for case in cases}) == len({case.label for case in cases}) == len(cases)
    assert "unified k=0.125 with blocks.0.*=0.25" in cases[-2].label
    assert recipe_of(cases[-1]).k_by_layer == texts[1]
    plain = Case(workload="transformer", data="made-up", threads=1, k=0.125)
    assert "k_by_layer" not in plain.changed()
    with pytest.raises(UserError, match="does nothing in the workload linear"):
        Case(workload="linear", k_by_layer="a=0.5")
