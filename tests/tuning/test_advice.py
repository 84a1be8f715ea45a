from __future__ import annotations

import shlex
from dataclasses import replace
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn as torch_nn

from meprop_bench.api.measure import compare
from meprop_bench.cli import parity, speedup
from meprop_bench.cli.recipe import recipe_of
from meprop_bench.methods import METHODS, Method
from meprop_bench.nn.sparsified import Sparsified
from meprop_bench.results.axes import AXES
from meprop_bench.sweep.parity import ParityPlan
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.tuning.advice import again, code_of
from meprop_bench.tuning.arms import Arm, Layer
from meprop_bench.tuning.processes import case_of
from meprop_bench.workloads.case import Case

LAYERS = (Layer("0", 32), Layer("2", 64), Layer("4", 16, converted=False))
RECIPE = Recipe("mnist", {"batch": 50, "hidden": 300}, schedule="cosine")


def model() -> torch_nn.Module:
    return torch_nn.Sequential(
        torch_nn.Linear(4, 8), torch_nn.ReLU(), torch_nn.Linear(8, 8), torch_nn.ReLU(), torch_nn.Linear(8, 2)
    )


def converted(code: str) -> tuple[list[str], dict[str, Any]]:
    names: dict[str, Any] = {"model": model()}
    exec(code, names)
    found = {name for name, layer in names["model"].named_modules() if isinstance(layer, Sparsified)}
    return sorted(found), names


@pytest.mark.parametrize(
    ("arm", "layers"),
    [
        (Arm("unified", 0.125), ["0", "2"]),
        (Arm("meprop", 3, "rows"), ["0", "2"]),
        (Arm("unified", 0.125, left=("0",)), ["2"]),
        (Arm("unified", 0.5, end=0.125), ["0", "2"]),
    ],
)
def test_the_code_converts_the_layers_that_were_measured(arm: Arm, layers: list[str]) -> None:
    code = code_of(arm, LAYERS, 100)
    names, found = converted(code)
    assert names == layers
    layer = dict(found["model"].named_modules())["2"]
    assert layer.k == arm.k
    assert layer.sparse == (arm.gradient == "rows")
    if arm.end is not None:
        found["scheduler"].start_step(100)
        assert layer.k == arm.end


def test_layers_that_a_filter_of_the_users_leaves_are_left() -> None:
    layers = (Layer("0", 32, converted=False), Layer("2", 64), Layer("4", 16))
    assert converted(code_of(Arm("unified", 0.5), layers, 100))[0] == ["2", "4"]


def test_the_code_gives_each_layer_the_k_that_was_measured() -> None:
    layers = (Layer("0", 32, k=5), Layer("2", 64), Layer("4", 16))  # the first by the user's own `Training`
    names, found = converted(code := code_of(Arm("unified", 0.125, ks=(("4", 0.5),)), layers, 100))
    assert names == ["0", "2", "4"]
    assert {name: layer.k for name, layer in found["model"].named_modules() if name in names} == {
        "0": 5, "2": 0.125, "4": 0.5,
    }  # fmt: skip
    assert '"*": 0.125' in code
    _, found = converted(code_of(Arm("unified", 6, end=2), (Layer("0", 32, k=5), *LAYERS[1:]), 100))
    found["scheduler"].start_step(0)
    assert [layer.k for layer in found["scheduler"].layers.values()] == [5, 6]


def test_gradients_as_rows_are_those_of_linear_layers_alone() -> None:
    layers = (Layer("conv", 9, kind="Conv2d"), Layer("0", 32), Layer("2", 64), Layer("4", 16, converted=False))
    lines = code_of(Arm("meprop", 0.5, "rows"), layers, 100).splitlines()
    assert [line for line in lines if line.startswith("nn.")] == [
        'nn.convert(model, k=0.5, selection="example", sparse=True)',
        'nn.convert(model, k=0.5, selection="example", kinds=(torch.nn.Conv2d,))',
    ]


def test_other_kinds_of_layers_are_named() -> None:
    layers = (Layer("conv", 32, kind="Conv2d"), Layer("head", 16, converted=False))
    assert "kinds=(torch.nn.Conv2d,)" in code_of(Arm("meprop", 0.05), layers, 100)


