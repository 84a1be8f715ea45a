from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from meprop_bench.data import batches
from meprop_bench.errors import UserError
from meprop_bench.nn import MePropConv2d, MePropLinear
from meprop_bench.tasks import TASKS, load_task
from meprop_bench.tasks.algorithm import Simplification
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.tasks.run import run

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")


@pytest.fixture(scope="module")
def digits():
    return load_task("digits", batch=50, hidden=32)


def test_epochs_are_one_endless_sequence_of_batches(digits):
    steps = digits.steps_per_epoch
    assert steps == 797 // 50
    endless = list(batches(digits.data.train, 50, seed=4, steps=2 * steps))
    epochs = [batch for epoch in (0, 1) for batch in digits.epoch(4, epoch)]
    for (images, labels), (got, gold, numbers) in zip(endless, epochs, strict=True):
        assert torch.equal(images, got)
        assert torch.equal(labels, gold)
        assert torch.equal(digits.data.train.images[numbers], got)
    assert torch.equal(digits.numbers(epochs[3]), epochs[3][2])


def test_a_batch_may_exceed_the_data():
    task = load_task("digits", batch=50, examples=20)
    assert task.steps_per_epoch == 1
    ((_, _, numbers),) = task.epoch(1, 0)
    assert len(numbers) == 50
    assert set(numbers.tolist()) == set(range(20))


def test_the_perceptron_of_the_papers(digits):
    model = digits.build(3)
    sizes = [(m.in_features, m.out_features) for m in model if isinstance(m, nn.Linear)]
    assert sizes == [(64, 32), (32, 32), (32, 10)]
    assert torch.equal(model.linear0.weight, digits.build(3).linear0.weight)
    digits.sparsify(model, Recipe("digits", method="unified", k=4, gradient="rows"))
    assert [isinstance(m, MePropLinear) for m in model if isinstance(m, nn.Linear)] == [True, True, False]
    assert model.linear0.selection == "unified"
    assert model.linear0.sparse
    dropping = load_task("digits", dropout=0.2, layers=3).build(1)
    assert [type(m) for m in load_task("digits", activation="sigmoid").build(1)][1::2] == [nn.Sigmoid] * 2
    assert [m.p for m in dropping if isinstance(m, nn.Dropout)] == [0.2] * 3


def test_the_convolutional_network():
    task = load_task("digits-cnn", batch=50)
    model = task.build(1)
    task.sparsify(model, Recipe("digits-cnn", method="meprop", k=0.5))
    converted = [type(m) for m in model if isinstance(m, nn.Linear | nn.Conv2d)]
    assert converted == [MePropConv2d, MePropConv2d, nn.Linear, nn.Linear]
    assert run(task, Recipe("digits-cnn", steps=100)).final_dev > 50
    with pytest.raises(UserError, match="the method unified does not fit this task's layers"):
        task.sparsify(task.build(1), Recipe("digits-cnn", method="unified", k=0.5))


def test_options_are_those_of_the_constructor(digits):
    assert digits.options == {
        "batch": 50, "examples": 797, "device": "cpu", "hidden": 32, "layers": 2, "dropout": 0.0,
        "activation": "relu",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mnst", {}, "unknown task 'mnst': did you mean 'mnist'"),
        ("digits", {"depth": 3}, "the task digits has no depth: it has batch, hidden"),
        ("digits-cnn", {"hidden": 3}, "the task digits-cnn has no hidden"),
        ("digits", {"batch": 0}, "batch must be an integer of at least 1, not 0"),
        ("digits", {"hidden": True}, "hidden must be"),
        ("digits", {"layers": 0}, "layers must be"),
        ("digits", {"dropout": 1.0}, "dropout must lie"),
        ("digits", {"activation": "sigmoidal"}, "activation must be one of relu, sigmoid, tanh, cube"),
        ("digits", {"examples": 798}, "examples 798 are more than the 797"),
        ("digits", {"device": "tpu"}, "the device tpu cannot be used"),
    ],
)
def test_what_a_task_cannot_have(name, options, words):
    with pytest.raises(UserError, match=words):
        load_task(name, **options)


def test_every_entry_names_a_class_of_that_name():
    from importlib import import_module

    for name, entry in TASKS.items():
        assert getattr(import_module(f"meprop_bench.tasks.{entry.module}"), entry.kind).name == name


