import numpy as np
import pytest

from meprop_bench.gate.history.noise import LEAST, benchmarks_of, common_shift, expected, newest, unrest

CASES = [f"m.time_{i}({j})" for i in range(20) for j in range(3)]
BENCHMARKS = benchmarks_of(CASES)


def logs(runs, *, seed=0, spread=0.01):
    return np.random.default_rng(seed).normal(0, spread, (runs, len(CASES)))


def test_figures_of_one_benchmark_are_those_of_one_name_without_parameters():
    found = benchmarks_of(["a.time_x(1, 2)", "a.time_x(3)", "a.time_y", "t.py::test_z[1]", "t.py::test_z[2]"])
    assert found.tolist() == [0, 0, 1, 2, 2]


def test_the_newest_values_of_each_figure_are_found_across_runs_that_lack_it():
    values = np.array([[1.0, 5.0], [2.0, np.nan], [np.nan, 6.0], [4.0, np.nan]])
    assert np.array_equal(newest(values, 2), [[2.0, 5.0], [4.0, 6.0]])
    assert np.array_equal(newest(values, 4), [[np.nan, np.nan], [1, np.nan], [2, 5], [4, 6]], equal_nan=True)


def test_what_a_run_has_in_common_is_no_noise_of_its_figures():
    values = logs(20)
    found = expected(values + np.linspace(-0.3, 0.3, 20)[:, None], BENCHMARKS, 20)
    assert np.median(found.spread) == pytest.approx(0.01, rel=0.3)


def test_a_benchmark_with_many_parameters_is_not_the_machine():
    many = benchmarks_of([*CASES, *(f"m.time_many({j})" for j in range(500))])
    distances = np.where(np.arange(len(many)) < len(CASES), 0.0, 0.5)
    assert common_shift(distances, many) == 0
    assert common_shift(distances + 0.1, many) == pytest.approx(0.1)


def test_of_few_benchmarks_nobody_can_tell_the_machine_from_a_change():
    few = benchmarks_of([f"time_{i}" for i in range(11)])
    assert common_shift(np.full(11, 0.5), few) is None
    assert common_shift(np.full(len(CASES), np.nan), BENCHMARKS) is None


def test_too_few_runs_expect_nothing():
    values = logs(20)
    values[: 20 - LEAST + 1, 0] = np.nan
    found = expected(values, BENCHMARKS, 20)
    assert np.isnan(found.level[0])
    assert (found.runs[0], found.runs[1]) == (LEAST - 1, 20)
    assert np.isfinite(found.level[1:]).all()


def test_a_level_of_few_values_is_known_less_well():
    values = logs(20)
    values[-3:] += 0.5
    found = expected(values, benchmarks_of(["time_x"] * len(CASES)), 20)  # one benchmark: no common shift
    assert np.median(found.error / found.spread) == pytest.approx(np.sqrt(1 + np.pi / 2 / 3), rel=0.01)


def test_a_noisy_run_shows_in_all_its_figures():
    errors = np.full(600, 0.01)
    rng = np.random.default_rng(1)
    assert unrest(rng.normal(0, 0.01, 600), errors) == pytest.approx(1, abs=0.1)
    assert unrest(rng.normal(0, 0.03, 600), errors) == pytest.approx(3, rel=0.15)
    assert unrest(rng.normal(0, 0.03, 5), errors[:5]) == 1
