"""What `auto` may choose on a GPU has the host wait for nothing, so that a CUDA graph can hold it.

Without a GPU this is told by the operators: no size may depend on a value, and nothing may come from another device.
"""

import itertools

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from meprop_bench.nn import MePropConv2d, MePropGRU, MePropLinear, MePropLSTM
from meprop_bench.ops import SELECTIONS, conv, kernels
from meprop_bench.ops.conv.geometry import Geometry
from meprop_bench.ops.kernels import Request
from meprop_bench.ops.recurrent import function as recurrent
from meprop_bench.ops.recurrent import through_time
from meprop_bench.ops.recurrent.cells import CELLS
from meprop_bench.ops.recurrent.through_time import Steps
from meprop_bench.optim import RowAdam

WAITING = {
    "bincount", "nonzero", "argwhere", "masked_select", "_local_scalar_dense", "item", "is_nonzero", "equal",
    "unique_dim", "unique_consecutive", "unique_dim_consecutive", "_unique", "_unique2", "histogram", "_to_sparse",
    "_coalesce",
}  # fmt: skip
GEOMETRY = Geometry((1, 1), (1, 1), (1, 1), 1)


class Unwaited(TorchDispatchMode):
    """Fail at an operator that has the host wait for a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        assert name not in WAITING, name
        if name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"):
            indices = [index for index in tree_leaves(args[1]) if isinstance(index, torch.Tensor)]
            assert not [index for index in indices if index.dtype in (torch.bool, torch.uint8)], f"{name} by a mask"
        if name == "repeat_interleave":
            assert kwargs.get("output_size") is not None, name
        result = func(*args, **kwargs)
        devices = {t.device for t in (*tensors, *tree_leaves(result)) if isinstance(t, torch.Tensor) and t.dim()}
        assert len(devices) < 2, f"{name} between {devices}"
        return result


def meta(*shape):
    return torch.empty(shape, device="meta")


def chosen_linear(batch=40, n=30, m=20):
    """The kernels that `auto` chooses where there is no CPU; "meta" stands for a GPU."""
    auto = kernels.get("auto")
    for selection, k, rows in itertools.product(SELECTIONS, (1, 5, n - 1), (False, True)):
        request = Request(k, selection, rows, True, True, True)
        kernel = auto.choose(meta(batch, n), meta(batch, m), meta(n, m), request)
        if not rows or "unified" in selection:  # as many rows as examples happen to select are waited for
            yield kernel.name, selection, k, rows


def chosen_conv():
    auto = conv.get("auto")
    shapes = (4, 6, 8, 8), (4, 3, 8, 8), (6, 3, 3, 3)
    for selection, k in itertools.product(conv.SELECTIONS, (1, 6, 60)):
        kernel = auto.choose(*(meta(*shape) for shape in shapes), GEOMETRY, Request(k, selection, False, 1, 1, 1))
        yield kernel.name, selection, k
        yield "gather", selection, k  # by name


def chosen_recurrent(h=12):
    weights = meta(4 * h, 5), meta(4 * h, h), None, None
    for selection, k in itertools.product(SELECTIONS, (1, 3, h - 1)):
        yield recurrent.choose("auto", k, selection, weights, meta(8, 5), meta(4, h))[1], selection, k


def distinct(choices):
    """One k for each kernel, selection and layout."""
    return list({(choice[:2], choice[3:]): choice for choice in choices}.values())


LINEAR, CONV, RECURRENT = distinct(chosen_linear()), distinct(chosen_conv()), distinct(chosen_recurrent())


def layer_of(kind, choice, device, dtype=torch.float64):
    """A layer with a kernel of its own, and an input."""
    name, selection, k = choice[:3]
    how = {"k": k, "selection": selection, "kernel": name, "device": device, "dtype": dtype}
    torch.manual_seed(0)
    if kind is MePropLinear:
        return kind(20, 30, sparse=choice[3], **how), torch.randn(40, 20, device=device, dtype=dtype)
    if kind is MePropConv2d:
        return kind(3, 6, 3, padding=1, **how), torch.randn(4, 3, 8, 8, device=device, dtype=dtype)
    return kind(5, 12, **how), torch.randn(6, 4, 5, device=device, dtype=dtype)


ALL = [
    (kind, *choice)
    for kind, choices in ((MePropLinear, LINEAR), (MePropConv2d, CONV), (MePropLSTM, RECURRENT), (MePropGRU, RECURRENT))
    for choice in choices
]


def test_there_is_something_to_choose():
    assert {choice[0] for choice in LINEAR} == {"embedding_bag", "gather", "masked"}
    assert {choice[0] for choice in RECURRENT} == {"embedding_bag", "masked"}
    assert {choice[0] for choice in CONV} == {"gather", "masked"}


def backward(kind, choice, device):
    """Run the kernel itself: layers leave it to the plain one where a mode watches. Returns the gradients."""
    name, selection, k, *rest = choice
    torch.manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, device=device, dtype=torch.float64)

    if kind is MePropLinear:
        request = Request(k, selection, rest[0], True, True, True)
        tensors = draw(40, 30), draw(40, 20), draw(30, 20)
        with Unwaited():
            return kernels.get(name).backward(*tensors, request)
    if kind is MePropConv2d:
        request = Request(k, selection, False, True, True, True)
        tensors = draw(4, 6, 8, 8), draw(4, 3, 8, 8), draw(6, 3, 3, 3)
        with Unwaited():
            return conv.get(name).backward(*tensors, GEOMETRY, request)
    cell, steps = CELLS["lstm" if kind is MePropLSTM else "gru"], Steps((4, 4, 2), False)
    weights = draw(cell.gates * 12, 5), draw(cell.gates * 12, 12), draw(cell.gates * 12), draw(cell.gates * 12)
    x, states = draw(10, 5), (draw(4, 12),) * cell.states
    request = Request(k, selection, False, True, True, True)
    with Unwaited():
        y, last, kept = through_time.forward(cell, x, states, weights, steps)
        found, d_states, _ = through_time.backward(cell, y, last, x, weights[:2], kept, steps, request, name)
    return *found, *d_states


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("kind", "choice"), [(kind, choice) for kind, *choice in ALL])
def test_no_size_depends_on_a_value_and_nothing_comes_from_another_device(kind, choice, device):
    if device == "cpu" and kind is MePropLinear and choice[3]:
        pytest.skip("on the CPU, where nobody waits, rows of zeros are left out")
    assert all(grad.device.type == device for grad in backward(kind, choice, device))


@pytest.mark.parametrize(
    "operator", [lambda t: t.bincount(), lambda t: t[t > 0], lambda t: t.sum().item(), torch.unique]
)
def test_what_waits_is_noticed(operator):
    with Unwaited(), pytest.raises(AssertionError):
        operator(torch.tensor([0, 1, 1]))


@pytest.fixture
def unwaited():
    """Have torch raise where the host would wait for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("kind", "choice"), [(kind, choice) for kind, *choice in ALL])
