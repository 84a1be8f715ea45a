"""A linear layer through each example's active neurons, against the plain definition: torch's layer, masked behind."""

import sys
from importlib import import_module

import pytest
import torch
import torch.autograd.forward_ad as forward_mode
import torch.nn.functional as F
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from meprop_bench.ops import active
from meprop_bench.ops.active import active_linear, kernel_name, pack, unpack
from meprop_bench.ops.kernels import compiled

NATIVE = "meprop_bench.ops.kernels.native.active"
has_native = compiled.load(NATIVE) is not None
needs_native = pytest.mark.skipif(not has_native, reason="the native kernel needs Numba (extra `cpu`)")
kernel = "native" if has_native else "masks"

CASES = {  # N, B, m, n, share of active neurons, bias
    "usual": (40, 20, 33, 50, 0.2, True),
    "without a bias": (40, 20, 33, 50, 0.2, False),
    "one example": (1, 1, 33, 50, 0.3, True),
    "one of each": (1, 1, 1, 1, 0.0, True),
    "narrow": (9, 7, 3, 11, 0.3, True),
    "one word": (64, 64, 16, 64, 0.25, True),
    "a word and a bit": (70, 65, 17, 65, 0.25, True),
    "examples again": (3, 130, 47, 20, 0.3, True),
    "nothing active": (8, 8, 24, 30, 0.0, True),
    "wide": (30, 30, 784, 20, 0.2, True),
}
DENSE = {"everything active": (8, 8, 24, 30, 1.0, True), "more than half": (8, 8, 24, 30, 0.8, True)}


def make(name, dtype=torch.float32):
    """Return x, w, b, bits, ids, masks of the batch, and dy, in which a third is zero."""
    examples, batch, m, n, share, biased = (CASES | DENSE)[name]
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    masks = torch.rand(examples, n, generator=generator) < share
    ids = torch.randint(examples, (batch,), generator=generator)
    x, w, b, dy = (torch.randn(s, generator=generator).to(dtype) for s in ((batch, m), (n, m), (n,), (batch, n)))
    dy[torch.rand(batch, n, generator=generator) < 1 / 3] = 0
    return x.requires_grad_(), w.requires_grad_(), b.requires_grad_() if biased else None, pack(masks), ids, masks, dy


def plain(x, w, b, masks, ids):
    """The definition."""
    return F.linear(x, w, b).masked_fill(~masks[ids], 0)


def leaves(x, w, b):
    return [t for t in (x, w, b) if t is not None]


def wide(*tensors):
    return [None if t is None else t.detach().double().requires_grad_() for t in tensors]


def check(found, expected, **tolerance):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.to(one.dtype), **(tolerance or {"rtol": 1e-4, "atol": 1e-4}))


@pytest.mark.parametrize("name", [*CASES, *DENSE])
def test_output_and_all_gradients(name):
    x, w, b, bits, ids, masks, dy = make(name)
    assert kernel_name(x, w, b, bits, ids) == (kernel if name in CASES else "masks")
    y = active_linear(x, w, b, bits, ids)
    assert y.grad_fn.name() == ("_ActiveBackward" if kernel == "native" and name in CASES else "MaskedFillBackward0")
    exact = wide(x, w, b)
    expected = plain(*exact, masks, ids)
    check([y], [expected])
    assert not y[~masks[ids]].any()
    check(torch.autograd.grad(y, leaves(x, w, b), dy), torch.autograd.grad(expected, leaves(*exact), dy.double()))


def test_neurons_that_no_example_has_get_zeros():
    x, w, b, bits, ids, masks, dy = make("usual")
    ids = ids[:2]
    dx, dw, db = torch.autograd.grad(active_linear(x[:2], w, b, bits, ids), (x, w, b), dy[:2])
    unused = ~masks[ids].any(0)
    assert unused.any()
    assert not dw[unused].any()
    assert not db[unused].any()
    assert dx[:2].any()


