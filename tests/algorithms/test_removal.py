import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from meprop_bench.algorithms.removal import Masks, remove, reset_state
from meprop_bench.algorithms.structure import trace
from meprop_bench.nn import convert
from meprop_bench.optim import RowAdagrad, RowSGD

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.5),
    "row adagrad": lambda p: RowAdagrad(p, lr=0.1, initial_accumulator_value=0.5),
    "row sgd with momentum": lambda p: RowSGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adagrad without epsilon": lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=1e-6, eps=0),
}


def net(sparse=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Sigmoid(), nn.BatchNorm1d(8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    convert(model, k=2, selection="unified", sparse=sparse)
    return model.double()


def structure(model):
    return trace(model, {"0": model[0], "3": model[3]})


def keep(found):
    kept = {"0": [True, False, True, True, False, True, True, False], "3": [True, True, False, False, True, True]}
    return {group: torch.tensor(kept[group.name]) for group in found.groups}


def step(model, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(7, 5, dtype=torch.float64, generator=generator)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), torch.arange(7) % 3)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    return loss


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_as_with_the_mask(name):
    """Removal in the midst of training against its masked twin: losses of all later steps, and the parameters."""
    removed = net()
    masked = copy.deepcopy(removed)
    runs = [(model, OPTIMIZERS[name](model.parameters()), structure(model)) for model in (removed, masked)]
    for model, optimizer, _ in runs:
        for seed in range(3):
            step(model, optimizer, seed)
    remove(runs[0][2], keep(runs[0][2]), runs[0][1])
    masks = Masks(runs[1][2])
    masks.add(keep(runs[1][2]), runs[1][1])
    for seed in range(3, 9):
        losses = [step(model, optimizer, seed).item() for model, optimizer, _ in runs]
        assert losses[0] == pytest.approx(losses[1], abs=1e-12)
    cut = keep(runs[1][2])
    for axis in runs[1][2].axes:
        whole = getattr(axis.owner, axis.tensor)
        gone = whole.movedim(axis.dim, 0)[~axis.keep(cut)]
        if isinstance(whole, nn.Parameter):
            assert not gone.any()
            assert not whole.grad.movedim(axis.dim, 0)[~axis.keep(cut)].any()
    assert removed[3].weight.shape == (4, 5)
    live = masked[3].weight[cut[runs[1][2].groups[1]]][:, cut[runs[1][2].groups[0]]]
    torch.testing.assert_close(removed[3].weight, live, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_and_state_follow(name):
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    for seed in range(2):
        loss = step(model, optimizer, seed)
    identities = [id(p) for p in model.parameters()]
    before = copy.deepcopy(model.state_dict())
    state = {key: dict(value) for key, value in optimizer.state.items()}
    found = structure(model)
    remove(found, keep(found), optimizer)
    assert [id(p) for p in model.parameters()] == identities
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == identities
    rows, columns = (kept.nonzero().flatten() for kept in reversed(keep(found).values()))
    assert torch.equal(model[3].weight, before["3.weight"][rows][:, columns])
    assert torch.equal(model[2].running_mean, before["2.running_mean"][columns])
    assert all(p.grad is None for p in (model[0].weight, model[3].bias, model[5].weight))
    for key, value in state.get(model[3].weight, {}).items():
        now = optimizer.state[model[3].weight][key]
        if torch.is_tensor(value) and value.dim():
            assert torch.equal(now, value[rows][:, columns])
        else:
            assert now == value
    assert loss.grad_fn is not None  # its graph is alive, and remembers the shapes of old
    step(model, optimizer, 2)
    assert all(p.grad.shape == p.shape for p in model.parameters())


@pytest.mark.parametrize("name", ["momentum", "adagrad", "row adagrad", "row sgd with momentum"])
def test_sparse_rows(name):
    runs = []
    for mode in ("remove", "mask"):
        model = net(sparse=True)
        optimizer = {"momentum": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)}.get(
            name, OPTIMIZERS[name](model.parameters())
        )
        found = structure(model)
        for seed in range(8):
            optimizer.zero_grad()
            generator = torch.Generator().manual_seed(seed)
            x = torch.randn(7, 5, dtype=torch.float64, generator=generator)
            loss = F.cross_entropy(model(x), torch.arange(7) % 3)
            loss.backward()
            optimizer.step()
            if seed == 3 and mode == "remove":
                remove(found, keep(found), optimizer)
            elif seed == 3:
                Masks(found).add(keep(found), optimizer)
        runs.append(loss.item())
    assert runs[0] == pytest.approx(runs[1], abs=1e-12)


def test_state_that_cannot_follow_changes_nothing():
    model = net().float()
    optimizer = torch.optim.Adafactor(model.parameters())
    model(torch.randn(4, 5)).sum().backward()
    optimizer.step()
    before = copy.deepcopy(model.state_dict())
    found = structure(model)
    for change in (lambda: remove(found, keep(found), optimizer), lambda: Masks(found).add(keep(found), optimizer)):
        with pytest.raises(ValueError, match=r"of Adafactor .* cannot follow.*use SGD"):
            change()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_nothing_left():
    model = net()
    found = structure(model)
    with pytest.raises(ValueError, match="no neuron would be left of '0'"):
        remove(found, {found.groups[0]: torch.zeros(8, dtype=torch.bool)})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_reset_is_a_new_optimizer(name):
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    step(model, optimizer, 0)
    scheduler.step()
    reset_state(optimizer)
    twin = copy.deepcopy(model)
    fresh = OPTIMIZERS[name](twin.parameters())
    for group in fresh.param_groups:
        group["lr"] = optimizer.param_groups[0]["lr"]  # settings, as the scheduler left them, are no state
    for seed in (1, 2):
        assert torch.equal(step(model, optimizer, seed), step(twin, fresh, seed))
    assert scheduler.optimizer is optimizer


def test_an_optimizer_that_cannot_be_made_anew():
    class Odd(torch.optim.SGD):
        def __init__(self, params, *, needed):
            super().__init__(params, lr=needed)

    with pytest.raises(ValueError, match="cannot reset the state of Odd"):
        reset_state(Odd(net().parameters(), needed=0.1))
