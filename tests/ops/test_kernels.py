"""Every kernel against the oracle, through `linear`, so that shapes that no kernel sees are here too."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from meprop_bench.ops import SELECTIONS, kernels, linear, reference, select
from meprop_bench.ops.kernels import KERNELS, Request
from tests.ops.conftest import arrange, has_boundary

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = ("plain", "transposed", "strided", "expanded", "unaligned", "one")

# The interpreter takes too long for so many cases: those of Triton are in test_triton.py.
NAMES = [name for name in KERNELS if not name.startswith("triton")]

# Sums have at most 40 terms here. Half precision is added in float32 and rounded once, except by coo, which adds in it.
SLACK = {torch.float64: 64, torch.float32: 64, torch.bfloat16: 8, torch.float16: 8}


def request_of(k, selection, rows=False):
    return Request(k, selection, rows, True, True, True)


def reason_against(name, selection, dtype=torch.float32):
    return KERNELS[name].unsupported(
        torch.ones(4, 5, dtype=dtype),
        torch.ones(4, 3, dtype=dtype),
        torch.ones(5, 3, dtype=dtype),
        request_of(2, selection),
    )


def magnitudes(dy, selection):
    """What is compared in a selection: of each example, or of the batch."""
    wide = dy.double().abs()
    return wide.sum(0, keepdim=True) if selection == "unified" else wide


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_kernel_equals_the_oracle(name, data):
    draw = data.draw
    dtype = draw(st.sampled_from(DTYPES))
    selection = draw(st.sampled_from(SELECTIONS))
    assume(reason_against(name, selection, dtype) is None)
    batch, n, m = draw(st.integers(0, 40)), draw(st.integers(2, 40)), draw(st.integers(0, 40))
    k = draw(st.one_of(st.just(1), st.just(n - 1), st.integers(1, n - 1)))
    rows, seed = draw(st.booleans()), draw(st.integers(0, 2**32 - 1))
    need = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(any))

    torch.manual_seed(seed)
    dy = arrange(torch.randn(batch, n).to(dtype), draw(st.sampled_from(LAYOUTS)))
    x = arrange(torch.randn(batch, m).to(dtype), draw(st.sampled_from(LAYOUTS)))
    w = arrange(torch.randn(n, m).to(dtype), draw(st.sampled_from(LAYOUTS)))
    b = torch.randn(n).to(dtype)
    chance = selection.startswith("random")
    assume(chance or has_boundary(magnitudes(dy, selection), k))
    torch.manual_seed(seed)
    idx = select(dy, k, selection) if chance else reference.select(dy, k, selection)

    tensors = [t.detach().requires_grad_(needed) for t, needed in zip((x, w, b), need, strict=True)]
    y = linear(*tensors, k=k, selection=selection, sparse=rows, kernel=name)
    torch.manual_seed(seed)
    grads = torch.autograd.grad(y, [t for t in tensors if t.requires_grad], dy)

    expected = reference.backward(dy, x, w, idx)
    bounds = reference.backward(dy.abs(), x.abs(), w.abs(), idx)
    wanted = [(e, bound) for e, bound, needed in zip(expected, bounds, need, strict=True) if needed]
    for grad, tensor, (e, bound) in zip(grads, [t for t in tensors if t.requires_grad], wanted, strict=True):
        assert grad.dtype == tensor.dtype
        assert grad.shape == tensor.shape
        if rows and tensor is tensors[1]:
            check_rows(grad)
        slack = SLACK[dtype] * (1 if name != "coo" or dtype.itemsize > 2 else 4)
        assert ((grad.to_dense().double() - e).abs() <= slack * torch.finfo(dtype).eps * bound + 1e-12).all()


def check_rows(grad):
    assert grad.layout == torch.sparse_coo
    assert grad.is_coalesced()
    assert (grad.sparse_dim(), grad.dense_dim()) == (1, 1)
    numbers = grad.indices()[0].tolist()
    assert numbers == sorted(set(numbers))
    # The promise of "coalesced" is kept: an independent tensor without it is the same.
    again = torch.sparse_coo_tensor(grad.indices(), grad.values(), grad.shape, check_invariants=True).coalesce()
    assert torch.equal(again.to_dense(), grad.to_dense())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("selection", ["example", "unified"])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_ties(name, selection, data):
    """With W the identity dx is S(dy): it tells which entries were kept, and dW must be of the same ones."""
    if reason := reason_against(name, selection):
        pytest.skip(f"the kernel {name}: {reason}")
    batch, n = data.draw(st.integers(1, 20)), data.draw(st.integers(2, 40))
    k = data.draw(st.integers(1, n - 1))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    dy = torch.randint(-2, 3, (batch, n)).float()
    x = torch.randint(-5, 6, (batch, n)).float()
    for rows in (False, True):
        dx, dw, db = KERNELS[name].backward(dy, x, torch.eye(n), request_of(k, selection, rows))
        assert torch.equal(dx, dy * (dx != 0))
        if selection == "example":
            assert torch.equal(dx.abs().sort(1).values, (dy.abs() * rank_mask(dy.abs(), k)).sort(1).values)
        else:
            magnitudes = dy.abs().sum(0)
            assert torch.equal(dx.abs().sum(0).sort().values, (magnitudes * rank_mask(magnitudes, k)).sort().values)
        assert torch.equal(dw.to_dense(), dx.t() @ x)
        again = KERNELS[name].backward(dy, x, torch.eye(n), request_of(k, selection, rows))
        assert all(torch.equal(g.to_dense(), h.to_dense()) for g, h in zip((dx, dw, db), again, strict=True))


def rank_mask(magnitudes, k):
    return torch.zeros_like(magnitudes).scatter(-1, magnitudes.topk(k).indices, 1.0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("wild", [math.nan, math.inf, -math.inf])
def test_non_finite_gradients_come_through(name, selection, wild):
    if reason := reason_against(name, selection):
        pytest.skip(f"the kernel {name}: {reason}")
    torch.manual_seed(0)
    for position in range(9):
        dy, x, w = torch.randn(5, 9), torch.rand(5, 3) + 1, torch.rand(9, 3) + 1
        dy[2, position] = wild
        dx, dw, db = KERNELS[name].backward(dy, x, w, request_of(2, selection))
        for grad in (dx[2], dw[position], db[position]):
            assert not grad.isfinite().any()
        # It spoils no more than it has to: the rest of the batch and the other neurons.
        if selection in ("example", "random"):
            assert dx[[0, 1, 3, 4]].isfinite().all()
        assert dw[torch.arange(9) != position].isfinite().all()


@pytest.fixture(params=[1, 2])
def threads(request):
    torch.set_num_threads(request.param)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.usefixtures("threads")
def test_large_case(name, selection):
    """Large enough for slices, panels and threads; the same input gives the same bits."""
    if reason := reason_against(name, selection):
        pytest.skip(f"the kernel {name}: {reason}")
    torch.manual_seed(1)
    dy, x, w = torch.randn(300, 515), torch.randn(300, 270), torch.randn(515, 270)
    for k in (3, 40):
        torch.manual_seed(2)
        idx = select(dy, k, selection)
        kept = dy.double() * reference.keep(idx, *dy.shape)
        for rows in (False, True):
            results = []
            for _ in range(2):
                torch.manual_seed(2)
                dx, dw, db = KERNELS[name].backward(dy, x, w, request_of(k, selection, rows))
                results.append((dx, dw.to_dense(), db))
            assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
            expected = (kept @ w.double(), kept.t() @ x.double(), dy.double().sum(0))
            torch.testing.assert_close([g.double() for g in results[0]], list(expected), atol=1e-4, rtol=1e-4)


def test_unknown_kernel_gets_a_suggestion():
    with pytest.raises(ValueError, match="did you mean 'gather'"):
        kernels.get("gater")
    with pytest.raises(ValueError, match="choose from masked, coo"):
        kernels.get(7)


def test_registry_has_every_name():
    assert list(KERNELS) == [
        "masked", "coo", "embedding_bag", "gather", "native", "triton", "triton_gather", "triton_atomic",
        "triton_kept", "auto",
    ]  # fmt: skip
    assert all(KERNELS[name].name == name for name in KERNELS)


@pytest.mark.parametrize(("name", "selection"), [("gather", "example"), ("embedding_bag", "unified")])
def test_kernel_by_name_is_not_exchanged(name, selection):
    x, w = torch.ones(4, 3, requires_grad=True), torch.ones(5, 3, requires_grad=True)
    with pytest.raises(ValueError, match=f"kernel '{name}' does not support this case: it needs a"):
        linear(x, w, k=2, selection=selection, kernel=name)
