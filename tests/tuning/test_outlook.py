from __future__ import annotations

import math
import random

import pytest

from meprop_bench.tuning.halving import Pace, planned
from meprop_bench.tuning.outlook import EXAMINING, WAITING, Outlook, first_pace, seeds_needed, too_short
from meprop_bench.tuning.timing import Costs

COSTS = Costs(batch_s=0.02, evaluation_s=0.5, per_epoch=100, whole=5000, step_s=0.08)


def outlook(spent_s: float = 0.0) -> Outlook:
    pace = first_pace(COSTS)
    assert pace == Pace(0.1, 1.0)
    return Outlook(2, spent_s, pace, COSTS)


def test_where_no_step_was_timed_there_is_no_pace() -> None:
    assert first_pace(Costs(0.01, 0.5, 100, 5000)) is None


def of_plan(left_s: float, steps: int | None = None, seeds: int | None = None) -> str | None:
    return outlook().of_plan(12, steps=steps, seeds=seeds, joining=3, left_s=left_s, timing=0.3)


def test_a_budget_for_a_few_steps_says_how_many_and_what_would_do() -> None:
    line = of_plan(600)
    assert line is not None
    assert "\n" not in line
    found = planned(12, seconds=600 * 0.7 * 2, pace=Pace(0.1, 1.0), whole=5000, joining=3).steps
    assert line.startswith(f"this budget allows trainings of about {found:,} steps, too few to say much of 12 arms")
    assert "allow 400;" in line
    assert of_plan(1e5) is None
    assert of_plan(math.inf) is None


def test_trainings_of_given_steps_that_do_not_fit_are_said() -> None:
    line = of_plan(600, steps=5000)
    assert line is not None
    assert "too short to judge by trainings of 5,000 steps: about" in line
    assert of_plan(1e6, steps=5000) is None


@pytest.mark.parametrize("difference", [-0.2, -1.5])
def test_so_many_seeds_decide_and_half_as_many_do_not(difference: float) -> None:
    rng = random.Random(1)
    noise = [rng.gauss(0, 1) for _ in range(8)]
    spread = math.sqrt(sum((each - sum(noise) / 8) ** 2 for each in noise) / 7)
    seen = [difference + (each - sum(noise) / 8) / spread * 0.4 for each in noise]  # of standard deviation 0.4
    found = seeds_needed(seen, 0.5, looks=1, most=10_000)
    assert found is not None
    assert found % 8 == 0
    assert seeds_needed(seen, 0.5, looks=1, most=found - 1) is None
    assert (seeds_needed([each * 3 for each in seen], 1.5, looks=1, most=10_000) or 0) == found  # of another unit


def test_what_would_decide_is_said_with_the_whole_budget_or_that_nothing_does() -> None:
    seen = [-0.5, 0.3, -0.3, 0.1, -0.1, 0.2, -0.4, 0.1]
    line = outlook(1000).of_more_seeds(seen, 0.5, steps=400, looks=1, most=63, fixed=False)
    assert line.startswith(" If the difference stays what it is, 16 seeds decide: --resume with a --budget of about ")
    # 8 more seeds of three trainings of 41 s, on two processes that are busy for 85% of the time
    assert line.endswith(f"{math.ceil((1000 + 24 * 41 / 2 / 0.85) / 60)}m.")
    assert outlook().of_more_seeds(seen, 0.5, steps=400, looks=1, most=63, fixed=True).endswith("--seeds 16.")
    nothing = outlook().of_more_seeds([-0.5, -1.5, 0.5, -0.5], 0.5, steps=400, looks=1, most=63, fixed=False)
    assert "not even 63 of them would decide" in nothing


def test_arms_that_were_not_judged_have_their_budget() -> None:
    line = outlook(600).of_more_arms(8, steps=400, seeds=None, joining=3)
    assert line == " Trainings of 400 steps need a --budget of about 42m, with --resume."


def test_waiting_for_another_run_is_counted_once() -> None:
    alone = too_short({EXAMINING: 2.0, "compiling": 6.0})
    waited = too_short({EXAMINING: 2.0, "compiling": 6.0, WAITING: 540.0})
    assert alone.endswith("give --budget 42s or more")
    assert "9 min waiting for another run" in waited
    assert waited.endswith("give --budget 10m or more")
