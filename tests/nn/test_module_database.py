"""torch's own database of module tests, `torch.testing._internal.common_modules`, over the layers of this package.

With all entries kept a layer is torch's, to the bit. With fewer its gradients are those of plain layers in which `Kept`
stands behind each matrix product, and autograd does the rest; and the gradients of the gradients, where the forward
pass is linear, so that `Kept` does not act on them twice.
"""

import importlib.util
import sys
import types
import unittest.mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from meprop_bench.nn import MePropConv1d, MePropConv2d, MePropGRU, MePropLinear, MePropLSTM, MePropRNN
from meprop_bench.ops.selection import resolve_k

LAYERS = {
    nn.Linear: MePropLinear, nn.Conv1d: MePropConv1d, nn.Conv2d: MePropConv2d,
    nn.LSTM: MePropLSTM, nn.GRU: MePropGRU, nn.RNN: MePropRNN,
}  # fmt: skip
RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)
CASES = {nn.Linear: 3, nn.Conv1d: 4, nn.Conv2d: 4, nn.LSTM: 32, nn.GRU: 16, nn.RNN: 32}
"""How many there are at least for a dtype and mode: none must get lost unseen."""
LISTED = (torch.float32, torch.float64)
OTHERS = (torch.bfloat16, torch.float16, torch.complex64, torch.complex128)
"""Dtypes that the database does not list for these modules."""


@pytest.fixture(scope="module")
def database():
    missing = importlib.util.find_spec("expecttest") is None  # the database needs of it no more than this class
    if missing:
        sys.modules["expecttest"] = types.SimpleNamespace(TestCase=unittest.TestCase)
    with unittest.mock.patch("torch.backends.disable_global_flags"):  # which holds for all other tests of the process
        from torch.testing._internal import common_modules
    if missing:
        del sys.modules["expecttest"]
    assert not torch.backends.flags_frozen()
    found = {info.module_cls: info for info in common_modules.module_db if info.module_cls in LAYERS}
    assert found.keys() == LAYERS.keys()
    assert all(info.dtypes == LISTED for info in found.values())
    return found


def cases(info, dtype, device="cpu"):
    """Arguments of the constructor and of the call, in both modes."""
    for training in (False, True):
        torch.manual_seed(0)
        inputs = info.module_inputs_func(info, device=device, dtype=dtype, requires_grad=True, training=training)
        assert len(inputs) >= CASES[info.module_cls]
        for one in inputs:
            yield one.constructor_input, one.forward_input, training


def pair(kind, made, k, training, dtype, device="cpu"):
    """torch's layer and ours, with the same weights, or None if ours refuses to be made."""
    factory = {"dtype": dtype, "device": device}
    plain = kind(*made.args, **made.kwargs, **factory)
    if made.kwargs.get("proj_size"):
        with pytest.raises(ValueError, match="proj_size must be 0, not 2: layers with projections are not supported"):
            LAYERS[kind](*made.args, **made.kwargs, **factory, k=k)
        return None
    ours = LAYERS[kind](*made.args, **made.kwargs, **factory, k=k)
    ours.load_state_dict(plain.state_dict())
    return plain.train(training), ours.train(training)


