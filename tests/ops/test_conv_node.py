"""A convolution's C++ node against the Python registration: the same bits, the same errors, else out of the way."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from meprop_bench.nn import MePropConv1d, MePropConv2d
from meprop_bench.ops.conv import conv1d, conv2d, function
from meprop_bench.ops.conv.geometry import Geometry
from tests.ops.conftest import WILD, Node, assert_same

NODE = Node(function._node, "MePropConvolutionBackward")
uses_node, in_python, both = NODE.made, NODE.without, NODE.both


@pytest.fixture(autouse=True)
def cxx():
    """Skip without the node; with it, every test below starts with it in use."""
    NODE.required()


def tensors(x=(2, 3, 6, 7), w=(4, 3, 3, 2), needs=(True, True, True), seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = (x, w, w[:1])
    return [torch.randn(s, generator=generator).requires_grad_(need) for s, need in zip(sizes, needs, strict=True)]


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_same_bits(data):
    draw = data.draw
    flat, groups = draw(st.booleans()), draw(st.sampled_from([1, 1, 2, 3]))
    geometry = Geometry(draw(pairs), draw(st.tuples(st.integers(0, 2), st.integers(0, 2))), draw(pairs), groups)
    size, taps = draw(st.tuples(st.integers(1, 9), st.integers(1, 17))), draw(pairs)
    if flat:
        size, taps = (1, size[1]), (1, taps[1])
        geometry = geometry._replace(
            stride=(1, geometry[0][1]), padding=(0, geometry[1][1]), dilation=(1, geometry[2][1])
        )
    oh, ow = geometry.output(*size, taps)
    assume(oh > 0 and ow > 0 and oh * ow > 1)
    k = draw(st.one_of(st.integers(1, oh * ow - 1), st.floats(0.01, 0.4)))
    needs = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(any))
    channels, batch, maps = (
        draw(st.sampled_from([1, 3, 8, 9])),
        draw(st.integers(1, 4)),
        groups * draw(st.integers(1, 3)),
    )
    x, w, b = tensors((batch, groups * channels, *size), (maps, channels, *taps), needs, draw(st.integers(0, 99)))
    if draw(st.booleans()) and any(needs[:2]):
        b = None
    dy = torch.randn(batch, maps, oh, ow)
    layout = draw(st.sampled_from(["plain", "expanded", "strided", "wild"]))
    if layout == "expanded":
        dy = torch.randn(maps, oh, ow).expand_as(dy)
    elif layout == "strided":
        dy = torch.randn(batch, maps, oh, 2 * ow)[..., ::2]
    elif layout == "wild":
        dy = torch.tensor(WILD)[torch.randint(0, len(WILD), dy.shape)]
    layer, torchs, arguments = conv2d, F.conv2d, geometry[:3]
    if flat:
        x, w = (t.detach().squeeze(2).requires_grad_(t.requires_grad) for t in (x, w))
        layer, torchs, arguments, dy = conv1d, F.conv1d, [pair[1] for pair in geometry[:3]], dy.squeeze(2)
    inputs = [t for t in (x, w, b) if t is not None and t.requires_grad]

    def gradients():
        y = layer(x, w, b, *arguments, groups, k=k, kernel="native")
        return y, torch.autograd.grad(y, inputs, dy)

    (y, found), (other, expected) = both(gradients)
    assert torch.equal(y, torchs(x, w, b, *arguments, groups))
    assert torch.equal(other, y)
    assert uses_node(y)
    assert not uses_node(other)
    assert_same(found, expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_bits_of_a_larger_layer_and_of_threads_that_change(threads, monkeypatch):
    """A sweep's worker sets a layer up on one thread and times it on several."""
    inputs = tensors((10, 16, 12, 12), (32, 16, 5, 5))
    dy = torch.randn(10, 32, 8, 8)

    def gradients():
        torch.set_num_threads(3 - threads)
        y = conv2d(*inputs, k=0.05)
        torch.set_num_threads(threads)
        return torch.autograd.grad(y, inputs, dy)

    expected = in_python(gradients)
    monkeypatch.setattr(function, "_backward_of_any", None)  # the way through the interpreter
    assert_same(gradients(), expected)


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("arrange", "keywords"),
    [
        (lambda x, w, b: (x.double(), w.double(), b.double()), {}),
        (lambda x, w, b: (x.contiguous(memory_format=torch.channels_last), w, b), {}),
        (lambda x, w, b: (x, w.mT.contiguous().mT, b), {}),
        (lambda x, w, b: (x.as_subclass(Subclass), w, b), {}),
        (lambda x, w, b: (x[:0], w, b), {}),
        (lambda x, w, b: (x[0], w, b), {}),
        (lambda x, w, b: (x, w, b), {"selection": "random"}),
        (lambda x, w, b: (x, w, b), {"kernel": "masked"}),
        (lambda x, w, b: (x, w, b), {"padding": "same"}),
        (lambda x, w, b: (x, w, b), {"k": 1.0}),
        (lambda x, w, b: (x, w, b), {"k": 24}),
    ],
)
def test_what_is_not_the_nodes(arrange, keywords):
    def gradients():
        torch.manual_seed(0)
        y = conv2d(*arrange(*inputs), **{"k": 3, **keywords})
        assert not uses_node(y)
        return torch.autograd.grad(y.float().pow(2).sum(), inputs)

    inputs = tensors()
    assert uses_node(conv2d(*inputs, k=3))
    assert_same(*both(gradients))