def test_a_recipe_is_its_own_json():
    recipe = Recipe("digits", {"batch": 5}, "meprop", 3, algorithm="mesimp", details={"rate": 0.2})
    assert Recipe(**recipe.to_json()) == recipe
    assert recipe.along == Simplification(rate=0.2)
    assert recipe.dense() == Recipe("digits", {"batch": 5})
    assert "steps" not in recipe.to_json()  # a stored comparison, which knows no steps, is still the same
    assert recipe.label == "digits meprop k=3 mesimp"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"algorithm": "meslim"}, "unknown algorithm 'meslim': did you mean 'mesimp'"),
        ({"algorithm": "meact", "details": {"rate": 0.2}}, "meact has no rate: it has share, pretrain"),
        ({"algorithm": "schedule"}, "the algorithm schedule needs end"),
        ({"details": {"rate": 0.2}}, "rate needs an algorithm"),
        ({"method": "mesimp", "k": 3, "algorithm": "meact"}, "mesimp has the algorithm mesimp: name no other"),
        ({"method": "mesimp", "k": 3, "watched": True}, "cannot be watched"),
        ({"method": "meact", "k": 3}, "the method meact has no k"),
    ],
)
def test_recipes_that_make_no_sense(wrong, words):
    with pytest.raises(UserError, match=words):
        Recipe("digits", **wrong)


def test_a_method_that_has_an_algorithm_brings_it():
    own, named = Recipe("digits", method="mesimp", k=3), Recipe("digits", method="meprop", k=3, algorithm="mesimp")
    assert own.along == named.along == Simplification()
    tasks = [load_task("digits", batch=50, hidden=16, examples=200) for _ in range(2)]
    results = [run(task, recipe) for task, recipe in zip(tasks, (own, named), strict=True)]
    assert [found.dev for found in results[0].history] == [found.dev for found in results[1].history]


def test_a_method_is_one_module_and_one_line(monkeypatch):
    """Somebody else's: it makes hidden layers that train the first k neurons alone."""
    from meprop_bench import methods

    def convert(model, *, k, selection, sparse, kernel, kinds):
        def first(gradient):
            return torch.cat([gradient[:k], torch.zeros_like(gradient[k:])])

        hidden = {name: layer for name, layer in list(model.named_modules())[:-1] if isinstance(layer, kinds)}
        for layer in hidden.values():
            layer.weight.register_hook(first)
            layer.bias.register_hook(first)
        return hidden

    monkeypatch.setitem(sys.modules, "made_up", SimpleNamespace(convert=convert))
    monkeypatch.setitem(methods.METHODS, "first", methods.Method("first", module="made_up"))
    task = load_task("digits", batch=50, hidden=16, examples=200)
    recipe = Recipe("digits", method="first", k=5, steps=8)
    before, after = task.build(1), run(task, recipe).model
    changed = (before.linear0.weight != after.linear0.weight).any(dim=1)
    assert changed[:5].any()
    assert not changed[5:].any()
    from meprop_bench.sweep.accuracy import judged, trained

    sides = [trained(each, [1, 2]) for each in (recipe.dense(), recipe)]
    assert (sides[0].metric, sides[0].percent) == ("accuracy", True)
    pairs = {seed: (sides[0].of[seed], sides[1].of[seed]) for seed in (1, 2)}
    assert judged(recipe.task, pairs, steps=8, metric="accuracy").baseline == tuple(sides[0].of.values())


def test_the_table_of_methods_is_that_of_the_selections():
    from meprop_bench.methods import METHODS
    from meprop_bench.ops.selection import SELECTIONS
    from meprop_bench.tasks.algorithm import ALGORITHMS

    assert {method.selection for method in METHODS.values()} == {None, *SELECTIONS}
    assert {method.algorithm for method in METHODS.values()} <= {None, *ALGORITHMS}


def test_a_recipe_is_made_and_checked_without_torch():
    code = (
        "import sys; from meprop_bench.tasks.recipe import Recipe\n"
        "Recipe('digits', method='mesimp', k=3, details={'rate': 0.2}, optimizer='rowadam')\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.real_data
@pytest.mark.skipif("MEPROP_BENCH_DATA" not in os.environ, reason="MEPROP_BENCH_DATA is not set")
def test_the_papers_mlp_learns_mnist_in_a_few_hundred_steps():
    task = load_task("mnist", batch=50, hidden=100)
    assert (task.examples, len(task.data.dev.labels), len(task.data.test.labels)) == (55_000, 5_000, 10_000)
    assert run(task, Recipe("mnist", steps=300), seed=0).final_dev > 90
