"""The learning rate over a training: fitted to its steps, the same after a resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from meprop_bench.errors import UserError
from meprop_bench.optimizers import make_optimizer, make_schedule
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.tasks.run import describe, run


def rates(steps: int) -> list[float]:
    """Return the rate of each step, in units of the optimizer's, and the one after the last."""
    optimizer = make_optimizer("sgd", [torch.nn.Parameter(torch.ones(2))])
    schedule = make_schedule("cosine", optimizer, steps)
    assert schedule is not None
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"] / 0.1)
        optimizer.step()
        schedule.step()
    return [*found, optimizer.param_groups[0]["lr"] / 0.1]


@pytest.mark.parametrize(("steps", "warm_up"), [(1, 1), (10, 1), (200, 10), (4000, 100)])
def test_warm_up_and_cosine_to_zero_over_exactly_these_steps(steps: int, warm_up: int) -> None:
    found = rates(steps)
    assert found[:warm_up] == pytest.approx([(step + 1) / warm_up for step in range(warm_up)])
    assert max(found) == pytest.approx(1.0)
    falling = found[warm_up:]
    assert falling == sorted(falling, reverse=True)
    assert all(rate > 0 for rate in found[:steps])
    if steps > warm_up:
        assert found[-1] == pytest.approx(0.0, abs=1e-12)
        assert found[(steps + warm_up) // 2] == pytest.approx(0.5, abs=0.1)


def test_constant_needs_nothing_and_another_name_is_refused() -> None:
    optimizer = make_optimizer("sgd", [torch.nn.Parameter(torch.ones(2))])
    assert make_schedule("constant", optimizer, 10) is None
    with pytest.raises(UserError, match="unknown schedule 'linear': choose from constant, cosine"):
        make_schedule("linear", optimizer, 10)
    with pytest.raises(UserError, match="unknown schedule 'linear'"):
        Recipe("digits", schedule="linear")


def test_a_description_says_it_only_when_it_is_another_one() -> None:
    plain, cosine = (
        Recipe("digits", {"hidden": 8}, steps=5),
        Recipe("digits", {"hidden": 8}, steps=5, schedule="cosine"),
    )
    task = plain.load()
    assert "schedule" not in plain.to_json()
    assert "schedule" not in describe(task, plain, 1)
    assert describe(task, cosine, 1)["schedule"] == cosine.to_json()["schedule"] == "cosine"
    assert Recipe(**cosine.to_json()) == cosine
    assert cosine.dense() == cosine


def test_what_is_left_dense_tells_trainings_apart() -> None:
    recipe = Recipe("digits", {"hidden": 8}, steps=5, method="unified", k=0.5, leave="linear0")
    assert describe(recipe.load(), recipe, 1)["leave"] == "linear0"


def test_a_resumed_training_ends_with_the_same_parameters(tmp_path: Path) -> None:
    recipe = Recipe("digits", {"hidden": 16}, method="unified", k=0.5, steps=40, schedule="cosine", optimizer="sgd")
    task = recipe.load()
    whole = run(task, recipe, seed=3)

    def stop(step: int) -> None:
        if step == 17:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        run(task, recipe, seed=3, checkpoint=checkpoint, after_step=stop)
    resumed = run(task, recipe, seed=3, checkpoint=checkpoint)
    for (name, one), (_, other) in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name
    constant = run(task, Recipe("digits", {"hidden": 16}, method="unified", k=0.5, steps=40, optimizer="sgd"), seed=3)
    assert not torch.equal(next(iter(constant.model.parameters())), next(iter(whole.model.parameters())))
