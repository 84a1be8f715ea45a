"""Sparse rows: the same neurons from every kernel, and the same training by `RowAdam`."""

import importlib.util
from importlib.metadata import version

import pytest
import torch
from packaging.version import Version

from meprop_bench.ops import kernels, linear
from meprop_bench.ops.kernels import KERNELS, Request
from meprop_bench.optim import RowAdam, RowAdamW

OLD_INTERPRETER = Version(version("numpy")) >= Version("2.4") and (
    importlib.util.find_spec("triton") is None or Version(version("triton")) < Version("3.7")
)
CHOICES = {
    "unified": ("native", "gather", "coo", "triton", "triton_gather"),
    "random-unified": ("native", "gather", "coo", "triton", "triton_gather"),
    "example": ("native", "embedding_bag", "coo", "triton", "triton_atomic"),
    "random": ("native", "embedding_bag", "coo", "triton", "triton_atomic"),
}
PAIRS = [(selection, name) for selection, names in CHOICES.items() for name in names]


def few(seed):
    """Five neurons of thirty have a gradient, and nobody can keep eight others."""
    dy = torch.zeros(6, 30)
    dy[:, 3:8] = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))
    return dy


def tied():
    return torch.randint(0, 2, (6, 30), generator=torch.Generator().manual_seed(0)) * few(1)


CASES = {
    "few": (few(0), torch.ones(6, 20)),
    "none": (-torch.zeros(6, 30), torch.ones(6, 20)),
    "some ties": (tied(), torch.ones(6, 20)),
    "NaN": (few(0).index_put((torch.tensor([2]), torch.tensor([4])), torch.tensor(torch.nan)), torch.ones(6, 20)),
    "next to nothing": (torch.zeros(6, 30).index_fill(1, torch.tensor([7]), 1e-45), torch.ones(6, 20)),
    "no input": (few(0), torch.zeros(6, 20)),
}


def check(name, *case):
    if name.startswith("triton") and OLD_INTERPRETER:
        pytest.skip("the interpreter of Triton before 3.7 wants NumPy before 2.4")
    if reason := kernels.get(name).unsupported(*case):
        pytest.skip(reason)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("selection", "name"), PAIRS)
def test_every_kernel_lists_the_neurons_with_a_gradient(selection, name, case):
    (dy, x), w = CASES[case], torch.ones(30, 20)
    request = Request(8, selection, True, True, True, True)
    check(name, dy, x, w, request)
    torch.manual_seed(1)
    found = KERNELS[name].backward(dy, x, w, request)[1]
    torch.manual_seed(1)
    dense = KERNELS["masked"].backward(dy, x, w, request._replace(rows=False))[0]
    torch.manual_seed(1)
    expected = KERNELS["masked"].backward(dy, x, w, request)[1]
    assert found.indices()[0].tolist() == expected.indices()[0].tolist()
    assert found.is_coalesced()
    torch.testing.assert_close(found.to_dense(), expected.to_dense(), equal_nan=True)
    if selection in ("example", "unified"):
        assert found.indices()[0].tolist() == dy.ne(0).any(0).nonzero()[:, 0].tolist()
    assert dense.shape == x.shape


@pytest.mark.parametrize("kind", [RowAdam, RowAdamW])
@pytest.mark.parametrize(("selection", "name"), [pair for pair in PAIRS if not pair[0].startswith("random")])
def test_training_by_rows_does_not_depend_on_the_kernel(selection, name, kind):
    def train(kernel):
        w = torch.nn.Parameter(torch.randn(30, 20, generator=torch.Generator().manual_seed(0)))
        optim = kind([w], lr=0.01, weight_decay=0.1)
        for step in range(8):
            x = torch.randn(6, 20, generator=torch.Generator().manual_seed(step))
            dy = torch.zeros(6, 30)
            dy[:, step % 5 * 5 : step % 5 * 5 + 5] = 1.0 + step
            linear(x, w, k=8, selection=selection, sparse=True, kernel=kernel).backward(dy)
            optim.step()
            optim.zero_grad()
        return w.detach()

    one = torch.ones(6, 30), torch.ones(6, 20), torch.ones(30, 20)
    check(name, *one, Request(8, selection, True, True, True, True))
    torch.testing.assert_close(train(name), train("masked"), rtol=1e-5, atol=1e-6)


def test_auto_with_the_node_lists_the_same():
    w = torch.nn.Parameter(torch.ones(30, 20))
    for selection in ("example", "unified"):
        w.grad = None
        linear(torch.ones(6, 20), w, k=8, selection=selection, sparse=True).backward(few(0))
        assert w.grad.coalesce().indices()[0].tolist() == [3, 4, 5, 6, 7]
