import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meprop_bench.ops import SELECTIONS, check_k, reference, resolve_k, select
from meprop_bench.ops.selection import column_statistics

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.parametrize(
    ("k", "n", "kept"),
    [
        (1, 10, 1),
        (7, 10, 7),
        (12, 10, 12),
        (0.5, 10, 5),
        (0.25, 10, 3),  # 2.5 is rounded up
        (0.04, 10, 1),  # at least one
        (1e-300, 10, 1),
        (1.0, 10, 10),  # a ratio, where the int 1 is a count
        (np.int32(3), 10, 3),
        (np.float32(0.5), 10, 5),
        (Fraction(1, 5), 10, 2),
    ],
)
def test_k_resolves(k, n, kept):
    assert resolve_k(k, n) == kept
    assert type(resolve_k(k, n)) is int


@pytest.mark.parametrize(
    "k",
    [
        0,
        -1,
        0.0,
        -0.5,
        1.5,
        20.0,
        math.nan,
        math.inf,
        True,
        False,
        np.True_,
        np.int64(0),
        "3",
        None,
        1j,
        Decimal("0.5"),
        [1],
    ],
)
def test_k_that_is_refused_is_named(k):
    for function in (check_k, lambda k: resolve_k(k, 10)):
        with pytest.raises(ValueError, match="k must be") as error:
            function(k)
        assert repr(k) in str(error.value)


def test_unknown_selection():
    with pytest.raises(ValueError, match="'exmaple'"):
        select(torch.ones(2, 3), 1, "exmaple")


@given(batch=st.integers(1, 12), n=st.integers(1, 40), data=st.data())
@settings(max_examples=60, deadline=None)
def test_kept_magnitudes_are_the_greatest(batch, n, data):
    k = data.draw(st.integers(1, n))
    # Small integers: ties everywhere, and sums that are exact in any order.
    values = data.draw(st.lists(st.integers(-3, 3), min_size=batch * n, max_size=batch * n))
    dy = torch.tensor(values, dtype=data.draw(st.sampled_from(DTYPES))).reshape(batch, n)
    for selection, magnitudes in (("example", dy.abs()), ("unified", dy.abs().sum(0, dtype=torch.float32))):
        idx = select(dy, k, selection)
        assert idx.shape == ((batch, k) if selection == "example" else (k,))
        assert all(len(set(row)) == k for row in idx.reshape(-1, k).tolist())
        kept = magnitudes.gather(-1, idx).sort(descending=True).values
        assert torch.equal(kept, magnitudes.sort(descending=True).values[..., :k])
        assert torch.equal(idx, select(dy, k, selection))


@pytest.mark.parametrize(("batch", "n", "k"), [(300, 500, 7), (129, 1030, 3), (2100, 256, 28)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_gradients_go_in_slices_and_select_the_same(batch, n, k, dtype):
    dy = torch.randn(batch, n, generator=torch.Generator().manual_seed(batch)).to(dtype)
    dy[3, 5], dy[4, 6], dy[5] = math.nan, -math.inf, 0
    for layout in (dy, dy.t().contiguous().t()):
        idx = select(layout, k)
        rank = dy.abs().nan_to_num(math.inf, math.inf).float()
        assert torch.equal(rank.gather(1, idx).sort().values, rank.topk(k).values.sort().values)
        assert 5 in idx[3]
        assert 6 in idx[4]
        assert all(len(row.unique()) == k for row in idx)
        magnitudes, sums = column_statistics(layout, sums=True)
        torch.testing.assert_close(magnitudes, dy.double().abs().sum(0).to(magnitudes.dtype), equal_nan=True)
        tolerance = {} if dtype.itemsize > 2 else {"rtol": 2e-2, "atol": 0.1}
        torch.testing.assert_close(sums, dy.double().sum(0).to(dtype), equal_nan=True, **tolerance)
        assert column_statistics(layout, sums=False)[1] is None


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("wild", [math.nan, math.inf, -math.inf])
def test_non_finite_entries_are_kept(selection, wild):
    for position in range(6):
        dy = torch.full((3, 6), 1e30)
        dy[1, position] = wild
        idx = select(dy, 1, selection)
        assert (idx if idx.dim() == 1 else idx[1]).tolist() == [position]


def test_half_precision_does_not_overflow_in_the_sum():
    dy = torch.full((2000, 3), 60.0, dtype=torch.float16)  # 120,000 each, above the greatest float16
    dy[:, 1] += 1
    assert select(dy, 1, "unified").tolist() == [1]


def test_oracle_and_selection_agree_where_there_is_no_tie():
    dy = torch.randn(7, 11, generator=torch.Generator().manual_seed(1))
    for selection in ("example", "unified"):
        assert torch.equal(select(dy, 4, selection).sort().values, reference.select(dy, 4, selection).sort().values)


@pytest.mark.parametrize("selection", ["random", "random-unified"])
def test_random_selection_is_seeded_distinct_and_uniform(selection):
    dy = torch.zeros(200, 10)
    torch.manual_seed(5)
    first = select(dy, 3, selection)
    assert not torch.equal(first, select(dy, 3, selection))
    torch.manual_seed(5)
    assert torch.equal(first, select(dy, 3, selection))
    generator = torch.Generator().manual_seed(9)
    second = select(dy, 3, selection, generator)
    assert torch.equal(second, select(dy, 3, selection, torch.Generator().manual_seed(9)))
    counts = torch.zeros(10)
    for _ in range(1 if selection == "random" else 200):
        idx = select(dy, 3, selection, generator).reshape(-1, 3)
        assert all(len(set(row)) == 3 for row in idx.tolist())
        counts += torch.bincount(idx.flatten(), minlength=10)
    assert counts.sum() == 600
    assert ((counts - 60).abs() < 5 * math.sqrt(60 * 0.7)).all()  # five standard deviations of the binomial count
