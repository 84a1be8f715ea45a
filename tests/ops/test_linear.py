import copy
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from meprop_bench.ops import SELECTIONS, linear, node, reference, select
from meprop_bench.ops.linear import _linear_backward_op, _linear_op
from tests.ops.conftest import gradient_through_both, require_compiler

PER_EXAMPLE, UNIFIED = "example", "unified"
registrations = import_module("meprop_bench.ops.linear")  # the function has the same name


def pytest_generate_tests(metafunc):
    """Run what is eager with the C++ node, where there is one, and without."""
    if metafunc.cls is None:
        metafunc.parametrize("registration", ["cxx", "python"], indirect=True)


@pytest.fixture(autouse=True)
def registration(request, monkeypatch):
    chosen = getattr(request, "param", None)
    if chosen is None:
        return
    if chosen == "cxx" and (reason := node.unavailable_reason()) is not None:
        pytest.skip(f"no C++ node: {reason}")
    monkeypatch.setenv(node.SWITCH, chosen)
    monkeypatch.setattr(registrations._node, "call", registrations._node.first)


@pytest.fixture
def case():
    """x (6, 5), w (9, 5), b (9,): leaves that require gradients."""
    torch.manual_seed(0)
    return [
        torch.randn(6, 5, requires_grad=True),
        torch.randn(9, 5, requires_grad=True),
        torch.randn(9, requires_grad=True),
    ]


def loss(x, w, b, *, layer=linear, **keywords):
    return layer(x, w, b, **keywords).pow(2).sum()


def sparsified(x, w, b, k=3, selection=PER_EXAMPLE):
    """The gradients of `loss` by the oracle, in the dtypes of the inputs."""
    dy = 2 * F.linear(x, w, b).detach()
    grads = reference.backward(dy, x.detach(), w.detach(), reference.select(dy, k, selection))
    return [grad.to(t.dtype) for grad, t in zip(grads, (x, w, b), strict=True)]


def dense(x, w, b):
    return torch.autograd.grad(F.linear(x, w, b).pow(2).sum(), (x, w, b))


def assert_sparsified(grads, case, selection=PER_EXAMPLE):
    torch.testing.assert_close([g.to_dense() for g in grads], sparsified(*case, selection=selection))


@pytest.mark.parametrize("selection", SELECTIONS)
def test_forward_is_dense(case, selection):
    assert torch.equal(linear(*case, k=2, selection=selection), F.linear(*case))
    with torch.no_grad():
        y = linear(*case, k=2, selection=selection)
    assert torch.equal(y, F.linear(*case))
    assert y.grad_fn is None


@pytest.mark.parametrize("k", [9, 10, 1000, 1.0, 0.99])
def test_all_neurons_kept_is_exactly_dense(case, k):
    grads = torch.autograd.grad(loss(*case, k=k), case)
    assert all(torch.equal(grad, other) for grad, other in zip(grads, dense(*case), strict=True))


def test_gradcheck_with_all_neurons_kept(case):
    case = [t.detach().double().requires_grad_() for t in case]
    assert torch.autograd.gradcheck(lambda *t: linear(*t, k=9), case)
    assert torch.autograd.gradcheck(lambda *t: loss(*t, k=9), case)
    # One neuron less is another gradient. (The first check would not see it: it sends one-hot gradients back.)
    assert not torch.autograd.gradcheck(lambda *t: loss(*t, k=8), case, raise_exception=False)


@pytest.mark.parametrize("selection", [PER_EXAMPLE, UNIFIED])
@pytest.mark.parametrize("shape", [(5,), (1, 5), (2, 3, 5), (2, 1, 3, 5)])
@pytest.mark.parametrize("sparse", [False, True])
def test_leading_dimensions_are_the_batch(selection, shape, sparse):
    torch.manual_seed(1)
    x, w, b = (
        torch.randn(shape, requires_grad=True),
        torch.randn(9, 5, requires_grad=True),
        torch.randn(9, requires_grad=True),
    )
    flat = x.detach().reshape(-1, 5).requires_grad_()
    got = torch.autograd.grad(loss(x, w, b, k=3, selection=selection, sparse=sparse), (x, w, b))
    assert got[0].shape == shape
    assert_sparsified([got[0].reshape(-1, 5), *got[1:]], (flat, w, b), selection)


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("shape", "m"), [((0, 5), 5), ((2, 0, 5), 5), ((4, 0), 0), ((0,), 0)])
def test_nothing_to_sum(selection, sparse, shape, m):
    x, w, b = (
        torch.ones(shape, requires_grad=True),
        torch.ones(9, m, requires_grad=True),
        torch.ones(9, requires_grad=True),
    )
    loss(x, w, b, k=3, selection=selection, sparse=sparse).backward()
    assert x.grad.shape == shape
    assert w.grad.to_dense().shape == (9, m)
    assert not w.grad.to_dense().any()
    assert b.grad.sum() == 18 * (x.numel() // m if m else 4 * (len(shape) == 2) + (len(shape) == 1))


def test_frozen_inputs_get_no_work(case):
    seen = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.__name__)
            return func(*args, **(kwargs or {}))

    x, w, b = case
    y = linear(x.detach(), w, b.detach(), k=3, kernel="masked")
    with Spy():
        torch.autograd.grad(y, w, torch.ones_like(y))
    assert seen.count("mm.default") == 1
    assert not any(name.startswith("sum") for name in seen)
    assert not linear(x.detach(), w.detach(), None, k=3).requires_grad


