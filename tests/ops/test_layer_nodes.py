"""What the C++ nodes of linear and of convolutional layers have in common: beside the Python registration, and on a
graph's way through them.
"""

import gc
import subprocess
import sys
import weakref
from importlib import import_module

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from meprop_bench.ops import linear
from meprop_bench.ops.conv import conv2d, function
from tests.ops.conftest import Node, assert_same

registrations = import_module("meprop_bench.ops.linear")  # the function has the same name


class Layer:
    """A layer with k = 3, its node, and sizes of x, W, b and y."""

    def __init__(self, node, function, *sizes):
        self.node, self.function, self.sizes = node, function, sizes

    def __call__(self, *inputs):
        return self.function(*inputs, k=3)

    def inputs(self):
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(size, generator=generator).requires_grad_() for size in self.sizes[:3]]

    def dy(self):
        return torch.randn(self.sizes[3])


LAYERS = {
    "linear": Layer(Node(registrations._node, "MePropLinearBackward"), linear, (6, 20), (30, 20), (30,), (6, 30)),
    "conv": Layer(
        Node(function._node, "MePropConvolutionBackward"), conv2d, (2, 3, 6, 7), (4, 3, 3, 2), (4,), (2, 4, 4, 6)
    ),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    """Each layer, with its node in use."""
    found = LAYERS[request.param]
    found.node.required()
    return found


class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_whoever_watches_sees_every_operator(layer):
    inputs, dy = layer.inputs(), layer.dy()
    for watching in (Watch(), torch.autocast("cpu", torch.bfloat16), torch.overrides.BaseTorchFunctionMode()):
        with watching:
            assert not layer.node.made(layer(*inputs))
    with torch.no_grad():
        assert layer(*inputs).grad_fn is None
    y = layer(*inputs)
    assert layer.node.made(y)
    expected = layer.node.without(lambda: torch.autograd.grad(layer(*inputs), inputs, dy))
    with Watch():
        torch.testing.assert_close(torch.autograd.grad(y, inputs, dy), expected)


def test_double_backward(layer):
    inputs, dy = layer.inputs(), layer.dy().requires_grad_()

    def seconds():
        grads = torch.autograd.grad(layer(*inputs), inputs, dy, create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in grads), (*inputs[:2], dy))

    assert_same(*layer.node.both(seconds))


def test_one_graph_again_and_again(layer):
    inputs, dy = layer.inputs(), torch.ones(layer.sizes[3])
    y = layer(*inputs)
    first = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    (alone,) = torch.autograd.grad(y, inputs[1], dy, retain_graph=True)
    assert_same([first[1]], [alone])
    assert_same(first, torch.autograd.grad(y, inputs, dy))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.sum().backward()


@pytest.mark.parametrize("which", [0, 1])
def test_inputs_changed_in_place_are_noticed(layer, which):
    inputs = layer.inputs()
    y = layer(*inputs)
    with torch.no_grad():
        inputs[which].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_other_data_in_between(layer):
    def gradients():
        x, w, b = layer.inputs()
        y = layer(x, w, b)
        w.data = torch.ones_like(w)
        return torch.autograd.grad(y.sum(), (x, w, b))

    assert_same(*layer.node.both(gradients))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_and_hooks_on_what_is_saved(layer, reentrant):
    inputs = layer.inputs()

    def gradients():
        y = checkpoint(lambda x: layer(x, *inputs[1:]).pow(2), inputs[0], use_reentrant=reentrant)
        with saved_tensors_hooks(lambda t: t.double(), lambda t: t.float()):
            z = layer(*inputs)
        with saved_tensors_hooks(lambda t: t, lambda t: t.mT.contiguous().mT):
            other = layer(*inputs)
        y.sum().backward()
        found = [t.grad.clone() for t in inputs]
        for t in inputs:
            t.grad = None
        ones = torch.ones_like(z)
        return *found, *torch.autograd.grad(z, inputs, ones), *torch.autograd.grad(other, inputs, ones)

    assert_same(*layer.node.both(gradients))


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, dy):
        return None


def test_a_gradient_that_is_not_there_is_none_of_ours_either(layer):
    inputs = layer.inputs()

    def gradients():
        return torch.autograd.grad(NoGradient.apply(layer(*inputs)).sum(), inputs, allow_unused=True)

    assert layer.node.both(gradients) == ((None,) * 3,) * 2


def test_batched_gradients_are_as_before(layer):
    inputs = layer.inputs()

    def outcome():
        try:
            return torch.autograd.grad(layer(*inputs), inputs, torch.ones(2, *layer.sizes[3]), is_grads_batched=True)
        except RuntimeError as error:
            return type(error)

    found, expected = layer.node.both(outcome)
    if isinstance(expected, type):
        assert found is expected
    else:
        assert_same(found, expected)


def test_nothing_is_kept(layer):
    x, w, b = layer.inputs()
    y = layer(x, w, b)
    assert layer.node.made(y)
    y.sum().backward()
    gone = weakref.ref(x), weakref.ref(w)
    del x, w, y
    gc.collect()
    assert [reference() for reference in gone] == [None, None]
    y = layer(*layer.inputs())
    del y  # a graph that nobody went back through


@pytest.mark.parametrize("name", LAYERS)
def test_it_goes_on_after_a_fork(name):
    LAYERS[name].node.required()
    program = f"""
import os, sys, torch
torch.set_num_threads(1)
from tests.ops.test_layer_nodes import LAYERS
layer = LAYERS["{name}"]
inputs, dy = layer.inputs(), layer.dy()
def gradient():
    y = layer(*inputs)
    assert layer.node.made(y)
    return torch.autograd.grad(y, inputs[1], dy)[0]
expected = gradient()
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(gradient(), expected) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
