import copy

import pytest
import torch

from meprop_bench.optim import RowSGD
from tests.optim.conftest import VECTORS, parameters, rows, step_both

SETTINGS = [
    {"lr": 0.1},
    {"lr": 0.03, "maximize": True},
    {"lr": 0.1, "weight_decay": 0.2},
    {"lr": 0.1, "momentum": 0.9},
    {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True},
]
SHAPES = [(500, 784), (10, 500), (500,), (1,), (17,), (64, 3), (3, 5, 7)]


def same_bits(found, expected, settings):
    """Whether two are equal to the bit; to the last places where torch's fused steps have no multiply-adds, and where
    its compiler rounded another product: in the momentum of the numbers after the last whole vector.
    """
    found, expected = found.detach().flatten(), expected.detach().flatten()
    bits = 0 if not VECTORS else len(found) // 16 * 16 if "momentum" in settings else len(found)
    torch.testing.assert_close(found[bits:], expected[bits:], rtol=1e-6, atol=2e-6)  # of five steps
    return torch.equal(found[:bits], expected[:bits])


@pytest.mark.parametrize("settings", SETTINGS)
def test_dense_gradients_give_the_bits_of_torchs_fused_step(settings, two_threads, compiled_alone):
    ps, qs = parameters(*SHAPES), parameters(*SHAPES)
    first, second = RowSGD(ps, **settings), torch.optim.SGD(qs, fused=True, **settings)
    step_both(first, ps, second, qs, steps=5, generator=torch.Generator().manual_seed(0))
    for p, q in zip(ps, qs, strict=True):
        assert same_bits(p, q, settings)
        if "momentum" in settings:
            assert same_bits(first.state[p]["momentum_buffer"], second.state[q]["momentum_buffer"], settings)


@pytest.mark.parametrize("settings", SETTINGS)
def test_rows_give_the_bits_of_torchs_fused_step_for_the_dense_gradient(settings, two_threads, compiled_alone):
    """The same algorithm, momentum and weight decay among it, which move the rows without a gradient, too."""
    shapes = [shape for shape in SHAPES if len(shape) > 1]
    ps, qs = parameters(*shapes), parameters(*shapes)
    first, second = RowSGD(ps, **settings), torch.optim.SGD(qs, fused=True, **settings)
    assert first.moves_all_rows(first.param_groups[0]) == bool({"momentum", "weight_decay"} & settings.keys())
    step_both(first, ps, second, qs, steps=6, generator=torch.Generator().manual_seed(0), by_rows=True)
    for p, q in zip(ps, qs, strict=True):
        assert same_bits(p, q, settings)


def test_a_parameter_whose_first_gradient_comes_late(how):
    """Its momentum begins with the gradient, undamped, while others are damped already."""
    settings = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}
    ps, qs = parameters((4, 3), (5,)), parameters((4, 3), (5,))
    first, second = RowSGD(ps, **settings), torch.optim.SGD(qs, **settings)
    for step in range(5):
        for both in (ps, qs):
            both[0].grad = torch.full((4, 3), float(step + 1))
            both[1].grad = torch.ones(5) if step > 1 else None
        first.step()
        second.step()
    torch.testing.assert_close(ps, qs)


def test_a_step_that_is_refused_leaves_no_momentum():
    settings = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}
    (p, bad), (q,) = parameters((4, 3), (4, 3)), parameters((4, 3))
    first, second = RowSGD([p, bad], **settings), torch.optim.SGD([q], **settings)
    p.grad, bad.grad = torch.ones(4, 3), torch.eye(4, 3).to_sparse()
    with pytest.raises(ValueError, match="whole rows"):
        first.step()
    bad.grad, q.grad = None, torch.ones(4, 3)
    for _ in range(2):
        first.step()
        second.step()
    torch.testing.assert_close(p, q)


def test_momentum_that_comes_and_goes(how):
    (p,), (q,) = parameters((4, 3)), parameters((4, 3))
    first, second = RowSGD([p], lr=0.1), torch.optim.SGD([q], lr=0.1)
    for momentum in (0.0, 0.9, 0.9, 0.0, 0.5):
        for optimizer, w in ((first, p), (second, q)):
            optimizer.param_groups[0]["momentum"] = momentum
            w.grad = torch.ones(4, 3)
            optimizer.step()
    torch.testing.assert_close(p, q)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("fused", [False, True])
def test_checkpoints_go_from_torch_to_here_and_back(settings, fused, how):
    """Three thirds of a training, the second one here, against one that was torch's throughout."""

    def go(optimizer, ps, seeds):
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            for p in ps:
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()

    ps, qs = parameters((6, 5), (6,)), parameters((6, 5), (6,))
    go(torch.optim.SGD(qs, fused=fused, **settings), qs, range(9))
    first = torch.optim.SGD(ps, fused=fused, **settings)
    go(first, ps, range(3))
    second = RowSGD(ps)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    go(second, ps, range(3, 6))
    third = torch.optim.SGD(ps)
    third.load_state_dict(copy.deepcopy(second.state_dict()))
    assert bool(third.param_groups[0]["fused"]) == fused
    go(third, ps, range(6, 9))
    torch.testing.assert_close(ps, qs, rtol=1e-5, atol=1e-6)


def test_momentum_from_sparse_gradients_of_torchs(how):
    """torch keeps it sparse then."""
    settings = {"lr": 0.1, "momentum": 0.9}
    (p,), (q,) = parameters((4, 3)), parameters((4, 3))
    theirs, twin = torch.optim.SGD([p], **settings), torch.optim.SGD([q], **settings)
    for w, optimizer in ((p, theirs), (q, twin)):
        w.grad = rows([1], torch.ones(1, 3), 4)
        optimizer.step()
    ours = RowSGD([p])
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for w, optimizer in ((p, ours), (q, twin)):
        w.grad = rows([2], torch.ones(1, 3), 4)
        optimizer.step()
    torch.testing.assert_close(p, q)


def test_a_checkpoint_without_momentum_has_none():
    (p,) = parameters((4, 3))
    theirs = torch.optim.SGD([p], lr=0.1)
    p.grad = torch.ones(4, 3)
    theirs.step()
    state = copy.deepcopy(theirs.state_dict())
    state["state"] = {0: {"momentum_buffer": None}}  # of older versions
    ours = RowSGD([p])
    ours.load_state_dict(state)
    ours.step()
    assert not ours.state_dict()["state"].get(0)


def test_momentum_that_does_not_fit_is_refused():
    (p,) = parameters((4, 3))
    ours = RowSGD([p], lr=0.5)
    state = copy.deepcopy(ours.state_dict())
    state["state"] = {0: {"momentum_buffer": torch.ones(3, 4)}}
    with pytest.raises(ValueError, match=r"momentum_buffer of a parameter \(4, 3\) has shape \(3, 4\)"):
        ours.load_state_dict(state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": -0.1}, "momentum must be a number of at least 0"),
        ({"dampening": "some"}, "dampening must be a number"),
        ({"nesterov": True}, "needs a momentum above 0 and no dampening"),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "needs a momentum above 0 and no dampening"),
    ],
)
def test_its_own_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        RowSGD(parameters((2,)), **settings)
