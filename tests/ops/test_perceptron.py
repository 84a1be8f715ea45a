"""The compiled parts of a perceptron's step against torch's operators; its gradients: tests/nn/test_perceptron.py."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("numba")

from meprop_bench.ops.kernels.native import dense
from meprop_bench.ops.kernels.native.cross_entropy import cross_entropy


@pytest.fixture(params=[1, 2])
def threads(request):
    """Numbers of threads."""
    torch.set_num_threads(request.param)
    return request.param


def check_forward(batch, m, n):
    generator = torch.Generator().manual_seed(m + n)
    x, w, b = (torch.randn(*shape, generator=generator) for shape in ((batch, m), (n, m), (n,)))
    for bias in (b, None):
        expected = F.linear(x.double(), w.double(), None if bias is None else bias.double()).float()
        y = dense.forward(x, w, bias, relu=False)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6 * m)
        assert torch.equal(dense.forward(x, w, bias, relu=True), y.relu())


@pytest.mark.parametrize("m", [1, 7, 8, 15, 16, 17, 33, 100, 784, 1024, 1029, 2050])
@pytest.mark.parametrize("n", [1, 3, 4, 10, 33])
@pytest.mark.usefixtures("one_thread")
def test_the_forward_product(m, n):
    for batch in (1, 2, 3, 5, 6, 7, 10, 13, 50, 61, 130):
        check_forward(batch, m, n)


def test_the_forward_product_in_shares(threads):
    for batch, m, n in ((10, 784, 500), (50, 500, 500), (50, 500, 17), (130, 1029, 33), (1, 300, 1000)):
        check_forward(batch, m, n)


@pytest.mark.parametrize("m", [5, 40, 1030])
def test_numbers_that_are_none_stay_where_they_are(m):
    """A vector that reaches back over numbers that were added before does not add 0 · inf."""
    for value in (float("inf"), -float("inf"), float("nan")):
        for place in sorted({0, m // 2, max(0, m - 17), m - 1}):
            x, w, zeros = torch.ones(3, m), torch.ones(7, m), torch.zeros(7, m)
            x[1, place] = value
            for left, right in ((x, w), (zeros, x), (x, zeros)):
                y = F.linear(left, right)
                for relu, expected in ((False, y), (True, y.relu())):
                    found = dense.forward(left, right, None, relu=relu)
                    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize(
    "needs", [(True, True, True), (False, True, False), (True, False, False), (False, False, True)]
)
@pytest.mark.parametrize(("batch", "m", "n"), [(1, 1, 1), (3, 5, 2), (10, 784, 500), (50, 33, 10), (130, 40, 300)])
def test_the_backward_products(threads, needs, batch, m, n):
    generator = torch.Generator().manual_seed(m + n)
    dy, x, w = (torch.randn(*shape, generator=generator) for shape in ((batch, n), (batch, m), (n, m)))
    found = dense.backward(dy, x, w, needs)
    expected = dy.double() @ w.double(), dy.double().t() @ x.double(), dy.double().sum(0)
    for grad, need, right in zip(found, needs, expected, strict=True):
        assert (grad is not None) == need
        if grad is not None:
            torch.testing.assert_close(grad, right.float(), rtol=1e-5, atol=1e-5 * (batch + n) ** 0.5)


@pytest.mark.parametrize(("batch", "classes"), [(1, 1), (1, 10), (7, 2), (50, 10), (4, 1000)])
def test_cross_entropy(batch, classes):
    generator = torch.Generator().manual_seed(batch)
    z = torch.randn(batch, classes, generator=generator) * 5
    y = torch.randint(classes, (batch,), generator=generator)
    for ignored in (0, batch // 2, batch):
        y[:ignored] = -100
        leaf = z.clone().requires_grad_()
        expected = F.cross_entropy(leaf, y)
        expected.backward()
        loss, dz = cross_entropy(z, y)
        torch.testing.assert_close(loss, expected.detach(), equal_nan=True)
        torch.testing.assert_close(dz, leaf.grad)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38, -3e38])
@pytest.mark.parametrize("place", [0, 2, 3])
def test_cross_entropy_of_numbers_that_are_none(value, place):
    z, y = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 1, -100])
    for example in range(3):
        leaf = z.clone()
        leaf[example, place] = value
        leaf.requires_grad_()
        expected = F.cross_entropy(leaf, y)
        expected.backward()
        loss, dz = cross_entropy(leaf.detach(), y)
        torch.testing.assert_close(loss, expected.detach(), equal_nan=True)
        torch.testing.assert_close(dz, leaf.grad, equal_nan=True)


@pytest.mark.parametrize("label", [-1, 4, 2**62, -(2**62)])
def test_labels_that_are_no_class(label):
    with pytest.raises(IndexError, match=f"Target {label} is out of bounds"):
        cross_entropy(torch.zeros(3, 4), torch.tensor([0, label, 3]))