def test_no_bias(case):
    x, w, _ = case
    got = torch.autograd.grad(loss(x, w, None, k=3), (x, w))
    torch.testing.assert_close(list(got), sparsified(x, w, torch.zeros(9))[:2])


@pytest.mark.parametrize("sparse", [False, True])
def test_two_uses_of_one_weight_and_accumulation(case, sparse):
    x, w, b = case
    other = torch.randn(4, 5)
    for _ in range(3):  # backward calls, as in gradient accumulation
        (loss(x, w, b, k=3, sparse=sparse) + loss(other, w, b, k=3, sparse=sparse)).backward()
    first, second = sparsified(x, w, b), sparsified(other, w, b)
    assert w.grad.is_sparse == sparse
    torch.testing.assert_close(w.grad.to_dense(), 3 * (first[1] + second[1]))
    torch.testing.assert_close(b.grad, 3 * (first[2] + second[2]))
    torch.testing.assert_close(x.grad, 3 * first[0])


def test_random_selection_follows_the_global_seed(case):
    def grads(seed):
        y = loss(*case, k=3, selection="random")
        torch.manual_seed(seed)
        return torch.autograd.grad(y, case)

    assert all(torch.equal(a, b) for a, b in zip(grads(1), grads(1), strict=True))
    assert not torch.equal(grads(1)[0], grads(2)[0])
    torch.manual_seed(1)
    dy = 2 * F.linear(*case).detach()
    idx = select(dy, 3, "random")
    torch.testing.assert_close(grads(1)[1], reference.backward(dy, *[t.detach() for t in case[:2]], idx)[1].float())


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"k": 0}, "not 0"),
        ({"k": 1.5}, "not 1.5"),
        ({"k": float("nan")}, "not nan"),
        ({"k": True}, "not True"),
        ({"k": 3, "selection": "top"}, "not 'top'"),
        ({"k": 3, "kernel": "fast"}, "unknown kernel 'fast'"),
    ],
)
def test_misuse_names_the_value(case, keywords, message):
    with pytest.raises(ValueError, match=message):
        linear(*case, **keywords)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_autocast_casts_as_linear_does(case, sparse, inside):
    x, w, b = case
    with torch.autocast("cpu", torch.bfloat16):
        y = linear(x, w, b, k=3, sparse=sparse)
        assert torch.equal(y, F.linear(x, w, b))
        assert linear(*[t.double() for t in case], k=3).dtype == torch.float64
        total = y.float().pow(2).sum()
        if inside:
            total.backward()
    if not inside:
        total.backward()
    assert y.dtype == torch.bfloat16
    assert (x.grad.dtype, w.grad.dtype, b.grad.dtype) == (torch.float32,) * 3
    assert w.grad.is_sparse == sparse
    low = [t.detach().bfloat16() for t in case]
    dy = 2 * F.linear(*low)
    expected = reference.backward(dy, *low[:2], reference.select(dy, 3, PER_EXAMPLE))
    for got, want in zip((x.grad, w.grad, b.grad), expected, strict=True):
        torch.testing.assert_close(got.to_dense(), want.float(), rtol=2e-2, atol=2e-1)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_activation_checkpointing(case, reentrant, sparse):
    x, w, b = case
    checkpoint(lambda x: loss(x, w, b, k=3, sparse=sparse), x, use_reentrant=reentrant).backward()
    assert_sparsified([x.grad, w.grad, b.grad], case)


@pytest.mark.parametrize("selection", [PER_EXAMPLE, UNIFIED])
def test_double_backward_holds_the_selection_fixed(case, selection):
    case = [t.detach().double().requires_grad_() for t in case]
    x, w, b = case
    dy = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    kept = reference.keep(reference.select(dy.detach(), 3, selection), 6, 9)

    def by_layer(x, w, b, dy):
        return torch.autograd.grad(linear(x, w, b, k=3, selection=selection), (x, w, b), dy, create_graph=True)

    def by_formula(x, w, b, dy):
        return (dy * kept) @ w, (dy * kept).t() @ x, dy.sum(0)

    results = []
    for function in (by_layer, by_formula):
        grads = function(x, w, b, dy)
        results.append((*grads, *torch.autograd.grad(sum(g.pow(2).sum() for g in grads), (x, w, dy))))
    torch.testing.assert_close(results[0], results[1])


