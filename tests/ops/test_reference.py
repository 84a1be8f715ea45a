import math

import pytest
import torch

from meprop_bench.ops import reference


def test_example_of_the_paper():
    assert reference.top_k([1, 2, 3, -4], 2) == [0, 0, 3, -4]


def test_nan_is_the_greatest_and_the_first_of_equals_is_taken():
    assert reference.top_k([5, math.nan, math.inf], 1)[:1] == [0]
    assert math.isnan(reference.top_k([5, math.nan, math.inf], 1)[1])
    assert reference.top_k([1, -1, 1], 2) == [1, -1, 0]


def test_equations_5_and_6_by_hand():
    # One example, n = 3 outputs, m = 2 inputs, top 2 of dy = <2, -1, 3> keeps neurons 0 and 2.
    dy = torch.tensor([[2.0, -1.0, 3.0]])
    x = torch.tensor([[5.0, 7.0]])
    w = torch.tensor([[1.0, 2.0], [10.0, 20.0], [-3.0, 4.0]])
    dx, dw, db = reference.backward(dy, x, w, reference.select(dy, 2, "example"))
    assert dw.tolist() == [[10, 14], [0, 0], [15, 21]]  # (5): dW_ij = dy_i x_j for i in {0, 2}
    assert dx.tolist() == [[2 * 1 + 3 * -3, 2 * 2 + 3 * 4]]  # (6): dx_j = sum over i in {0, 2} of W_ij dy_i
    assert db.tolist() == [2, -1, 3]


def test_batch_sums_the_weight_gradient_and_keeps_the_bias_full():
    dy = torch.tensor([[1.0, -2.0], [4.0, 3.0]])
    x = torch.tensor([[1.0], [10.0]])
    w = torch.tensor([[1.0], [2.0]])
    dx, dw, db = reference.backward(dy, x, w, reference.select(dy, 1, "example"))
    assert dw.tolist() == [[40], [-2]]
    assert dx.tolist() == [[-4], [4]]
    assert db.tolist() == [5, 1]


def test_unified_takes_the_sum_of_magnitudes_not_the_magnitude_of_the_sum():
    dy = torch.tensor([[3.0, 2.0], [-3.0, 2.0]])  # sums of |dy|: 6 and 4; |sums|: 0 and 4
    assert reference.select(dy, 1, "unified").tolist() == [0]
    dx, dw, _ = reference.backward(dy, torch.ones(2, 1), torch.ones(2, 1), torch.tensor([0]))
    assert dx.tolist() == [[3], [-3]]
    assert dw.tolist() == [[0], [0]]


def test_all_neurons_kept_is_the_dense_gradient():
    torch.manual_seed(0)
    dy, x, w = torch.randn(4, 5).double(), torch.randn(4, 3).double(), torch.randn(5, 3).double()
    dx, dw, db = reference.backward(dy, x, w, torch.arange(5))
    torch.testing.assert_close((dx, dw, db), (dy @ w, dy.t() @ x, dy.sum(0)))


def test_chance_is_not_the_oracles_business():
    with pytest.raises(ValueError, match="'random'"):
        reference.select(torch.ones(1, 2), 1, "random")
