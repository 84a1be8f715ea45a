"""What the tests of the operators share: layers with their C++ nodes and without, tensors in any strides, compilers."""

import math
from importlib.metadata import version

import pytest
import torch
from packaging.version import Version

from meprop_bench.ops import node
from meprop_bench.ops.kernels.triton import launch

WILD = (0.0, -0.0, 1.0, -1.0, 1e-45, float("inf"), float("-inf"), float("nan"))


class Node:
    """A layer's node, by its registration and its name in autograd's graph."""

    def __init__(self, registration, name):
        self._registration, self.name = registration, name

    def required(self):
        """Skip without the node; with it, have a test start with it in use."""
        if (reason := node.unavailable_reason()) is not None:
            pytest.skip(f"no C++ node: {reason}")
        self._registration.forget()

    def made(self, y):
        """Whether y is the node's."""
        return y.grad_fn is not None and y.grad_fn.name() == self.name

    def without(self, call):
        """Call a function without the node."""
        before = self._registration.call
        self._registration.call = node.nothing
        try:
            return call()
        finally:
            self._registration.call = before

    def both(self, call):
        """Return what a function gives with the node and without it."""
        return call(), self.without(call)


LAYOUTS = {
    "transposed": lambda t: t.mT.contiguous().mT,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "strided": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda t: t[:1].expand_as(t),
    "one": lambda t: t.new_ones(()).expand_as(t),  # number, of strides 0
    # What is read beyond the numbers would show.
    "unaligned": lambda t: torch.cat((a := t.new_full((17,), math.nan), t.flatten(), a))[17:-17].view(t.shape),
}


def arrange(tensor, layout):
    """The same shape, and but for "expanded" and "one" the same values, in other strides or from another address."""
    return LAYOUTS.get(layout, lambda t: t)(tensor)


def has_boundary(magnitudes, k, rounding=1e-5):
    """Whether the k greatest of each row are distinct from the rest, so that there is one right answer."""
    greatest = magnitudes.sort(dim=-1, descending=True).values
    return bool((greatest[..., k - 1] - greatest[..., k] > rounding * greatest[..., 0]).all())


def device_of_triton():
    """Return where Triton's kernels run, "cpu" where it interprets them; skips a module where they do not."""
    if not launch.interpreting():
        if not torch.cuda.is_available():
            pytest.skip("neither a GPU nor TRITON_INTERPRET=1", allow_module_level=True)
        return "cuda"
    if Version(version("triton")) < Version("3.7") and Version(version("numpy")) >= Version("2.4"):
        pytest.skip("the interpreter of Triton before 3.7 wants NumPy before 2.4", allow_module_level=True)
    return "cpu"


def require_compiler(backend):
    """Skip where this backend of torch.compile needs a compiler and finds none."""
    if backend == "inductor":
        cpp = pytest.importorskip("torch._inductor.cpp_builder")
        try:
            cpp.get_cpp_compiler()
        except Exception as error:  # noqa: BLE001 (torch has its own classes for "no compiler", and they moved)
            pytest.skip(f"no compiler: {error}")


def gradient_through_both(function, w, order, *, fullgraph):
    """Return the gradient by torch.func of a compiled function, or by a compiled torch.func; None where one raises."""

    def compiled(f):
        return torch.compile(f, backend="aot_eager", fullgraph=fullgraph)

    grad = torch.func.grad
    gradient = compiled(grad(function)) if order == "compiled grad" else grad(compiled(function))
    try:
        return gradient(w)
    except Exception:  # noqa: BLE001 (whatever the compiler raises is better than a wrong gradient)
        return None


def assert_same(some, others):
    """Assert that tensors, None among them, have the same layout and strides, and the very bits, those of NaN too."""
    for one, other in zip(some, others, strict=True):
        assert (one is None) == (other is None)
        if one is None:
            continue
        assert (one.layout, one.shape) == (other.layout, other.shape)
        if one.is_sparse:
            assert one.is_coalesced()
            assert other.is_coalesced()
            assert torch.equal(one.indices(), other.indices())
            one, other = one.values(), other.values()  # noqa: PLW2901 (what is compared next)
        assert one.stride() == other.stride()
        assert torch.equal(one.view(torch.int32), other.view(torch.int32))
