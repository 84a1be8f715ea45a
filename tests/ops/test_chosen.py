"""A selection that is made elsewhere: with the choice of one batch alone it is the unified selection."""

import pytest
import torch
import torch.nn.functional as F

from meprop_bench.ops import reference
from meprop_bench.ops.kernels import compiled
from meprop_bench.ops.linear import linear

KERNELS = ["auto", "gather", "masked"] + ([] if compiled.unavailable_reason() else ["native"])


class Greatest:
    """Chooses what a layer by itself would, and keeps what it saw."""

    def __init__(self, fixed=None):
        self.fixed, self.runs, self.seen = fixed, [], []

    def ran(self, k):
        self.runs.append(k)

    def __call__(self, scores, k):
        self.seen.append((scores, k))
        return scores.topk(k).indices.sort().values if self.fixed is None else self.fixed


def tensors(b, n, m, dtype=torch.float32):
    generator = torch.Generator().manual_seed(b + n + m)
    x, w, bias, dy = (torch.randn(shape, generator=generator).to(dtype) for shape in ((b, m), (n, m), (n,), (b, n)))
    return x.requires_grad_(), w.requires_grad_(), bias.requires_grad_(), dy


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("b", "n", "m", "k"), [(1, 2, 1, 1), (7, 33, 19, 5), (300, 130, 70, 129), (64, 600, 40, 64)])
def test_against_the_reference(b, n, m, k, sparse, kernel):
    x, w, bias, dy = tensors(b, n, m)
    choose = Greatest()
    y = linear(x, w, bias, k=k, selection="unified", sparse=sparse, kernel=kernel, choose=choose)
    assert torch.equal(y, F.linear(x, w, bias))
    y.backward(dy)
    ((scores, count),) = choose.seen
    assert (choose.runs, count) == ([k], k)
    torch.testing.assert_close(scores, dy.abs().sum(0), rtol=1e-5, atol=1e-5)
    idx = reference.select(dy, k, "unified")
    dx, dw, db = (d.float() for d in reference.backward(dy, x.detach(), w.detach(), idx))
    assert w.grad.is_sparse == sparse
    assert not sparse or w.grad._indices()[0].tolist() == sorted(idx.tolist())
    for found, expected in ((x.grad, dx), (w.grad.to_dense(), dw), (bias.grad, db)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_without_a_gradient_here_are_rows(kernel):
    x, w, bias, dy = tensors(4, 9, 3)
    dy[:, :6] = 0
    choose = Greatest(torch.arange(4))
    linear(x, w, bias, k=4, selection="unified", sparse=True, kernel=kernel, choose=choose).backward(dy)
    assert w.grad._indices()[0].tolist() == [0, 1, 2, 3]
    assert w.grad._values().eq(0).all()
    assert x.grad.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_and_shapes(dtype):
    x, w, bias, dy = tensors(12, 20, 7, dtype)
    y = linear(x.view(3, 4, 7), w, bias, k=6, selection="unified", sparse=True, choose=Greatest())
    y.backward(dy.view(3, 4, 20))
    whole = [t.detach().requires_grad_() for t in (x, w, bias)]
    linear(*whole, k=6, selection="unified").backward(dy)
    for found, expected in zip((x, w, bias), whole, strict=True):
        torch.testing.assert_close(found.grad.to_dense(), expected.grad, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("need", range(3))
def test_only_what_is_needed(need):
    parts = tensors(5, 12, 6)
    whole = [t.detach().requires_grad_(i == need) for i, t in enumerate(parts[:3])]
    same = [t.detach().requires_grad_(i == need) for i, t in enumerate(parts[:3])]
    linear(*whole, k=3, selection="unified", sparse=True, choose=Greatest()).backward(parts[3])
    linear(*same, k=3, selection="unified").backward(parts[3])
    torch.testing.assert_close(whole[need].grad.to_dense(), same[need].grad)


def test_no_choice_for_a_dense_layer_another_selection_or_without_gradients():
    x, w, bias, dy = tensors(5, 12, 6)
    choose = Greatest()
    linear(x, w, bias, k=12, selection="unified", choose=choose).backward(dy)
    linear(x, w, bias, k=3, selection="example", choose=choose).backward(dy)
    with torch.no_grad():
        linear(x, w, bias, k=3, selection="unified", choose=choose)
    assert (choose.runs, choose.seen) == ([], [])


def test_what_cannot_be_is_refused():
    x, w, bias, dy = tensors(5, 12, 6)
    y = linear(x, w, bias, k=3, selection="unified", choose=Greatest())
    with pytest.raises(RuntimeError, match="no create_graph=True"):
        torch.autograd.grad(y, w, dy, create_graph=True)
    with pytest.raises(ValueError, match="plain memory"):
        torch.func.grad(lambda w: linear(x, w, k=3, selection="unified", choose=Greatest()).sum())(w)
    with pytest.raises(ValueError, match="it computes in float32"):
        linear(x.double(), w.double(), k=3, selection="unified", kernel="native", choose=Greatest())
