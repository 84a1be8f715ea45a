import numpy as np
import pytest

from meprop_bench.stats.steps import SHORTEST, levels


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
