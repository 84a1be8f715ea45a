import copy
import inspect
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from meprop_bench.nn import MePropConv1d, MePropConv2d
from meprop_bench.ops import conv
from meprop_bench.ops.selection import resolve_k

PAIRS = [(nn.Conv1d, MePropConv1d), (nn.Conv2d, MePropConv2d)]


def images(dense, *size, batch=2, channels=4):
    """Input for a layer of the dimensions of `dense`."""
    return torch.randn(batch, channels, *size[: 1 if dense is nn.Conv1d else 2])


@pytest.mark.parametrize(("dense", "ours"), PAIRS)
def test_constructor_is_that_of_torch_plus_keywords(dense, ours):
    theirs, mine = inspect.signature(dense).parameters, inspect.signature(ours).parameters
    assert list(mine)[: len(theirs)] == list(theirs)
    assert all(mine[name].default == theirs[name].default for name in theirs)
    assert list(mine)[len(theirs) :] == ["k", "selection", "kernel"]
    arguments = (4, 6, 3, 2, 1, 1, 2, False, "zeros", "cpu", torch.float64)
    torch.manual_seed(0)
    expected = dense(*arguments)
    torch.manual_seed(0)
    layer = ours(*arguments, k=3)
    assert torch.equal(layer.weight, expected.weight)
    assert layer.bias is None


@pytest.mark.parametrize(("dense", "ours"), PAIRS)
def test_state_dict_fits_both_ways(dense, ours):
    plain, layer = dense(4, 6, 3), ours(4, 6, 3, k=3)
    layer.load_state_dict(plain.state_dict())
    plain.load_state_dict(layer.state_dict())
    assert list(layer.state_dict()) == ["weight", "bias"]
    x = images(dense, 9, 8)
    assert torch.equal(layer(x), plain(x))


@pytest.mark.parametrize(("dense", "ours"), PAIRS)
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(
    "keywords",
    [
        {"padding": 1, "stride": 2},
        {"padding": "same", "dilation": 2, "groups": 2},
        {"padding": "valid", "bias": False},
        {"padding": 2, "kernel_size": 4, "groups": 4},
    ],
)
def test_with_all_positions_it_is_the_layer_of_torch(dense, ours, mode, keywords):
    torch.manual_seed(0)
    keywords = {"kernel_size": 3, "padding_mode": mode, "dtype": torch.float64, **keywords}
    plain = dense(4, 8, **keywords)
    layer = ours.from_conv(plain, k=1.0)
    x = images(dense, 9, 8).double().requires_grad_()
    results = []
    for module in (plain, layer):
        y = module(x)
        results.append([y, *torch.autograd.grad(y.pow(2).sum(), [x, *plain.parameters()])])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_gradients_are_those_of_the_function(mode):
    torch.manual_seed(0)
    layer = MePropConv2d(4, 6, 3, padding=(1, 2), padding_mode=mode, k=0.2, kernel="masked")
    x = torch.randn(2, 4, 7, 6)
    layer(x).pow(2).sum().backward()
    leaves = [layer.weight.detach().clone().requires_grad_(), layer.bias.detach().clone().requires_grad_()]
    around = F.pad(x, (2, 2, 1, 1), mode="constant" if mode == "zeros" else mode)
    expected = torch.autograd.grad(conv.conv2d(around, *leaves, k=0.2, kernel="masked").pow(2).sum(), leaves)
    torch.testing.assert_close([layer.weight.grad, layer.bias.grad], list(expected))


@pytest.mark.parametrize(
    "keywords", [{"k": 0}, {"k": 1.5}, {"k": True}, {"k": 3, "selection": "unified"}, {"k": 3, "kernel": "coo"}]
)
def test_misuse_at_construction(keywords):
    for construct in (
        lambda **kw: MePropConv2d(4, 6, 3, **kw),
        lambda **kw: MePropConv1d.from_conv(nn.Conv1d(4, 6, 3), **kw),
    ):
        with pytest.raises(ValueError, match=repr(list(keywords.values())[-1])):
            construct(**keywords)


def test_a_map_smaller_than_k():
    layer = MePropConv2d(4, 6, 3, k=26)
    with pytest.raises(ValueError, match="k = 26 is more than the 5 x 5 positions of a map: give a ratio"):
        layer(torch.randn(2, 4, 7, 7))
    with torch.no_grad():
        assert layer(torch.randn(2, 4, 7, 7)).shape == (2, 6, 5, 5)