def test_bits_there_and_back():
    for n in (1, 7, 8, 9, 500):
        masks = torch.rand(5, n) < 0.5
        bits = pack(masks)
        assert bits.shape == (5, -(-n // 8))
        assert torch.equal(unpack(bits, n), masks)
        assert torch.equal(unpack(bits.view(5, 1, -1), n), masks.unsqueeze(1))


@pytest.mark.parametrize("name", ["usual", "a word and a bit"])
def test_bits_past_the_last_neuron_mean_nothing(name):
    x, w, b, bits, ids, masks, dy = make(name)
    bits = bits.clone()
    bits[:, -1] |= 0xFF << (masks.shape[1] % 8) & 0xFF
    y = active_linear(x, w, b, bits, ids)
    check([y], [plain(x, w, b, masks, ids)])
    check(torch.autograd.grad(y, (x, w, b), dy), torch.autograd.grad(plain(x, w, b, masks, ids), (x, w, b), dy))


@needs_native
def test_the_number_of_threads_changes_nothing(monkeypatch):
    x, w, b, bits, ids, _, dy = make("wide")
    module = compiled.require(NATIVE)
    results = []
    for threads, openmp in ((1, None), (2, None), (3, None), (2, 0)):
        with monkeypatch.context() as patch:
            patch.setattr(module, "shares", lambda threads, work: threads)
            if openmp is not None:
                patch.setattr(module, "OPENMP", openmp)
            torch.set_num_threads(threads)
            y = active_linear(x, w, b, bits, ids)
            results.append([y, *torch.autograd.grad(y, (x, w, b), dy)])
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_what_is_frozen_gets_no_work(needed):
    x, w, b, bits, ids, masks, dy = make("usual")
    inputs = [x, w, b]
    for i, t in enumerate(inputs):
        t.requires_grad_(i in needed)
    some = [inputs[i] for i in needed]
    y = active_linear(*inputs, bits, ids)
    check(torch.autograd.grad(y, some, dy), torch.autograd.grad(plain(*inputs, masks, ids), some, dy))


def test_without_gradients():
    x, w, b, bits, ids, masks, _ = make("usual")
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = active_linear(x, w, b, bits, ids)
        assert not y.requires_grad
        check([y], [plain(x, w, b, masks, ids)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_torchs_operators(dtype):
    x, w, b, bits, ids, masks, dy = make("usual", dtype)
    assert kernel_name(x, w, b, bits, ids) == "masks"
    y, expected = active_linear(x, w, b, bits, ids), plain(x, w, b, masks, ids)
    assert torch.equal(y, expected)
    assert all(map(torch.equal, torch.autograd.grad(y, (x, w, b), dy), torch.autograd.grad(expected, (x, w, b), dy)))


def test_autocast():
    x, w, b, bits, ids, masks, _ = make("usual")
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = active_linear(x, w, b, bits, ids), plain(x, w, b, masks, ids)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected)
    for one, other in zip(*(torch.autograd.grad(t.float().sum(), (x, w, b)) for t in (y, expected)), strict=True):
        assert torch.equal(one, other)


def test_a_backward_pass_under_autocast():
    x, w, b, bits, ids, masks, dy = make("usual")
    y, expected = active_linear(x, w, b, bits, ids), plain(x, w, b, masks, ids)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(y, (x, w, b), dy)
    check(found, torch.autograd.grad(expected, (x, w, b), dy))


def test_strides():
    x, w, b, bits, ids, masks, dy = make("usual")
    inputs = [x.detach().t().contiguous().t(), w.detach().repeat(1, 2)[:, ::2], b.detach().repeat_interleave(2)[::2]]
    inputs = [t.requires_grad_() for t in inputs]
    assert not any(t.is_contiguous() for t in inputs)
    bits, ids = bits.t().contiguous().t(), ids.repeat_interleave(2)[::2]
    for gradient in (dy, dy.t().contiguous().t(), dy[:1].expand(dy.shape)):
        y, expected = active_linear(*inputs, bits, ids), plain(*inputs, masks, ids)
        check([y], [expected])
        check(torch.autograd.grad(y, inputs, gradient), torch.autograd.grad(expected, inputs, gradient))


class SparseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, dy):
        return dy.to_sparse()


def test_a_gradient_that_comes_sparse():
    x, w, b, bits, ids, masks, dy = make("usual")
    y = SparseGradient.apply(active_linear(x, w, b, bits, ids))
    check(torch.autograd.grad(y, (x, w, b), dy), torch.autograd.grad(plain(x, w, b, masks, ids), (x, w, b), dy))


def test_numbers_that_are_not_finite():
    """What is inactive is not there, whatever stands in its place; what is active has all of it."""
    x, w, b, bits, ids, masks, dy = make("usual")
    mask = masks[ids]
    with torch.no_grad():
        x[3] = float("inf")
        w[5, 2] = float("nan")
    dy[4] = float("nan")
    y = active_linear(x, w, b, bits, ids)
    assert not y[~mask].any()
    assert not y[3][mask[3]].isfinite().any()
    assert torch.equal(y[:, 5].isnan(), mask[:, 5])
    dx, dw, db = torch.autograd.grad(y, (x, w, b), dy)
    reached = (mask & (dy != 0)).clone()
    assert torch.equal(db.isnan(), mask[4])
    assert torch.equal((~dw.isfinite()).all(1), reached[3] | reached[4])
    assert dx[~(reached[:, 5] | (torch.arange(20) == 4))].isfinite().all()
    assert dx[4].isnan().all() == mask[4].any()


@pytest.mark.parametrize("name", ["usual", "everything active"])
def test_double_backward(name):
    x, w, b, bits, ids, masks, dy = make(name)
    found = []
    for function in (lambda: active_linear(x, w, b, bits, ids), lambda: plain(x, w, b, masks, ids)):
        gradient = dy.clone().requires_grad_()
        first = torch.autograd.grad(function().tanh(), (x, w, b), gradient, create_graph=True)
        found.append([*first, *torch.autograd.grad(sum(g.pow(2).sum() for g in first), (x, w, b, gradient))])
    check(*found, rtol=1e-3, atol=1e-3)


def test_torch_func():
    x, w, b, bits, ids, masks, dy = (t.detach() for t in make("usual"))

    def of(function, *more):
        return lambda x, w, b: (function(x, w, b, *more, ids) * dy).sum()

    ours, other = of(active_linear, bits), of(plain, masks)
    arguments = (0, 1, 2)
    check(torch.func.grad(ours, arguments)(x, w, b), torch.func.grad(other, arguments)(x, w, b))
    xs = torch.stack([x, 2 * x])
    maps = [torch.func.vmap(torch.func.grad(f), in_dims=(0, None, None))(xs, w, b) for f in (ours, other)]
    check(maps[:1], maps[1:])
    with forward_mode.dual_level():
        dual = forward_mode.make_dual(x, torch.ones_like(x))
        tangents = [
            forward_mode.unpack_dual(f(dual, w, b, masked, ids)).tangent
            for f, masked in ((active_linear, bits), (plain, masks))
        ]
    check(tangents[:1], tangents[1:])


def test_many_gradients_at_once():
    x, w, b, bits, ids, masks, dy = make("usual")
    many = torch.stack([dy, -2 * dy])
    found, expected = (
        torch.autograd.grad(y, (x, w, b), many, is_grads_batched=True)
        for y in (active_linear(x, w, b, bits, ids), plain(x, w, b, masks, ids))
    )
    check(found, expected)


class Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_a_mode_sees_torchs_operators(when):
    x, w, b, bits, ids, masks, dy = make("usual")
    mode = Watch()
    if when == "forward":
        with mode:
            y = active_linear(x, w, b, bits, ids)
        found = torch.autograd.grad(y, (x, w, b), dy)
    else:
        y = active_linear(x, w, b, bits, ids)
        with mode:
            found = torch.autograd.grad(y, (x, w, b), dy)
    assert any("mm" in str(func) for func in mode.seen)
    expected = plain(x, w, b, masks, ids)
    check([y, *found], [expected, *torch.autograd.grad(expected, (x, w, b), dy)])


def test_a_default_device_that_is_another():
    x, w, b, bits, ids, masks, dy = make("usual")
    with torch.device("meta"):
        y = active_linear(x, w, b, bits, ids)
        found = torch.autograd.grad(y, (x, w, b), dy)
    expected = plain(x, w, b, masks, ids)
    check([y, *found], [expected, *torch.autograd.grad(expected, (x, w, b), dy)])


def test_subclasses():
    x, w, b, bits, ids, masks, _ = make("usual")
    twin = TwoTensor(x.detach(), x.detach()).requires_grad_()
    assert kernel_name(twin, w, b, bits, ids) == "masks"
    y = active_linear(twin, w, b, bits, ids)
    check([y.a], [plain(x, w, b, masks, ids)])


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant):
    x, w, b, bits, ids, masks, dy = make("usual")
    y = checkpoint(active_linear, x, w, b, bits, ids, use_reentrant=reentrant)
    y.backward(dy)
    check([x.grad, w.grad, b.grad], torch.autograd.grad(plain(x, w, b, masks, ids), (x, w, b), dy))


def test_a_graph_that_is_kept_and_one_that_is_freed():
    x, w, b, bits, ids, _, dy = make("usual")
    y = active_linear(x, w, b, bits, ids)
    first = torch.autograd.grad(y, (x, w, b), dy, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(y, (x, w, b), dy)))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, (x, w, b), dy)


