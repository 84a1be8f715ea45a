"""The union of rows, compiled and by torch's operators."""

import itertools

import pytest
import torch

from meprop_bench.distributed.gathered import union
from meprop_bench.ops.kernels import compiled


@pytest.fixture(params=["compiled", "operators"])
def how(request, monkeypatch):
    if request.param == "operators":
        monkeypatch.setattr(compiled, "load", lambda module: None)
    elif (reason := compiled.unavailable_reason()) is not None:
        pytest.skip(reason)


def part(rows, values):
    return torch.tensor(rows, dtype=torch.int64), torch.tensor(values, dtype=torch.float32).reshape(len(rows), -1)


@pytest.mark.usefixtures("how")
def test_by_hand():
    found, values = union([part([0, 3], [[1, 2], [3, 4]]), part([3, 5], [[5, 6], [7, 8]])], 0.5)
    assert found.tolist() == [0, 3, 5]
    assert values.tolist() == [[0.5, 1], [4, 5], [3.5, 4]]


@pytest.mark.usefixtures("how")
def test_a_sum_that_cancels_is_a_row():
    found, values = union([part([2], [[1, -1]]), part([2], [[-1, 1]])], 0.5)
    assert (found.tolist(), values.tolist()) == ([2], [[0, 0]])


@pytest.mark.usefixtures("how")
def test_what_is_not_finite_stays_so():
    found, values = union([part([1, 2], [torch.nan, torch.inf]), part([1, 2], [1, 1])], 0.5)
    assert found.tolist() == [1, 2]
    assert values[0].isnan().item()
    assert values[1].isinf().item()


@pytest.mark.usefixtures("how")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_against_dense_sums(ranks, dtype):
    generator = torch.Generator().manual_seed(ranks)
    for n, m, k in itertools.product((1, 40), (1, 17, 64), (0, 1, 9)):
        parts, whole = [], torch.zeros(n, m, dtype=torch.float64)
        for r in range(ranks):
            rows = torch.randperm(n, generator=generator)[: min(n, max(0, k - r))].sort().values
            values = torch.randn(len(rows), m, generator=generator).to(dtype)
            parts.append((rows, values))
            whole.index_add_(0, rows, values.double())
        found, values = union(parts, 1 / ranks)
        assert found.tolist() == sorted(set(torch.cat([rows for rows, _ in parts]).tolist()))
        assert values.dtype == dtype
        expected = (whole / ranks)[found]
        torch.testing.assert_close(values.double(), expected, **tolerance(dtype))


def tolerance(dtype):
    return {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
