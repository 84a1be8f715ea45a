"""Conv1D of transformers, by a stand-in where that library is missing, and adapters (LoRA) on frozen layers.

Run with the libraries themselves where they are: the tests take them if they can be imported.
"""

import contextlib
import copy
import importlib.util
import pickle
import sys
import types

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode

from meprop_bench.nn import convert, record_calls, revert
from meprop_bench.nn import transformers as ours
from meprop_bench.ops import linear
from meprop_bench.workloads.check import check_layer

M, N = 5, 12


class Conv1D(nn.Module):
    """As transformers has it."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.empty(nx, nf)), nn.Parameter(torch.zeros(nf))
        nn.init.normal_(self.weight, std=0.02)

    def __repr__(self):
        return f"Conv1D(nf={self.nf}, nx={self.nx})"

    def forward(self, x):
        size_out = (*x.size()[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size_out)


@pytest.fixture
def conv1d(monkeypatch):
    """The class, of the library itself if that is installed."""
    with contextlib.suppress(ImportError):
        from transformers.pytorch_utils import Conv1D as Real

        return Real
    stand_in = types.ModuleType("transformers.pytorch_utils")
    monkeypatch.setattr(Conv1D, "__module__", stand_in.__name__)
    stand_in.Conv1D = Conv1D
    monkeypatch.setitem(sys.modules, "transformers", types.ModuleType("transformers"))
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    return Conv1D


def make(conv1d, **method):
    torch.manual_seed(0)
    model = nn.Sequential(conv1d(N, M), nn.GELU(), nn.Linear(N, 3))
    with torch.no_grad():
        model[0].bias.normal_()
    plain = copy.deepcopy(model)
    assert list(convert(model, kinds=(nn.Linear, conv1d), **{"k": 3, **method})) == ["0"]
    return plain, model


def gradients(model, x):
    return torch.autograd.grad(model(x).pow(2).sum(), [x, *model.parameters()])


@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 2, 2)])
def test_it_computes_what_it_did_and_is_the_linear_layer_of_its_transpose(conv1d, shape):
    plain, model = make(conv1d)
    layer = model[0]
    x = torch.randn(*shape, M, requires_grad=True)
    torch.testing.assert_close(model(x), plain(x))
    assert isinstance(layer, conv1d)
    assert type(layer).__name__ == "MePropConv1D"
    for selection in ("example", "unified"):
        layer.selection = selection
        w = layer.weight.detach().t().contiguous().requires_grad_()
        b = layer.bias.detach().requires_grad_()
        dx, dw, db = torch.autograd.grad(linear(x, w, b, k=3, selection=selection).pow(2).sum(), (x, w, b))
        found = gradients(layer, x)
        assert all(torch.equal(a, b) for a, b in zip(found, (dx, dw.t(), db), strict=True))


def test_its_weight_is_laid_out_as_the_kernels_read_it_and_so_is_the_gradient(conv1d):
    plain, model = make(conv1d)
    layer = model[0]
    weight = layer.weight
    assert weight.shape == plain[0].weight.shape
    assert weight.t().is_contiguous()
    assert torch.equal(weight, plain[0].weight)
    model(torch.randn(6, M)).sum().backward()
    assert weight.grad.stride() == weight.stride()
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.step()
    assert optimizer.state[weight]["exp_avg"].stride() == weight.stride()
    moved = weight.detach().clone()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.to(torch.float64)):
        assert twin[0].weight.t().is_contiguous()
        assert type(twin[0]) is type(layer)
    assert revert(model)[0] is layer
    assert type(layer) is conv1d
    assert layer.weight is weight
    assert weight.is_contiguous()
    assert torch.equal(weight, moved.double())
    assert vars(layer).keys() == vars(plain[0]).keys()
    assert repr(model) == repr(plain)


def test_the_state_dict_is_the_same_both_ways(conv1d):
    plain, model = make(conv1d)
    assert list(model.state_dict()) == list(plain.state_dict())
    other, _ = make(conv1d)
    nn.init.ones_(other[0].weight)
    model.load_state_dict(other.state_dict())
    assert model[0].weight.t().is_contiguous()
    assert torch.equal(model[0].weight, other[0].weight)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain[0].weight, other[0].weight)


def test_the_report_and_what_does_not_go_together(conv1d):
    plain, model = make(conv1d)
    assert repr(model[0]) == "MePropConv1D(nf=12, nx=5, k=3, selection=example)"
    found = convert(plain, k=3, filter=lambda *_: True)
    assert found.left == {"0": "Conv1D of transformers is not among the kinds"}
    with pytest.raises(ValueError, match="sparse=True does not apply to Conv1D of transformers"):
        convert(plain, k=3, kinds=(conv1d,), sparse=True)
    with pytest.raises(ValueError, match=r"choose from nn\.Linear, .*, nn\.MultiheadAttention, Conv1D of transformers"):
        convert(plain, k=3, kinds=(nn.BatchNorm1d,))
    model[0].k = N
    assert convert(model, k=3, kinds=(nn.Linear,), filter=lambda *_: True).left["0"] == "already converted"
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = ours.Nothing


def test_evaluation_autocast_and_graphs(conv1d):
    torch._dynamo.reset()
    plain, model = make(conv1d)
    x = torch.randn(6, M, requires_grad=True)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), plain.eval()(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == plain(x).dtype == torch.bfloat16
    with record_calls(model) as calls:
        model(x)
    assert calls.never_ran == []
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for k in (3, 2, 5, 4):
        model[0].k = k
        torch.testing.assert_close(gradients(compiled, x), gradients(model, x))
    assert counter.frame_count == 2
    programs = [torch.export.export(m, (x.detach(),)) for m in (plain, model)]
    assert len({str([node.target for node in program.graph.nodes]) for program in programs}) == 1


@pytest.mark.parametrize("selection", ["example", "unified", "random"])
def test_the_check_covers_it(conv1d, selection, monkeypatch):
    _, model = make(conv1d, selection=selection)
    x, dy = torch.randn(2, 3, M), torch.randn(2, 3, N)
    assert check_layer(model[0], x, dy, seed=1) == "passed"
    assert check_layer(model[0], x, dy.bfloat16(), seed=1) == "passed"
    monkeypatch.setattr(ours.TransposedLinear, "_current_k", lambda self: self.k if self.k == 1.0 else 4)
    assert check_layer(model[0], x, dy, seed=1).startswith("dx is off by")


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers")
def test_a_gpt2_of_transformers():
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.pytorch_utils import Conv1D as Real

    torch.manual_seed(0)
    size = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32, "vocab_size": 40}
    plain = GPT2LMHeadModel(GPT2Config(**size, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0))
    model = copy.deepcopy(plain)
    found = convert(model, k=0.1, kinds=(nn.Linear, Real))
    assert len(found) == 8
    assert found.left["lm_head"].startswith("the output layer")
    ids = torch.randint(40, (2, 9))
    with record_calls(model) as calls:
        loss = model(ids, labels=ids).loss
    torch.testing.assert_close(loss, plain(ids, labels=ids).loss)
    loss.backward()
    assert calls.never_ran == []
    qkv = model.transformer.h[0].attn.c_attn.weight.grad
    assert qkv.ne(0).any()
    assert {**revert(model).state_dict()}.keys() == {**plain.state_dict()}.keys()


class LoRA(nn.Module):
    """As peft wraps a linear layer: the base, frozen, and beside it two small matrices."""

    def __init__(self, base, rank):
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A, self.lora_B = (
            nn.Linear(base.in_features, rank, bias=False),
            nn.Linear(rank, base.out_features, bias=False),
        )

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


class Saved:
    """What autograd saves for the backward pass."""

    def __enter__(self):
        self.sizes = []
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda t: t)
        self.hooks.__enter__()
        return self

    def pack(self, t):
        self.sizes.append(tuple(t.shape))
        return t

    def __exit__(self, *error):
        return self.hooks.__exit__(*error)


@pytest.mark.parametrize("kernel", ["auto", "masked", "embedding_bag"])
def test_a_frozen_base_computes_and_saves_nothing_for_its_weight(kernel):
    torch.manual_seed(0)
    wrapped = LoRA(nn.Linear(20, 30), 2)
    assert list(convert(wrapped, k=0.1, kernel=kernel, filter=lambda _, name: name == "base_layer")) == ["base_layer"]
    x = torch.randn(7, 20, requires_grad=True)
    with Saved() as saved:
        y = wrapped.base_layer(x)
    assert saved.sizes == [(30, 20)]  # the weight, for dx
    y.sum().backward()
    assert wrapped.base_layer.weight.grad is None
    assert wrapped.base_layer.bias.grad is None
    with Saved() as saved:
        wrapped.base_layer(x.detach())
    assert saved.sizes == []  # the first layer of all: nothing needs a gradient
    wrapped(x).pow(2).sum().backward()
    assert all(p.grad is not None for p in (wrapped.lora_A.weight, wrapped.lora_B.weight))
    assert check_layer(wrapped.base_layer, x, torch.randn(7, 30), seed=1) == "passed"


def test_the_backward_pass_of_a_frozen_base_has_one_product():
    """By the floating-point operations of torch's operators, where the kernel is made of those."""
    base = nn.Linear(20, 30).requires_grad_(False)
    convert(base, k=0.1, kernel="masked", filter=lambda *_: True)
    x = torch.randn(7, 20, requires_grad=True)
    y = base(x)
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * 7 * 30 * 20


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")
@pytest.mark.parametrize("first", ["convert", "wrap"])
def test_adapters_of_peft(first):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 3))
    config = LoraConfig(r=2, target_modules=["0", "2"])
    if first == "convert":
        convert(model, k=0.1)
        model = get_peft_model(model, config)
    else:
        model = get_peft_model(model, config)
        found = convert(model, k=0.1, filter=lambda _, name: name.endswith("base_layer"))
        assert len(found) == 2
    x = torch.randn(7, 20)
    model(x).pow(2).sum().backward()
    bases = [module for name, module in model.named_modules() if name.endswith("base_layer")]
    assert [type(base).__name__ for base in bases] == ["MePropLinear"] * 2
    assert all(base.weight.grad is None for base in bases)
    assert all(p.grad is not None for name, p in model.named_parameters() if "lora_" in name)
    assert type(revert(model).base_model.model[0].base_layer) is nn.Linear