def test_changes_between_the_passes():
    x, w, b, bits, ids, masks, dy = make("usual")
    expected = torch.autograd.grad(plain(x, w, b, masks, ids), (x, w, b), dy)
    # Masks and numbers of examples that are written over, and other data: what counts is the forward pass.
    y = active_linear(x, w, b, bits, ids)
    bits.zero_(), ids.zero_()
    w.data = torch.zeros_like(w)
    check(torch.autograd.grad(y, (x, w, b), dy), expected)
    y = active_linear(x, w, b, bits, ids)
    with torch.no_grad():
        w.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y, (x, w, b), dy)


@pytest.mark.parametrize("number", [40, 1 << 40])
def test_examples_that_are_not_there(number):
    x, w, b, bits, ids, _, _ = make("usual")
    ids[3] = number
    with pytest.raises(IndexError):
        active_linear(x, w, b, bits, ids)


def test_an_empty_batch():
    x, w, b, bits, ids, masks, dy = make("usual")
    y = active_linear(x[:0], w, b, bits, ids[:0])
    assert y.shape == (0, 50)
    check(
        torch.autograd.grad(y, (w, b), dy[:0]), torch.autograd.grad(plain(x[:0], w, b, masks, ids[:0]), (w, b), dy[:0])
    )


def test_without_numba(monkeypatch):
    x, w, b, bits, ids, masks, dy = make("usual")
    monkeypatch.setattr(active.compiled, "load", lambda _: None)
    assert kernel_name(x, w, b, bits, ids) == "masks"
    y, expected = active_linear(x, w, b, bits, ids), plain(x, w, b, masks, ids)
    assert torch.equal(y, expected)
    assert all(map(torch.equal, torch.autograd.grad(y, (x, w, b), dy), torch.autograd.grad(expected, (x, w, b), dy)))