def tensors(value):
    """All tensors of a nest of them."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    return [t for part in value for t in tensors(part)] if isinstance(value, (list, tuple, type({}.values()))) else []


def results(layer, call, function=None, second=False):
    """Outputs and all gradients, and the gradients of the gradients."""
    outputs = tensors((function or layer)(*call.args, **call.kwargs))
    leaves = [*layer.parameters(), *(t for t in tensors([call.args, call.kwargs]) if t.requires_grad)]
    torch.manual_seed(1)
    wanted = [torch.randn_like(y) for y in outputs]
    grads = torch.autograd.grad(outputs, leaves, wanted, create_graph=second)
    if not second:
        return [*outputs, *grads]
    total = sum((g * g.conj()).real.sum() for g in grads if g.requires_grad)
    return [*outputs, *grads, *torch.autograd.grad(total, leaves, materialize_grads=True)]


@pytest.mark.parametrize("dtype", [*LISTED, *OTHERS], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_all_kept_is_torchs_layer(database, kind, dtype):
    for made, call, training in cases(database[kind], dtype):
        if (layers := pair(kind, made, 1.0, training, dtype)) is None:
            continue
        expected, found = (outcome(layer, call) for layer in layers)
        if isinstance(expected, str):  # torch itself has no such layer
            assert found == expected
        else:
            assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def outcome(layer, call):
    try:
        return results(layer, call)
    except RuntimeError as error:
        return str(error)


class Kept(torch.autograd.Function):
    """The identity, whose gradient keeps the k greatest of each row."""

    @staticmethod
    def forward(ctx, y, k):
        ctx.k = k
        return y.clone()

    @staticmethod
    def backward(ctx, dy):
        kept = torch.zeros_like(dy, dtype=torch.bool).scatter(-1, dy.abs().topk(ctx.k, -1).indices, True)
        return dy * kept, None


def linear(layer, k):
    def forward(input):
        y = Kept.apply(F.linear(input, layer.weight), resolve_k(k, layer.out_features))
        return y if layer.bias is None else y + layer.bias

    return forward


def convolution(layer, k):
    def forward(input):
        y = layer._conv_forward(input, layer.weight, None)
        maps = y.flatten(y.dim() - len(layer.kernel_size))
        y = Kept.apply(maps, resolve_k(k, maps.shape[-1])).view_as(y)
        return y + layer.bias.view(-1, *(1,) * len(layer.kernel_size))

    return forward


def recurrent(layer, k):
    """One direction of one layer after the other, one step after the other."""
    kept = resolve_k(k, layer.hidden_size)
    gates = {"LSTM": 4, "GRU": 3}.get(layer.mode, 1)

    def products(w, v):
        return F.linear(v, w).chunk(gates, -1)

    def step(x, state, w_ih, w_hh, b_ih=None, b_hh=None):
        h = state[0]
        zeros = [x.new_zeros(())] * gates
        b_ih, b_hh = (zeros if b is None else b.chunk(gates) for b in (b_ih, b_hh))
        xs, hs = products(w_ih, x), products(w_hh, h)
        p = [Kept.apply(a + b, kept) + c + d for a, b, c, d in zip(xs, hs, b_ih, b_hh, strict=True)]
        if layer.mode == "LSTM":
            i, f, g, o = p[0].sigmoid(), p[1].sigmoid(), p[2].tanh(), p[3].sigmoid()
            c = f * state[1] + i * g
            return o * c.tanh(), c
        if layer.mode == "GRU":
            r, z = p[0].sigmoid(), p[1].sigmoid()
            # The products keep k of the gate's gradient, and r, which is not a product, gets all of it.
            n = Kept.apply(xs[2] + r.detach() * hs[2], kept) + b_ih[2] + r * b_hh[2]
            n = (n + (r - r.detach()) * hs[2].detach()).tanh()
            return ((1 - z) * n + z * h,)
        return (p[0].tanh() if layer.mode == "RNN_TANH" else p[0].relu(),)

    def forward(input, hx=None):
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(0 if layer.batch_first else 1)
        x = x.transpose(0, 1) if layer.batch_first else x
        count = len(layer._all_weights)
        parts = 2 if layer.mode == "LSTM" else 1
        states = [x.new_zeros(count, x.shape[1], layer.hidden_size)] * parts if hx is None else hx
        states = list(states) if isinstance(states, (list, tuple)) else [states]
        if hx is not None and not batched:
            states = [s.unsqueeze(1) for s in states]
        last = []
        for i in range(layer.num_layers):
            outputs = []
            for j in range(count // layer.num_layers):
                cell = i * (count // layer.num_layers) + j
                weights = [getattr(layer, name) for name in layer._all_weights[cell]]
                state, steps = [s[cell] for s in states], []
                for value in reversed(x) if j else x:
                    state = step(value, state, *weights)
                    steps.append(state[0])
                outputs.append(torch.stack(steps[::-1] if j else steps))
                last.append(state)
            x = torch.cat(outputs, -1)
        y = x.transpose(0, 1) if layer.batch_first else x
        final = [torch.stack(part) for part in zip(*last, strict=True)]
        if not batched:
            y, final = y.squeeze(0 if layer.batch_first else 1), [s.squeeze(1) for s in final]
        return y, tuple(final)

    return forward


REFERENCES = {kind: recurrent if kind in RECURRENT else linear if kind is nn.Linear else convolution for kind in LAYERS}


def strided(call):
    """The same input, not contiguous."""

    def spread(value):
        if isinstance(value, (list, tuple)):
            return type(value)(map(spread, value))
        return value.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_()

    return types.SimpleNamespace(args=spread(call.args), kwargs={name: spread(v) for name, v in call.kwargs.items()})


def refusal(layer, call):
    """Why a layer does not take its input, in one line, or None where it does."""
    try:
        layer(*call.args, **call.kwargs)
    except (ValueError, RuntimeError) as error:
        return str(error)
    return None


FEWER = [(kind, dtype) for kind in LAYERS for dtype in (*LISTED, torch.complex128)]
# In single precision the values of a complex sigmoid near a pole agree to a few digits only.
FEWER += [(kind, torch.complex64) for kind in LAYERS if kind not in RECURRENT]


@pytest.mark.parametrize(("kind", "dtype"), FEWER, ids=lambda value: getattr(value, "__name__", str(value)))
def test_fewer_kept_is_the_reference(database, kind, dtype):
    for made, call, training in cases(database[kind], dtype):
        for k in (1,) if kind in RECURRENT else (1, 0.3):  # those of the database have 2 or 3 neurons
            if (layers := pair(kind, made, k, training, dtype)) is None:
                continue
            if (why := refusal(layers[1], call)) is not None:
                assert why == refusal(layers[0], call) == "clamp is not supported for complex types"  # ReLU
                continue
            reference = REFERENCES[kind](layers[0], k)
            second = kind not in RECURRENT and dtype in (torch.float64, torch.complex128)
            found = results(layers[1], call, second=second)
            torch.testing.assert_close(found, results(layers[0], call, reference, second=second))
            torch.testing.assert_close(results(layers[1], strided(call), second=second), found)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_meta_device(database, kind):
    for made, call, training in cases(database[kind], torch.float32, "meta"):
        for k in (1.0, 1):
            if (layers := pair(kind, made, k, training, torch.float32, "meta")) is None:
                continue
            shapes = [[t.shape for t in results(layer, call)] for layer in layers]
            assert shapes[0] == shapes[1]


@pytest.mark.parametrize("kind", RECURRENT)
def test_what_torch_refuses_is_refused_alike(database, kind):
    info = database[kind]
    for training in (False, True):
        for case in info.module_error_inputs_func(info, "cpu", torch.float64, True, training):
            made, call = case.module_error_input.constructor_input, case.module_error_input.forward_input
            with pytest.raises(case.error_type, match=case.error_regex):
                LAYERS[kind](*made.args, **made.kwargs, k=1).train(training)(*call.args, **call.kwargs)
