"""`check_layer` on layers as they are in the models of users, with what reaches them there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_sequence

from meprop_bench.algorithms.activeness import Activeness, watch
from meprop_bench.nn import MePropConv1d, MePropConv2d, MePropGRU, MePropLinear, MePropLSTM, MePropRNN
from meprop_bench.ops import SELECTIONS
from meprop_bench.ops.kernels import KERNELS, Gradients, Kernel, Request
from meprop_bench.ops.kernels.operators import MASKED
from meprop_bench.workloads.check import check_layer

SEED = 3


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def passes(layer: nn.Module, x: Any, dy: Tensor) -> bool:
    found = check_layer(layer, x, dy, seed=SEED)
    assert found == "passed", found
    return True


@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 2, 2), ()])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_linear_layer(selection: str, bias: bool, shape: tuple[int, ...]) -> None:
    for k, sparse in ((0.3, False), (2, True), (9, False), (20, False)):
        layer = MePropLinear(5, 9, bias, k=k, selection=selection, sparse=sparse)
        assert passes(layer, normal(*shape, 5), normal(*shape, 9))


CONVOLUTIONS = {
    "plain": ((4, 6, 3), {}),
    "strided": ((4, 6, (3, 2)), {"stride": (2, 1), "padding": (1, 0)}),
    "dilated": ((4, 6, 2), {"dilation": 2, "padding": 2}),
    "grouped": ((4, 6, 3), {"groups": 2, "bias": False}),
    "same": ((4, 6, 4), {"padding": "same"}),
    "reflect": ((4, 6, 3), {"padding": 1, "padding_mode": "reflect"}),
    "beyond the edge": ((4, 6, 1), {"padding": 3}),
}


@pytest.mark.parametrize("selection", ["example", "random"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution(name: str, selection: str) -> None:
    args, keywords = CONVOLUTIONS[name]
    layer = MePropConv2d(*args, k=0.2, selection=selection, **keywords)
    for shape in ((3, 4, 7, 6), (4, 7, 6)):
        x = normal(*shape)
        assert passes(layer, x, normal(*layer(x).shape))
    layer.k = 1.0
    assert passes(layer, x, normal(*layer(x).shape))


def test_a_convolution_of_one_dimension() -> None:
    layer = MePropConv1d(4, 6, 3, stride=2, padding=1, padding_mode="circular", k=2)
    for shape in ((3, 4, 11), (4, 11)):
        assert passes(layer, normal(*shape), normal(*layer(normal(*shape)).shape))


RECURRENT = {
    "plain": {},
    "deep": {"num_layers": 2, "dropout": 0.5},
    "both ways": {"bidirectional": True, "batch_first": True},
    "all": {"num_layers": 2, "bidirectional": True, "bias": False},
}


@pytest.mark.parametrize("kind", [MePropLSTM, MePropGRU, MePropRNN])
@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_layer(name: str, kind: Any) -> None:
    torch.manual_seed(0)
    layer = kind(5, 7, **RECURRENT[name], k=3)
    n = 14 if layer.bidirectional else 7
    assert passes(layer, normal(4, 3, 5), normal(4, 3, n))
    assert passes(layer, normal(4, 5), normal(4, n))
    state: Any = normal(layer.num_layers * n // 7, 4 if layer.batch_first else 3, 7)
    state = (state, state) if kind is MePropLSTM else state
    x = normal(4, 3, 5)
    assert passes(layer, (x, state), normal(4, 3, n))
    packed = pack_sequence([normal(size, 5) for size in (2, 4, 3)], enforce_sorted=False)
    assert passes(layer, packed, normal(9, n))


def test_a_recurrent_layer_of_which_all_that_is_not_zero_is_selected() -> None:
    layer = MePropRNN(5, 9, nonlinearity="relu", k=3)
    dy = normal(1, 2, 9)
    dy[..., 3:] = 0  # one step: no more than 3 neurons have a gradient, and these are the dense one
    assert passes(layer, normal(1, 2, 5), dy)
    assert passes(layer, normal(1, 2, 5), torch.zeros(1, 2, 9))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_it_is_the_arithmetic_of_dy(dtype: torch.dtype) -> None:
    x, dy = normal(6, 20), normal(6, 30, dtype=dtype)
    layer = MePropLinear(20, 30, k=4)
    with torch.autocast("cpu", dtype):
        assert layer(x).dtype == dtype
        assert passes(layer, x, dy)
        assert passes(layer, x.to(dtype), dy)
    maps = MePropConv2d(3, 4, 3, k=4)
    assert passes(maps, normal(2, 3, 8, 8), normal(2, 4, 6, 6, dtype=dtype))


@pytest.mark.parametrize("kind", [MePropLSTM, MePropGRU])
def test_a_recurrent_layer_under_autocast(kind: Any) -> None:
    torch.manual_seed(0)
    layer = kind(20, 30, k=6)
    assert passes(layer, normal(9, 4, 20), normal(9, 4, 30, dtype=torch.bfloat16))


def zeros(shape: str) -> Tensor:
    """A dy as models make it."""
    dy = normal(12, 20)
    if shape == "relu":
        dy[dy < 0] = 0
    elif shape == "dead examples":
        dy[3:6] = 0
    elif shape == "dead neurons":
        dy[:, 2:] = 0
    elif shape == "all":
        dy.zero_()
    elif shape == "ties":
        dy = dy.sign()
    elif shape == "expanded":  # of `.sum()`
        dy = torch.ones(()).expand(12, 20)
    elif shape == "one example":
        dy[1:] = 0
    elif shape == "tiny":
        dy *= 1e-37
    return dy


ZEROS = ["relu", "dead examples", "dead neurons", "all", "ties", "expanded", "one example", "tiny"]


@pytest.mark.parametrize("shape", ZEROS)
@pytest.mark.parametrize("selection", SELECTIONS)
def test_zeros_and_ties_are_nobodys_fault(selection: str, shape: str) -> None:
    for sparse in (False, True):
        layer = MePropLinear(5, 20, k=4, selection=selection, sparse=sparse)
        assert passes(layer, normal(12, 5), zeros(shape))
    if selection in ("example", "random"):
        maps = MePropConv2d(3, 4, 3, k=4, selection=selection)
        assert passes(maps, normal(3, 3, 6, 7), zeros(shape).reshape(3, 4, 4, 5))


class Wrong(Kernel):
    """The oracle with a fault."""

    name = "masked"

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def unsupported(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> str | None:
        return None

    def backward(self, dy: Tensor, x: Tensor, w: Tensor, request: Request) -> Gradients:
        if self.fault == "dense":
            return dy @ w, dy.t() @ x, dy.sum(0)
        if self.fault == "one more":
            request = request._replace(k=request.k + 1)
        return MASKED.backward(dy, x, w, request)


@pytest.mark.parametrize("shape", ["normal", *ZEROS])
@pytest.mark.parametrize("fault", ["dense", "one more"])
@pytest.mark.parametrize("selection", ["example", "unified"])
def test_zeros_hide_no_fault(selection: str, fault: str, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    KERNELS["masked"]
    monkeypatch.setitem(KERNELS._loaded, "masked", Wrong(fault))  # type: ignore[attr-defined]
    layer = MePropLinear(5, 20, k=4, selection=selection, kernel="masked")
    assert check_layer(layer, normal(12, 5), zeros(shape), seed=SEED).startswith("dx is off by")


def test_what_is_frozen_or_needs_no_gradient_has_none() -> None:
    x, dy = normal(6, 5), normal(6, 9)
    for frozen in (("weight",), ("bias",), ("weight", "bias")):
        layer = MePropLinear(5, 9, k=3)
        for name in frozen:
            layer.get_parameter(name).requires_grad_(False)
        assert passes(layer, x, dy)
    lstm = MePropLSTM(5, 9, k=3).requires_grad_(False)
    assert passes(lstm, normal(4, 2, 5), normal(4, 2, 9))
    assert passes(MePropConv2d(3, 4, 3, k=3).requires_grad_(False), normal(2, 3, 6, 6), normal(2, 4, 4, 4))
    assert passes(MePropLinear(5, 9, k=3), torch.randint(9, (6, 5)), dy)  # as from one-hot integers, cast within
    with torch.no_grad():
        assert passes(MePropLinear(5, 9, k=3), x, dy)


def test_the_layer_and_the_generators_stay_as_they_were() -> None:
    called: list[str] = []
    lstm = MePropLSTM(5, 9, 2, dropout=0.5, k=3, selection="random")
    linear = MePropLinear(5, 9, k=3, selection="random")
    counted = MePropLinear(5, 9, k=3)
    record = Activeness(9)
    watch(counted, record)
    records = {"l0": Activeness(9, gates=4), "l1": Activeness(9, gates=4)}
    lstm.activeness = records
    lstm.selection = "example"
    for layer, x, dy in (
        (linear, normal(6, 5), normal(6, 9)),
        (counted, normal(6, 5), normal(6, 9)),
        (lstm, normal(4, 2, 5), normal(4, 2, 9)),
    ):
        layer.register_forward_hook(lambda *_: called.append("hook"))
        layer.register_full_backward_hook(lambda *_: called.append("hook"))
        before, held = copy.deepcopy(layer.state_dict()), dict(vars(layer))
        state, given = torch.get_rng_state(), (x.clone(), dy.clone())
        assert passes(layer.eval(), x, dy)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(layer.state_dict()[name], value) for name, value in before.items())
        assert all(p.grad is None and p.is_leaf for p in layer.parameters())
        assert {name: value for name, value in vars(layer).items() if name != "training"} == {
            name: value for name, value in held.items() if name != "training"
        }
        assert torch.equal(x, given[0])
        assert torch.equal(dy, given[1])
        assert x.grad is None
    assert not called
    assert record.examples == records["l0"].examples == 0


def test_what_was_put_on_a_layer_is_left_out() -> None:
    layer = MePropLinear(5, 9, k=3)
    parametrizations.weight_norm(layer)
    assert passes(layer, normal(6, 5), normal(6, 9))
    pruned = MePropLinear(5, 9, k=3)
    prune.l1_unstructured(pruned, "weight", amount=0.5)
    assert passes(pruned, normal(6, 5), normal(6, 9))


@pytest.mark.parametrize("selection", SELECTIONS)
def test_gradients_that_are_zero_but_for_rounding(selection: str) -> None:
    x, dy = torch.full((64, 5), 1.7), normal(64, 9)
    dy -= dy.mean(0)  # as behind a batch normalization, of inputs that are all alike
    assert passes(MePropLinear(5, 9, k=3, selection=selection), x, dy)
    if selection in ("example", "random"):
        maps = normal(16, 4, 6, 6)
        maps -= maps.mean((0, 2, 3), keepdim=True)
        assert passes(MePropConv2d(3, 4, 3, k=30, selection=selection), torch.full((16, 3, 8, 8), 1.7), maps)


def test_memory_formats_and_views() -> None:
    layer = MePropConv2d(3, 4, 3, k=4).to(memory_format=torch.channels_last)
    x = normal(2, 3, 8, 8).to(memory_format=torch.channels_last)
    assert passes(layer, x, normal(2, 4, 6, 6).to(memory_format=torch.channels_last))
    assert passes(MePropLinear(5, 9, k=3), normal(4, 5, 6).transpose(1, 2), normal(4, 9, 6).transpose(1, 2))


def test_what_cannot_be_compared_is_said() -> None:
    layer = MePropLinear(5, 9, k=3)
    assert check_layer(layer, normal(0, 5), normal(0, 9), seed=SEED) == (
        "its batch is empty: there is nothing to check"
    )
    dy = normal(6, 9)
    dy[0, 0] = torch.inf
    assert "NaN or an infinity" in check_layer(layer, normal(6, 5), dy, seed=SEED)
