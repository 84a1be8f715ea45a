"""Tensors that are not plain memory, in all layers: the gradients are those of plain tensors with the same values.

A layer, or a kind of tensor, is one line of a table. What could end the process runs in one of its own.
"""

import contextlib
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
import torch.autograd.forward_ad as forward_mode
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.testing._internal.logging_tensor import LoggingTensor
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from meprop_bench.nn import MePropConv1d, MePropConv2d, MePropGRU, MePropLinear, MePropLSTM, MePropRNN
from meprop_bench.ops import linear, node
from meprop_bench.ops.plain import in_python, memory, unwatched

module = import_module("meprop_bench.ops.plain")
registrations = import_module("meprop_bench.ops.linear")  # the function has the same name

LAYERS = {
    "linear": (lambda **d: MePropLinear(20, 30, k=3, **d), lambda: nn.Linear(20, 30), (6, 20)),
    "unified": (lambda **d: MePropLinear(20, 30, k=3, selection="unified", **d), lambda: nn.Linear(20, 30), (2, 3, 20)),
    "conv2d": (lambda **d: MePropConv2d(3, 4, 3, k=0.2, **d), lambda: nn.Conv2d(3, 4, 3), (2, 3, 8, 8)),
    "conv1d": (lambda **d: MePropConv1d(3, 4, 3, k=0.2, **d), lambda: nn.Conv1d(3, 4, 3), (2, 3, 8)),
    "lstm": (lambda **d: MePropLSTM(5, 7, k=2, **d), lambda: nn.LSTM(5, 7), (3, 2, 5)),
    "gru": (
        lambda **d: MePropGRU(5, 7, k=2, bidirectional=True, **d),
        lambda: nn.GRU(5, 7, bidirectional=True),
        (3, 2, 5),
    ),
    "rnn": (lambda **d: MePropRNN(5, 7, k=2, **d), lambda: nn.RNN(5, 7), (3, 2, 5)),
}


class Wrapped(torch.Tensor):
    """Without memory of its own."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), dtype=inner.dtype, device=inner.device
        )

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args, kwargs = tree_map(lambda t: t.inner if isinstance(t, cls) else t, (args, kwargs or {}))
        return tree_map(lambda t: cls(t) if isinstance(t, torch.Tensor) else t, func(*args, **kwargs))


KINDS = {
    "two tensors": (lambda t: TwoTensor(t, t.clone()), lambda t: t.a),
    "wrapped": (Wrapped, lambda t: t.inner),
    "logging": (LoggingTensor, lambda t: t.elem),
    "negated": (lambda t: torch._neg_view(-t), lambda t: t.resolve_neg()),
}


def first(y):
    return y[0] if isinstance(y, tuple) else y


class Case:
    """A layer with its input, an incoming gradient, and the gradients of x and the parameters in plain memory."""

    def __init__(self, name):
        torch.manual_seed(0)
        make, dense, shape = LAYERS[name]
        self.layer, self.dense, self.x = make(), dense(), torch.randn(shape)
        self.dense.load_state_dict(self.layer.state_dict())
        self.dy = torch.randn_like(first(self.layer(self.x)))
        self.expected = self.gradients()

    def call(self, x, *parameters, layer=None):
        names = [name for name, _ in self.layer.named_parameters()]
        return first(torch.func.functional_call(layer or self.layer, dict(zip(names, parameters, strict=True)), (x,)))

    def leaves(self):
        return [t.detach().clone().requires_grad_() for t in (self.x, *self.layer.parameters())]

    def gradients(self, forward=contextlib.nullcontext, backward=contextlib.nullcontext):
        leaves = self.leaves()
        with forward():
            y = self.call(*leaves)
        with backward():
            return torch.autograd.grad(y, leaves, self.dy)

    def check(self, found):
        for one, other in zip(found, self.expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.fixture(params=LAYERS)
def case(request):
    return Case(request.param)


@pytest.fixture(params=["cxx", "python"])
def registration(request, monkeypatch):
    if request.param == "cxx" and (reason := node.unavailable_reason()) is not None:
        pytest.skip(f"no C++ node: {reason}")
    monkeypatch.setenv(node.SWITCH, request.param)
    monkeypatch.setattr(registrations._node, "call", registrations._node.first)
    monkeypatch.setattr(memory, "plain", memory._first)


class Own(torch.Tensor):
    """Means twice its memory by what it is multiplied by."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return func(*(2 * a if func is F.linear and isinstance(a, cls) else a for a in args), **(kwargs or {}))


