import copy
import importlib.util
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from meprop_bench.ops import conv
from meprop_bench.ops.conv import conv1d, conv2d, reference
from meprop_bench.ops.conv.function import _conv_backward_op, _conv_op
from meprop_bench.ops.conv.geometry import Geometry
from meprop_bench.ops.conv.kernels import select_positions
from meprop_bench.ops.cost import Cost, conv_backward, conv_forward
from meprop_bench.ops.kernels import Request
from tests.ops.conftest import arrange, gradient_through_both, has_boundary, require_compiler

needs_numba = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None, reason="the native kernel needs Numba (extra `cpu`)"
)
KERNELS = [pytest.param(name, marks=needs_numba) if name == "native" else name for name in conv.KERNELS]
FLOAT = {"native": torch.float32}
SLACK = {torch.float64: 64, torch.float32: 64, torch.bfloat16: 8, torch.float16: 8}


@pytest.fixture
def case():
    """x (2, 3, 6, 7), w (4, 3, 3, 2), b (4,): leaves that require gradients."""
    torch.manual_seed(0)
    return [torch.randn(shape, requires_grad=True) for shape in ((2, 3, 6, 7), (4, 3, 3, 2), (4,))]


def loss(x, w, b, *, layer=conv2d, **keywords):
    return layer(x, w, b, **keywords).pow(2).sum()


PLAIN = Geometry((1, 1), (0, 0), (1, 1), 1)


def sparsified(x, w, b, k=3, geometry=PLAIN):
    """The gradients of `loss` by the oracle, in the dtypes of the inputs."""
    dy = 2 * F.conv2d(x, w, b, *geometry).detach()
    grads = reference.backward(dy, x.detach(), w.detach(), geometry, reference.select(dy, k))
    return [grad.to(t.dtype) for grad, t in zip(grads, (x, w, b), strict=True)]


def dense(x, w, b, layer=F.conv2d, **keywords):
    return torch.autograd.grad(layer(x, w, b, **keywords).pow(2).sum(), (x, w, b))


@st.composite
def geometries(draw):
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    return Geometry(draw(pair), padding, draw(pair), draw(st.sampled_from([1, 1, 2, 3])))


@pytest.mark.parametrize("kernel", KERNELS)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_kernel_equals_the_oracle(kernel, data):
    draw = data.draw
    geometry, taps = draw(geometries()), draw(st.tuples(st.integers(1, 3), st.integers(1, 4)))
    size = draw(st.tuples(st.integers(1, 11), st.integers(1, 19)))
    positions = math.prod(geometry.output(*size, taps)) if min(geometry.output(*size, taps)) > 0 else 0
    assume(positions > 1)
    dtype = FLOAT.get(kernel) or draw(st.sampled_from(list(SLACK)))
    channels = draw(st.sampled_from([1, 2, 3, 8, 9, 16]))
    batch, maps = draw(st.integers(0, 4)), geometry.groups * draw(st.integers(1, 3))
    k = draw(st.one_of(st.just(1), st.just(positions - 1), st.integers(1, positions - 1)))
    selection = draw(st.sampled_from(conv.SELECTIONS))
    need = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()).filter(any))
    seed = draw(st.integers(0, 2**32 - 1))

    torch.manual_seed(seed)
    x = arrange(torch.randn(batch, geometry.groups * channels, *size).to(dtype), draw(layouts))
    w, b = torch.randn(maps, channels, *taps).to(dtype), torch.randn(maps).to(dtype)
    dy = arrange(torch.randn(batch, maps, *geometry.output(*size, taps)).to(dtype), draw(layouts))
    assume(selection == "random" or has_boundary(dy.double().abs().flatten(2), k))
    request = Request(k, selection, False, *need)
    torch.manual_seed(seed)
    if selection == "random":
        idx = select_positions(dy, request)
    else:
        idx = reference.select(dy, k) if batch else torch.empty(0, maps, k, dtype=torch.int64)

    tensors = [t.detach().requires_grad_(wanted) for t, wanted in zip((x, w, b), need, strict=True)]
    y = conv2d(*tensors, *geometry, k=k, selection=selection, kernel=kernel)
    assert torch.equal(y, F.conv2d(x, w, b, *geometry))
    torch.manual_seed(seed)
    grads = torch.autograd.grad(y, [t for t in tensors if t.requires_grad], dy)
    expected = reference.backward(dy, x, w, geometry, idx)
    # Rounding is in proportion to the terms of a sum: a sum that cancels is small, and its error is not.
    terms = reference.backward(dy.abs(), x.abs(), w.abs(), geometry, idx)
    wanted = [pair for pair, needed in zip(zip(expected, terms, strict=True), need, strict=True) if needed]
    for got, (want, scale) in zip(grads, wanted, strict=True):
        assert got.shape == want.shape
        assert got.dtype == dtype
        assert ((got.double() - want).abs() <= SLACK[dtype] * torch.finfo(dtype).eps * scale).all()


