"""One recurrent layer in one direction against the oracle, by every kernel, and against torch's own at k = all."""

import importlib.util
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from meprop_bench.algorithms.activeness import Activeness
from meprop_bench.ops.recurrent import KERNELS, function, reference, through_time
from meprop_bench.ops.recurrent import recurrent as layer
from meprop_bench.ops.recurrent.cells import CELLS
from meprop_bench.ops.recurrent.function import choose

GATES = {"lstm": 4, "gru": 3, "tanh": 1, "relu": 1}
STATES = {"lstm": 2, "gru": 1, "tanh": 1, "relu": 1}
SIZES = {
    "one step": (3,),
    "padded": (4, 4, 4, 4, 4),
    "packed": (5, 4, 4, 2, 1, 1),
    "one example": (1,) * 7,
}
needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="needs Numba (extra `cpu`)")
KERNEL_PARAMS = [pytest.param(k, marks=needs_numba) if k == "native" else k for k in KERNELS]


def make(cell, sizes, h=7, m=5, dtype=torch.float64, seed=0):
    """x, weights, states and the gradients that come from above."""
    torch.manual_seed(seed)
    width = GATES[cell] * h

    def leaf(*shape):
        return torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_()

    x = leaf(sum(sizes), m)
    weights = leaf(width, m), leaf(width, h), leaf(width), leaf(width)
    states = tuple(leaf(sizes[0], h) for _ in range(STATES[cell]))
    dy = torch.randn(sum(sizes), h, dtype=dtype)
    d_states = tuple(torch.randn(sizes[0], h, dtype=dtype) for _ in states)
    return x, weights, states, dy, d_states


def run(cell, case, sizes, reverse=False, **keywords):
    """Outputs and gradients, in the order of the oracle's."""
    x, weights, states, dy, d_states = case
    y, last = layer(cell, x, states, weights, sizes=sizes, reverse=reverse, **keywords)
    inputs = [t for t in (x, *weights, *states) if t is not None]
    return [y, *last], list(torch.autograd.grad([y, *last], inputs, [dy, *d_states]))


