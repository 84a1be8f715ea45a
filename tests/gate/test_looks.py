import pytest

from meprop_bench.gate.looks import Looks


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 7, 8, 16, 17, 100])
def test_the_shares_are_all_of_alpha_and_the_last_look_is_at_the_end(most):
    looks = Looks.within(most)
    assert sum(looks.weights) == pytest.approx(1)
    assert looks.counts[-1] == most
    assert looks.weights[-1] >= 0.65  # the price of looking early is small


def test_few_pairs_are_looked_at_once():
    assert Looks.within(2) == Looks((2,), (1.0,))
    assert Looks.within(16).counts == (4, 8, 16)
    assert Looks.within(64).counts == (8, 16, 32, 64)


def test_between_looks_nothing_is_looked_at_unless_it_is_the_last():
    looks = Looks((4, 8, 16), (0.1, 0.2, 0.7))
    assert looks.taken(3, last=False) == ()
    assert looks.taken(4, last=False) == looks.taken(7, last=False) == ((4, 0.1),)
    assert looks.taken(16, last=False) == ((4, 0.1), (8, 0.2), (16, 0.7))


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 15, 16])
def test_whatever_count_the_budget_ends_at_all_of_alpha_is_spent(count):
    taken = Looks((4, 8, 16), (0.1, 0.2, 0.7)).taken(count, last=True)
    assert taken[-1][0] == count
    assert sum(weight for _, weight in taken) == pytest.approx(1)


def test_pairs_beyond_the_design_are_not_looked_at():
    looks = Looks((4, 8), (0.5, 0.5))
    assert looks.taken(9, last=True) == looks.taken(9, last=False) == ((4, 0.5), (8, 0.5))


@pytest.mark.parametrize(
    ("counts", "weights"),
    [((), ()), ((0,), (1.0,)), ((4, 4), (0.5, 0.5)), ((4, 8), (0.5,)), ((4, 8), (0.5, 0.6)), ((4, 8), (0.0, 1.0))],
)
def test_a_plan_that_is_none_is_refused(counts, weights):
    with pytest.raises(ValueError, match="look"):
        Looks(counts, weights)
    with pytest.raises(ValueError, match="at least one pair"):
        Looks.within(0)
