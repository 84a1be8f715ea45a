"""What only the native kernel has: its own search for the k largest, threads, and streamed stores at large sizes."""

from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba", reason="the native kernel needs Numba (extra `cpu`)")

from meprop_bench.ops import kernels, reference
from meprop_bench.ops.kernels import Request, native
from meprop_bench.ops.kernels.native.compiler import function, view
from meprop_bench.ops.kernels.native.topk import largest, working_bytes

linear_plan = import_module("meprop_bench.ops.linear")._plan  # the function has the same name


@function()
def _largest(row, n, k, working, places):
    return largest(row, n, k, working, view(places, k, np.int32))


def top(row: list[float], k: int) -> list[int]:
    numbers = np.array(row, np.float32)
    working = np.empty(working_bytes(len(row), k), np.uint8)
    places = np.full(k, -1, np.int32)
    count = _largest(numbers.ctypes.data, len(row), k, working.ctypes.data, places.ctypes.data)
    return places[:count].tolist()


def obvious(row: list[float], k: int) -> list[int]:
    """Greatest magnitude first, NaN above all, ties to the lower index, zeros never; ascending."""
    order = sorted(range(len(row)), key=lambda i: (-np.inf if np.isnan(row[i]) else -abs(np.float32(row[i])), i))
    nan_first = sorted(order, key=lambda i: not np.isnan(row[i]))
    return sorted(i for i in nan_first[:k] if row[i] != 0)


numbers = st.one_of(
    st.floats(width=32, allow_nan=False), st.sampled_from([0.0, -0.0, 1.0, -1.0, float("inf"), -float("inf"), 1e-45])
)


@given(st.data(), st.integers(2, 300))
@settings(max_examples=200, deadline=None)
def test_the_k_largest_with_ties_to_the_lower_index(data, n):
    row = data.draw(st.lists(numbers, min_size=n, max_size=n))
    k = data.draw(st.integers(1, n - 1))
    assert top(row, k) == obvious(row, k)


@pytest.mark.parametrize(("n", "k"), [(8192, 8), (8192, 512), (2048, 2047), (1000, 1), (129, 64)])
def test_long_rows(n, k):
    row = np.random.default_rng(0).standard_normal(n).astype(np.float32).round(2).tolist()  # rounding makes ties
    assert top(row, k) == obvious(row, k)


def test_the_papers_example():
    assert top([1.0, 2.0, 3.0, -4.0], 2) == [2, 3]


def test_nan_and_infinity_come_first():
    assert top([1.0, float("nan"), 5.0, float("-inf"), 7.0], 2) == [1, 3]


def test_zeros_are_left_out():
    assert top([0.0, 3.0, -0.0, 0.0], 3) == [1]


def gradients(selection: str, rows: bool, b: int = 37, n: int = 101, m: int = 83, k: int = 9):
    generator = torch.Generator().manual_seed(1)
    dy, x, w = (torch.randn(size, generator=generator) for size in ((b, n), (b, m), (n, m)))
    found = native.KERNEL.backward(dy, x, w, Request(k, selection, rows, True, True, True))
    return [g.to_dense() if g.is_sparse else g for g in found], (dy, x, w)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("selection", ["example", "unified"])
def test_the_number_of_threads_changes_rounding_alone(selection, rows):
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(gradients(selection, rows, b=400)[0])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("selection", ["example", "unified"])
def test_without_torchs_openmp_it_runs_on_one_thread(selection, monkeypatch):
    expected, _ = gradients(selection, rows=False)
    monkeypatch.setattr(native, "OPENMP", 0)
    found, _ = gradients(selection, rows=False)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("m", [2048, 2050, 2056])  # rows aligned for streamed stores, and not
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize(("selection", "k"), [("example", 3), ("unified", 3), ("unified", 300)])
def test_large_layers_are_written_past_the_caches(selection, k, rows, m):
    found, (dy, x, w) = gradients(selection, rows, b=61, n=1100, m=m, k=k)
    idx = reference.select(dy, k, selection)
    expected = reference.backward(dy, x, w, idx)
    for a, b in zip(found, expected, strict=True):
        error = (a.double() - b).norm() / b.norm()
        assert error < 1e-5


@pytest.mark.parametrize("rows", [False, True])
def test_tables_that_exceed_the_caches_are_read_in_panels(rows):
    """x and W of 26 MiB, whose rows are read eight times each: four panels, the last of them narrow and odd."""
    found, (dy, x, w) = gradients("example", rows, b=70, n=70, m=98003, k=8)
    expected = reference.backward(dy, x, w, reference.select(dy, 8, "example"))
    for a, b in zip(found, expected, strict=True):
        assert (a.double() - b).norm() / b.norm() < 1e-5


def test_a_batch_without_any_gradient():
    for selection in ("example", "unified"):
        for rows in (False, True):
            zeros = torch.zeros(4, 30), torch.randn(4, 20), torch.randn(30, 20)
            dx, dw, db = native.KERNEL.backward(*zeros, Request(5, selection, rows, True, True, True))
            assert not dx.any()
            assert not dw.to_dense().any() if rows else not dw.any()
            assert not db.any()


@pytest.mark.parametrize(
    ("selection", "b", "n", "k", "countable"),
    [
        ("example", 1 << 26, 64, 32, False),
        ("example", 1 << 26, 64, 31, True),
        ("random", 1 << 26, 64, 32, False),
        ("unified", 1 << 26, 64, 32, True),
        ("unified", 1, 1 << 31, 1, False),
        ("example", 1 << 31, 2, 1, False),
        ("example", (1 << 20) + 1, 4096, 2047, True),
    ],
)
def test_what_32_bits_cannot_count_is_refused_or_left_to_another_kernel(selection, b, n, k, countable):
    """Without the memory: expanded tensors have the shapes alone."""
    dy, x, w = (torch.empty(1).expand(shape) for shape in ((b, n), (b, 3), (n, 3)))
    request = Request(k, selection, False, True, True, True)
    reason = kernels.get("native").unsupported(dy, x, w, request)
    chosen = kernels.get("auto").choose(dy, x, w, request).name
    asked = linear_plan(2, x, w, k, selection, False, "native")
    if countable:
        assert reason is None
        plan = native.plan(selection, 2, b, n, 3, k)
        assert plan.scratch > 4 * k
        assert selection != "example" or plan.scratch >= 16 * b * k
    else:
        assert "32 bits" in reason
        assert chosen != "native"
        assert asked is None  # the C++ node leaves it to Python, which refuses
        with pytest.raises(ValueError, match=f"'native' does not support this case: .* k = {k} of {n} neurons"):
            native.plan(selection, 2, b, n, 3, k)
