"""The LSTM by torch's own forward pass and in one call of C++, against `recurrent`, the oracle, and torch's layer."""

import copy
import gc
import importlib.util
import math
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from meprop_bench.nn import MePropLSTM
from meprop_bench.ops import node
from meprop_bench.ops.recurrent import function, fused, recurrent, reference
from meprop_bench.ops.recurrent.through_time import Steps
from tests.ops.conftest import Node

NODE = Node(function._node, "MePropLSTMBackward")
uses_node, in_python = NODE.made, NODE.without
pytestmark = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="needs Numba (extra `cpu`)")


@pytest.fixture
def cxx():
    """Skip without the node; with it, a test starts with it in use."""
    NODE.required()


@pytest.fixture
def by_torch():
    """Skip where torch's kernel is not there, or leaves its gates elsewhere: then nothing uses it."""
    if fused.leading_dimension(2, 5, 7) is None:
        pytest.skip("torch has no LSTM of oneDNN, or its workspace is another")


def make(steps=5, batch=3, m=5, h=7, biases=True, seed=0, scale=1.0):
    """x (T, B, m), the weights, and the initial states (1, B, h): leaves that require gradients."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape):
        return (torch.randn(*shape, generator=generator) * scale).requires_grad_()

    weights = [leaf(4 * h, m), leaf(4 * h, h), *((leaf(4 * h), leaf(4 * h)) if biases else (None, None))]
    return leaf(steps, batch, m), weights, [leaf(1, batch, h), leaf(1, batch, h)]


def by_node(x, weights, states, k=3, selection="example", kernel="native"):
    found = function.lstm(x, states, weights, k=k, selection=selection, kernel=kernel)
    assert found is not None
    assert uses_node(found[0])
    return found


def by_recurrent(x, weights, states, k=3, selection="example", kernel="native", reverse=False):
    steps, batch, m = x.shape
    first = tuple(s[0] for s in states)
    sizes = (batch,) * steps
    y, last = recurrent(
        "lstm", x.reshape(-1, m), first, weights, sizes=sizes, reverse=reverse, k=k, selection=selection, kernel=kernel
    )
    return y.view(steps, batch, -1), *(s.unsqueeze(0) for s in last)


def gradients(outputs, inputs, seed=1):
    generator = torch.Generator().manual_seed(seed)
    dy = [torch.randn(y.shape, generator=generator) for y in outputs]
    return torch.autograd.grad(outputs, inputs, dy, retain_graph=True)


def assert_same(some, others):
    for one, other in zip(some, others, strict=True):
        assert one.shape == other.shape
        assert torch.equal(one, other)


def assert_is_the_oracles(outputs, grads, case, k, selection, reverse=False):
    x, weights, states = case
    steps, batch, m = x.shape
    generator = torch.Generator().manual_seed(1)
    dy, *d_states = (torch.randn(y.shape, generator=generator) for y in outputs)
    zeros = torch.zeros(weights[0].shape[0])
    filled = [zeros if w is None else w.detach() for w in weights]
    with torch.no_grad():
        expected = reference.run(
            "lstm", x.reshape(-1, m), tuple(s[0] for s in states), filled, (batch,) * steps, reverse, k, selection,
            dy.flatten(0, 1), tuple(d[0] for d in d_states),
        )  # fmt: skip
    for got, e in zip(outputs, expected[0], strict=True):
        torch.testing.assert_close(got.double().reshape(e.shape), e, rtol=1e-4, atol=1e-5)
    wanted = [e for e, t in zip(expected[1], (x, *weights, *states), strict=True) if t is not None]
    for grad, e in zip(grads, wanted, strict=True):
        # Rounding may exchange two entries of nearly the same magnitude; more than that is an error.
        far = (grad.double().reshape(e.shape) - e).abs() > 1e-3 * (1 + e.abs())
        assert far.double().mean() < 0.02 or (grad.reshape(e.shape) - e).norm() < 0.05 * e.norm()


@pytest.mark.usefixtures("by_torch")
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_torchs_forward_pass_leaves_what_backward_needs(data):
    draw = data.draw
    steps, batch, h, m = (draw(st.integers(*bounds)) for bounds in ((3, 8), (2, 9), (2, 70), (1, 40)))
    k, selection = draw(st.integers(1, h - 1)), draw(st.sampled_from(["example", "unified"]))
    biases, reverse, seed = draw(st.booleans()), draw(st.booleans()), draw(st.integers(0, 2**31))
    case = x, weights, states = make(steps, batch, m, h, biases, seed, 1 / math.sqrt(h + m))
    assert fused.applies("lstm", tuple(weights), x.flatten(0, 1), Steps((batch,) * steps, reverse))
    inputs = [t for t in (x, *weights, *states) if t is not None]
    outputs = by_recurrent(x, weights, states, k, selection, reverse=reverse)
    assert_is_the_oracles(outputs, gradients(outputs, inputs), case, k, selection, reverse)
    if node.unavailable_reason() is None and not reverse:
        found = by_node(x, weights, states, k, selection)
        assert_same(found, outputs)
        assert_same(gradients(found, inputs), gradients(outputs, inputs))


@pytest.mark.usefixtures("cxx")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("h", [2, 3, 7, 16, 130])
@pytest.mark.parametrize("selection", ["example", "unified"])
@pytest.mark.parametrize("biases", [False, True])
def test_one_example(h, selection, biases, threads):
    torch.set_num_threads(threads)
    case = x, weights, states = make(6, 1, 9, h, biases, scale=1 / math.sqrt(h))
    inputs = [t for t in (x, *weights, *states) if t is not None]
    k = max(1, h // 4)
    found, other = by_node(*case, k, selection), by_recurrent(*case, k, selection)
    assert_same(found, other)
    assert_same(gradients(found, inputs), gradients(other, inputs))
    assert_is_the_oracles(found, gradients(found, inputs), case, k, selection)


@pytest.mark.usefixtures("by_torch")
@pytest.mark.parametrize("python", [False, True])
@pytest.mark.parametrize("keywords", [{}, {"bias": False}, {"num_layers": 2, "bidirectional": True}])
def test_outputs_are_those_of_torchs_layer_to_the_bit(keywords, python):
    torch.manual_seed(0)
    dense = nn.LSTM(11, 20, **keywords)
    layer = MePropLSTM(11, 20, **keywords, k=3)
    layer.load_state_dict(dense.state_dict())
    x = torch.randn(6, 4, 11)
    states = tuple(torch.randn(len(dense._all_weights), 4, 20) for _ in range(2))
    for hx in (None, states):
        run = (lambda hx=hx: layer(x, hx)) if not python else (lambda hx=hx: in_python(lambda: layer(x, hx)))
        y, last = run()
        expected, expected_last = dense(x, hx)
        assert y.requires_grad
        assert_same([y, *last], [expected, *expected_last])


@pytest.mark.parametrize(
    "case",
    [
        ("gru", (4,) * 5),
        ("lstm", (4, 4, 3)),
        ("lstm", (4, 4)),
        ("lstm", (1,) * 5),
    ],
)
def test_what_torchs_forward_pass_does_not_take(case):
    cell, sizes = case
    weights = torch.randn(28, 5), torch.randn(28, 7), None, None
    assert not fused.applies(cell, weights, torch.randn(sum(sizes), 5), Steps(sizes, False))


def test_where_the_gates_are_elsewhere_our_own_forward_pass_runs(monkeypatch):
    """As with another oneDNN, or without it."""
    expected = by_recurrent(*make())
    for replaced in ("_found", "_run"):
        with monkeypatch.context() as patch:
            fused.leading_dimension.cache_clear()

            def no(*_, replaced=replaced):
                if replaced == "_run":
                    raise RuntimeError("could not create a primitive")
                return False

            patch.setattr(fused, replaced, no)
            function._node.forget()  # which asks anew
            assert fused.leading_dimension(3, 5, 7) is None
            assert function.lstm(make()[0], make()[2], make()[1], k=3, selection="example", kernel="auto") is None
            for y, e in zip(by_recurrent(*make()), expected, strict=True):
                torch.testing.assert_close(y, e)
    fused.leading_dimension.cache_clear()
    function._node.forget()
    with torch.backends.mkldnn.flags(enabled=False):
        for y, e in zip(by_recurrent(*make()), expected, strict=True):
            torch.testing.assert_close(y, e)


class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("by_torch", "cxx")
def test_what_is_not_the_nodes():
    x, weights, states = make()
    how = {"k": 3, "selection": "example", "kernel": "auto"}
    assert uses_node(function.lstm(x, states, weights, **how)[0])
    for others in (
        {"selection": "random"},
        {"kernel": "masked"},
        {"k": 7},
        {"k": 1.0},
        {"k": 5},  # `auto` takes masked
    ):
        assert function.lstm(x, states, weights, **{**how, **others}) is None
    wrong = [t.double() for t in states]
    for case in (
        (x.double(), states, weights),
        (x, wrong, weights),
        (x[0], states, weights),
        (x.transpose(0, 1), states, weights),
        (x[:2], states, weights),  # two steps, which our own takes
        (x[:, :0], [s[:, :0] for s in states], weights),
        (x, [states[0], states[1][0]], weights),
        (x, states, [*weights[:2], None, weights[3]]),
    ):
        assert function.lstm(*case, **how) is None
    with Watch():
        assert function.lstm(x, states, weights, **how) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert function.lstm(x, states, weights, **how) is None
    with torch.no_grad():
        assert function.lstm(x, states, weights, **how) is None
    assert uses_node(MePropLSTM(5, 7, k=3)(x)[0])
    for keywords in ({"num_layers": 2}, {"bidirectional": True}, {"batch_first": True}):
        assert not uses_node(MePropLSTM(5, 7, k=3, **keywords)(x)[0])


@pytest.mark.usefixtures("cxx")
@pytest.mark.parametrize(
    "hx",
    [
        torch.zeros(1, 3, 7),
        (torch.zeros(1, 3, 6), torch.zeros(1, 3, 6)),
        (torch.zeros(3, 7), torch.zeros(3, 7)),
        [torch.zeros(1, 2, 7), torch.zeros(1, 2, 7)],
    ],
)
def test_misuse_is_the_same(hx):
    layer, x = MePropLSTM(5, 7, k=3), torch.randn(5, 3, 5)

    def error():
        with pytest.raises((ValueError, RuntimeError)) as caught:
            layer(x, hx)
        return caught.type, str(caught.value)

    assert uses_node(layer(x)[0])
    assert error() == in_python(error)


@pytest.mark.usefixtures("cxx")
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("way", [by_node, by_recurrent])
def test_double_backward_hooks_checkpoints_and_frozen_inputs(way, batch):
    x, weights, states = make(batch=batch)
    inputs = [x, *weights, *states]

    def seconds(kernel):
        outputs = (way if kernel == "native" else by_recurrent)(x, weights, states, kernel=kernel)
        grads = torch.autograd.grad(outputs, inputs, [torch.ones_like(y) for y in outputs], create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in grads), inputs)

    for a, e in zip(seconds("native"), seconds("masked"), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)
    expected = gradients(way(x, weights, states), inputs)
    for pack, unpack in (
        (lambda t: t.double(), lambda t: t.float()),
        (lambda t: t, lambda t: t.mT.contiguous().mT if t.dim() > 1 else t.clone()),
        (lambda t: t, lambda t: t.double()),  # of another dtype: by other operators
    ):
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            outputs = way(x, weights, states)
        try:
            found = gradients(outputs, inputs)
        except RuntimeError as error:
            assert "dtype" in str(error) or "Double" in str(error)  # noqa: PT017 (as torch's layer, or it works)
            continue
        for a, e in zip(found, expected, strict=True):
            torch.testing.assert_close(a.float(), e, rtol=1e-4, atol=1e-5)
    y = checkpoint(lambda x: way(x, weights, states)[0], x, use_reentrant=False)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    y, *_ = way(x, weights, states)
    assert_same([dx], torch.autograd.grad(y, x, torch.ones_like(y)))
    frozen = [weights[0].detach(), weights[1], weights[2].detach(), weights[3]]
    some = gradients(way(x.detach(), frozen, [s.detach() for s in states]), [weights[1], weights[3]])
    assert_same(some, [expected[2], expected[4]])
    y, *_ = way(x, weights, states)
    (only,) = torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)
    assert_same([only], torch.autograd.grad(y, inputs, torch.ones_like(y))[:1])


@pytest.mark.usefixtures("cxx")
@pytest.mark.parametrize("batch", [1, 3])
def test_changes_in_place_are_noticed(batch):
    for which in range(3):
        x, weights, states = make(batch=batch)
        y, *_ = by_node(x, weights, states)
        with torch.no_grad():
            (x, *weights[:2])[which].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
    x, weights, states = make(batch=batch)
    y, *_ = by_node(x, weights, states)
    expected = gradients([2 * by_node(x, weights, states)[0]], [x, *weights])
    assert_same(gradients([y.mul_(2)], [x, *weights]), expected)  # which torch's own layer refuses


@pytest.mark.usefixtures("cxx")
@pytest.mark.parametrize("batch", [1, 3])
def test_other_data_of_a_weight_in_between_changes_nothing(batch):
    x, weights, states = make(batch=batch)
    expected = gradients(by_node(x, weights, states), [x, *weights])
    outputs = by_node(x, weights, states)
    weights[1].data = torch.zeros_like(weights[1])
    assert_same(gradients(outputs, [x, *weights]), expected)


@pytest.mark.usefixtures("cxx")
def test_no_initial_states_are_zeros():
    x, weights, states = make()
    zeros = [torch.zeros_like(s) for s in states]
    some, others = (by_node(x, weights, s) for s in (None, zeros))
    assert_same(some, others)
    assert_same(gradients(some, [x, *weights]), gradients(others, [x, *weights]))


@pytest.mark.usefixtures("cxx")
@pytest.mark.parametrize("batch", [1, 3])
def test_non_finite_numbers_come_through(batch):
    x, weights, states = make(batch=batch)
    with torch.no_grad():
        x[1, 0, 2] = math.nan
    y, *_ = outputs = by_node(x, weights, states)
    assert y[0].isfinite().all()
    assert y[1:, 0].isnan().all()
    assert y[:, 1:].isfinite().all()
    dx, *_ = gradients(outputs, [x])
    assert dx[:, 0].isnan().any()
    assert dx[:, 1:].isfinite().all()


@pytest.mark.usefixtures("cxx")
@pytest.mark.parametrize("batch", [1, 3])
def test_nothing_is_kept(batch):
    x, weights, states = make(batch=batch)
    y = by_node(x, weights, states)[0]
    y.sum().backward()
    gone = [weakref.ref(t) for t in (x, *weights, y)]
    x = weights = states = y = None
    gc.collect()
    assert all(reference() is None for reference in gone)
    graph = by_node(*make(batch=batch))
    gone = weakref.ref(graph[0])
    del graph  # a graph that nobody went back through
    gc.collect()
    assert gone() is None


@pytest.mark.usefixtures("cxx")
def test_modules_copy_and_follow_k():
    layer, x = MePropLSTM(5, 20, k=3), torch.randn(4, 2, 5)
    for twin in (layer, copy.deepcopy(layer)):
        for k in (1, 0.25, 6):
            twin.k = k
            twin.zero_grad()
            y, _ = twin(x)
            assert uses_node(y)
            y[-1].sum().backward()
            assert twin.bias_hh_l0.grad.count_nonzero() == 80
        twin.k = 20
        assert not uses_node(twin(x)[0])