@pytest.mark.parametrize("bias", [False, True])
def test_from_conv_shares_the_parameters(bias):
    plain = nn.Conv2d(4, 6, (3, 2), 2, 1, (1, 2), 2, bias, "reflect", dtype=torch.float64).eval()
    plain.weight.requires_grad_(False)
    layer = MePropConv2d.from_conv(plain, k=0.5, selection="random", kernel="masked")
    assert layer.weight is plain.weight
    assert layer.bias is plain.bias
    assert list(dict(layer.named_parameters())) == (["weight", "bias"] if bias else ["weight"])
    assert not layer.training
    assert (layer.k, layer.selection, layer.kernel) == (0.5, "random", "masked")
    assert plain.extra_repr() in layer.extra_repr()


def test_from_conv_of_something_else():
    with pytest.raises(ValueError, match=r"is not an nn\.Conv2d"):
        MePropConv2d.from_conv(nn.Conv1d(4, 6, 3), k=2)
    with pytest.raises(ValueError, match=r"is not an nn\.Conv2d"):
        MePropConv2d.from_conv(nn.ConvTranspose2d(4, 6, 3), k=2)
    with pytest.raises(ValueError, match="computed from others"):
        MePropConv2d.from_conv(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3)), k=2)


def test_k_changes_while_training():
    layer = MePropConv2d(1, 1, 1, bias=False, k=1)
    x = torch.rand(1, 1, 4, 4, requires_grad=True)
    for k, kept in ((1, 1), (4, 4), (0.25, 4), (16, 16)):
        layer.k = k
        (dx,) = torch.autograd.grad(layer(x).pow(2).sum(), x)
        assert layer.k == k
        assert int(dx.ne(0).sum()) == kept
    with pytest.raises(ValueError, match="not 0"):
        layer.k = 0
    assert layer.k == 16


@pytest.mark.parametrize("fullgraph", [False, True])
def test_k_changes_without_compiling_anew(fullgraph):
    """But for the first change, and for the first to all positions, and the first from a ratio to a count."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(
        MePropConv2d(2, 4, 3, k=0.3), nn.ReLU(), nn.Flatten(2), MePropConv1d(4, 3, 3, padding=1, k=0.3, kernel="masked")
    )
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=fullgraph)
    x = torch.randn(2, 2, 9, 8)  # maps of 7 x 6, and of 42
    compilations = []
    for k in (0.3, 0.3, 0.1, 0.5, 0.25, 0.9, 1.0, 0.7, 0.999, 0.15, 3, 4, 41, 42, 7, 0.6):
        model[0].k = model[3].k = k
        grads = torch.autograd.grad(compiled(x).pow(2).sum(), model.parameters())
        torch.testing.assert_close(grads, torch.autograd.grad(model(x).pow(2).sum(), model.parameters()))
        compilations.append(counter.frame_count)
    assert compilations == [1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 5, 5, 5]


def test_a_compiled_layer_counts_as_the_same_layer_does():
    """Ratios at and next to a tie, k · P = n + 1/2, tiny ones, and maps whose size changes, too."""
    torch._dynamo.reset()
    layer = MePropConv1d(1, 1, 1, bias=False, k=0.5)
    torch.nn.init.ones_(layer.weight)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)

    def kept(function, x):
        return int(torch.autograd.grad(function(x).square().sum(), x)[0].ne(0).sum())

    ties = [(0.1, 15), (0.3, 5), (0.35, 10), (0.145, 100), (0.7, 45), (0.15, 30), (0.05, 2990), (0.00015, 10_000)]
    ties += [(math.nextafter(k, to), n) for k, n in ties for to in (0, 1)]
    for k, n in [*ties, (1e-12, 9), (5e-324, 9), (2.0**-10, 1536), (0.5, 1), (0.5, 2), (1 / 3, 1000)]:
        layer.k = k
        x = torch.rand(1, 1, n).add(1).requires_grad_()
        assert kept(compiled, x) == kept(layer, x) == min(n, resolve_k(k, n)), (k, n)
    assert counter.frame_count <= 8


def test_copy_pickle_and_repr():
    layer = MePropConv2d(4, 6, 3, padding=1, k=0.5, selection="random", kernel="masked")
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(twin) == repr(layer)
        assert torch.equal(twin.weight, layer.weight)
        assert twin.weight is not layer.weight
    assert repr(layer) == (
        "MePropConv2d(4, 6, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), k=0.5, selection=random, kernel=masked)"
    )
    assert repr(MePropConv1d(4, 6, 3, k=2)) == (
        "MePropConv1d(4, 6, kernel_size=(3,), stride=(1,), k=2, selection=example)"
    )
