"""One recurrent layer in one direction against the oracle, by every kernel, and against torch's own at k = all."""

import importlib.util
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meprop_bench.ops.recurrent import KERNELS, reference
from meprop_bench.ops.recurrent import recurrent as layer
from meprop_bench.ops.recurrent.cells import CELLS

GATES = {"lstm": 4, "gru": 3, "tanh": 1, "relu": 1}
STATES = {"lstm": 2, "gru": 1, "tanh": 1, "relu": 1}
SIZES = {
    "one step": (3,),
    "padded": (4, 4, 4, 4, 4),
    "packed": (5, 4, 4, 2, 1, 1),
    "one example": (1,) * 7,
}
needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="needs Numba (extra `cpu`)")
KERNEL_PARAMS = [pytest.param(k, marks=needs_numba) if k == "native" else k for k in KERNELS]


def make(cell, sizes, h=7, m=5, dtype=torch.float64, seed=0):
    """x, weights, states and the gradients that come from above."""
    torch.manual_seed(seed)
    width = GATES[cell] * h

    def leaf(*shape):
        return torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_()

    x = leaf(sum(sizes), m)
    weights = leaf(width, m), leaf(width, h), leaf(width), leaf(width)
    states = tuple(leaf(sizes[0], h) for _ in range(STATES[cell]))
    dy = torch.randn(sum(sizes), h, dtype=dtype)
    d_states = tuple(torch.randn(sizes[0], h, dtype=dtype) for _ in states)
    return x, weights, states, dy, d_states


def run(cell, case, sizes, reverse=False, **keywords):
    """Outputs and gradients, in the order of the oracle's."""
    x, weights, states, dy, d_states = case
    y, last = layer(cell, x, states, weights, sizes=sizes, reverse=reverse, **keywords)
    inputs = [t for t in (x, *weights, *states) if t is not None]
    return [y, *last], list(torch.autograd.grad([y, *last], inputs, [dy, *d_states]))


def oracle(cell, case, sizes, reverse, k, selection):
    x, weights, states, dy, d_states = case
    with torch.no_grad():
        return reference.run(cell, x, states, weights, sizes, reverse, k, selection, dy, d_states)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("selection", ["example", "unified"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kernel", ["masked", "embedding_bag", "auto"])
@pytest.mark.parametrize("cell", CELLS)
def test_equals_the_oracle_in_double_precision(cell, kernel, reverse, selection, sizes):
    case = make(cell, sizes)
    for k in (1, 3, 6):
        found = run(cell, case, sizes, reverse, k=k, selection=selection, kernel=kernel)
        expected = oracle(cell, case, sizes, reverse, k, selection)
        torch.testing.assert_close(found, tuple(expected), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kernel", KERNEL_PARAMS)
@pytest.mark.parametrize("cell", CELLS)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_equals_the_oracle_in_single_precision(cell, kernel, data):
    draw = data.draw
    sizes = tuple(sorted(draw(st.lists(st.integers(1, 9), min_size=1, max_size=8)), reverse=True))
    h, m = draw(st.integers(2, 90)), draw(st.integers(1, 40))
    k = draw(st.one_of(st.just(1), st.just(h - 1), st.integers(1, h - 1)))
    reverse, selection = draw(st.booleans()), draw(st.sampled_from(["example", "unified"]))
    case = make(cell, sizes, h, m, torch.float32, seed=draw(st.integers(0, 2**31)))
    with torch.no_grad():  # smaller weights, as layers have: else rounding grows from step to step
        for w in case[1]:
            w.div_(math.sqrt(h + m))
    found = run(cell, case, sizes, reverse, k=k, selection=selection, kernel=kernel)
    expected = oracle(cell, case, sizes, reverse, k, selection)
    for y, e in zip(found[0], expected[0], strict=True):
        torch.testing.assert_close(y.double(), e, rtol=1e-4, atol=1e-5)
    # Rounding may exchange two entries of nearly the same magnitude, the smallest ones kept: then a few gradients
    # differ by about as much as those are. More than that is an error.
    for grad, e in zip(found[1], expected[1], strict=True):
        far = (grad.double() - e).abs() > 1e-3 * (1 + e.abs())
        assert far.double().mean() < 0.02 or (grad.double() - e).norm() < 0.05 * e.norm()
