from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.tuning.arms import Arm
from meprop_bench.tuning.budget import Budget
from meprop_bench.tuning.curve import Curve, time_to_quality
from meprop_bench.tuning.journal import Journal
from meprop_bench.tuning.session import Session

ARMS = (Arm("unified", 1 / 4), Arm("unified", 1 / 16))
BUDGETS = (1.0, 4.0, 16.0)


def draw(machine: Any, *, budget: float = 10_000.0, journal: Journal | None = None, **asked: Any) -> Curve:
    session = Session(machine, journal or Journal(), Budget(budget, machine.now))
    asked = {"arms": ARMS, "budgets": BUDGETS, "seeds": 4, "metric": "accuracy"} | asked
    return time_to_quality(session, **asked)


def crossing(arm: Arm | None, steps: int) -> float:
    """Return a quality that an arm, twice as fast, has less of early on and more of later, as on MNIST."""
    if arm is None:
        return 95 + 0.5 * math.log2(steps / 100)
    return 93.7 + 1.0 * math.log2(steps / 200) if arm.k == 1 / 4 else 80.0


def test_from_when_on_an_arm_is_ahead(fake: Any) -> None:
    curve = draw(fake(lambda arm: 2.0, crossing, noise=0.05))
    by = {(point.budget_s, point.arm): point for point in curve.points}
    # Of 1, 4 and 16 s dense has 100, 400 and 1600 steps, the arm twice as many: -1.3, -0.3, +0.7 points.
    assert [by[budget, None].steps for budget in BUDGETS] == [100, 400, 1600]
    assert [by[budget, ARMS[0]].steps for budget in BUDGETS] == [200, 800, 3200]
    assert by[1.0, ARMS[0]].standing == "behind"
    assert by[16.0, ARMS[0]].standing == "ahead"
    assert {by[budget, ARMS[1]].standing for budget in BUDGETS} == {"behind"}
    assert curve.sentence.startswith("In 16 s, the longest budget, unified, k = 0.25 is ahead of dense: accuracy +")
    assert curve.sentence.endswith("In 1 s, 4 s dense is ahead of every arm.")
    assert curve.code == ExitCode.OK


def test_ahead_all_along(fake: Any) -> None:
    curve = draw(fake(lambda arm: 2.0, lambda arm, steps: math.log2(steps), noise=0.05))
    assert curve.sentence.startswith("From 1 s on unified, k = 0.25 is ahead of dense") or curve.sentence.startswith(
        "From 1 s on unified, k = 0.0625 is ahead of dense"
    )
    assert "so is unified" in curve.sentence


def test_dense_ahead_everywhere(fake: Any) -> None:
    curve = draw(fake(lambda arm: 2.0, lambda arm, steps: 90.0 if arm is None else 80.0))
    assert curve.sentence.startswith("In none of 1 s, 4 s, 16 s is an arm ahead: dense is, and ")
    assert curve.code == ExitCode.OK


def test_nothing_is_shown(fake: Any) -> None:
    curve = draw(fake(lambda arm: 2.0, lambda arm, steps: 90.0))
    assert curve.sentence.startswith("Undecided: ")
    assert curve.code == ExitCode.INCONCLUSIVE


def test_an_arm_without_gain_is_not_trained(fake: Any) -> None:
    machine = fake(lambda arm: 0.98 if arm == ARMS[0] else 0.9, crossing)  # ±2%
    curve = draw(machine)
    assert not machine.trained
    assert set(curve.slow) == set(ARMS)
    assert curve.sentence == "Stay dense: no arm's training gains anything (1.00x at most), so none was trained."
    assert curve.code == ExitCode.OK


def test_a_gain_that_is_not_ruled_out_is_left_open(fake: Any) -> None:
    curve = draw(fake(lambda arm: 1.01 if arm == ARMS[0] else 0.9, crossing))
    assert curve.sentence.startswith(
        "Undecided: no arm's training is seen to be faster than dense, so none was trained;"
    )
    assert "up to 1.03x is not ruled out" in curve.sentence
    assert curve.code == ExitCode.INCONCLUSIVE


def test_batches_and_evaluations_take_their_seconds(fake: Any) -> None:
    curve = draw(fake(lambda arm: 2.0, crossing, batch_s=0.01))  # as long as a dense step
    by = {(point.budget_s, point.arm): point.steps for point in curve.points}
    assert (by[16.0, None], by[16.0, ARMS[0]]) == (800, 1066)


def test_a_budget_that_has_no_room_for_a_step_is_refused(fake: Any) -> None:
    with pytest.raises(UserError, match=r"0.001 s is less than a step takes, 0.01 s"):
        draw(fake(lambda arm: 2.0, crossing), budgets=(0.001, 4.0))


def test_what_the_search_has_no_time_for_is_left_out_and_goes_on_later(fake: Any, tmp_path: Path) -> None:
    machine = fake(lambda arm: 2.0, crossing, noise=0.05)
    first = draw(machine, budget=60.0, journal=Journal(tmp_path))
    assert machine.time <= 60
    assert first.left_out
    assert {point.standing for point in first.points if point.budget_s == 16} == {"left out"}
    second = draw(machine, journal=Journal(tmp_path))
    assert not second.left_out
    assert second.sentence.startswith("In 16 s, the longest budget")
    assert len(machine.trained) == len(set(machine.trained))