class Idle(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda t: t, True),
        (lambda t: t.double(), True),
        (lambda t: t.mT, True),
        (nn.Parameter, True),
        (lambda t: t.as_subclass(Idle), True),
        (lambda t: t.as_subclass(Own), False),
        (torch._neg_view, False),
        (lambda t: torch.complex(t, t), False),
        (lambda t: torch.complex(t, t).conj().imag, False),
        (lambda t: t.to("meta"), False),
        (lambda t: t.to_sparse(), False),
        (lambda t: t.to_mkldnn(), False),
        (torch._to_functional_tensor, False),
        (lambda t: torch.nested.nested_tensor([t, t]), False),
        (lambda t: torch._VF._efficientzerotensor(t.shape), False),
        (lambda t: torch.quantize_per_tensor(t, 1.0, 0, torch.qint8), False),
        *((make, False) for make, _ in KINDS.values()),
        (lambda t: t.tolist(), False),
    ],
)
@pytest.mark.parametrize("language", ["C++", "Python"])
def test_what_plain_memory_is(make, expected, language):
    plain = in_python
    if language == "C++":
        if (reason := node.unavailable_reason()) is not None:
            pytest.skip(f"no C++ node: {reason}")
        memory._first(torch.ones(1))
        plain = memory.plain
        assert plain is not in_python
    t = make(torch.randn(3, 4))
    assert plain(t) == expected
    assert plain(torch.randn(2), None, torch.randn(2))
    assert not plain(torch.randn(2), torch.randn(2).double())
    assert not plain(torch.randn(2), torch.randn(2).to("meta"))


@pytest.mark.parametrize("device", ["CPU", "CUDA", "XPU", "MPS"])
def test_ordinary_tensors_of_any_device_are_plain(device):
    keys = module._bits(device, "ADInplaceOrView", f"Autograd{device}", f"Autocast{device}") & module._TELLING
    assert keys & ~module._DEVICES == module._DENSE
    assert keys & module._DEVICES
    assert not keys & module._META


def test_a_subclass_that_overrides_functions_alone_is_asked():
    x, w = torch.randn(6, 20), torch.randn(30, 20, requires_grad=True)
    y = linear(x.as_subclass(Own), w, k=3)
    torch.testing.assert_close(y, F.linear(2 * x, w))
    dy = torch.randn(6, 30)
    (found,) = torch.autograd.grad(y, w, dy)
    torch.testing.assert_close(found, torch.autograd.grad(linear(2 * x, w, k=3), w, dy)[0])


