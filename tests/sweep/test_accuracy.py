"""What every comparison with dense training is made of, and that all entry points have the same of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from meprop_bench.errors import UserError
from meprop_bench.stats import mean_difference, non_inferiority
from meprop_bench.sweep.accuracy import (
    MARGIN,
    Accuracies,
    SeedFigures,
    figure,
    judged,
    trained,
)
from meprop_bench.sweep.parity import ParityPlan
from meprop_bench.sweep.trainers import train
from meprop_bench.sweep.worker import WorkerSession
from meprop_bench.tasks import mnist
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.tasks.run import run
from meprop_bench.workloads import Case
from meprop_bench.workloads.case import recipe_of

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
    recipe = recipe_of(_case(workload), 90)
    torch.manual_seed(7)
    first = trained(recipe, [1, 2])
    torch.manual_seed(8)
    assert trained(recipe, [1, 2]) == first
    assert first != trained(recipe.dense(), [1, 2])


@pytest.mark.parametrize("workload", _LEARNING)
def test_what_is_judged_at_the_end_is_evaluated_there_alone(workload: str) -> None:
    recipe = recipe_of(_case(workload), 50)
    task = recipe.load()
    usual, short = run(task, recipe, 3), run(task, recipe, 3, at_end=True)
    assert short.final_dev == usual.final_dev
    assert [found.step for found in short.history] == [50]
    assert len(usual.history) > 1


def test_all_of_them_have_the_same_dense_side() -> None:
    dense = [trained(recipe_of(_case(workload), 60).dense(), [1]) for workload in _LEARNING]
    assert dense[0] == dense[1] == dense[2] == trained(recipe_of(_case(k=16), 60), [1])


def test_the_dense_side_of_adam_by_rows_is_adam() -> None:
    case = Case(workload="mlp", data="digits", in_features=64, method="unified", gradient="rows", optimizer="rowadam")
    recipe = recipe_of(case, 3)
    assert (recipe.optimizer, recipe.dense().optimizer, recipe.dense().gradient) == ("rowadam", "adam", "dense")
    assert recipe_of(dataclasses.replace(case, optimizer="adagrad"), 3).dense().optimizer == "adagrad"


def test_meact_needs_an_epoch_to_fix_its_neurons_in() -> None:
    with pytest.raises(UserError, match="nothing of 10 steps"):
        trained(recipe_of(_case("meact"), 10), [1])


def test_removals_are_spaced_and_half_of_the_epochs_settle() -> None:
    """The digits have 15 steps in an epoch: one removal in each; 50 steps are three whole epochs."""
    recipes = {workload: recipe_of(_case(workload), 50) for workload in ("mesimp", "meact")}
    task = recipes["mesimp"].load()
    running = {}
    for workload, recipe in recipes.items():
        model = task.build(1)
        task.sparsify(model, recipe)
        assert recipe.along is not None
        running[workload] = recipe.along.start(task, model, torch.optim.SGD(model.parameters()), 50)
    assert running["mesimp"].inner.interval == 15 * 50
    assert running["meact"].pretrain == 1


def test_the_figure_of_a_cut_training_is_its_end_and_else_that_of_the_papers() -> None:
    recipe = Recipe("digits", {"batch": 50, "hidden": 16}, epochs=2)
    result = run(recipe.load(), recipe)
    assert figure(recipe, result) == result.test_at_best
    assert figure(dataclasses.replace(recipe, steps=50), result) == result.final_dev


def test_each_distinct_training_is_done_once() -> None:
    done: list[bool] = []

    def train(sparsified: bool) -> SeedFigures:
        done.append(sparsified)
        return SeedFigures("accuracy", True, {1: 90.0 + sparsified, 2: 92.0, 3: 91.0})

    accuracies = Accuracies(seeds=3, steps=20)
    first = accuracies.compare(_case(), train)
    assert accuracies.compare(_case(gradient="rows", optimizer="sgd"), train).baseline == first.baseline
    assert done == [True, False] * 2  # another optimizer is another training of both sides
    for same in ({"kernel": "masked"}, {"allocator": "default"}, {"threads": 2}, {"seed": 5}):
        assert accuracies.compare(_case(**same), train) == first
    accuracies.compare(_case(k=5), train)
    assert done == [True, False, True, False, True]
    assert (first.task, first.metric, first.steps, first.seeds) == ("digits", "accuracy_percent", 20, (1, 2, 3))
    assert first.method == (91.0, 92.0, 91.0)


def test_one_judgement_with_one_margin() -> None:
    recipe, pairs = Recipe("digits", method="meprop", k=4), {1: (96.0, 95.9), 2: (95.0, 95.1), 5: (96.0, 95.8)}
    found = judged(recipe.task, pairs, steps=9, metric="accuracy")
    interval = mean_difference(list(pairs.values()))
    assert (found.difference, found.low, found.high) == (interval.estimate, interval.low, interval.high)
    assert (found.seeds, found.baseline, found.method) == ((1, 2, 5), (96.0, 95.0, 96.0), (95.9, 95.1, 95.8))
    assert (found.margin, found.verdict) == (MARGIN, non_inferiority(interval, MARGIN))
    assert ParityPlan(recipe).margin == MARGIN


def test_the_margin_of_a_metric_that_is_no_percentage_is_a_share_of_denses_figure() -> None:
    recipe, pairs = Recipe("digits", method="meprop", k=4), {1: (-2.0, -2.1), 2: (-4.0, -4.2)}
    found = judged(recipe.task, pairs, steps=9, metric="minus the loss", percent=False)
    assert found.margin == pytest.approx(MARGIN / 100 * 3)
    assert judged(recipe.task, pairs, steps=9, metric="minus the loss", percent=False, margin=7.0).verdict == "pass"
    own = dataclasses.replace(recipe, task="my_model.py:build")
    assert (ParityPlan(own).margin, ParityPlan(own, margin=250.0).margin) == (None, 250.0)
    for each, margin in ((recipe, 100.0), (recipe, -1.0), (own, -1.0), (own, float("nan"))):
        with pytest.raises(UserError, match="margin must be at least 0"):
            ParityPlan(each, margin=margin)


@pytest.mark.parametrize(("exchange", "parts"), [("gathered", 2), ("agreed", 1)])
def test_ranks_learn_as_one_process_would_whose_parts_of_a_batch_select_for_themselves(exchange: str, parts: int):
    case = _case(gradient="rows", optimizer="adagrad", world_size=2, exchange=exchange)
    recipe = recipe_of(case, steps=3)
    task, plain = recipe.load(), recipe.dense().load()
    assert task.batch == plain.batch == task.options["batch"] == 2 * recipe_of(case).load().batch
    batch = next(iter(task.epoch(0, 0)))
    model = task.build(0)
    task.sparsify(model, recipe)

    def gradients(loss):
        model.zero_grad(set_to_none=True)
        loss.backward()
        return [parameter.grad.to_dense().clone() for parameter in model.parameters()]

    got = gradients(task.step(model, recipe).forward(batch))
    own = [gradients(plain.loss(model, part)) for part in zip(*(torch.chunk(t, parts) for t in batch), strict=True)]
    for found, *each in zip(got, *own, strict=True):
        torch.testing.assert_close(found, sum(each) / parts)


def test_what_ranks_gather_is_trained_apart_from_what_they_agree_on():
    accuracies, asked = Accuracies(2, 3), []

    def train(sparsified: bool) -> SeedFigures:
        asked.append(sparsified)
        return SeedFigures("accuracy", True, {1: 90.0, 2: 91.0})

    for exchange in ("gathered", "agreed", "gathered"):
        accuracies.compare(_case(gradient="rows", optimizer="adagrad", world_size=2, exchange=exchange), train)
    assert asked == [True, False, True]


def test_both_sides_of_a_comparison_for_several_processes_train_on_data_that_are_loaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    load = mnist.load_images
    monkeypatch.setattr(mnist, "load_images", lambda name: loaded.append(name) or load(name))
    method = {"method": "unified", "k": 4, "gradient": "rows", "optimizer": "adagrad"}
    session, found = WorkerSession(), []
    for exchange in ("gathered", "agreed"):
        recipe = Recipe("digits", {"batch": 25, "hidden": 16}, **method, steps=4, world_size=2, exchange=exchange)
        for side in (recipe, recipe.dense()):
            assert (side.parts, side.load().batch) == (2 if side.exchange == "gathered" else 1, 50)
            loaded.clear()
            asked = {"recipe": side.to_json(), "seed": 1, "checkpoint": str(tmp_path / f"{len(found)}.pt")}
            found.append((train(session, **asked)["figure"], len(loaded)))
    assert [count for _, count in found] == [1, 0, 0, 0]
    assert found[1][0] == found[3][0]