layouts = st.sampled_from(["plain", "channels_last", "strided", "expanded", "unaligned"])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("x", "w", "geometry", "k"),
    [
        ((10, 16, 12, 12), (32, 16, 5, 5), PLAIN, 3),  # the papers' second layer
        ((3, 1, 28, 28), (16, 1, 5, 5), PLAIN, 29),  # and their first
        ((5, 72, 34, 31), (10, 72, 3, 3), Geometry((1, 1), (1, 1), (1, 1), 1), 200),  # many vectors, several tiles
        ((2, 40, 20, 9), (6, 20, 3, 3), Geometry((2, 1), (2, 2), (1, 2), 2), 7),
        ((2, 3, 4, 3000), (4, 3, 1, 3), Geometry((1, 1), (0, 1), (1, 1), 1), 500),
    ],
)
def test_larger_layers_equal_masked(kernel, x, w, geometry, k):
    torch.manual_seed(0)
    x, w = torch.randn(x), torch.randn(w)
    dy = torch.randn(x.shape[0], w.shape[0], *geometry.output(*x.shape[2:], w.shape[2:]))
    got = conv.get(kernel).backward(dy, x, w, geometry, Request(k, "example", False, True, True, True))
    exact = [t.double() for t in (dy, x, w)]
    expected = conv.get("masked").backward(*exact, geometry, Request(k, "example", False, True, True, True))
    for a, e in zip(got, expected, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-5, atol=1e-5 * e.abs().max().item())


@pytest.mark.parametrize("kernel", KERNELS)
def test_ties_give_the_same_gradient_each_time_and_k_positions(kernel):
    x, w = torch.ones(2, 1, 6, 6), torch.ones(3, 1, 1, 1, requires_grad=True)
    grads = []
    for _ in range(2):
        leaf = x.clone().requires_grad_()
        grads.append(torch.autograd.grad(conv2d(leaf, w, k=5, kernel=kernel).sum(), (leaf, w)))
    assert torch.equal(grads[0][0], grads[1][0])
    assert grads[0][1].flatten().tolist() == [10.0] * 3  # 5 positions of 2 examples
    assert grads[0][0].sum() == 2 * 3 * 5


