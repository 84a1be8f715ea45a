import copy
import io
import itertools
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from meprop_bench.nn import MePropLinear
from meprop_bench.optim import RowAdam, RowAdamW
from tests.optim.conftest import step_both

PAIRS = [(RowAdam, torch.optim.Adam), (RowAdamW, torch.optim.AdamW)]
SETTINGS = [
    {"lr": 0.05},
    {"lr": 0.05, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.3, "maximize": True},
    {"lr": 0.0},
]


def rows(idx, values, n):
    """A gradient `(n, *)` with the given rows; one that comes twice is summed when coalesced."""
    shape = (n, *values.shape[1:])
    return torch.sparse_coo_tensor(torch.as_tensor(idx, dtype=torch.int64)[None], values, shape, check_invariants=True)


def touched(steps=12, n=7, shape=(3,), seed=0, dtype=torch.float64):
    """For each step some distinct rows, none in the third, and their gradients `(r, *shape)`."""
    torch.manual_seed(seed)
    for step in range(steps):
        idx = torch.randperm(n)[: 0 if step == 2 else int(torch.randint(1, n, ()))]
        yield idx, torch.randn(len(idx), *shape, dtype=dtype)


class EachRow:
    """The oracle: every row is a parameter of its own, with torch's optimizer of its own."""

    def __init__(self, w, kind, **settings):
        self.rows = [nn.Parameter(row.clone()) for row in w.detach()]
        self.optimizers = [kind([row], foreach=False, **settings) for row in self.rows]

    def step(self, idx, values):
        for i, value in zip(idx.tolist(), values, strict=True):
            self.rows[i].grad = value.clone()
            self.optimizers[i].step()

    def weight(self):
        return torch.stack([row.detach() for row in self.rows])