@pytest.mark.parametrize(
    "keywords",
    [
        {"k": 0},
        {"k": float("nan")},
        {"k": True},
        {"k": 25},
        {"k": 10**30},
        {"kernel": "fast"},
        {"kernel": None},
        {"selection": "unified"},
        {"stride": 0},
        {"stride": 10**30},
        {"padding": -1},
        {"padding": "full"},
        {"dilation": (1, 1, 1)},
        {"groups": 2},
        {"groups": 0},
    ],
)
def test_misuse_is_the_same(keywords):
    inputs = tensors()

    def error():
        with pytest.raises((ValueError, RuntimeError, OverflowError, TypeError)) as caught:
            conv2d(*inputs, **{"k": 3, **keywords})
        return caught.type, str(caught.value)

    assert uses_node(conv2d(*inputs, k=3))  # in use from now on
    found, expected = both(error)
    assert found == expected


@pytest.mark.parametrize("w", [(4, 3, 7, 2), (4, 2, 3, 2), (4, 3, 3)])
def test_tensors_that_do_not_go_together_are_an_error_as_before(w):
    inputs = tensors(w=w)

    def error():
        with pytest.raises((ValueError, RuntimeError)) as caught:
            conv2d(*inputs, k=3)
        return caught.type, str(caught.value)

    assert len(set(both(error))) == 1


def test_a_trace_has_torchs_own_operator():
    plain = [t.detach() for t in tensors()]
    traced = torch.jit.trace(lambda x: conv2d(x, *plain[1:], k=3), plain[0])
    assert "conv" in str(traced.inlined_graph)


def test_k_follows_its_schedule_and_modules_copy():
    for module, x in (
        (MePropConv2d(3, 4, (3, 2), k=3), torch.randn(2, 3, 6, 7)),
        (MePropConv1d(3, 4, 2, k=3), torch.randn(2, 3, 13)),
    ):
        for twin in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            for k in (1, 0.1, 5, 0.3):
                twin.k = k
                y = twin(x)
                assert uses_node(y)
                positions = y[0, 0].numel()
                kept = k if isinstance(k, int) else int(k * positions + 0.5)
                leaf = torch.randn(1, 1, *y.shape[2:], requires_grad=True)
                one = type(twin)(1, 1, 1, k=k, bias=False)
                one(leaf).backward(torch.randn_like(leaf))
                assert leaf.grad.count_nonzero() == kept
            twin.k = 1.0
            assert not uses_node(twin(x))


def test_many_shapes_outlive_their_plans():
    """What the compiled code reads of a shape belongs to the graph, not to a cache."""
    x, w, b = tensors((1, 1, 4, 400), (2, 1, 3, 3))
    expected = in_python(lambda: torch.autograd.grad(conv2d(x, w, b, k=3).sum(), w))
    y = conv2d(x, w, b, k=3)
    for width in range(5, 400):
        for k in (1, 2, 3):
            conv2d(x[..., :width].contiguous(), w, b, k=k)
    assert_same(torch.autograd.grad(y.sum(), w), expected)
