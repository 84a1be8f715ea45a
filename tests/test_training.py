import dataclasses

import pytest
import torch
from torch import nn

from meprop_bench.data import ImageData, ImagePart, batches
from meprop_bench.errors import UserError
from meprop_bench.models.mlp import MLP
from meprop_bench.nn import convert
from meprop_bench.ops.kernels.compiled import unavailable_reason
from meprop_bench.optim import RowAdagrad, RowAdam, RowAdamW, RowOptimizer, RowSGD
from meprop_bench.optimizers import OF_DENSE, OPTIMIZERS, compiled, fused, make_optimizer
from meprop_bench.training import Step, Training, evaluate, fused_step


@pytest.fixture(scope="module")
def data():
    """Two noisy clusters that a small network tells apart."""
    generator = torch.Generator().manual_seed(0)

    def part(n):
        labels = torch.arange(n) % 2
        return ImagePart(torch.randn(n, 6, generator=generator) + 3.0 * labels[:, None], labels)

    return ImageData("clusters", part(200), part(50), part(50), classes=2)


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


@pytest.mark.parametrize("gradient", ["dense", "rows"])
@pytest.mark.parametrize("selection", [None, "example", "unified"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_fused_step_is_that_of_the_modules(data, gradient, selection, accumulate):
    stream = list(batches(data.train, 10, seed=0, steps=8))
    models = [MLP(6, 16, 2, seed=1) for _ in range(3)]
    for model in models if selection else ():
        convert(model, k=3, selection=selection, sparse=gradient == "rows")
    optimizers = [make_optimizer("adagrad", model.parameters(), gradient=gradient) for model in models]
    modules, whole, parts = (
        dataclasses.replace(make(model, optimizer), accumulate=accumulate)
        for make, model, optimizer in zip((Step, fused_step, fused_step), models, optimizers, strict=True)
    )
    for start in range(0, 8, accumulate):
        batch = stream[start] if accumulate == 1 else stream[start : start + accumulate]
        expected, loss = modules(batch), whole(batch)
        assert not loss.requires_grad
        torch.testing.assert_close(loss, expected)
        for part in [batch] if accumulate == 1 else batch:
            parts.backward(parts.forward(part))
        parts.update()
    for p, q, r in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(q, p)
        assert torch.equal(q, r)


def test_a_model_without_a_fused_step_is_refused():
    dropout = MLP(6, 16, 2, dropout=0.5)
    with pytest.raises(UserError, match=r"dropout0 is .*\.Dropout"):
        fused_step(dropout, make_optimizer("sgd", dropout.parameters()))


def test_optimizers_have_the_papers_settings():
    parameters = [nn.Parameter(torch.zeros(2))]
    adam = make_optimizer("adam", parameters).defaults
    assert (adam["lr"], adam["betas"], adam["eps"]) == (1e-3, (0.9, 0.999), 1e-8)
    assert make_optimizer("adagrad", parameters, gradient="rows").defaults["lr"] == 0.1


@pytest.mark.parametrize("gradient", ["dense", "rows"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_epsilon_of_adagrad_stands_under_the_root(gradient, fused, dtype):
    weight = nn.Parameter(torch.zeros(3, 1, dtype=dtype))
    optimizer = make_optimizer("adagrad", [weight], gradient=gradient, fused=fused)
    expected, squares = torch.zeros(3, 1, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    for gradients in ([[1e-5], [0.0], [2.0]], [[-3e-4], [0.0], [1.0]]):
        grad = torch.tensor(gradients, dtype=torch.float64)
        weight.grad = (grad.to_sparse(1) if gradient == "rows" else grad).to(dtype)
        optimizer.step()
        squares += grad**2
        expected -= 0.1 * grad / (squares + 1e-6).sqrt()
    torch.testing.assert_close(weight.detach(), expected.to(dtype))


def test_optimizers_that_do_not_fit():
    parameters = [nn.Parameter(torch.zeros(2))]
    with pytest.raises(
        UserError, match=r"adam does not take row gradients.*use adagrad, sgd, rowadam, rowadamw, or dense"
    ):
        make_optimizer("adam", parameters, gradient="rows")
    with pytest.raises(UserError, match="choose from adam, adagrad, sgd, adamw, rowadam, rowadamw"):
        make_optimizer("adamax", parameters)
    with pytest.raises(ValueError, match="'sparse'"):
        make_optimizer("sgd", parameters, gradient="sparse")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_fused_step_is_the_same_step(data, name):
    models = [MLP(6, 16, 2, seed=1) for _ in range(2)]
    for model, how in zip(models, (False, True), strict=True):
        step = Step(model, make_optimizer(name, model.parameters(), fused=how))
        for batch in batches(data.train, 10, seed=0, steps=5):
            step(batch)
        assert bool(step.optimizer.defaults.get("fused")) == (how and name in ("adam", "adamw", "adagrad", "sgd"))
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("fused", [False, True])
def test_by_rows_the_optimizer_is_this_packages(fused):
    """Of the same algorithm, or of another one, which is said."""
    parameters = [nn.Parameter(torch.zeros(2))]
    kinds = {"adagrad": RowAdagrad, "sgd": RowSGD, "rowadam": RowAdam, "rowadamw": RowAdamW}
    for name, kind in kinds.items():
        made = make_optimizer(name, parameters, gradient="rows", fused=fused, rate=0.25)
        assert type(made) is kind
        assert made.defaults["lr"] == 0.25
        assert OPTIMIZERS[name].exact == (name in ("adagrad", "sgd"))
    assert OF_DENSE == {"rowadam": "adam", "rowadamw": "adamw"}
    assert OPTIMIZERS["adagrad"].note.startswith("RowAdagrad is the same algorithm as Adagrad:")
    assert OPTIMIZERS["rowadamw"].note.startswith("RowAdamW is another algorithm than AdamW,")
    assert not OPTIMIZERS["adam"].note


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_compiled_step_for_dense_gradients_is_the_same_step(data, name):
    models = [MLP(6, 16, 2, seed=1) for _ in range(2)]
    for model, how in zip(models, (False, True), strict=True):
        step = Step(model, make_optimizer(name, model.parameters(), compiled=how, fused=True))
        for batch in batches(data.train, 10, seed=0, steps=5):
            step(batch)
        assert isinstance(step.optimizer, RowOptimizer) == (how or name.startswith("row"))
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        (torch.optim.Adagrad, {"lr": 0.05, "lr_decay": 0.1, "initial_accumulator_value": 0.2}),
        (torch.optim.Adam, {"lr": 0.05, "betas": (0.8, 0.9), "weight_decay": 0.1, "fused": True}),
        (torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.1, "maximize": True}),
    ],
)
def test_any_optimizer_of_torchs_can_be_compiled(data, kind, settings):
    if (reason := unavailable_reason()) is not None:
        pytest.skip(reason)
    models = [MLP(6, 16, 2, seed=1) for _ in range(2)]
    optimizers = [kind([{"params": list(m.parameters())[:2], "lr": 0.01}, {"params": list(m.parameters())[2:]}],
                       **settings) for m in models]  # fmt: skip
    optimizers[1] = compiled(optimizers[1])
    assert isinstance(optimizers[1], RowOptimizer)
    for model, optimizer in zip(models, optimizers, strict=True):
        step = Step(model, optimizer)
        for batch in batches(data.train, 10, seed=0, steps=5):
            step(batch)
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(p, q)


def test_what_cannot_be_compiled(monkeypatch):
    weight = [nn.Parameter(torch.zeros(2))]
    assert compiled(torch.optim.SGD(weight)) is not None
    assert compiled(RowSGD(weight)) is None
    assert compiled(torch.optim.RMSprop(weight)) is None
    assert compiled(torch.optim.Adam(weight, amsgrad=True)) is None
    assert compiled(torch.optim.SGD(weight, differentiable=True)) is None
    assert compiled(torch.optim.SGD([nn.Parameter(torch.zeros(2, dtype=torch.float64))])) is None
    monkeypatch.setattr("meprop_bench.ops.kernels.compiled.unavailable_reason", lambda: "Numba is not installed")
    assert compiled(torch.optim.SGD(weight)) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_fused_step_that_moves_nothing(dtype):
    """torch 2.13's fused SGD leaves whole vectors of half precision weights as they are."""
    weight = nn.Parameter(torch.ones(64, dtype=dtype))
    optimizer = make_optimizer("sgd", [weight], fused=True)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert (weight < 1).all()
    assert fused(torch.optim.SGD([weight])) is None
    assert fused(torch.optim.Adagrad([weight])) is not None


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


def test_gradients_of_several_batches_make_one_update(data):
    whole, parts = (MLP(6, 16, 2, seed=1) for _ in range(2))
    images, labels = next(batches(data.train, 12, seed=0, steps=1))
    step = Step(parts, torch.optim.SGD(parts.parameters(), 0.1), accumulate=3)
    loss = step([(images[i::3], labels[i::3]) for i in range(3)])
    optimizer = torch.optim.SGD(whole.parameters(), 0.1)
    found = nn.functional.cross_entropy(whole(images), labels)
    (3 * found).backward()  # a step adds up: who wants the mean divides the losses
    optimizer.step()
    torch.testing.assert_close(loss, found.detach())
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_schedule_is_advanced_by_each_update_and_can_be_brought_where_it_was(data):
    def made():
        model = MLP(6, 16, 2, seed=1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        return Step(model, optimizer, schedule=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10))

    step, later = made(), made()
    for batch in batches(data.train, 10, seed=0, steps=4):
        step(batch)
    later.advance(4)
    assert later.optimizer.param_groups[0]["lr"] == step.optimizer.param_groups[0]["lr"] < 0.1


def _loss(model, batch):
    return model(batch).mean()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": nn.Linear}, "model must be a torch.nn.Module, not a type"),
        ({"loss": 3}, "loss must be a function of the model and a batch, not an int"),
        (
            {"loss": nn.CrossEntropyLoss()},
            "loss is torch's CrossEntropyLoss, which takes outputs and labels: give a func",
        ),
        ({"loss": nn.functional.mse_loss}, "loss is torch's mse_loss, which takes outputs and labels"),
        ({"metric": None}, "metric must be a word or two for what evaluate returns, not None"),
        ({"metric": "two\nlines"}, "metric must be a word or two"),
        (
            {"evaluate": len, "metric": "validation loss"},
            "less is better, and of what evaluate returns more is: return",
        ),
        ({"evaluate": len, "metric": "val_loss"}, "less is better"),
        ({"evaluate": len, "metric": "Perplexity (test)"}, "with a minus, and call it '-Perplexity (test)'"),
        ({"optimizer": "adam"}, "optimizer must be a function, not a str"),
        ({"schedule": 3}, "schedule must be a function, not an int"),
        ({"evaluate": 3}, "evaluate must be a function"),
        ({"filter": "layers"}, "filter must be a function"),
        ({"batches": 3}, "batches must be something to iterate over, a list or a DataLoader, not an int"),
        ({"batches": iter([1])}, "batches is a list_iterator, which runs out when it has been read once"),
        ({"batches": (i for i in range(3))}, "batches is a generator, which runs out"),
        ({"batches": torch.zeros(3, 3)}, "batches must be a list of batches or a DataLoader, not one Tensor"),
        ({"batches": {"x": 1}}, "not one dict"),
        ({"accumulate": 0}, "accumulate must be an integer of at least 1, not 0"),
        ({"accumulate": True}, "accumulate must be an integer of at least 1, not True"),
        ({"clip": 0}, "clip must be a norm above 0, not 0"),
        ({"clip": float("nan")}, "clip must be a norm above 0, not nan"),
        ({"autocast": torch.float16}, "autocast must be torch.bfloat16, not torch.float16: float16 would need"),
        ({"dtype": torch.int8}, "dtype must be a floating-point dtype of torch, not torch.int8"),
        ({"dtype": "float64"}, "dtype must be a floating-point dtype of torch, not 'float64'"),
        ({"kinds": nn.Linear}, "kinds must be a tuple of classes of layers"),
        ({"kinds": ()}, "kinds must be a tuple of classes of layers"),
        ({"k": 3}, "k must map patterns of layers' names to their k, not be 3: one k for all is --k"),
    ],
)
def test_a_training_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(UserError) as caught:
        Training(**{"model": nn.Linear(2, 2), "loss": _loss, "batches": [], **wrong})
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "metric", ["-loss", "negative loss", "- bits/character", "accuracy %", "lossless", "1 - WER", "neg_loss"]
)
def test_a_metric_of_which_more_is_better(metric):
    assert Training(model=nn.Linear(2, 2), loss=_loss, batches=[], evaluate=len, metric=metric).metric == metric


def test_a_training_needs_three_things_and_is_the_packages():
    import meprop_bench as mb

    assert mb.Training is Training
    made = Training(model=nn.Linear(2, 2), loss=_loss, batches=[])
    assert (made.accumulate, made.kinds, made.metric) == (1, (nn.Linear,), "evaluate")
    with pytest.raises(TypeError, match="missing 2 required keyword-only arguments: 'loss' and 'batches'"):
        Training(model=nn.Linear(2, 2))