def oracle(cell, case, sizes, reverse, k, selection):
    x, weights, states, dy, d_states = case
    with torch.no_grad():
        return reference.run(cell, x, states, weights, sizes, reverse, k, selection, dy, d_states)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("selection", ["example", "unified"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kernel", ["masked", "embedding_bag"])
@pytest.mark.parametrize("cell", CELLS)
def test_equals_the_oracle_in_double_precision(cell, kernel, reverse, selection, sizes):
    case = make(cell, sizes)
    for k in (1, 6):
        found = run(cell, case, sizes, reverse, k=k, selection=selection, kernel=kernel)
        expected = oracle(cell, case, sizes, reverse, k, selection)
        torch.testing.assert_close(found, tuple(expected), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kernel", KERNEL_PARAMS)
@pytest.mark.parametrize("cell", CELLS)
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_equals_the_oracle_in_single_precision(cell, kernel, data):
    draw = data.draw
    sizes = tuple(sorted(draw(st.lists(st.integers(1, 9), min_size=1, max_size=8)), reverse=True))
    h, m = draw(st.integers(2, 70)), draw(st.integers(1, 40))
    k = draw(st.one_of(st.just(1), st.just(h - 1), st.integers(1, h - 1)))
    reverse, selection = draw(st.booleans()), draw(st.sampled_from(["example", "unified"]))
    case = make(cell, sizes, h, m, torch.float32, seed=draw(st.integers(0, 2**31)))
    with torch.no_grad():  # smaller weights, as layers have: else rounding grows from step to step
        for w in case[1]:
            w.div_(math.sqrt(h + m))
    found = run(cell, case, sizes, reverse, k=k, selection=selection, kernel=kernel)
    expected = oracle(cell, case, sizes, reverse, k, selection)
    for y, e in zip(found[0], expected[0], strict=True):
        torch.testing.assert_close(y.double(), e, rtol=1e-4, atol=1e-5)
    # Rounding may exchange two entries of nearly the same magnitude, the smallest ones kept: then a few gradients
    # differ by about as much as those are. More than that is an error.
    for grad, e in zip(found[1], expected[1], strict=True):
        far = (grad.double() - e).abs() > 1e-3 * (1 + e.abs())
        assert far.double().mean() < 0.02 or (grad.double() - e).norm() < 0.05 * e.norm()


TORCH = {"lstm": nn.LSTM, "gru": nn.GRU, "tanh": nn.RNN, "relu": nn.RNN}


@needs_numba
@pytest.mark.parametrize("h", [2, 3, 16, 37, 50])  # rows of W_hh in blocks of four, columns in whole vectors, and not
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_one_example_has_a_loop_of_its_own(cell, reverse, h):
    sizes = (1,) * 5
    case = make(cell, sizes, h, 6, torch.float32)
    with torch.no_grad():
        for w in case[1]:
            w.div_(math.sqrt(h + 6))
    k = max(1, h // 3)
    found = run(cell, case, sizes, reverse, k=k, kernel="native")
    expected = oracle(cell, case, sizes, reverse, k, "example")
    for got, e in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
        torch.testing.assert_close(got.double(), e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNEL_PARAMS)
@pytest.mark.parametrize("selection", ["example", "unified"])
@pytest.mark.parametrize("cell", CELLS)
def test_exactly_the_greatest_entries_of_each_gate_are_kept(cell, selection, kernel):
    """One time step, and h' of example e is the e-th unit vector: column e of dW_hh is S(d) of that example."""
    h, k, batch, gates = 60, 7, 9, GATES[cell]
    x, weights, states, dy, d_states = make(cell, (batch,), h, 5, torch.float32)
    states = (torch.eye(h)[:batch].requires_grad_(), *states[1:])
    case = (x, weights, states, dy, d_states)
    d = oracle(cell, case, (batch,), False, h, selection)[1][2][:, :batch].float()  # (G h, B), all of d
    kept = run(cell, case, (batch,), k=k, selection=selection, kernel=kernel)[1][2][:, :batch]
    r = 1.0
    if cell == "gru":  # the selection is made before r, which is σ(a + b) of the first gate
        a = x @ weights[0].t() + weights[2] + states[0] @ weights[1].t() + weights[3]
        r = torch.cat((torch.ones(2 * h, batch), a[:, :h].sigmoid().t())).detach()
    magnitudes = (d / r).abs().view(gates, h, batch)
    if selection == "unified":
        magnitudes = magnitudes.sum(2, keepdim=True).expand(-1, -1, batch)
    place = magnitudes.argsort(1, descending=True).argsort(1).view(gates * h, batch)
    assert torch.equal(kept.ne(0), (place < k) & d.ne(0))
    torch.testing.assert_close(kept, d * (place < k), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_with_all_neurons_kept_it_is_torchs_layer(cell, reverse):
    """Both the oracle and our own loops, which a layer leaves to torch's in this case."""
    sizes = (5, 4, 4, 2, 1, 1)
    case = make(cell, sizes)
    x, weights, states, dy, d_states = case
    keywords = {"nonlinearity": cell} if TORCH[cell] is nn.RNN else {}
    dense = TORCH[cell](5, 7, bidirectional=True, dtype=torch.float64, **keywords)
    for name, w in zip(dense._all_weights[int(reverse)], weights, strict=True):
        getattr(dense, name).data = w.detach().clone()
    hx = tuple(torch.stack((s, s)) for s in states)
    packed = PackedSequence(x, torch.tensor(sizes))
    y, last = dense(packed, hx if cell == "lstm" else hx[0])
    last = last if cell == "lstm" else (last,)
    outputs = [y.data.chunk(2, 1)[reverse], *(s[int(reverse)] for s in last)]
    inputs = [x, *(getattr(dense, name) for name in dense._all_weights[int(reverse)]), *states]
    expected = outputs, list(torch.autograd.grad(outputs, inputs, [dy, *d_states]))
    torch.testing.assert_close(oracle(cell, case, sizes, reverse, 7, "example"), expected, rtol=1e-9, atol=1e-10)
    for kernel in ("masked", "embedding_bag"):
        steps = through_time.Steps(sizes, reverse)
        call = function._Call(CELLS[cell], steps, 7, "example", through_time.forward, kernel)
        outputs = list(function._Layer.apply(call, x, *weights, *states))
        found = outputs, list(torch.autograd.grad(outputs, [x, *weights, *states], [dy, *d_states]))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_the_gru_selects_by_gate_not_by_matrix():
    """Where r is all but 0, the new gate's neurons are those of the input side, whatever W_hh's side would choose."""
    torch.manual_seed(0)
    x, h = torch.randn(1, 3, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)
    w_ih = torch.zeros(12, 3, dtype=torch.float64)
    b_ih = torch.tensor([20.0, -20, 20, -20, *[0.0] * 8], dtype=torch.float64)  # r = 1, 0, 1, 0
    w_ih, w_hh = w_ih.requires_grad_(), torch.zeros(12, 4, dtype=torch.float64, requires_grad=True)
    y, _ = layer("gru", x, (h,), (w_ih, w_hh, b_ih, torch.zeros(12, dtype=torch.float64)), sizes=(1,), k=1)
    dy = torch.tensor([[1.0, 2, 1, 1]], dtype=torch.float64)
    d_ih, d_hh = torch.autograd.grad(y, (w_ih, w_hh), dy)
    assert d_ih[8:].ne(0).any(1).tolist() == [False, True, False, False]
    assert d_hh[8:].abs().gt(1e-6).any(1).tolist() == [False] * 4  # not neuron 0, whose r d is the greatest


@pytest.mark.parametrize("selection", ["random", "random-unified"])
def test_random_selections_keep_k_of_each_gate_and_follow_the_seed(selection):
    d = torch.randn(5, 4 * 9)
    torch.manual_seed(1)
    idx = through_time.select_in_gates(d, 4, 3, selection)
    torch.manual_seed(1)
    assert torch.equal(idx, through_time.select_in_gates(d, 4, 3, selection))
    assert (idx.div(9, rounding_mode="floor") == torch.arange(4).repeat_interleave(3)).all()
    assert all(len(set(row)) == 12 for row in idx.tolist())
    assert bool((idx == idx[0]).all()) == (selection == "random-unified")
    case = make("lstm", (3, 2), dtype=torch.float32)
    _, grads = run("lstm", case, (3, 2), k=2, selection=selection)
    rows = grads[2].view(4, 7, 7).ne(0).any(2).sum(1)
    assert ((rows >= 2) & (rows <= 7)).all()
    torch.testing.assert_close(grads[3], grads[4])  # the biases' gradients are full, hence equal


@pytest.mark.parametrize("kernel", KERNEL_PARAMS)
@pytest.mark.parametrize("selection", ["example", "unified"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("wild", [math.nan, math.inf])
def test_non_finite_gradients_come_through(cell, selection, kernel, wild):
    sizes = (3, 3, 2)
    case = make(cell, sizes, dtype=torch.float32)
    if cell == "relu":  # a neuron that is off stops any gradient: keep them on
        case[1][2].data.fill_(100.0)
    case[3][6, 2] = wild  # time step 2, example 0
    _, (dx, dw_ih, dw_hh, db_ih, db_hh, dh, *_) = run(cell, case, sizes, k=2, selection=selection, kernel=kernel)
    for grad in (dx[6], dw_ih, dw_hh, db_ih, db_hh, dh[0]):
        assert not grad.isfinite().all()
    if selection == "example":
        assert dx[7].isfinite().all()  # the other examples are not spoiled
        assert dh[1].isfinite().all()


@pytest.mark.parametrize("kernel", KERNEL_PARAMS)
@pytest.mark.parametrize("cell", CELLS)
def test_non_finite_inputs_come_through(cell, kernel):
    x, weights, states, _, _ = make(cell, (2, 2), dtype=torch.float32)
    with torch.no_grad():
        x[0, 1] = math.nan
    y, last = layer(cell, x, states, weights, sizes=(2, 2), k=2, kernel=kernel)
    assert y[[0, 2]].isnan().all()
    assert last[0][0].isnan().all()
    assert y[[1, 3]].isfinite().all()


@pytest.mark.parametrize("kernel", KERNEL_PARAMS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_gradient_of_zeros_and_ties(cell, kernel):
    sizes = (3, 3, 1)
    x, weights, states, dy, d_states = make(cell, sizes, dtype=torch.float32)
    nothing = (x, weights, states, torch.zeros_like(dy), tuple(torch.zeros_like(d) for d in d_states))
    for selection in ("example", "unified"):
        _, grads = run(cell, nothing, sizes, k=3, selection=selection, kernel=kernel)
        assert not any(grad.any() for grad in grads)
    few = torch.zeros_like(dy)
    few[0, 4] = few[2, 6] = 1.0  # fewer entries than k: every kernel keeps the same, and the oracle does
    case = (x, weights, states, few, nothing[4])
    for selection in ("example", "unified"):
        _, grads = run(cell, case, (3, 3, 1), k=6, selection=selection, kernel=kernel)
        _, expected = oracle(cell, case, sizes, False, 6, selection)
        for grad, e in zip(grads, expected, strict=True):
            torch.testing.assert_close(grad.double(), e, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_frozen_inputs_get_no_gradient(cell):
    sizes = (3, 2)
    x, weights, states, dy, d_states = make(cell, sizes, dtype=torch.float32)
    case = (x.detach(), (weights[0], weights[1].detach(), weights[2].detach(), weights[3]), states, dy, d_states)
    for kernel in ("masked", "auto"):
        y, last = layer(cell, *case[:1], case[2], case[1], sizes=sizes, k=3, kernel=kernel)
        wanted = [weights[0], weights[3], *states]
        grads = torch.autograd.grad([y, *last], wanted, [dy, *d_states])
        _, everything = run(cell, (x, weights, states, dy, d_states), sizes, k=3, kernel=kernel)
        torch.testing.assert_close(list(grads), [everything[1], everything[4], *everything[5:]])


def transposed(tensor):
    return tensor.detach().mT.contiguous().mT


def unaligned(tensor):
    around = torch.full((17,), math.nan)  # what is read beyond the numbers would show
    return torch.cat((around, tensor.detach().flatten(), around))[17:-17].view(tensor.shape)


@pytest.mark.parametrize("arrange", [transposed, unaligned])
@pytest.mark.parametrize("sizes", [(4, 4, 2), (1, 1)])
@pytest.mark.parametrize("cell", CELLS)
def test_without_biases_and_with_odd_strides(cell, sizes, arrange):
    x, weights, states, dy, d_states = make(cell, sizes, dtype=torch.float32)
    strided = [arrange(t).requires_grad_() for t in (x, *weights[:2], *states)]
    zeros = torch.zeros_like(weights[2])
    for kernel in ("masked", "embedding_bag", "auto"):
        got = layer(cell, strided[0], tuple(strided[3:]), (*strided[1:3], None, None), sizes=sizes, k=3, kernel=kernel)
        want = layer(cell, x, states, (*weights[:2], zeros, zeros), sizes=sizes, k=3, kernel=kernel)
        torch.testing.assert_close(got, want)
        grads = torch.autograd.grad([got[0], *got[1]], strided, [arrange(dy), *(arrange(d) for d in d_states)])
        plain = torch.autograd.grad([want[0], *want[1]], [x, *weights[:2], *states], [dy, *d_states])
        torch.testing.assert_close(grads, plain)


def test_inputs_and_outputs_are_left_alone():
    for cell in CELLS:
        case = make(cell, (3, 3), dtype=torch.float32)
        x, weights, states, dy, d_states = case
        before = [t.detach().clone() for t in (x, *weights, *states, dy, *d_states)]
        y, last = layer(cell, x, states, weights, sizes=(3, 3), k=2)
        first = torch.autograd.grad([y, *last], [x, *states], [dy, *d_states], retain_graph=True)
        y.detach().zero_()  # an output is the caller's: nothing kept for backward lies there
        for s in last:
            s.detach().fill_(9.0)
        again = torch.autograd.grad([y, *last], [x, *states], [dy, *d_states])
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        after = [x, *weights, *states, dy, *d_states]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("selection", ["example", "unified"])
@pytest.mark.parametrize("cell", CELLS)
def test_double_backward_holds_the_selection_fixed(cell, selection):
    sizes = (3, 2)
    x, weights, states, dy, d_states = make(cell, sizes, h=4, m=3)
    dy.requires_grad_()
    leaves = [x, *weights, *states, dy]

    def first(*leaves):
        x, weights, states, dy = leaves[0], leaves[1:5], leaves[5:-1], leaves[-1]
        y, last = layer(cell, x, states, weights, sizes=sizes, k=2, selection=selection)
        return torch.autograd.grad([y, *last], leaves[:-1], [dy, *d_states], create_graph=True)

    _, expected = run(cell, (x, weights, states, dy, d_states), sizes, k=2, selection=selection)
    torch.testing.assert_close(list(first(*leaves)), expected)
    assert torch.autograd.gradcheck(lambda *leaves: first(*leaves)[:3], leaves, eps=1e-7, atol=1e-4)


@pytest.mark.parametrize("cell", CELLS)
def test_torch_func(cell):
    sizes = (3, 3)
    x, weights, states, dy, d_states = make(cell, sizes)

    def loss(x, *weights):
        y, last = layer(cell, x, states, weights, sizes=sizes, k=2)
        return (y * dy).sum() + sum((s * d).sum() for s, d in zip(last, d_states, strict=True))

    x, *weights = (t.detach() for t in (x, *weights))
    states = tuple(s.detach() for s in states)
    grads = torch.func.grad(loss, argnums=(0, 1, 2, 3, 4))(x, *weights)
    case = (x, weights, states, dy, d_states)
    torch.testing.assert_close(list(grads), oracle(cell, case, sizes, False, 2, "example")[1][:5])
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(0, *[None] * 4))(torch.stack((x, 2 * x)), *weights)
    torch.testing.assert_close(each[0], grads[0])


@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("order", ["compiled", "compiled grad", "grad of compiled"])
def test_compiled_it_is_never_silently_dense(order, fullgraph):
    torch._dynamo.reset()
    sizes = (3, 3)
    x, weights, states, dy, _ = make("lstm", sizes)

    def loss(x):
        return (layer("lstm", x, states, weights, sizes=sizes, k=2)[0] * dy).sum()

    def compiled(f):
        return torch.compile(f, backend="aot_eager", fullgraph=fullgraph)

    expected = torch.autograd.grad(loss(x), x)[0]
    plain = x.detach()
    try:
        if order == "compiled":
            found = torch.autograd.grad(compiled(loss)(x), x)[0]
        elif order == "compiled grad":
            found = compiled(torch.func.grad(loss))(plain)
        else:
            found = torch.func.grad(compiled(loss))(plain)
    except Exception:  # noqa: BLE001 (whatever the compiler raises is better than a wrong gradient)
        assert fullgraph or order != "compiled"
        return
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("cell", CELLS)
def test_half_precision(cell):
    sizes = (3, 3, 2)
    case = make(cell, sizes, dtype=torch.bfloat16)
    with torch.no_grad():
        for w in case[1]:
            w.div_(3)
    outputs, grads = run(cell, case, sizes, k=6, kernel="masked")
    expected = oracle(cell, case, sizes, False, 6, "example")
    for got, e in zip([*outputs, *grads], [*expected[0], *expected[1]], strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.double() - e).norm() < 0.1 * e.norm()
    assert all(g.dtype == torch.bfloat16 for g in run(cell, case, sizes, k=2)[1])


class Seen(list):
    """A record that keeps what it is told."""

    enabled = True

    def __call__(self, dy, idx):
        self.append((dy.detach().clone(), idx.clone()))


@pytest.mark.parametrize("selection", ["example", "unified"])
@pytest.mark.parametrize("kernel", KERNEL_PARAMS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_record_is_told_what_was_selected_of_what(cell, kernel, selection):
    """Once for all time steps: the bias gradient is the sum of all, dW_ih the product of what was selected."""
    sizes = SIZES["packed"]
    case = make(cell, sizes, dtype=torch.float32)
    seen = Seen()
    keywords = {"k": 3, "kernel": kernel, "selection": selection}
    _, grads = run(cell, case, sizes, reverse=True, record=seen, **keywords)
    ((dy, idx),) = seen
    rows, width = sum(sizes), GATES[cell] * 7
    assert (dy.shape, idx.shape, idx.dtype) == ((rows, width), (rows, GATES[cell] * 3), torch.int64)
    torch.testing.assert_close(dy.sum(0), grads[3])
    kept = torch.zeros_like(dy).scatter_(1, idx, 1)
    assert (kept.view(rows, -1, 7).sum(2) == 3).all()
    torch.testing.assert_close((dy * kept).t() @ case[0], grads[1])
    seen.enabled = False
    assert all(torch.equal(a, b) for a, b in zip(run(cell, case, sizes, True, record=seen, **keywords)[1], grads,
                                                 strict=True))  # fmt: skip
    assert len(seen) == 1


@needs_numba
@pytest.mark.parametrize("selection", ["example", "unified"])
@pytest.mark.parametrize("cell", CELLS)
def test_zeros_are_counted_as_with_the_other_kernels(cell, selection):
    """A layer of 16 of which two neurons get a gradient: six zeros fill up each gate of the last step."""
    sizes = (3, 3, 1)
    x, weights, states, dy, d_states = make(cell, sizes, h=16, dtype=torch.float32)
    dy[:, 2:] = 0
    dy[1] = 0
    d_states = tuple(torch.zeros_like(d) for d in d_states)
    found = {}
    for kernel in ("native", "masked"):
        found[kernel] = Activeness(16, gates=GATES[cell], count_zeros=True)
        case = x, weights, states, dy, d_states
        run(cell, case, sizes, reverse=True, record=found[kernel], k=8, selection=selection, kernel=kernel)
    hits = found["native"]._hits
    assert hits.sum() == sum(sizes) * GATES[cell] * 8
    assert hits.max() <= found["native"].examples == sum(sizes)
    assert torch.equal(hits, found["masked"]._hits)
    seen = Seen()
    run(cell, case, sizes, reverse=True, record=seen, k=8, selection=selection, kernel="native")
    ((d, idx),) = seen
    by_gate = idx.view(len(d), GATES[cell], 8).sort(2).values
    assert (by_gate.diff(dim=2) > 0).all()  # also who does not count zeros gets distinct neurons


@needs_numba
def test_what_32_bits_cannot_count_is_refused_or_left_to_another_kernel():
    """Without the memory: expanded tensors have the shapes alone."""
    x, w_ih, w_hh, h = (torch.empty(1).expand(shape) for shape in ((1 << 25, 3), (64, 3), (64, 16), (1 << 25, 16)))
    weights = w_ih, w_hh, None, None
    assert choose("auto", 8, "example", weights, x, h)[1] == "native"
    assert choose("auto", 16, "example", weights, x, h)[1] != "native"
    with pytest.raises(ValueError, match="32 bits"):
        choose("native", 16, "example", weights, x, h)


def test_a_record_is_told_once_when_gradients_are_differentiated_again():
    x, weights, states, dy, _ = make("lstm", (3, 3))
    seen = Seen()
    y, _ = layer("lstm", x, states, weights, sizes=(3, 3), k=2, record=seen)
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    dx.pow(2).sum().backward()
    assert len(seen) == 1


@pytest.mark.parametrize("inside", [False, True])
def test_autocast_casts_and_gives_full_gradients_back(inside):
    sizes = (3, 3)
    x, weights, states, dy, d_states = make("lstm", sizes, dtype=torch.float32)
    leaves = [x, *weights, *states]
    with torch.autocast("cpu", torch.bfloat16):
        y, last = layer("lstm", x, states, weights, sizes=sizes, k=3)
        assert {t.dtype for t in (y, *last)} == {torch.bfloat16}
        if inside:
            grads = torch.autograd.grad([y, *last], leaves, [t.bfloat16() for t in (dy, *d_states)])
    if not inside:
        grads = torch.autograd.grad([y, *last], leaves, [t.bfloat16() for t in (dy, *d_states)])
    assert {g.dtype for g in grads} == {torch.float32}
    _, expected = run("lstm", (x, weights, states, dy, d_states), sizes, k=3)
    assert (grads[3] - expected[3]).norm() < 0.1 * expected[3].norm()


@needs_numba
@pytest.mark.parametrize("selection", ["example", "unified"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_number_of_threads_changes_rounding_alone(cell, selection, monkeypatch):
    from meprop_bench.ops.recurrent import native

    sizes = (40, 40, 33, 7, 1)
    case = make(cell, sizes, h=130, m=20, dtype=torch.float32)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(run(cell, case, sizes, k=9, selection=selection))
    monkeypatch.setattr(native, "OPENMP", 0)
    results.append(run(cell, case, sizes, k=9, selection=selection))
    for other in results[1:]:
        for a, b in zip([*results[0][0], *results[0][1]], [*other[0], *other[1]], strict=True):
            assert (a - b).norm() <= 1e-4 * a.norm()


@needs_numba
@pytest.mark.parametrize(("name", "limit"), [("sigmoid", 2.5e-7), ("tanh", 3e-7)])
def test_non_linear_functions_are_exact_up_to_rounding(name, limit):
    from meprop_bench.ops.recurrent import native

    x = torch.cat([torch.linspace(-s, s, 9001) for s in (0.01, 1.0, 9.0, 40.0)])
    x = torch.cat((x, torch.tensor([0.0, math.inf, -math.inf, math.nan]))).unsqueeze(1)
    zeros, ones = torch.zeros(4, 1), torch.ones(4, 1)
    cell = CELLS["lstm"] if name == "sigmoid" else CELLS["tanh"]
    w = ones[: cell.gates]
    states = tuple(torch.zeros(len(x), 1) for _ in range(cell.states))
    steps = through_time.Steps((len(x),), False)
    kept = native.forward(cell, x, states, (w, zeros[: cell.gates], None, None), steps)[2]
    found, expected = kept[1][:, 0].double(), getattr(torch, name)(x[:, 0].double())
    finite = expected.isfinite() & (expected.abs() > 1e-37)
    assert ((found - expected).abs() <= limit * expected.abs())[finite].all()
    assert found[-1].isnan()
    assert (found[-3], abs(found[-2])) == (1.0, 1.0 if name == "tanh" else pytest.approx(0.0, abs=1e-37))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"k": 0}, "not 0"),
        ({"k": 7}, "keeps all of 7"),
        ({"k": 3, "selection": "top"}, "not 'top'"),
        ({"k": 3, "kernel": "coo"}, "masked, embedding_bag, native, auto for recurrent layers, not 'coo'"),
        ({"k": 3, "kernel": "native"}, "float32 on the CPU"),
        ({"k": 3, "kernel": "native", "selection": "random"}, "no selection 'random'"),
        ({"k": 3, "cell": "peephole"}, "not 'peephole'"),
    ],
)
def test_misuse_names_the_value(keywords, message):
    x, weights, states, _, _ = make("lstm", (2, 2))
    keywords = {"cell": "lstm", **keywords}
    with pytest.raises(ValueError, match=message):
        layer(keywords.pop("cell"), x, states, weights, sizes=(2, 2), **keywords)