@pytest.mark.parametrize("where", ["x", "w", "dy", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradients_of_any_kind(case, kind, where):
    make, value = KINDS[kind]
    x, *parameters = case.leaves()
    if where in ("x", "all"):
        x = make(x.detach()).requires_grad_()
    if where in ("w", "all"):
        parameters = [make(p.detach()).requires_grad_() for p in parameters]
    y = case.call(x, *parameters)
    grads = torch.autograd.grad(y, (x, *parameters), make(case.dy) if where in ("dy", "all") else case.dy)
    case.check([value(g) if type(g) is not torch.Tensor or kind == "negated" else g for g in grads])


@pytest.mark.parametrize("selection", ["random", "random-unified"])
def test_random_selections_of_what_is_wrapped(selection):
    layer = MePropLinear(20, 30, k=3, selection=selection)
    layer(Wrapped(torch.randn(6, 20))).backward(Wrapped(torch.randn(6, 30)))
    kept = layer.weight.grad.inner.ne(0).any(1).sum()
    assert kept == 3 if selection == "random-unified" else 3 <= kept <= 18


def is_grads_batched(case, leaves, y, many):
    return torch.autograd.grad(y, leaves, many, is_grads_batched=True)


def vmap_of_backward(case, leaves, y, many):
    return torch.func.vmap(lambda dy: torch.autograd.grad(y, leaves, dy, retain_graph=True))(many)


def vmap_of_backward_that_is_recorded(case, leaves, y, many):
    return torch.func.vmap(lambda dy: torch.autograd.grad(y, leaves, dy, create_graph=True))(many)


def vmap_of_vjp(case, leaves, y, many):
    return torch.func.vmap(torch.func.vjp(case.call, *(t.detach() for t in leaves))[1])(many)


def one_by_one_within_grad(case, leaves, y, many):
    """Of plain tensors, at a level that only happens to be there."""
    found = []

    def function(t):
        found.extend(torch.autograd.grad(y, leaves, dy, retain_graph=True) for dy in many)
        return t.sum()

    torch.func.grad(function)(torch.ones(2))
    inner = torch._C._functorch.get_unwrapped
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    return [torch.stack([inner(t) if wrapped(t) else t for t in ts]) for ts in zip(*found, strict=True)]


@pytest.mark.parametrize(
    "how",
    [is_grads_batched, vmap_of_backward, vmap_of_backward_that_is_recorded, vmap_of_vjp, one_by_one_within_grad],
)
@pytest.mark.usefixtures("registration")
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_many_gradients_at_once(case, how):
    leaves = case.leaves()
    many = torch.stack((torch.randn_like(case.dy), case.dy))
    found = how(case, leaves, case.call(*leaves), many)
    case.check([t[1] for t in found])
    for t, other in zip(found, torch.autograd.grad(case.call(*leaves), leaves, many[0]), strict=True):
        torch.testing.assert_close(t[0], other, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Attempted to insert")
def test_forward_derivatives_are_those_of_the_dense_layer(case):
    case.layer.double(), case.dense.double()  # in single precision torch has none of the LSTM
    inputs = tuple(t.detach().double() for t in case.leaves())
    tangents = tuple(torch.randn_like(t) for t in inputs)
    _, expected = torch.func.jvp(lambda *t: case.call(*t, layer=case.dense), inputs, tangents)
    _, found = torch.func.jvp(case.call, inputs, tangents)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with forward_mode.dual_level():
        y = case.call(*map(forward_mode.make_dual, inputs, tangents))
        torch.testing.assert_close(forward_mode.unpack_dual(y).tangent, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.func.linearize(case.call, *inputs)[1](*tangents), expected, rtol=1e-4, atol=1e-5)
    _, found = torch.autograd.functional.jvp(case.call, inputs, tangents)  # which differentiates backward, at dy = 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_forward_over_reverse_differentiates_the_sparsified_gradient(case):
    """With the selection held fixed, as a small difference does not change it."""
    x, *parameters = (t.detach().double() for t in case.leaves())
    case.layer.double()
    gradient = torch.func.grad(lambda x: case.call(x, *parameters).pow(2).sum())
    tangent = torch.randn_like(x)
    _, found = torch.func.jvp(gradient, (x,), (tangent,))
    step = 1e-6 * tangent
    torch.testing.assert_close(found, (gradient(x + step) - gradient(x - step)) / 2e-6, rtol=1e-5, atol=1e-6)


def test_gradients_that_come_as_duals(case):
    leaves = case.leaves()
    y, tangent = case.call(*leaves), torch.zeros_like(case.dy)
    with forward_mode.dual_level():
        grads = torch.autograd.grad(y, leaves, forward_mode.make_dual(case.dy, tangent + case.dy))
        parts = [forward_mode.unpack_dual(grad) for grad in grads]
        case.check([p.primal for p in parts])
        case.check([p.tangent for p in parts])  # the backward pass is linear where the selection is held fixed


class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Elsewhere(TorchFunctionMode):
    """Makes whatever is made without a device on the meta device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.tensor, torch.zeros, torch.arange):
            kwargs.setdefault("device", "meta")
        return func(*args, **kwargs)


@pytest.mark.parametrize("mode", [Watch, Elsewhere, lambda: torch.device("meta"), torch.autograd.graph.save_on_cpu])
@pytest.mark.parametrize("when", ["forward", "backward", "both"])
@pytest.mark.usefixtures("registration")
def test_modes(case, mode, when):
    modes = {"forward": {"forward": mode}, "backward": {"backward": mode}, "both": {"forward": mode, "backward": mode}}
    case.check(case.gradients(**modes[when]))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.usefixtures("registration")
def test_activation_checkpointing(case, reentrant):
    leaves = case.leaves()
    checkpoint(case.call, *leaves, use_reentrant=reentrant).backward(case.dy)
    case.check([t.grad for t in leaves])


@pytest.mark.parametrize(
    "unpack", [lambda t: t.double(), lambda t: t.flatten()[:1], lambda t: t[:1], lambda t: t[..., :1]]
)
@pytest.mark.parametrize("name", ["linear", "unified", "conv2d", "gru", "lstm"])
@pytest.mark.usefixtures("registration")
def test_hooks_that_give_back_what_does_not_fit(name, unpack):
    case = Case(name)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
        y = case.call(*(leaves := case.leaves()))
    with contextlib.suppress(
        RuntimeError, ValueError
    ):  # torch's own, or the right gradients: never what lies behind in memory
        case.check(torch.autograd.grad(y, leaves, case.dy))


@pytest.mark.usefixtures("registration")
def test_hooks_that_give_back_other_strides(case):
    def strided(t):
        return torch.stack([t, torch.full_like(t, torch.nan)], -1)[..., 0] if t.is_floating_point() else t

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, strided):
        y = case.call(*(leaves := case.leaves()))
    case.check(torch.autograd.grad(y, leaves, case.dy))


@pytest.mark.parametrize("layer", [nn.Linear, lambda m, n: MePropLinear(m, n, k=3)])
@pytest.mark.parametrize("shape", [(6, 20), (2, 3, 20)])
@pytest.mark.usefixtures("registration")
def test_what_is_saved_is_what_torch_saves(layer, shape):
    layer = layer(20, 30)

    def saved(x_needs, w_needs):
        kept = []
        layer.requires_grad_(w_needs)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            layer(torch.randn(shape, requires_grad=x_needs))
        return kept

    assert saved(True, True) == [120, 600]
    assert saved(True, False) == [600]
    assert saved(False, True) == [120]
    layer.requires_grad_(False)
    h = torch.randn(shape, requires_grad=True) * 1
    y = layer(h)
    h.add_(1)  # a residual in place after a frozen layer
    y.sum().backward()
    layer.requires_grad_(True)
    y = layer(torch.randn(shape))
    with torch.no_grad():
        layer.weight.mul_(0.9)
    y.sum().backward()


def replaced(layer, which, data):
    """Gradients where a variable gets other data between forward and backward: nothing where torch raises."""
    torch.manual_seed(1)
    x = torch.randn((6, 20) if which == "x" else (2, 3, 20), requires_grad=True)
    y = layer(x)
    dy = torch.randn_like(y)
    dy[..., 0] = 0  # the neuron that is not kept
    variable = x if which == "x" else layer.weight
    before, variable.data = variable.data, data(variable.data)
    try:
        (dx,) = torch.autograd.grad(y, x, dy, retain_graph=True)
        return dx, *torch.autograd.grad(y, layer.parameters(), dy)
    except RuntimeError:
        return ()
    finally:
        variable.data = before


@pytest.mark.parametrize(
    "data",
    [
        lambda t: torch.full_like(t, 100.0),
        lambda t: torch.zeros(2, 2),
        lambda t: t.t().contiguous(),
        lambda t: t.half(),
        torch._neg_view,
    ],
)
@pytest.mark.parametrize("which", ["x", "weight"])
@pytest.mark.parametrize("kernel", ["native", "masked"])
@pytest.mark.usefixtures("registration")
def test_data_that_is_replaced_in_between(which, data, kernel):
    pytest.importorskip("numba")
    dense = nn.Linear(20, 30)
    ours = MePropLinear.from_linear(dense, k=29, kernel=kernel)
    torch.testing.assert_close(replaced(ours, which, data), replaced(dense, which, data))


@pytest.mark.usefixtures("registration")
def test_double_backward_after_the_weight_was_replaced():
    dense = nn.Linear(20, 30)
    results = []
    for layer in (dense, MePropLinear.from_linear(dense, k=29)):
        torch.manual_seed(0)
        x, dy = torch.randn(6, 20, requires_grad=True), torch.randn(6, 30)
        dy[:, 0] = 0
        y, before = layer(x), layer.weight.data
        layer.weight.data = torch.zeros(30, 20)
        dx, dw = torch.autograd.grad(y, (x, layer.weight), dy, create_graph=True)
        results.append((dx, dw, *torch.autograd.grad(dx.pow(2).sum() + dw.pow(2).sum(), (x, layer.weight))))
        layer.weight.data = before
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("name", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("parameter", ["weight_ih_l0", "weight_hh_l0"])
@pytest.mark.parametrize("shape", [None, (2, 2)])
def test_recurrent_weights_that_are_replaced_in_between(name, parameter, shape):
    case = Case(name)
    layer, x = case.layer, case.x.clone().requires_grad_()
    y, weight = first(layer(x)), getattr(layer, parameter)
    weight.data = torch.full_like(weight, 9.0) if shape is None else torch.zeros(shape)
    (dx,) = torch.autograd.grad(y, x, case.dy)
    torch.testing.assert_close(dx, case.expected[0])


@pytest.mark.parametrize("name", LAYERS)
def test_complex_numbers(name):
    """Against torch's autograd, which is given the gradient that is left of dy, and against differences."""
    make, dense, shape = LAYERS[name]
    layer, dense = make(dtype=torch.complex128), dense().to(torch.complex128)
    dense.load_state_dict(layer.state_dict())
    x = torch.randn(shape, dtype=torch.complex128, requires_grad=True)
    y = first(layer(x))
    dy = torch.randn_like(y)
    grads = torch.autograd.grad(y, (x, *layer.parameters()), dy)
    if "conv" in name or name == "linear":
        rows = dy.flatten(2) if "conv" in name else dy
        k = 3 if name == "linear" else round(0.2 * rows.shape[-1])
        kept = rows * rows.abs().ge(rows.abs().topk(k, -1).values[..., -1:])
        expected = torch.autograd.grad(dense(x), (x, *dense.parameters()), kept.view_as(dy))
        torch.testing.assert_close(grads[:-1], expected[:-1])
        torch.testing.assert_close(grads[-1], dy.sum([d for d in range(dy.dim()) if d != 1]))
    layer.k = 1.0 if "conv" in name else 30
    assert torch.autograd.gradcheck(lambda x: first(layer(x)), x)


@pytest.mark.parametrize("name", ["unified", "conv2d"])
@pytest.mark.parametrize("kind", ["complex", "wrapped"])
def test_a_graph_breaks_at_what_is_not_plain(name, kind):
    torch._dynamo.reset()
    case = Case(name)
    layer, x, dy = case.layer, case.x, case.dy
    if kind == "complex":
        layer, x, dy = layer.to(torch.complex64), torch.complex(x, -x), torch.complex(dy, 2 * dy)
    else:
        x = Wrapped(x)
    grads = []
    for function in (layer, torch.compile(layer, backend="aot_eager")):
        layer.zero_grad()
        function(x).backward(dy)
        grads.append([p.grad.inner if isinstance(p.grad, Wrapped) else p.grad for p in layer.parameters()])
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.parametrize("name", LAYERS)
def test_meta_device(name):
    make, _, shape = LAYERS[name]
    layer = make(device="meta")
    first(layer(torch.randn(shape, device="meta"))).sum().backward()
    assert all(p.grad.device.type == "meta" and p.grad.shape == p.shape for p in layer.parameters())


def test_sparse_rows_need_plain_memory():
    layer = MePropLinear(20, 30, k=3, sparse=True)
    for x in (torch._neg_view(torch.randn(6, 20)), Wrapped(torch.randn(6, 20))):
        with pytest.raises(ValueError, match=r"plain memory: take the dense weight gradient \(sparse=False\)"):
            layer(x)
    dy = torch.randn(6, 30)
    for of, batched in ((torch.randn(2, 6, 30), True), (Wrapped(dy), False)):
        with pytest.raises(ValueError, match="plain memory"):
            torch.autograd.grad(layer(torch.ones(6, 20)), layer.weight, of, is_grads_batched=batched)
    for of in (dy, torch._neg_view(-dy)):  # dy is another matter: its rows can be had
        layer.zero_grad()
        layer(torch.ones(6, 20)).backward(of)
        torch.testing.assert_close(layer.weight.grad.to_dense().sum(1) / 20, (dy * _greatest(dy, 3)).sum(0))


def _greatest(dy, k):
    return dy.abs().ge(dy.abs().topk(k, 1).values[:, -1:])


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
@pytest.mark.parametrize("selection", ["example", "unified"])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_one_batch_of_rows(layout, selection):
    layer = MePropLinear(5, 9, k=3, selection=selection)
    parts, dys = [torch.randn(n, 5) for n in (3, 4)], [torch.randn(n, 9) for n in (3, 4)]
    flat = torch.cat(parts).requires_grad_()
    expected = torch.autograd.grad(layer(flat), (flat, *layer.parameters()), torch.cat(dys))
    x = torch.nested.nested_tensor(parts, layout=layout, requires_grad=True)
    y = layer(x)
    assert y.layout == layout
    loss = sum((part * dy).sum() for part, dy in zip(y.unbind(), dys, strict=True))
    dx, *rest = torch.autograd.grad(loss, (x, *layer.parameters()))
    torch.testing.assert_close((torch.cat(dx.unbind()), *rest), expected)
    if layout is torch.jagged:
        assert (MePropLinear(5, 5, k=2)(x) + x).shape == x.shape  # the very offsets
        with pytest.raises(ValueError, match="contiguous"):
            layer(torch.nested.narrow(torch.randn(2, 6, 5), 1, torch.tensor([0, 1]), torch.tensor([3, 4]), layout))


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: torch.func.grad(lambda w: linear(x, w, k=3).sum())(w.detach()),
        lambda x, w: torch.func.vmap(lambda x: linear(x, w, k=3))(x.unsqueeze(0)),
        lambda x, w: in_mode(torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True), x, w),
        lambda x, w: in_mode(torch.autocast("cpu", torch.bfloat16), x, w),
        lambda x, w: in_mode(torch.device("meta"), x, w),
        lambda x, w: in_mode(torch.inference_mode(), x.clone(), w.detach().clone()),
    ],
)
def test_the_first_call_decides_nothing(call):
    if (reason := node.unavailable_reason()) is not None:
        pytest.skip(f"no C++ node: {reason}")
    registrations._node.forget()
    x, w = torch.randn(6, 20), torch.randn(30, 20, requires_grad=True)
    call(x, w)
    assert linear(x, w, k=3).grad_fn.name() == "MePropLinearBackward"


