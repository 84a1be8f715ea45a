import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from meprop_bench.nn import MePropLinear
from meprop_bench.ops import linear


def test_constructor_is_that_of_linear_plus_keywords():
    theirs = inspect.signature(nn.Linear).parameters
    ours = inspect.signature(MePropLinear).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    assert all(ours[name].default == theirs[name].default for name in theirs)
    assert list(ours)[len(theirs) :] == ["k", "selection", "sparse", "kernel"]
    torch.manual_seed(0)
    dense = nn.Linear(5, 9, False, "cpu", torch.float64)
    torch.manual_seed(0)
    layer = MePropLinear(5, 9, False, "cpu", torch.float64, k=3)
    assert torch.equal(layer.weight, dense.weight)
    assert layer.bias is None


def test_state_dict_fits_both_ways():
    dense, layer = nn.Linear(5, 9), MePropLinear(5, 9, k=3)
    layer.load_state_dict(dense.state_dict())
    dense.load_state_dict(layer.state_dict())
    assert list(layer.state_dict()) == ["weight", "bias"]
    x = torch.randn(4, 5)
    assert torch.equal(layer(x), dense(x))


@pytest.mark.parametrize(
    "keywords", [{"k": 0}, {"k": 1.5}, {"k": True}, {"k": 3, "selection": "no"}, {"k": 3, "kernel": "no"}]
)
def test_misuse_at_construction(keywords):
    for construct in (
        lambda **kw: MePropLinear(5, 9, **kw),
        lambda **kw: MePropLinear.from_linear(nn.Linear(5, 9), **kw),
    ):
        with pytest.raises(ValueError, match=repr(list(keywords.values())[-1])):
            construct(**keywords)


@pytest.mark.parametrize("bias", [False, True])
def test_from_linear_shares_the_parameters(bias):
    dense = nn.Linear(5, 9, bias, dtype=torch.float64).eval()
    dense.weight.requires_grad_(False)
    layer = MePropLinear.from_linear(dense, k=0.5, selection="unified", sparse=True, kernel="gather")
    assert layer.weight is dense.weight
    assert layer.bias is dense.bias
    assert list(dict(layer.named_parameters())) == (["weight", "bias"] if bias else ["weight"])
    assert not layer.training
    assert (layer.in_features, layer.out_features) == (5, 9)
    assert (layer.k, layer.selection, layer.sparse, layer.kernel) == (0.5, "unified", True, "gather")
    assert layer.to(torch.float32) is layer


def test_from_linear_on_meta_and_of_computed_weights():
    assert MePropLinear.from_linear(nn.Linear(5, 9, device="meta"), k=2).weight.is_meta
    for computed in (nn.utils.parametrizations.weight_norm(nn.Linear(5, 9)), nn.utils.weight_norm(nn.Linear(5, 9))):
        with pytest.raises(ValueError, match="computed from others"):
            MePropLinear.from_linear(computed, k=2)


def test_gradients_are_those_of_the_function():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5)
    for keywords in ({"k": 2}, {"k": 0.4, "selection": "unified", "sparse": True}):
        layer = MePropLinear(5, 9, **keywords)
        layer(x).pow(2).sum().backward()
        leaves = [layer.weight.detach().clone().requires_grad_(), layer.bias.detach().clone().requires_grad_()]
        expected = torch.autograd.grad(linear(x, *leaves, **keywords).pow(2).sum(), leaves)
        assert layer.weight.grad.is_sparse == layer.sparse
        assert torch.equal(layer.weight.grad.to_dense(), expected[0].to_dense())
        assert torch.equal(layer.bias.grad, expected[1])


def test_k_changes_while_training():
    layer = MePropLinear(5, 9, k=1)
    x = torch.randn(1, 5)
    for k, rows in ((1, 1), (4, 4), (0.25, 2), (9, 9)):
        layer.k = k
        layer.zero_grad()
        layer(x).pow(2).sum().backward()
        assert layer.k == k
        assert int(layer.weight.grad.ne(0).any(1).sum()) == rows
    with pytest.raises(ValueError, match="not 0"):
        layer.k = 0
    assert layer.k == 9


@pytest.mark.parametrize("fullgraph", [False, True])
def test_k_changes_without_compiling_anew(fullgraph):
    """But for the first change, and for the first to all neurons, whose graph is that of the dense layer."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(MePropLinear(5, 9, k=3), nn.ReLU(), MePropLinear(9, 9, k=0.3, selection="unified"))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=fullgraph)
    x = torch.randn(4, 5)
    compilations = []
    for k in (3, 3, 4, 1, 2, 0.5, 8, 0.2, 9, 7, 1.0, 3, 10, 0.9):
        model[0].k = model[2].k = k
        grads = torch.autograd.grad(compiled(x).pow(2).sum(), model.parameters())
        torch.testing.assert_close(grads, torch.autograd.grad(model(x).pow(2).sum(), model.parameters()))
        compilations.append(counter.frame_count)
    assert compilations == [1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3]


def test_copy_and_pickle():
    layer = MePropLinear(5, 9, k=0.5, selection="random", sparse=True, kernel="masked")
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(twin) == repr(layer)
        assert torch.equal(twin.weight, layer.weight)
        assert twin.weight is not layer.weight


def test_repr():
    assert repr(MePropLinear(5, 9, k=0.5, sparse=True)) == (
        "MePropLinear(in_features=5, out_features=9, bias=True, k=0.5, selection=example, sparse=True)"
    )
    assert "kernel=coo" in repr(MePropLinear(5, 9, k=2, kernel="coo"))


@pytest.mark.parametrize("selection", ["example", "unified"])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.Adagrad(p, lr=0.1),
    ],
)
def test_sparse_rows_train_as_dense_gradients_do(selection, optimizer):
    def train(sparse):
        torch.manual_seed(0)
        layer = MePropLinear(5, 20, k=3, selection=selection, sparse=sparse)
        optim = optimizer(layer.parameters())
        for _ in range(5):
            optim.zero_grad()
            F.cross_entropy(layer(torch.randn(6, 5)), torch.randint(20, (6,))).backward()
            optim.step()
        return layer.state_dict()

    torch.testing.assert_close(train(True), train(False))


def test_sparse_adam_moves_the_selected_rows_alone():
    torch.manual_seed(0)
    layer = MePropLinear(5, 20, k=3, selection="unified", sparse=True)
    before = layer.weight.detach().clone()
    optim = torch.optim.SparseAdam([layer.weight], lr=0.1)
    layer(torch.randn(6, 5)).pow(2).sum().backward()
    optim.step()
    moved = (layer.weight != before).any(1)
    assert moved.nonzero().flatten().tolist() == layer.weight.grad.coalesce().indices()[0].tolist()
    assert moved.sum() == 3
    # The first step of Adam moves each entry by lr, whatever the gradient: here, of these rows.
    torch.testing.assert_close((layer.weight - before).abs()[moved], torch.full((3, 5), 0.1))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_ratio_is_of_the_neurons_that_there_are(compiled):
    torch._dynamo.reset()
    layer = MePropLinear(32, 64, k=0.5)
    layer.weight, layer.bias = nn.Parameter(layer.weight[:16].detach()), nn.Parameter(layer.bias[:16].detach())
    layer.out_features = 16
    function = torch.compile(layer, backend="aot_eager") if compiled else layer
    function(torch.randn(1, 32)).pow(2).sum().backward()
    assert layer.weight.grad.ne(0).any(1).sum() == 8
