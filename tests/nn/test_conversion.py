import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from meprop_bench.nn import MePropLinear, convert, record_calls


class Attention(nn.Module):
    """As in torchvision's Swin: the weight of qkv goes to a function."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(24, 8)

    def forward(self, x):
        return self.proj(F.linear(x, self.qkv.weight, self.qkv.bias))


class Conv1D(nn.Module):
    """As in transformers' GPT-2, and yet not that one: what it does with its weight is not known."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.scale = nn.Parameter(torch.randn(4, 8, 16)), nn.Parameter(torch.ones(1, 1, 8))


class Own(nn.Linear):
    pass


def zoo():
    model = nn.ModuleDict(
        {
            "plain": nn.Linear(8, 20),
            "attention": nn.MultiheadAttention(8, 2, bias=False),
            "gpt2": Conv1D(24, 8),
            "experts": Experts(),
            "heads": nn.ParameterList([torch.randn(8, 3), torch.randn(8)]),
            "own": Own(8, 8),
            "normed": parametrizations.weight_norm(nn.Linear(8, 8)),
            "lazy": nn.LazyLinear(3),
            "replaced": nn.Linear(8, 8),
            "cell": nn.LSTMCell(8, 8),
            "conv": nn.Conv2d(3, 8, 3),
            "norm": nn.LayerNorm((4, 8)),
            "table": nn.Embedding(10, 8),
            "small": nn.Linear(8, 2),
            "out": nn.Linear(8, 10),
        }
    )
    model["replaced"].forward = lambda x: x
    return model


LEFT = {
    "attention": "nn.MultiheadAttention is not among the kinds",
    "gpt2.weight": "a parameter of Conv1D, 8 x 24, and not of a layer",
    "experts.up": "a parameter of Experts, 4 x 8 x 16, and not of a layer",
    "heads.0": "a parameter of ParameterList, 8 x 3, and not of a layer",
    "own": "its class Own is derived from torch's and may do something else",
    "normed": "its weight is computed: convert first, parametrize then",
    "lazy": "it has no size before its first batch: run one, then convert",
    "replaced": "its forward was replaced",
    "cell.weight_ih": "there is no sparsified nn.LSTMCell",
    "cell.weight_hh": "there is no sparsified nn.LSTMCell",
    "conv": "nn.Conv2d is not among the kinds",
    "out": "the output layer, which stays dense unless a filter takes it",
}


def test_what_is_left_is_named_with_the_reason():
    model = zoo()
    converted = convert(model, k=2)
    assert list(converted) == ["plain", "small"]
    assert converted == {"plain": model["plain"], "small": model["small"]}
    assert converted.left == LEFT
    assert converted.dense == {"small": "k = 2 keeps all of its 2"}
    model["small"].k = 1
    assert converted.dense == {}
    again = convert(model, k=2, kinds=(nn.Conv2d,), filter=lambda module, name: True)
    assert list(again) == ["conv"]
    assert again.left == {
        **{name: reason for name, reason in LEFT.items() if name != "conv"},
        "plain": "already converted",
        "small": "already converted",
        "out": "nn.Linear is not among the kinds",
    }
    assert pickle.loads(pickle.dumps(converted)).left == LEFT


def test_the_report():
    converted = convert(zoo(), k=2, filter=lambda module, name: name in ("plain", "small"))
    lines = str(converted).splitlines()
    assert lines[:3] == [
        "2 converted, 12 left as they were",
        f"  converted  plain: {converted['plain']}",
        f"  converted  small: {converted['small']}  [dense: k = 2 keeps all of its 2]",
    ]
    assert lines[-1] == "  left       out: left out by the filter"
    assert len(lines) == 15


def test_a_warning_where_nothing_is_converted():
    model = nn.Sequential(nn.Linear(5, 9), nn.Linear(9, 3))
    convert(model, k=2)
    with pytest.warns(
        UserWarning, match=r"^no layer of Sequential was converted: 1 x already converted; 1 x the output"
    ):
        assert convert(model, k=2) == {}
    with pytest.warns(UserWarning, match=r"^no layer of ReLU was converted: it has no layers with weights$"):
        convert(nn.ReLU(), k=2)
    with pytest.warns(UserWarning, match="2 x left out by the filter"):
        convert(nn.Sequential(nn.Linear(5, 9), nn.Linear(9, 3)), k=2, filter=lambda *_: False)


@pytest.mark.skipif(not hasattr(nn, "LinearCrossEntropyLoss"), reason="this torch has no nn.LinearCrossEntropyLoss")
def test_a_loss_that_reads_a_layer():
    model = nn.Sequential(nn.Linear(8, 8), nn.LinearCrossEntropyLoss(8, 5))
    assert list(convert(model, k=2, filter=lambda *_: True)) == ["0"]


def test_attention_that_runs_its_layers_has_them_converted():
    class Running(nn.MultiheadAttention):
        def forward(self, x):
            return self.out_proj(x)

    model = Running(8, 2)
    model.out_proj = nn.Linear(8, 8)
    assert list(convert(model, k=2, filter=lambda *_: True)) == ["out_proj"]


def test_layers_that_never_run_are_named():
    model = nn.Sequential(Attention(), nn.Linear(8, 30), nn.Linear(30, 3))
    convert(model, k=2)
    x = torch.randn(1, 8)
    with record_calls(model) as calls:
        assert calls.never_ran == ["0.qkv", "0.proj", "1"]
        model(x).sum().backward()
    assert calls.never_ran == ["0.qkv"]
    assert model[0].qkv.weight.grad.ne(0).any(1).sum() > 2
    model(x)
    assert calls.never_ran == ["0.qkv"]
    assert "forward" not in vars(model[1])
    assert MePropLinear.forward.__qualname__ == "MePropLinear.forward"
    with pytest.raises(ZeroDivisionError), record_calls(model):
        _ = 1 / 0
    assert not hasattr(MePropLinear.forward, "__wrapped__")


def test_a_call_is_seen_however_it_is_made():
    layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4)).append(nn.Conv2d(1, 1, 1)).append(nn.LSTM(8, 8))
    convert(layers, k=2, kinds=(nn.Linear, nn.Conv2d, nn.LSTM), filter=lambda *_: True)
    parametrizations.weight_norm(layers[2])
    layers[3].forward = functools.partial(layers[3].forward)  # put around it, as accelerate does
    x = torch.randn(2, 8)
    with record_calls(layers) as calls:
        layers[0].forward(x)
        torch.func.functional_call(layers[1], dict(layers[1].named_parameters()), (x,))
        layers[2](x)
        layers[3](x)
        layers[5](x)
    assert calls.never_ran == ["4"]


def test_a_compiled_model_is_seen_as_well():
    torch._dynamo.reset()
    model = nn.Sequential(Attention(), nn.Linear(8, 30))
    convert(model, k=2, filter=lambda *_: True)
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(1, 8)
    compiled(x)
    with record_calls(compiled) as calls:
        compiled(x)
    assert calls.never_ran == ["_orig_mod.0.qkv"]