ARMS = [
    Arm("unified", 0.125, left=("linear0", "head.*")),
    Arm("unified", 0.5, "rows", end=0.125),
    Arm("unified", 0.125, end=0.5, shape="cosine"),
    Arm("unified", 0.125, ks=(("linear0", 0.5), ("blocks.[12].*", 8))),
    Arm("meprop", 30, kernel="gather", compiled=True),
]
RECIPES = [
    replace(RECIPE, optimizer="adagrad", evaluations=2),
    Recipe("pos", {"files": "train.conllu,dev.conllu,test.conllu", "tags": "language"}, optimizer="adagrad"),
    Recipe("my_model.py:build", optimizer="own"),
]


def timed(line: str) -> list[Case]:
    """Return the cases that `speedup` makes of a command."""
    program, verb, *words = shlex.split(line)
    assert (program, verb) == ("meprop-bench", "speedup")
    given = speedup.command.make_context(verb, words).params
    for name in ("form", "ray", "out", "resume", "shard", "deadline", "replay"):
        del given[name]
    return list(speedup._plan(given.pop("preset"), given).cases)


def compared(line: str) -> ParityPlan:
    """Return the comparison that `parity` makes of a command."""
    program, verb, *words = shlex.split(line)
    assert (program, verb) == ("meprop-bench", "parity")
    given = parity.command.make_context(verb, words).params
    for name in ("form", "resume", "out", "shard", "ray", "processes", "budgets"):
        del given[name]
    judged = [given.pop(name) for name in ("seeds", "margin", "threads")]
    return ParityPlan(recipe_of(given), *judged)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_model.py").write_text("def build(): ...")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.label)
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.task)
def test_the_commands_measure_what_was_measured(arm: Arm, recipe: Recipe) -> None:
    first, second = again(arm, recipe, 2, steps=100, seeds=8, margin=0.25)
    ks = [arm.k] if arm.end is None else [arm.k, arm.end]
    assert timed(first) == [case_of(replace(arm, k=k, end=None, shape="linear"), recipe, 2, "cpu") for k in ks]
    assert compared(second) == ParityPlan(arm.recipe(replace(recipe, steps=100)), 8, 0.25)


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        (
            Arm("unified", 0.125, left=("0", "head.*"), ks=(("2", 0.5),)),
            {"method": "unified", "k": 0.125, "gradient": "dense", "k_by_layer": {"2": 0.5}, "leave": "0;head.*",
             "threads": 2, "parity": True, "seeds": 8, "steps": 100},
        ),
        (
            Arm("meprop", 6, "rows", end=2, compiled=True),
            {"method": "meprop", "k": [6, 2], "gradient": "rows", "compile": "on", "threads": 2},
        ),
    ],
)  # fmt: skip
def test_a_model_that_no_command_finds_is_measured_again_by_a_call(arm: Arm, expected: dict[str, Any]) -> None:
    recipe = Recipe("build@0123456789ab", optimizer="own")
    (line,) = again(arm, recipe, 2, steps=100, seeds=8, margin=0.5)
    called: list[tuple[Any, dict[str, Any]]] = []
    names = {"mb": SimpleNamespace(compare=lambda *model, **given: called.append((*model, given))), "build": model}
    exec(line, names)
    assert called == [(model, expected)]
    parameters = {*signature(compare).parameters, *(option.replace("-", "_") for option in AXES)}
    assert expected.keys() <= parameters
    assert len(again(arm, RECIPE, 2, steps=100, seeds=8, margin=0.5)) == 2


@pytest.mark.parametrize(
    ("module", "line"), [("elsewhere.first", "from elsewhere import first"), ("first", "import first")]
)
def test_a_method_of_somebody_else_is_converted_by_its_own_module(
    module: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "unified", Method("unified", module=module))
    code = code_of(Arm("unified", 0.125), LAYERS, 100)
    assert code.splitlines() == [line, "", 'first.convert(model, k=0.125, selection="unified")']
