import copy

import pytest
import torch
from torch import nn

from meprop_bench.optim import RowAdagrad
from tests.optim.conftest import VECTORS, parameters, rows, step_both

SETTINGS = [
    {"lr": 0.1, "initial_accumulator_value": 1e-6, "eps": 0.0},  # the papers'
    {"lr": 0.01},
    {"lr": 0.3, "lr_decay": 0.2, "initial_accumulator_value": 0.1, "eps": 1e-3, "maximize": True},
]
SHAPES = [(500, 784), (10, 500), (500,), (1,), (17,), (64, 3), (3, 5, 7)]


def same_bits(found, expected):
    """Whether two are equal to the bit; to the last places where torch's fused steps have no multiply-adds."""
    if not VECTORS:
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=2e-6)  # of five steps
        return True
    return torch.equal(found, expected)


@pytest.mark.parametrize("settings", [*SETTINGS, {"lr": 0.1, "weight_decay": 0.2}])
def test_dense_gradients_give_the_bits_of_torchs_fused_step(settings, two_threads, compiled_alone):
    ps, qs = parameters(*SHAPES), parameters(*SHAPES)
    first, second = RowAdagrad(ps, **settings), torch.optim.Adagrad(qs, fused=True, **settings)
    step_both(first, ps, second, qs, steps=5, generator=torch.Generator().manual_seed(0))
    for p, q in zip(ps, qs, strict=True):
        assert same_bits(p, q)
        assert same_bits(first.state[p]["sum"], second.state[q]["sum"])
        assert first.state[p]["step"] == second.state[q]["step"] == 5


@pytest.mark.parametrize("settings", SETTINGS)
def test_rows_give_the_bits_of_torchs_fused_step_for_the_dense_gradient(settings, two_threads, compiled_alone):
    """The same algorithm: a row without a gradient stays as it is in both."""
    shapes = [shape for shape in SHAPES if len(shape) > 1]
    ps, qs = parameters(*shapes), parameters(*shapes)
    first, second = RowAdagrad(ps, **settings), torch.optim.Adagrad(qs, fused=True, **settings)
    step_both(first, ps, second, qs, steps=6, generator=torch.Generator().manual_seed(0), by_rows=True)
    for p, q in zip(ps, qs, strict=True):
        assert same_bits(p, q)
        assert same_bits(first.state[p]["sum"], second.state[q]["sum"])


@pytest.mark.parametrize("settings", SETTINGS)
def test_torchs_sparse_step_agrees_to_rounding(settings, how):
    (p,), (q,) = parameters((30, 20)), parameters((30, 20))
    first, second = RowAdagrad([p], **settings), torch.optim.Adagrad([q], **settings)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        idx = torch.randperm(30, generator=generator)[:7].sort().values
        p.grad = rows(idx, torch.randn(7, 20, generator=generator), 30)
        q.grad = p.grad.clone()
        first.step()
        second.step()
    torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_weight_decay_moves_all_rows_as_torchs_does_by_the_dense_gradient(how):
    settings = {"lr": 0.1, "weight_decay": 0.3}
    (p,), (q,) = parameters((30, 20)), parameters((30, 20))
    first, second = RowAdagrad([p], **settings), torch.optim.Adagrad([q], **settings)
    assert first.moves_all_rows(first.param_groups[0])
    for seed in range(4):
        p.grad = rows([3, 20], torch.randn(2, 20, generator=torch.Generator().manual_seed(seed)), 30)
        q.grad = p.grad.to_dense()
        first.step()
        second.step()
    torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_where_torch_divides_zero_by_zero_a_weight_without_a_gradient_stays(how):
    (p,) = parameters((4, 3))
    before = p.detach().clone()
    p.grad = rows([2], torch.ones(1, 3), 4)
    RowAdagrad([p], lr=0.1, eps=0.0).step()
    assert torch.equal(p[[0, 1, 3]], before[[0, 1, 3]])
    torch.testing.assert_close(p[2], before[2] - 0.1)


def go(optimizer, ps, seeds, *, by_rows):
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for p in ps:
            p.grad = torch.randn(p.shape, generator=generator)
            if p.dim() > 1 and by_rows:
                p.grad = rows([0, 2], p.grad[[0, 2]], len(p))
        optimizer.step()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("settings", SETTINGS)
