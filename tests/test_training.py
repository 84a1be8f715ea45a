import os

import pytest
import torch
from torch import nn

from meprop_bench.data import ImageData, Part, batches, load_images
from meprop_bench.errors import UserError
from meprop_bench.models.mlp import MLP
from meprop_bench.training import OPTIMIZERS, Step, evaluate, make_optimizer, short_run, train


@pytest.fixture(scope="module")
def data():
    """Two noisy clusters that a small network tells apart."""
    generator = torch.Generator().manual_seed(0)

    def part(n):
        labels = torch.arange(n) % 2
        return Part(torch.randn(n, 6, generator=generator) + 3.0 * labels[:, None], labels)

    return ImageData("clusters", part(200), part(50), part(50), classes=2)


def build(seed):
    return MLP(6, 16, 2, layers=1, dropout=0.1, seed=seed)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_three_phases_are_the_step(data, name):
    batch = next(batches(data.train, 10, seed=0, steps=1))
    whole, parts, plain = (MLP(6, 16, 2, seed=1) for _ in range(3))
    loss = Step(whole, make_optimizer(name, whole.parameters()))(batch)

    step = Step(parts, make_optimizer(name, parts.parameters()))
    graph = step.forward(batch)
    assert all(p.grad is None for p in parts.parameters())
    step.backward(graph)
    assert all(p.grad is not None for p in parts.parameters())
    step.update()
    assert all(p.grad is None for p in parts.parameters())

    optimizer = make_optimizer(name, plain.parameters())
    nn.functional.cross_entropy(plain(batch[0]), batch[1]).backward()
    optimizer.step()
    assert not loss.requires_grad
    assert torch.equal(loss, graph.detach())
    for p, q, r in zip(whole.parameters(), parts.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(p, r)


def test_optimizers_have_the_papers_settings():
    parameters = [nn.Parameter(torch.zeros(2))]
    adam = make_optimizer("adam", parameters).defaults
    assert (adam["lr"], adam["betas"], adam["eps"]) == (1e-3, (0.9, 0.999), 1e-8)
    adagrad = make_optimizer("adagrad", parameters, gradient="rows").defaults
    assert (adagrad["lr"], adagrad["eps"]) == (0.1, 1e-6)


def test_optimizers_that_do_not_fit():
    parameters = [nn.Parameter(torch.zeros(2))]
    with pytest.raises(
        UserError, match=r"adam does not take row gradients.*use adagrad, sgd, rowadam, rowadamw, or dense"
    ):
        make_optimizer("adam", parameters, gradient="rows")
    with pytest.raises(UserError, match="choose from adam, adagrad, sgd, rowadam, rowadamw"):
        make_optimizer("adamw", parameters)
    with pytest.raises(ValueError, match="'sparse'"):
        make_optimizer("sgd", parameters, gradient="sparse")


@pytest.mark.parametrize("name", ["adagrad", "sgd", "rowadam"])
def test_optimizers_for_rows_take_rows(name):
    dense, rows = (nn.Parameter(torch.ones(4, 3)) for _ in range(2))
    gradient = torch.zeros(4, 3)
    gradient[[0, 2]] = 2.0
    for parameter, value in ((dense, gradient), (rows, gradient.to_sparse(1))):
        optimizer = make_optimizer(name, [parameter], gradient="rows")
        parameter.grad = value
        optimizer.step()
    assert torch.allclose(dense, rows)
    assert not torch.allclose(rows, torch.ones(4, 3))


def test_decay_by_rows_moves_the_rows_with_a_gradient_alone():
    parameter = nn.Parameter(torch.ones(4, 3))
    optimizer = make_optimizer("rowadamw", [parameter], gradient="rows")
    gradient = torch.zeros(4, 3)
    gradient[[0, 2]] = 2.0
    parameter.grad = gradient.to_sparse(1)
    optimizer.step()
    expected = torch.ones(4, 3)
    expected[[0, 2]] -= 1e-3 * 1e-2 + 1e-3  # the first step of Adam moves each entry by lr
    torch.testing.assert_close(parameter.detach(), expected)


def test_accuracy_is_in_percent_and_leaves_the_mode_alone():
    class Fixed(nn.Module):
        def forward(self, x):
            assert not self.training
            assert not torch.is_grad_enabled()
            return torch.stack([1 - x[:, 0], x[:, 0]], dim=1)

    model = Fixed().train()
    images, labels = torch.tensor([[0.0], [1.0], [1.0], [0.0]]), torch.tensor([0, 1, 0, 0])
    for chunk in (1, 3, 100):
        assert evaluate(model, images, labels, chunk=chunk) == 75.0
    assert model.training


def test_train_evaluates_every_so_many_steps(data):
    model = build(0)
    step = Step(model, make_optimizer("adam", model.parameters()))
    counted = iter(range(10))
    assert train(step, batches(data.train, 5, seed=0, steps=7), every=3, evaluation=lambda: next(counted)) == [0, 1]
    assert train(step, batches(data.train, 5, seed=0, steps=7)) == []


def test_short_run_is_deterministic_and_leaves_the_random_state_alone(data):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = short_run(build, data, steps=30, batch=10, seeds=[0, 1], optimizer="adagrad")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert short_run(build, data, steps=30, batch=10, seeds=[0, 1], optimizer="adagrad") == first
    assert short_run(build, data, steps=30, batch=10, seeds=[1], optimizer="adagrad") == first[1:]
    assert [accuracy.seed for accuracy in first] == [0, 1]
    assert min(accuracy.final for accuracy in first) > 85


@pytest.mark.parametrize(("steps", "evaluations"), [(30, 1), (31, 4), (4, 4)])
def test_evaluations_do_not_change_the_run_and_the_last_is_at_its_end(data, steps, evaluations):
    (one,) = short_run(build, data, steps=steps, batch=10, seeds=[3])
    (several,) = short_run(build, data, steps=steps, batch=10, seeds=[3], evaluations=evaluations)
    assert several.final == one.final == one.best
    assert several.best >= several.final
    with pytest.raises(ValueError, match="do not fit"):
        short_run(build, data, steps=steps, batch=10, seeds=[3], evaluations=steps + 1)


def test_baseline_and_method_see_the_same_weights_and_batches(data):
    """Two models that differ in nothing end alike to the bit; so a difference is the method's."""
    seen = []

    def spying(seed):
        model = build(seed)
        model.register_forward_pre_hook(lambda module, args: seen[-1].append(args[0].clone()))
        return model

    ends = []
    for _ in range(2):
        seen.append([])
        ends.append(short_run(spying, data, steps=5, batch=10, seeds=[7]))
    assert ends[0] == ends[1]
    assert len(seen[0]) == 6  # five steps, one evaluation
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


@pytest.mark.real_data
@pytest.mark.skipif("MEPROP_BENCH_DATA" not in os.environ, reason="MEPROP_BENCH_DATA is not set")
def test_the_papers_mlp_learns_mnist_in_a_few_hundred_steps():
    (accuracy,) = short_run(
        lambda seed: MLP(784, 100, 10, seed=seed), load_images("mnist"), steps=300, batch=50, seeds=[0]
    )
    assert accuracy.final > 90