@pytest.mark.parametrize("selection", conv.SELECTIONS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("wild", [math.nan, math.inf])
def test_non_finite_gradients_show_and_only_where_they_belong(kernel, selection, wild):
    torch.manual_seed(0)
    x, w = torch.randn(2, 3, 9, 9), torch.randn(4, 3, 3, 3)
    dy = torch.randn(2, 4, 7, 7)
    dy[1, 2, 3, 4] = wild
    request = Request(2, selection, False, True, True, True)
    dx, dw, db = conv.get(kernel).backward(dy, x, w, PLAIN, request)
    bad = torch.zeros(2, 3, 9, 9, dtype=torch.bool)
    bad[1, :, 3:6, 4:7] = True
    assert torch.equal(~dx.isfinite(), bad)
    assert (~dw.isfinite()).flatten(1).all(1).tolist() == [False, False, True, False]
    assert db.isfinite().tolist() == [True, True, False, True]


@pytest.mark.parametrize("k", [30, 1.0, 0.99])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_all_positions_kept_is_exactly_dense(case, k, dtype):
    case = [t.detach().to(dtype).requires_grad_() for t in case]  # maps of 4 x 6 and 5 x 6 positions
    keywords = {"padding": (0, 0), "stride": (1, 1)}
    case[0] = torch.randn(2, 3, 7, 7, dtype=dtype, requires_grad=True)
    grads = torch.autograd.grad(loss(*case, k=k, **keywords), case)
    assert all(torch.equal(grad, other) for grad, other in zip(grads, dense(*case, **keywords), strict=True))


def test_gradcheck_with_all_positions_kept(case):
    case = [t.detach().double().requires_grad_() for t in case]
    assert torch.autograd.gradcheck(lambda *t: conv2d(*t, k=1.0, padding=1, stride=2), case)
    assert not torch.autograd.gradcheck(lambda *t: loss(*t, k=23), case, raise_exception=False)


@pytest.mark.parametrize("k", [1.0, 0.3])
@pytest.mark.parametrize(
    "keywords",
    [
        {"padding": "same"},
        {"padding": "same", "dilation": (2, 3)},
        {"padding": "valid", "stride": 2},
        {"padding": (2, 1), "stride": (2, 1), "dilation": (1, 2)},
    ],
)
def test_arguments_are_those_of_conv2d(case, keywords, k):
    y = conv2d(*case, **keywords, k=k)
    assert torch.equal(y, F.conv2d(*case, **keywords))
    (db,) = torch.autograd.grad(y.pow(2).sum(), case[2])
    torch.testing.assert_close(db, dense(*case, **keywords)[2])  # full, whatever k is
    with torch.no_grad():
        assert conv2d(*case, **keywords, k=k).grad_fn is None


@pytest.mark.parametrize("kernel", KERNELS)
def test_padding_same_with_an_even_kernel(kernel):
    torch.manual_seed(0)
    x, w, b = torch.randn(2, 3, 6, 7), torch.randn(4, 3, 2, 4), torch.randn(4)
    case = [t.requires_grad_() for t in (x, w, b)]
    padded = F.pad(x, (1, 2, 0, 1)).detach().requires_grad_()
    got = torch.autograd.grad(loss(*case, k=5, padding="same", kernel=kernel), case)
    dx, dw, db = sparsified(padded, w, b, 5)
    torch.testing.assert_close(list(got), [dx[:, :, :6, 1:8], dw, db], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("keywords", "geometry"),
    [
        ({}, PLAIN),
        ({"padding": "same"}, PLAIN._replace(padding=(0, 1))),
        ({"stride": 2, "padding": (3,), "dilation": 2}, Geometry((1, 2), (0, 3), (1, 2), 1)),
    ],
)
def test_one_dimension_is_one_row(kernel, keywords, geometry):
    torch.manual_seed(0)
    case = [torch.randn(shape, requires_grad=True) for shape in ((2, 3, 20), (4, 3, 3), (4,))]
    y = conv1d(*case, k=4, kernel=kernel, **keywords)
    assert torch.equal(y, F.conv1d(*case, **keywords))
    got = torch.autograd.grad(y.pow(2).sum(), case)
    rows = [case[0].unsqueeze(2), case[1].unsqueeze(2), case[2]]
    dx, dw, db = sparsified(*rows, 4, geometry)
    torch.testing.assert_close(list(got), [dx.squeeze(2), dw.squeeze(2), db], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(conv1d(case[0][0], *case[1:], k=4, **keywords), y[0])
    full = torch.autograd.grad(loss(*case, layer=conv1d, k=1.0, **keywords), case)
    assert all(torch.equal(a, e) for a, e in zip(full, dense(*case, layer=F.conv1d, **keywords), strict=True))


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_image_without_a_batch(case, kernel):
    x, w, b = case
    one = x[0].detach().requires_grad_()
    y = conv2d(one, w, b, k=3, kernel=kernel)
    assert torch.equal(y, F.conv2d(one, w, b))
    got = torch.autograd.grad(y.pow(2).sum(), (one, w, b))
    dx, *rest = sparsified(one[None], w, b)
    torch.testing.assert_close(list(got), [dx[0], *rest], rtol=1e-4, atol=1e-4)


def test_no_bias_and_frozen_inputs(case):
    x, w, b = case
    (dw,) = torch.autograd.grad(loss(x.detach(), w, None, k=3), w)
    torch.testing.assert_close(dw, sparsified(x, w, torch.zeros(4))[1], rtol=1e-4, atol=1e-4)
    (db,) = torch.autograd.grad(loss(x.detach(), w.detach(), b, k=3), b)
    torch.testing.assert_close(db, sparsified(x, w, b)[2])
    assert not conv2d(x.detach(), w.detach(), None, k=3).requires_grad


def test_two_uses_of_one_weight_and_accumulation(case):
    x, w, b = case
    other = torch.randn(3, 3, 5, 5)
    for _ in range(3):  # backward calls, as in gradient accumulation
        (loss(x, w, b, k=3) + loss(other, w, b, k=3)).backward()
    first, second = sparsified(x, w, b), sparsified(other, w, b)
    torch.testing.assert_close(w.grad, 3 * (first[1] + second[1]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(b.grad, 3 * (first[2] + second[2]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad, 3 * first[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_random_selection_follows_the_global_seed(case, kernel):
    def grads(seed):
        y = conv2d(*case, k=3, selection="random", kernel=kernel)
        torch.manual_seed(seed)
        return torch.autograd.grad(y, case, torch.ones_like(y))

    assert all(torch.equal(a, b) for a, b in zip(grads(1), grads(1), strict=True))
    assert not torch.equal(grads(1)[0], grads(2)[0])


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"k": 0}, "not 0"),
        ({"k": 1.5}, "not 1.5"),
        ({"k": True}, "not True"),
        ({"k": 25}, "k = 25 is more than the 4 x 6 positions"),
        ({"k": 3, "selection": "unified"}, "one of example, random for convolutions, not 'unified'"),
        ({"k": 3, "kernel": "embedding_bag"}, "unknown kernel 'embedding_bag' for convolutions"),
        ({"k": 3, "padding": "full"}, "not 'full'"),
        ({"k": 3, "padding": "same", "stride": 2}, "does not go with a stride"),
        ({"k": 3, "stride": 0}, "stride must be one or 2 integers >= 1, not 0"),
        ({"k": 3, "dilation": (1, 1, 1)}, "dilation must be one or 2 integers"),
    ],
)
def test_misuse_names_the_value(case, keywords, message):
    with pytest.raises(ValueError, match=message):
        conv2d(*case, **keywords)


@needs_numba
def test_an_unsupported_case_is_an_error_and_auto_finds_a_way(case):
    doubles = [t.detach().double().requires_grad_() for t in case]
    with pytest.raises(ValueError, match="'native' does not support this case: it computes in float32, not float64"):
        conv2d(*doubles, k=3, kernel="native")
    got = torch.autograd.grad(loss(*doubles, k=3), doubles)
    torch.testing.assert_close(list(got), sparsified(*doubles))


@needs_numba
def test_auto_takes_what_was_measured_to_be_fastest(monkeypatch):
    auto = conv.get("auto")

    def chosen(batch, channels, size, maps, k, dtype=torch.float32, dx=True, groups=1):
        one = torch.empty(1, dtype=dtype)
        x, dy = (one.expand(batch, maps_or_channels, size, size) for maps_or_channels in (channels, maps))
        w = one.expand(maps, channels // groups, 3, 3)
        request = Request(k, "example", False, dx, True, True)
        return auto.choose(dy, x, w, PLAIN._replace(padding=(1, 1), groups=groups), request).name

    assert chosen(32, 64, 32, 128, 51) == "native"
    assert chosen(32, 64, 32, 128, 900) == "masked"
    assert chosen(10, 3, 28, 16, 700, dx=False) == "native"  # short patches: the selection decides
    assert chosen(32, 64, 32, 128, 51, torch.float64) == "gather"
    assert chosen(32, 64, 32, 128, 205, torch.float64) == "masked"
    assert chosen(10, 16, 8, 32, 3, torch.float64) == "masked"
    monkeypatch.setattr("meprop_bench.ops.kernels.compiled.load", lambda module: None)
    assert chosen(32, 64, 32, 128, 51) == "gather"
    assert chosen(32, 64, 32, 64, 51, groups=64) == "masked"


@pytest.mark.parametrize("inside", [False, True])
def test_autocast_casts_as_conv2d_does(case, inside):
    x, w, b = case
    with torch.autocast("cpu", torch.bfloat16):
        y = conv2d(x, w, b, k=3)
        assert torch.equal(y, F.conv2d(x, w, b))
        assert conv2d(*[t.double() for t in case], k=3).dtype == torch.float64
        total = y.float().pow(2).sum()
        if inside:
            total.backward()
    if not inside:
        total.backward()
    assert y.dtype == torch.bfloat16
    assert (x.grad.dtype, w.grad.dtype, b.grad.dtype) == (torch.float32,) * 3
    low = [t.detach().bfloat16() for t in case]
    dy = 2 * F.conv2d(*low)
    expected = reference.backward(dy, *low[:2], PLAIN, reference.select(dy, 3))
    for got, want in zip((x.grad, w.grad, b.grad), expected, strict=True):
        torch.testing.assert_close(got, want.float(), rtol=2e-2, atol=1e-2 * want.abs().max().item())


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(case, reentrant):
    x, w, b = case
    checkpoint(lambda x: loss(x, w, b, k=3), x, use_reentrant=reentrant).backward()
    torch.testing.assert_close([x.grad, w.grad, b.grad], sparsified(*case), rtol=1e-4, atol=1e-4)


def test_double_backward_holds_the_selection_fixed(case):
    x, w, b = (t.detach().double().requires_grad_() for t in case)
    dy = torch.randn(2, 4, 4, 6, dtype=torch.float64, requires_grad=True)
    kept = torch.zeros(2, 4, 24).scatter(2, reference.select(dy.detach(), 3), 1.0).view(2, 4, 4, 6)

    def by_layer(x, w, b, dy):
        return torch.autograd.grad(conv2d(x, w, b, k=3), (x, w, b), dy, create_graph=True)

    def by_formula(x, w, b, dy):
        dx, dw = torch.autograd.grad(F.conv2d(x, w), (x, w), dy * kept, create_graph=True)
        return dx, dw, dy.sum((0, 2, 3))

    results = []
    for function in (by_layer, by_formula):
        grads = function(x, w, b, dy)
        results.append((*grads, *torch.autograd.grad(sum(g.pow(2).sum() for g in grads), (x, w, dy))))
    torch.testing.assert_close(results[0], results[1])


def test_torch_func(case):
    x, w, b = [t.detach() for t in case]
    grads = torch.func.grad(lambda *t: loss(*t, k=3), argnums=(0, 1, 2))(x, w, b)
    torch.testing.assert_close(list(grads), sparsified(*case), rtol=1e-4, atol=1e-4)
    each = torch.func.vmap(torch.func.grad(lambda w, x: loss(x, w, b, k=3)), in_dims=(None, 0))(w, x)
    torch.testing.assert_close(each.sum(0), grads[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", ["auto", "gather"])
def test_operators_pass_opcheck(case, kernel):
    x, w, b = case
    call = ([1, 1], [1, 0], [1, 1], 1, 3, "example", kernel)
    torch.library.opcheck(_conv_op, (x, w, b, *call))
    torch.library.opcheck(_conv_op, (x.detach(), w, None, *call))
    dy = torch.randn(2, 4, 6, 6)
    for need in ([True, True, True], [False, True, False]):
        torch.library.opcheck(_conv_backward_op, (dy, x.detach(), w.detach(), *call, need))


class TestCompile:
    """`aot_eager` does all but generate code, which `inductor` does once, if there is a compiler."""

    @pytest.fixture(autouse=True)
    def fresh(self):
        torch._dynamo.reset()

    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_whole_graph(self, case, backend):
        require_compiler(backend)
        case[0] = case[0].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
        compiled = torch.compile(lambda *t: loss(*t, k=0.125), backend=backend, fullgraph=True)
        got = torch.autograd.grad(compiled(*case), case)
        torch.testing.assert_close(list(got), sparsified(*case), rtol=1e-4, atol=1e-4)

    def test_sizes_that_change(self, case):
        compiled = torch.compile(lambda *t: loss(*t, k=3), backend="aot_eager", fullgraph=True, dynamic=True)
        for size in (6, 9):
            case[0] = torch.randn(2, 3, size, size + 1, requires_grad=True)
            got = torch.autograd.grad(compiled(*case), case)
            torch.testing.assert_close(list(got), sparsified(*case), rtol=1e-4, atol=1e-4)

    def test_one_dimension_and_no_batch(self):
        torch.manual_seed(0)
        case = [torch.randn(shape, requires_grad=True) for shape in ((3, 20), (4, 3, 3), (4,))]

        def function(*t):
            return loss(*t, layer=conv1d, k=0.25, padding="same")

        got = torch.autograd.grad(torch.compile(function, backend="aot_eager", fullgraph=True)(*case), case)
        torch.testing.assert_close(got, torch.autograd.grad(function(*case), case))

    @pytest.mark.parametrize("fullgraph", [False, True])
    @pytest.mark.parametrize("order", ["compiled grad", "grad of compiled"])
    def test_torch_func_is_never_silently_dense(self, case, fullgraph, order):
        x, w, b = [t.detach() for t in case]

        def function(w):
            return loss(x, w, b, k=3)

        dw = gradient_through_both(function, w, order, fullgraph=fullgraph)
        if dw is not None:
            torch.testing.assert_close(dw, sparsified(*case)[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_inputs_are_left_alone(case, kernel):
    before = copy.deepcopy(case)
    dy = torch.randn(2, 4, 4, 6)
    kept = dy.clone()
    torch.autograd.grad(conv2d(*case, k=3, kernel=kernel), case, dy)
    assert torch.equal(dy, kept)
    assert all(torch.equal(a, b) for a, b in zip(case, before, strict=True))


@needs_numba
def test_the_number_of_threads_changes_rounding_alone():
    torch.manual_seed(0)
    x, w, dy = torch.randn(5, 9, 10, 10), torch.randn(7, 9, 3, 3), torch.randn(5, 7, 8, 8)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        request = Request(6, "example", False, True, True, True)
        results.append(conv.get("native").backward(dy, x, w, PLAIN, request))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-5, atol=1e-5)


def test_costs_from_the_definitions():
    # x (2, 3, 6, 7), w (4, 3, 3, 2): 2 x 4 maps of 4 x 6 positions, patches of 18 numbers.
    x, w = (2, 3, 6, 7), (4, 3, 3, 2)
    forward, full, sparse = conv_forward(x, w, 4), conv_backward(x, w, 4), conv_backward(x, w, 4, k=6)
    assert forward == Cost(2 * 192 * 18 + 192, 4 * (252 + 72 + 4 + 192))
    assert full == Cost(4 * 192 * 18 + 192, 4 * (192 + 2 * 252 + 2 * 72 + 4))
    assert sparse == Cost(4 * 48 * 18 + 2 * 192, full.bytes)
    assert conv_backward(x, w, 4, k=0.25) == sparse
    assert conv_backward(x, w, 4, k=1.0) == full
    assert conv_backward(x, w, 4, dx=False) == Cost(2 * 192 * 18 + 192, 4 * (192 + 252 + 72 + 4))
    strided = conv_forward(x, (4, 1, 3, 3), 8, Geometry((2, 2), (1, 1), (1, 1), 3))
    assert strided == Cost(2 * 96 * 9 + 96, 8 * (252 + 36 + 4 + 96))


@needs_numba
@pytest.mark.parametrize(("batch", "size", "padding", "supported"), [
    (1 << 20, 1, 22, True), (1 << 20, 1, 23, False), (1, 46340, 0, True), (1, 46342, 0, False), (1 << 17, 1, 64, False),
])  # fmt: skip
def test_pixels_that_32_bits_cannot_count_are_refused_or_left_to_another_kernel(batch, size, padding, supported):
    """Padding counts; an expanded tensor has the shape alone."""
    x, w = torch.empty(1).expand(batch, 1, size, size), torch.empty(2, 1, 3, 3)
    dy = torch.empty(1).expand(batch, 2, 40, 40)
    geometry, request = Geometry((1, 1), (padding, padding), (1, 1), 1), Request(3, "example", False, True, True, True)
    reason = conv.kernels.get("native").unsupported(x, w, geometry)
    assert (reason is None) == supported
    assert (conv.kernels.get("auto").choose(dy, x, w, geometry, request).name == "native") == supported
    if not supported:
        assert "32 bits" in reason
        with pytest.raises(ValueError, match="kernel 'native' does not support this case: it counts in 32 bits"):
            conv2d(x.requires_grad_(), w, padding=padding, k=3, kernel="native")