def test_checkpoints_go_from_torch_to_here_and_back(settings, fused, how):
    """Three thirds of a training, the second one here, against one that was torch's throughout."""
    ps, qs = parameters((6, 5), (6,)), parameters((6, 5), (6,))
    whole = torch.optim.Adagrad(qs, fused=fused, **settings)
    go(whole, qs, range(9), by_rows=False)
    first = torch.optim.Adagrad(ps, fused=fused, **settings)
    go(first, ps, range(3), by_rows=False)
    second = RowAdagrad(ps)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.param_groups[0]["lr"] == settings["lr"]
    go(second, ps, range(3, 6), by_rows=False)
    third = torch.optim.Adagrad(ps)
    third.load_state_dict(copy.deepcopy(second.state_dict()))
    assert bool(third.param_groups[0]["fused"]) == fused
    go(third, ps, range(6, 9), by_rows=False)
    for p, q in zip(ps, qs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        assert third.state[p]["step"] == 9


def test_a_new_state_is_torchs():
    ps = parameters((6, 5), (6,))
    settings = {"lr": 0.1, "initial_accumulator_value": 0.5}
    ours, theirs = RowAdagrad(ps, **settings).state_dict(), torch.optim.Adagrad(ps, **settings).state_dict()
    torch.testing.assert_close(ours["state"], theirs["state"], rtol=0, atol=0)
    assert ours["param_groups"][0].items() <= theirs["param_groups"][0].items()


def checkpoint(change):
    ps = parameters((6, 5))
    optimizer = torch.optim.Adagrad(ps, lr=0.05)
    go(optimizer, ps, range(3), by_rows=False)
    state = copy.deepcopy(optimizer.state_dict())
    change(state["state"][0], state["param_groups"][0])
    return ps, state


@pytest.mark.parametrize(
    "change",
    [
        lambda state, group: None,
        lambda state, group: state.update(step=3),
        lambda state, group: state.update(step=torch.tensor(3)),
        lambda state, group: state.update(step=torch.tensor([3.0], dtype=torch.float64)),
        lambda state, group: state.update(sum=state["sum"].double()),
        lambda state, group: group.update(lr=torch.tensor(0.05)),
        lambda state, group: [group.pop(name) for name in ("maximize", "foreach", "differentiable", "fused")],
    ],
)
def test_every_form_of_a_checkpoint_goes_on_as_torchs_does(change, how):
    ps, state = checkpoint(change)
    qs = [nn.Parameter(p.detach().clone()) for p in ps]
    first, second = RowAdagrad(ps), torch.optim.Adagrad(qs)
    first.load_state_dict(copy.deepcopy(state))
    second.load_state_dict(checkpoint(lambda state, group: None)[1])
    go(first, ps, range(3, 5), by_rows=True)
    go(second, qs, range(3, 5), by_rows=True)
    torch.testing.assert_close(ps, qs)
    assert repr(copy.deepcopy(first)) == repr(first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state, group: state.pop("sum"), "not of an Adagrad: a parameter has no sum"),
        (lambda state, group: state.update(sum=torch.ones(5, 6)), r"sum of a parameter \(6, 5\) has shape \(5, 6\)"),
        (lambda state, group: state.update(step=torch.ones(6)), r"step of a parameter \(6, 5\) has shape \(6,\)"),
        (lambda state, group: group.update(eps=-1.0), "eps must be a number of at least 0"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_and_changes_nothing(change, message):
    ps, state = checkpoint(change)
    optimizer = RowAdagrad(ps, lr=0.5)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.5
    torch.testing.assert_close(optimizer.state_dict()["state"], before["state"])


def test_a_state_that_has_gone_is_made_anew(how):
    """As after `optimizer.state.clear()`."""
    (p,), (q,) = parameters((4, 3)), parameters((4, 3))
    first, second = RowAdagrad([p], lr=0.1), torch.optim.Adagrad([q], lr=0.1)
    for optimizer, w in ((first, p), (second, q)):
        go(optimizer, [w], range(2), by_rows=False)
        optimizer.state.clear()
        go(optimizer, [w], range(2, 4), by_rows=False)
    torch.testing.assert_close(p, q)


@pytest.mark.parametrize("name", ["lr_decay", "initial_accumulator_value", "eps"])
def test_its_own_settings_are_checked(name):
    with pytest.raises(ValueError, match=f"{name} must be a number of at least 0, not -1"):
        RowAdagrad(parameters((2,)), **{name: -1})