def test_a_graph_holds_it_and_the_host_does_not_wait(kind, choice, request):
    """Forward and backward, captured once and replayed for other numbers, against the plain kernel."""
    layer, x = layer_of(kind, choice, "cuda", torch.float32)
    x.requires_grad_()
    tensors = [x, *layer.parameters()]

    def gradients():
        y = layer(x)
        return torch.autograd.grad((y[0] if isinstance(y, tuple) else y).pow(2).sum(), tensors)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a warm-up, as graphs want it
        for _ in range(2):
            gradients()
    torch.cuda.current_stream().wait_stream(stream)
    request.getfixturevalue("unwaited")
    gradients()
    torch.cuda.set_sync_debug_mode("default")  # capturing itself synchronizes
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = gradients()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    torch.cuda.synchronize()
    if choice[1].startswith("random"):
        assert all(grad.to_dense().isfinite().all() for grad in found)
        return
    layer.kernel = "masked"
    for grad, expected in zip(found, gradients(), strict=True):
        torch.testing.assert_close(grad.to_dense(), expected.to_dense(), rtol=1e-3, atol=1e-3)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_optimizer_by_rows_does_not_wait_and_moves_no_row_of_zeros(request):
    w = nn.Parameter(torch.randn(30, 20, device="cuda"))
    optim = RowAdam([w], lr=0.1)
    values = torch.randn(4, 20, device="cuda")
    values[1] = 0
    idx = torch.tensor([[2, 5, 7, 9]], device="cuda")
    w.grad = torch.sparse_coo_tensor(idx, values, (30, 20), is_coalesced=True, check_invariants=False)
    optim.step()  # makes its state
    before = w.detach().clone()
    request.getfixturevalue("unwaited")
    optim.step()
    torch.cuda.set_sync_debug_mode("default")
    assert (w != before).any(1).nonzero()[:, 0].tolist() == [2, 7, 9]
    assert optim.state[w]["step"][:10].tolist() == [0, 0, 2, 0, 0, 0, 0, 2, 0, 2]
