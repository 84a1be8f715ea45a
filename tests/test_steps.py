from __future__ import annotations

import random

import pytest

from meprop_bench.steps import levels, steps


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
    assert levels(values, [12]) == pytest.approx([0.0, 0.2], abs=0.02)


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


def test_values_that_are_none_are_refused():
    with pytest.raises(ValueError, match="finite"):
        steps([1.0, float("nan")])
    with pytest.raises(ValueError, match="least"):
        steps([1.0], least=0)