@pytest.mark.skipif(sys.platform == "win32", reason="torch.compile needs a compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_whole_graph():
    torch.compiler.reset()
    x, w, b, bits, ids, masks, dy = make("usual")
    function = torch.compile(active_linear, backend="aot_eager", fullgraph=True)
    y, expected = function(x, w, b, bits, ids), plain(x, w, b, masks, ids)
    found = torch.autograd.grad(y, (x, w, b), dy)
    check([y, *found], [expected, *torch.autograd.grad(expected, (x, w, b), dy)])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_traced_is_torchs_operators():
    x, w, b, bits, ids, masks, _ = (t.detach() for t in make("usual"))
    traced = torch.jit.trace(lambda x, ids: active_linear(x, w, b, bits, ids), (x, ids))
    other = (ids + 1) % 40
    check([traced(x, other)], [plain(x, w, b, masks, other)])


@needs_native
def test_words_transposed():
    """The bits by neuron are those by example, transposed."""
    native = import_module(NATIVE)
    for examples, batch, n in ((5, 3, 9), (100, 64, 64), (100, 65, 129), (7, 200, 100)):
        masks = torch.rand(examples, n) < 0.4
        bits, ids = pack(masks), torch.randint(examples, (batch,))
        words = torch.full((native.words(batch, n),), -1)
        count = native.gather(bits.data_ptr(), ids.data_ptr(), examples, batch, n, bits.shape[1], words.data_ptr())
        assert count == masks[ids].sum()
        across, down = -(-n // 64), -(-batch // 64)
        rows, columns = words[: batch * across].view(batch, -1), words[batch * across :].view(64 * across, -1)
        assert columns.shape[1] == down
        assert torch.equal(unpack(rows.view(torch.uint8), n), masks[ids])
        assert torch.equal(unpack(columns.contiguous().view(torch.uint8), batch)[:n], masks[ids].t())
        assert not columns[n:].any()