def in_mode(mode, x, w):
    with mode, torch.enable_grad():
        linear(x, w, k=3)


def test_nothing_watches_here():
    assert unwatched()
    with Watch():
        assert not unwatched()
    with forward_mode.dual_level():
        assert not unwatched()


FAKE = """
import contextlib
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

for name, (make, _, shape) in LAYERS.items():
    for modes in ([FakeTensorMode()], [FakeTensorMode(allow_non_fake_inputs=True)]):
        real = make()
        with modes[0]:
            layer = real if modes[0].allow_non_fake_inputs else make()
            y = first(layer(torch.randn(shape)))
            y.sum().backward()
        assert all(isinstance(p.grad, FakeTensor) and p.grad.shape == p.shape for p in layer.parameters()), name
    # real tensors, and a mode around backward alone
    layer, mode = make(), FakeTensorMode(allow_non_fake_inputs=True)
    y = first(layer(torch.randn(shape)))
    with contextlib.suppress(RuntimeError, AssertionError), mode:
        y.sum().backward()
"""
DISTRIBUTED = """
import os
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from meprop_bench.nn import MePropLinear

os.environ.update(MASTER_ADDR="127.0.0.1", RANK="0", WORLD_SIZE="1")
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
for name in names:
    case = Case(name)
    distribute_module(case.layer, mesh)
    x = distribute_tensor(case.x, mesh, [Replicate()]).requires_grad_()
    y = case.layer(x)
    y.backward(distribute_tensor(case.dy, mesh, y.placements))
    case.check([t.grad.full_tensor() for t in (x, *case.layer.parameters())])
torch.manual_seed(0)
model = torch.nn.Sequential(MePropLinear(20, 30, k=3), torch.nn.ReLU(), MePropLinear(30, 20, k=2))
x = torch.randn(6, 20)
expected = torch.autograd.grad(model(x).pow(2).sum(), model.parameters())
parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
model(x).pow(2).sum().backward()
for p, e in zip(model.parameters(), expected):
    torch.testing.assert_close(p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad, e)
"""
CONVOLUTIONS = pytest.mark.skipif(
    torch.__version__ < (2, 12),
    reason="before torch 2.12 nn.Conv1d and nn.Conv2d themselves refuse DTensors of these shapes",
)


@pytest.mark.parametrize(
    ("script", "names"),
    [
        (FAKE, ()),
        (DISTRIBUTED, ("linear", "unified")),
        pytest.param(DISTRIBUTED, ("conv2d", "conv1d"), marks=CONVOLUTIONS),
    ],
    ids=["fake", "linear", "convolution"],
)
def test_fake_and_distributed_tensors(script, names):
    start = "import sys, torch\nsys.path.insert(0, sys.argv[1])\nfrom test_plain import Case, LAYERS, first"
    program = f"{start}\n{names = }\n{script}\nprint('all right')"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.stdout.strip().endswith("all right"), (done.returncode, done.stderr[-2000:])
