import random

import numpy as np
import pytest

from meprop_bench.stats.steps import SHORTEST, levels, steps


def noise(rows, series=400, *, seed=0, scale=0.01):
    return np.random.default_rng(seed).normal(0, scale, (rows, series))


def test_without_a_step_the_level_is_the_median_and_the_spread_that_of_the_noise():
    values = 3 + noise(20)
    found = levels(values)
    kept = found.count == 20
    assert kept.mean() > 0.99
    assert np.array_equal(found.level[kept], np.median(values, axis=0)[kept])
    assert np.median(found.spread) == pytest.approx(0.01, rel=0.2)
    assert (found.degrees[kept] == 19).all()


@pytest.mark.parametrize("since", [SHORTEST, 6, 12, 17])
@pytest.mark.parametrize("height", [-0.3, 0.3])
def test_a_step_restarts_the_level_and_leaves_the_spread(since, height):
    values = noise(20)
    values[-since:] += height
    found = levels(values)
    assert np.mean(found.count == since) > 0.9
    assert np.median(found.level) == pytest.approx(height, abs=0.01)
    assert np.median(found.spread) == pytest.approx(0.01, rel=0.25)


def test_two_values_are_no_step_yet():
    values = noise(20)
    values[-2:] += 0.1
    found = levels(values)
    assert np.median(found.level) == pytest.approx(0, abs=0.01)
    assert np.median(found.beyond) == pytest.approx(0.1, abs=0.03)  # but what lies there is not new


def test_a_drift_is_a_staircase_whose_last_step_is_near():
    values = noise(40, scale=0.001) + np.linspace(0, 0.4, 40)[:, None]
    assert np.median(levels(values).level) == pytest.approx(0.4, abs=0.06)


def test_one_outlier_is_the_farthest_and_no_tail_two_are_one():
    values = noise(20)
    values[5] += 1.0
    one = levels(values)
    assert np.median(one.spread) == pytest.approx(0.01, rel=0.25)
    assert np.median(one.farthest) == pytest.approx(1.0, abs=0.02)
    assert np.median(one.beyond) < 0.04
    values[11] += 0.8
    assert np.median(levels(values).beyond) == pytest.approx(0.8, abs=0.02)


def test_a_second_mode_widens_the_spread():
    values = noise(20)
    values[[2, 6, 9, 15]] += 0.5
    assert np.median(levels(values).spread) > 0.2


def test_what_never_changes_has_no_spread():
    found = levels(np.full((9, 3), 2.0))
    assert found.spread.tolist() == [0.0] * 3
    assert found.count.tolist() == [9] * 3


def test_a_pure_step_of_what_never_changes_is_found():
    values = np.zeros((12, 1))
    values[-4:] = 1.0
    found = levels(values)
    assert (found.level[0], found.count[0], found.spread[0]) == (1.0, 4, 0.0)


def history(*parts, spread=0.01, seed=0, law="gauss"):
    source = random.Random(seed)
    draw = {
        "gauss": lambda: source.gauss(0, spread),
        "heavy": lambda: spread * source.gauss(0, 1) / abs(source.gauss(0, 1)),
    }[law]
    return [level + draw() for level, count in parts for _ in range(count)]


def test_a_step_is_found_where_it_is_and_with_its_levels():
    values = history((0.0, 12), (0.2, 9))
    assert steps(values) == [12]


def test_several_steps_up_and_down():
    assert steps(history((0.0, 8), (0.1, 8), (-0.1, 8))) == [8, 16]


def test_single_outliers_and_even_two_of_them_are_no_level():
    values = history((0.0, 20))
    values[7], values[13], values[14] = 5.0, -3.0, -3.0
    assert steps(values) == []


def test_the_newest_value_alone_is_no_step_and_three_are():
    before = history((0.0, 15))
    assert steps([*before, 0.5]) == []
    assert steps([*before, 0.5, 0.5, 0.51]) == [15]


@pytest.mark.parametrize("law", ["gauss", "heavy"])
@pytest.mark.parametrize("count", [6, 20, 60])
def test_noise_has_few_steps(law, count):
    found = [bool(steps(history((0.0, count), seed=seed, law=law))) for seed in range(100)]
    assert sum(found) <= 8


@pytest.mark.parametrize("count", [10, 40])
def test_a_step_of_three_deviations_is_mostly_found(count):
    found = [steps(history((0.0, count), (0.05, count), seed=seed)) for seed in range(60)]
    assert sum(len(each) == 1 and abs(each[0] - count) <= 1 for each in found) >= 54


def test_noise_that_is_known_to_be_there_counts_where_values_happen_to_agree():
    values = [*[1.0] * 5, *[1.001] * 5]
    assert steps(values) == [5]
    assert steps(values, noise=0.01) == []


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
def test_few_values_have_no_steps(values):
    assert steps(values) == []


def test_equal_values_are_one_level():
    assert steps([2.0] * 30) == []
