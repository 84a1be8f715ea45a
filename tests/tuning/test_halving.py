from __future__ import annotations

import pytest

from meprop_bench.stats import mean_interval
from meprop_bench.tuning.halving import (
    FINALISTS,
    Pace,
    chance,
    choose,
    enough,
    expected_best,
    few,
    hopeless,
    needed,
    planned,
    round_down,
)

PACE = Pace(step_s=0.01, overhead_s=0.5)


@pytest.mark.parametrize("arms", [1, 2, 3, 5, 12, 24, 60])
def test_a_plan_ends_with_few_arms_and_full_trainings(arms: int) -> None:
    plan = planned(arms, seconds=20_000, pace=PACE, whole=1000)
    left = [arms, *(rung.survivors for rung in plan.rungs)]
    assert left == sorted(left, reverse=True)
    assert left[-1] <= FINALISTS or arms <= FINALISTS
    if plan.rungs:
        assert plan.rungs[-1].share == 1.0
        assert [rung.share for rung in plan.rungs] == sorted(rung.share for rung in plan.rungs)
    assert not {seed for rung in plan.rungs for seed in rung.seeds} & set(plan.seeds)


def test_a_plan_fits_its_time_and_never_exceeds_the_whole() -> None:
    rich, poor = (planned(6, seconds=seconds, pace=PACE, whole=1000) for seconds in (100_000, 300))
    assert rich.steps == 1000
    assert len(rich.seeds) == 8
    assert poor.steps < 1000
    trainings = sum(len(rung.seeds) * 7 for rung in poor.rungs) + len(poor.seeds) * 5
    seconds = sum(len(rung.seeds) * 4 * PACE.seconds(rung.steps(poor.steps)) for rung in poor.rungs)
    assert seconds + len(poor.seeds) * 5 * PACE.seconds(poor.steps) < 300
    assert trainings


def test_what_is_asked_for_is_planned_whatever_it_costs() -> None:
    plan = planned(4, seconds=1, pace=PACE, whole=10_000, steps=5000, seeds=6)
    assert plan.steps == 5000
    assert len(plan.seeds) == 6
    assert planned(4, seconds=1e6, pace=PACE, whole=10_000, steps=5000).seeds == plan.seed(8)


@pytest.mark.parametrize("arms", [2, 3, 4, 5, 12, 24])
def test_those_that_join_are_trained_on_a_rung_and_have_their_time(arms: int) -> None:
    alone, joined = (planned(arms, seconds=3000, pace=PACE, whole=5000, joining=joining) for joining in (0, 3))
    assert len(joined.rungs) >= 2 or arms <= FINALISTS
    assert joined.joining == (3 if arms > FINALISTS else 0)
    assert joined.steps < alone.steps or arms <= FINALISTS
    assert [rung.share for rung in joined.rungs[-1:]] == [1.0] * bool(joined.rungs)


@pytest.mark.parametrize("steps", [50, 200, 400])
def test_what_a_plan_needs_is_what_it_fits_into(steps: int) -> None:
    seconds = needed(8, pace=PACE, steps=steps, joining=3)
    rich, poor = (planned(8, seconds=seconds * each, pace=PACE, whole=5000, joining=3) for each in (1.001, 0.95))
    assert rich.steps == steps
    assert (len(poor.seeds), poor.steps) < (len(rich.seeds), rich.steps)


def test_few_steps_are_few_unless_they_are_all() -> None:
    assert few(149, 5000)
    assert not few(150, 5000)
    assert not few(40, 40)
    assert (enough(5000), enough(40)) == (400, 40)


def test_pace_is_that_of_steps_and_what_is_usual_besides() -> None:
    pace = Pace.of([(100, 1.0, 4.0), (100, 1.0, 1.5), (200, 2.0, 2.5)])  # the first one loaded its data
    assert pace.step_s == pytest.approx(0.01)
    assert pace.seconds(100) == pytest.approx(1.5)


@pytest.mark.parametrize(("value", "rounded"), [(0.4, 0), (7.9, 7), (12345, 12000), (999, 990), (1000, 1000)])
def test_rounding_down(value: float, rounded: int) -> None:
    assert round_down(value) == rounded


def test_the_fast_gamble_goes_on_together_with_the_slow_and_safe_one() -> None:
    # By chance times gain the two gambles would go on, 0.20 and 0.18 against 0.05.
    candidates = {"gamble": (2.0, 0.4), "other gamble": (1.95, 0.1), "safe": (1.2, 1.0)}
    assert set(choose(candidates, 2)) == {"gamble", "safe"}
    assert choose(candidates, 1) == ["gamble"]
    assert expected_best([(2.0, 0.4), (1.2, 1.0)]) == pytest.approx(0.2 + 0.6 * (1 - 1 / 1.2))


def test_chances() -> None:
    assert chance([], 0.5) == chance([-3.0], 0.5) == 0.5
    assert chance([0.1, -0.1, 0.0], 0.5) > 0.95
    assert chance([-5.0, -5.2, -4.9], 0.5) < 0.01
    assert chance([-0.5, -0.4, -0.6], 0.5) == pytest.approx(0.5)


def test_hopeless_is_what_even_the_upper_bound_says() -> None:
    assert hopeless(mean_interval([-5.0, -5.2, -4.9]), 0.5)
    assert not hopeless(mean_interval([-5.0, -1.2, -0.1]), 0.5)
    assert not hopeless(mean_interval([-5.0]), 0.5)  # one seed has no interval