def test_double_backward_through_sparse_rows(case):
    x, w, b = case
    seconds = []
    for sparse in (False, True):
        (dw,) = torch.autograd.grad(loss(x, w, b, k=3, sparse=sparse), w, create_graph=True)
        values = dw.coalesce().values() if sparse else dw
        seconds.append([grad.to_dense() for grad in torch.autograd.grad(values.pow(2).sum(), (x, w))])
    torch.testing.assert_close(seconds[1], seconds[0])


def test_torch_func(case):
    x, w, b = [t.detach() for t in case]
    grads = torch.func.grad(lambda *t: loss(*t, k=3), argnums=(0, 1, 2))(x, w, b)
    assert_sparsified(grads, case)
    assert_sparsified(
        torch.func.grad(lambda *t: loss(*t, k=3, selection=UNIFIED), argnums=(0, 1, 2))(x, w, b), case, UNIFIED
    )
    each = torch.func.vmap(torch.func.grad(lambda w, x: loss(x, w, b, k=3)), in_dims=(None, 0))(w, x)
    torch.testing.assert_close(each.sum(0), grads[1])
    with pytest.raises(ValueError, match="sparse=True does not go with"):
        torch.func.grad(lambda w: loss(x, w, b, k=3, sparse=True))(w)


class TestCompile:
    """`aot_eager` does all but generate code, which `inductor` does once, if there is a compiler."""

    @pytest.fixture(autouse=True)
    def fresh(self):
        torch._dynamo.reset()

    @pytest.mark.parametrize(
        ("selection", "kernel"), [(PER_EXAMPLE, "auto"), (UNIFIED, "gather"), (PER_EXAMPLE, "coo")]
    )
    def test_operators_pass_opcheck(self, case, selection, kernel):
        x, w, b = case
        torch.library.opcheck(_linear_op, (x, w, b, 3, selection, kernel))
        torch.library.opcheck(_linear_op, (x[0].detach(), w, None, 3, selection, kernel))
        dy = torch.randn(6, 9)
        for need in ([True, True, True], [False, True, False]):
            torch.library.opcheck(_linear_backward_op, (dy, x.detach(), w.detach(), 3, selection, kernel, need))

    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_whole_graph(self, case, backend):
        require_compiler(backend)
        compiled = torch.compile(lambda *t: loss(*t, k=0.3, selection=UNIFIED), backend=backend, fullgraph=True)
        assert_sparsified(torch.autograd.grad(compiled(*case), case), case, UNIFIED)

    def test_weight_alone_in_three_dimensions(self, case):
        x, w, b = case
        compiled = torch.compile(lambda *t: loss(*t, k=3), backend="aot_eager", fullgraph=True)
        (dw,) = torch.autograd.grad(compiled(x.detach().view(2, 3, 5), w, b.detach()), w)
        torch.testing.assert_close(dw, sparsified(x, w, b)[1])

    def test_k_is_a_variable_of_the_graph_once_it_has_changed(self, case):
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(lambda k, *t: loss(*t, k=k), backend=counter, fullgraph=True)
        for k in (3, 4, 5, 8, 2):
            grads = torch.autograd.grad(compiled(k, *case), case)
            torch.testing.assert_close(list(grads), sparsified(*case, k=k))
        assert counter.frame_count == 2

    def test_sparse_rows_break_the_graph_or_raise(self, case):
        def function(*t):
            return loss(*t, k=3, sparse=True)

        grads = torch.autograd.grad(torch.compile(function, backend="aot_eager")(*case), case)
        assert grads[1].is_sparse
        assert_sparsified(grads, case)
        torch._dynamo.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported, match="cannot_be_compiled"):
            torch.compile(function, backend="aot_eager", fullgraph=True)(*case)

    @pytest.mark.parametrize("fullgraph", [False, True])
    @pytest.mark.parametrize("sparse", [False, True])
    @pytest.mark.parametrize("order", ["compiled grad", "grad of compiled"])
    def test_torch_func_is_never_silently_dense(self, case, fullgraph, sparse, order):
        x, w, b = [t.detach() for t in case]

        def function(w):
            return loss(x, w, b, k=3, sparse=sparse)

        dw = gradient_through_both(function, w, order, fullgraph=fullgraph)
        if dw is not None:
            torch.testing.assert_close(dw.to_dense(), sparsified(*case)[1])


def test_inputs_are_left_alone(case):
    before = copy.deepcopy(case)
    dy = torch.randn(6, 9)
    kept = dy.clone()
    torch.autograd.grad(linear(*case, k=3), case, dy)
    assert torch.equal(dy, kept)
    assert all(torch.equal(a, b) for a, b in zip(case, before, strict=True))