def weight(shape=(7, 3), dtype=torch.float64):
    torch.manual_seed(1)
    return nn.Parameter(torch.randn(shape, dtype=dtype))


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("shape", [(3,), (), (2, 1, 4)])
def test_each_row_has_an_adam_of_its_own(ours, theirs, settings, shape):
    w = weight((7, *shape))
    oracle = EachRow(w, theirs, **settings)
    optim = ours([w], **settings)
    for idx, values in touched(shape=shape):
        w.grad = rows(idx, values, 7)
        optim.step()
        oracle.step(idx, values)
        torch.testing.assert_close(w.detach(), oracle.weight(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_dense_gradients_are_torchs_own_to_the_bit(ours, theirs, settings):
    a, b = [weight(), weight((7,)), weight((2, 3, 4))], [weight(), weight((7,)), weight((2, 3, 4))]
    first, second = ours(a, **settings), theirs(b, **settings)
    step_both(first, a, second, b, steps=5)
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_dense_gradients_in_compiled_code_are_torchs_to_rounding(ours, theirs, settings, compiled_alone):
    shapes = [(40, 33), (33,), (2, 3, 4)]
    a, b = ([weight(shape, torch.float32) for shape in shapes] for _ in range(2))
    first, second = ours(a, **settings), theirs(b, fused=True, **settings)
    step_both(first, a, second, b, steps=8)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(dict(first.state[p]), dict(second.state[q]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_all_rows_in_every_step_is_dense_adam(ours, theirs, dtype):
    a, b = weight(dtype=dtype), weight(dtype=dtype)
    first, second = ours([a], lr=0.05, weight_decay=0.1), theirs([b], lr=0.05, weight_decay=0.1)
    for _ in range(20):
        b.grad = torch.randn_like(b)
        order = torch.randperm(7)
        a.grad = rows(order, b.grad[order], 7)
        first.step()
        second.step()
    assert a.dtype == first.state[a]["exp_avg"].dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_half_precision_is_rounded_once_a_step():
    w = weight(dtype=torch.bfloat16)
    optim = RowAdam([w], lr=0.05)
    reference = nn.Parameter(w.detach().float())
    g = torch.randn(7, 3).bfloat16()
    w.grad, reference.grad = rows(range(7), g, 7), g.float()
    optim.step()
    torch.optim.Adam([reference], lr=0.05).step()
    assert torch.equal(w, reference.bfloat16())


def test_sparse_adam_agrees_where_the_definitions_do():
    """The same rows in all steps, and no eps, which it adds in another place."""
    a, b = weight(), weight()
    first, second = RowAdam([a], lr=0.05, eps=1e-100), torch.optim.SparseAdam([b], lr=0.05, eps=1e-100)
    for _ in range(10):
        a.grad = rows([5, 0, 2], torch.randn(3, 3, dtype=torch.float64), 7)
        b.grad = a.grad.clone()
        first.step()
        second.step()
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_a_row_first_touched_late_moves_by_lr():
    """And by 3.2 lr with SparseAdam, which corrects the bias for the steps of the optimizer."""
    moved = {}
    for kind in (RowAdam, torch.optim.SparseAdam):
        w = weight()
        optim = kind([w], lr=0.01)
        for step in range(1001):
            before = w.detach().clone()
            w.grad = rows([3 if step == 1000 else 1], torch.ones(1, 3, dtype=torch.float64), 7)
            optim.step()
        moved[kind] = (before - w.detach())[3, 0].item()
    assert moved[RowAdam] == pytest.approx(0.01, rel=1e-6)
    assert moved[torch.optim.SparseAdam] == pytest.approx(0.0316, rel=0.3)


@pytest.mark.parametrize("kind", [RowAdam, RowAdamW])
def test_rows_without_a_gradient_stay_to_the_bit(kind):
    w = weight()
    optim = kind([w], lr=0.1, weight_decay=0.5)
    for _ in range(3):
        w.grad = rows(range(7), torch.randn(7, 3, dtype=torch.float64), 7)
        optim.step()
    before, state = w.detach().clone(), copy.deepcopy(optim.state[w])
    values = torch.zeros(4, 3, dtype=torch.float64)
    values[0, 1], values[1, 0] = 1e-300, torch.nan
    w.grad = rows([4, 2, 0, 6], values, 7)  # a row of zeros is not moved, as if it were not listed
    optim.step()
    still = torch.tensor([0, 1, 3, 5, 6])
    for old, new in ((before, w.detach()), *((state[name], optim.state[w][name]) for name in state)):
        assert torch.equal(old[still], new[still])
        assert not torch.equal(old[2], new[2])
        assert not torch.equal(old[4], new[4])
    assert optim.state[w]["step"].tolist() == [3, 3, 4, 3, 4, 3, 3]


def test_no_rows_at_all():
    w = weight()
    before = w.detach().clone()
    optim = RowAdamW([w])
    w.grad = rows([], torch.empty(0, 3, dtype=torch.float64), 7)
    optim.step()
    assert torch.equal(w, before)
    assert optim.state[w]["step"].tolist() == [0] * 7


def test_duplicates_and_strides():
    a, b = weight(), nn.Parameter(weight().detach().t().contiguous().t())
    first, second = RowAdam([a]), RowAdam([b])
    for _ in range(3):
        values = torch.randn(3, 8, dtype=torch.float64).t()[::2]  # (4, 3), contiguous in neither dimension
        a.grad = rows([1, 4], torch.stack([values[0] + values[2] + values[3], values[1]]), 7)
        b.grad = rows([1, 4, 1, 1], values, 7)
        first.step()
        second.step()
    assert b.stride() == second.state[b]["exp_avg"].stride() == (1, 7)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_nan_shows_in_its_row_and_nowhere_else():
    w = weight()
    w.grad = rows([1, 2], torch.tensor([[1.0, float("nan"), 1.0], [1.0, 1.0, 1.0]], dtype=torch.float64), 7)
    RowAdam([w]).step()
    assert w.isnan().nonzero().tolist() == [[1, 1]]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_dense_and_row_gradients_of_one_weight(ours, theirs):
    """As when a schedule raises k to all neurons: a dense gradient is one of all rows."""
    w = weight()
    settings = {"lr": 0.05, "weight_decay": 0.1}
    oracle = EachRow(w, theirs, **settings)
    optim = ours([w], **settings)
    all_rows = torch.arange(7)
    for step, (idx, values) in enumerate(touched()):
        if step in {0, 1, 5, 9}:
            w.grad = torch.randn(7, 3, dtype=torch.float64)
            oracle.step(all_rows, w.grad)
        else:
            w.grad = rows(idx, values, 7)
            oracle.step(idx, values)
        optim.step()
    torch.testing.assert_close(w.detach(), oracle.weight(), rtol=1e-12, atol=1e-13)


def test_one_optimizer_for_a_whole_model():
    """A unified layer that gives rows trains as one whose dense gradient is split up by the oracle."""
    torch.manual_seed(0)
    model = nn.Sequential(
        MePropLinear(5, 20, k=3, selection="unified", sparse=True, kernel="masked"), nn.ReLU(), nn.Linear(20, 4)
    )
    twin = copy.deepcopy(model)
    twin[0].sparse = False
    optim = RowAdam(model.parameters(), lr=0.01)
    dense = torch.optim.Adam([*twin[2].parameters(), twin[0].bias], lr=0.01)
    oracle = EachRow(twin[0].weight, torch.optim.Adam, lr=0.01)
    for _ in range(6):
        x, y = torch.randn(8, 5), torch.randint(4, (8,))
        for net in (model, twin):
            net.zero_grad()
            F.cross_entropy(net(x), y).backward()
        kept = model[0].weight.grad.coalesce().indices()[0]
        oracle.step(kept, twin[0].weight.grad[kept])
        optim.step()
        dense.step()
        with torch.no_grad():
            twin[0].weight.copy_(oracle.weight())
    torch.testing.assert_close(model.state_dict(), twin.state_dict())


def test_closure_zero_grad_and_accumulation():
    model = MePropLinear(5, 20, k=3, sparse=True, kernel="masked")
    optim = RowAdam(model.parameters(), lr=0.1)
    x = torch.randn(6, 5)

    def closure():
        optim.zero_grad(set_to_none=False)
        loss = (model(x).pow(2).mean() + model(2 * x).pow(2).mean()) / 2
        loss.backward()
        return loss

    losses = [optim.step(closure).item() for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]
    optim.zero_grad()
    assert model.weight.grad is None
    before = copy.deepcopy(model.state_dict())
    assert optim.step() is None
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())


def test_groups_and_learning_rate_schedules():
    a, b, c = weight(), weight(), weight()
    optim = RowAdam([{"params": [a], "lr": 0.2}], lr=0.1)
    optim.add_param_group({"params": [b]})
    optim.add_param_group({"params": [c], "weight_decay": 0.5})
    decay = torch.optim.lr_scheduler.LambdaLR(optim, lambda step: 0.0 if step == 1 else 1.0)
    before = a.detach().clone()
    for p in (a, b, c):
        p.grad = rows([2], torch.ones(1, 3, dtype=torch.float64), 7)
    optim.step()
    moved = [(before - p.detach())[2] for p in (a, b, c)]
    torch.testing.assert_close(moved[:2], [torch.full((3,), lr, dtype=torch.float64) for lr in (0.2, 0.1)])
    decay.step()
    optim.step()
    assert torch.equal((before - a.detach())[2], moved[0])


@pytest.mark.parametrize("kind", [RowAdam, RowAdamW])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_state_dict_round_trip(kind, dtype):
    def go(w, bias, optim, steps):
        for idx, values in steps:
            w.grad = rows(idx, values, 7)
            bias.grad = torch.ones_like(bias)
            optim.step()

    steps = list(touched(steps=700, dtype=dtype))  # 700 is no bfloat16: counts must not be cast to the weights' dtype
    w, bias = weight(dtype=dtype), weight((7,), dtype=dtype)
    optim = kind([w, bias], lr=0.01)
    go(w, bias, optim, steps[:600])
    file = io.BytesIO()
    torch.save(optim.state_dict(), file)
    file.seek(0)
    again = [nn.Parameter(p.detach().clone()) for p in (w, bias)]
    loaded = kind(again)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert loaded.param_groups[0]["lr"] == 0.01
    go(w, bias, optim, steps[600:])
    go(*again, loaded, steps[600:])
    assert torch.equal(w, again[0])
    assert torch.equal(bias, again[1])
    assert optim.state[w]["step"].dtype == torch.float32
    assert repr(copy.deepcopy(optim)) == repr(optim)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_training_goes_on_from_torchs_checkpoint(ours, theirs):
    w = weight()
    before = theirs([w], lr=0.05)
    oracle = EachRow(w, theirs, lr=0.05)
    all_rows = torch.arange(7)
    for _ in range(3):
        w.grad = torch.randn_like(w)
        oracle.step(all_rows, w.grad)
        before.step()
    optim = ours([w])
    optim.load_state_dict(before.state_dict())
    for idx, values in touched():
        w.grad = rows(idx, values, 7)
        optim.step()
        oracle.step(idx, values)
    torch.testing.assert_close(w.detach(), oracle.weight(), rtol=1e-12, atol=1e-13)


def checkpoint(change, kind=torch.optim.Adam):
    """Of torch's optimizer after three steps of a weight, changed."""
    w = weight()
    optim = kind([w], lr=0.05)
    for _ in range(3):
        w.grad = torch.ones_like(w)
        optim.step()
    state = copy.deepcopy(optim.state_dict())
    change(state["state"][0], state["param_groups"][0])
    return w, state


def drop(*names):
    return lambda state, group: [group.pop(name, None) for name in names]


@pytest.mark.parametrize("kind", ["rows", "dense"])
@pytest.mark.parametrize(
    "change",
    [
        lambda state, group: None,
        lambda state, group: state.update(step=3),
        lambda state, group: state.update(step=3.0),
        lambda state, group: state.update(step=np.int64(3)),
        lambda state, group: state.update(step=torch.tensor(3)),
        lambda state, group: state.update(step=torch.tensor([3.0], dtype=torch.float64)),
        lambda state, group: group.update(lr=torch.tensor(0.05), capturable=True, betas=[0.9, 0.999]),
        lambda state, group: state.update({name: state[name].double() for name in ("exp_avg", "exp_avg_sq")}),
        drop("maximize", "weight_decay", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"),
    ],
)
def test_every_form_of_a_checkpoint_goes_on_as_torchs_does(change, kind):
    w, state = checkpoint(change)
    w = w.detach().float()
    g = torch.full((7, 3), 0.5)
    ours, theirs = nn.Parameter(w.clone()), nn.Parameter(w.clone())
    first, second = RowAdam([ours]), torch.optim.Adam([theirs])
    first.load_state_dict(copy.deepcopy(state))
    second.load_state_dict(checkpoint(lambda state, group: None)[1])
    for optim in (first, second):
        for _ in range(2):
            ours.grad, theirs.grad = rows(range(7), g, 7) if kind == "rows" else g.clone(), g.clone()
            optim.step()
    torch.testing.assert_close(ours, theirs)
    assert {t.dtype for t in first.state[ours].values()} == {torch.float32}
    again = pickle.loads(pickle.dumps(first))
    assert repr(again) == repr(copy.deepcopy(first)) == repr(first)
    assert again.state_dict()["state"][0]["step"].tolist() == first.state_dict()["state"][0]["step"].tolist()


def test_the_checkpoint_of_sparse_adam_is_one():
    w = weight()
    optim = torch.optim.SparseAdam([w], lr=0.05)
    w.grad = rows(range(7), torch.ones(7, 3, dtype=torch.float64), 7)
    optim.step()
    ours = RowAdam([weight()])
    ours.load_state_dict(optim.state_dict())
    (p,) = ours.param_groups[0]["params"]
    p.grad = rows([2], torch.ones(1, 3, dtype=torch.float64), 7)
    ours.step()
    assert ours.state[p]["step"].tolist() == [1, 1, 2, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state, group: state.pop("exp_avg_sq"), "not of an Adam: a parameter has no exp_avg_sq"),
        (
            lambda state, group: state.update(exp_avg=torch.ones(3, 7)),
            r"exp_avg of a parameter \(7, 3\) has shape \(3, 7\)",
        ),
        (lambda state, group: state.update(step=torch.ones(3)), r"step of a parameter \(7, 3\) has shape \(3,\)"),
        (lambda state, group: group.update(lr=-1.0), "lr must be a number of at least 0"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_and_changes_nothing(change, message):
    _, state = checkpoint(change)
    optim = RowAdam([weight()], lr=0.5)
    with pytest.raises(ValueError, match=message):
        optim.load_state_dict(state)
    assert optim.param_groups[0]["lr"] == 0.5
    assert not optim.state


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (RowAdam, lambda p: torch.optim.Adam(p, amsgrad=True), "amsgrad=True"),
        (RowAdamW, torch.optim.Adam, "the other weight decay"),
        (RowAdam, torch.optim.AdamW, "the other weight decay"),
    ],
)
def test_another_algorithms_checkpoint_is_refused(ours, theirs, message):
    w = weight()
    theirs_ = theirs([w])
    if "decoupled_weight_decay" not in theirs_.param_groups[0] and "decay" in message:
        pytest.skip("this torch does not say in a checkpoint which weight decay it had")
    optim = ours([w], lr=0.5)
    with pytest.raises(ValueError, match=message):
        optim.load_state_dict(theirs_.state_dict())
    assert optim.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr must be a number of at least 0, not -1.0"),
        ({"lr": torch.tensor([0.1, 0.2])}, "lr must be a number"),
        ({"eps": float("nan")}, "eps must be .* not nan"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\)"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        RowAdam([weight()], **settings)
    optim = RowAdam([weight()])
    with pytest.raises(ValueError, match=message):
        optim.add_param_group({"params": [weight()], **settings})
    assert len(optim.param_groups) == 1


def test_what_is_not_supported_is_refused():
    with pytest.raises(ValueError, match="complex64"):
        RowAdam([nn.Parameter(torch.ones(2, dtype=torch.complex64))])
    with pytest.raises(ValueError, match="sparse_coo"):
        RowAdam([torch.ones(2, 2).to_sparse().requires_grad_()])
    with pytest.raises(TypeError, match="amsgrad"):
        RowAdam([weight()], amsgrad=True)
    first, second = weight(), weight()
    optim = RowAdam([first, second])
    before = first.detach().clone()
    first.grad = torch.ones_like(first)
    second.grad = torch.eye(7, 3, dtype=torch.float64).to_sparse()
    with pytest.raises(ValueError, match=r"whole rows.* parameter \(7, 3\) has 2 sparse dimensions"):
        optim.step()
    assert torch.equal(first, before), "a refused step moves nothing"


def test_learning_on_rows_alone():
    torch.manual_seed(0)
    layer = MePropLinear(5, 20, k=4, sparse=True, kernel="masked")
    x = torch.randn(64, 5)
    target = x @ torch.randn(5, 20)
    optim = RowAdamW(layer.parameters(), lr=0.05, weight_decay=0.0)
    losses = []
    for batch in itertools.islice(itertools.cycle(torch.arange(64).split(16)), 400):
        optim.zero_grad()
        loss = F.mse_loss(layer(x[batch]), target[batch])
        loss.backward()
        optim.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-2 * losses[0]
