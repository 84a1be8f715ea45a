import copy
import gc
import itertools
import weakref

import pytest
import torch
from torch import nn

from meprop_bench.errors import UserError
from meprop_bench.tasks import load_task
from meprop_bench.tasks.mistakes import examine
from meprop_bench.tasks.own import Own
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.tasks.run import run


def test_gradients_as_rows_are_clipped_as_dense_ones_are(own_model):
    """SGD leaves a row without gradient as it is, so that both layouts are one training, whose norm is that of all."""
    name = own_model("def build(): return training(optimizer=lambda p: torch.optim.SGD(p, 0.1), clip=0.05)")
    ends = []
    for gradient in ("dense", "rows"):
        recipe = Recipe(name, method="unified", k=4, gradient=gradient, optimizer="own", steps=5)
        task = recipe.load()
        model = task.build(3)
        task.sparsify(model, recipe)
        step = task.step(model, recipe)
        for batch in itertools.islice(itertools.cycle(task.epoch(3, 0)), 5):
            step(batch)
        ends.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(*ends)
    assert not torch.equal(ends[0], torch.cat([p.detach().flatten() for p in task.build(3).parameters()]))


def task_of(name, recipe, steps=None, seed=0):
    task = load_task(name)
    model = task.build(seed)
    task.sparsify(model, recipe)
    return task, model, task.step(model, recipe, steps)


def parameters(model):
    return [p.detach().clone() for p in model.parameters()]


def same(one, other):
    return all(torch.equal(p, q) for p, q in zip(one, other, strict=True))


_EVERYTHING = """
def build():
    return training(
        model=perceptron(nn.Dropout(0.2)),
        batches=list(zip(X.split(2), Y.split(2))),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        schedule=lambda o, n: torch.optim.lr_scheduler.CosineAnnealingLR(o, n),
        accumulate=2, clip=0.3, {more}
    )
"""


@pytest.mark.parametrize("more", ["", "dtype=torch.float64", "autocast=torch.bfloat16", "dtype=torch.bfloat16"])
@pytest.mark.parametrize("method", ["dense", "meprop"])
def test_a_step_is_the_loop_that_one_would_write(own_model, more, method):
    name = own_model(_EVERYTHING.format(more=more))
    recipe = Recipe(name, method=method, k=None if method == "dense" else 4, optimizer="own")
    task, model, step = task_of(name, recipe, steps=10)
    losses, batches = [], []
    torch.manual_seed(5)
    for epoch in (0, 1):
        for batch in list(task.epoch(3, epoch))[:5]:
            batches.append(batch)
            losses.append(step(batch))

    other = task.build(0)
    task.sparsify(other, recipe)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    torch.manual_seed(5)
    dtype = torch.bfloat16 if "autocast" in more else None
    for parts, loss in zip(batches, losses, strict=True):
        found = []
        for x, y in parts:
            with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
                found.append(nn.functional.cross_entropy(other(x), y))
            (found[-1] / 2).backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.3)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        assert torch.equal(loss, torch.stack(found).mean().detach())
    assert same(parameters(model), parameters(other))
    assert len({p.dtype for p in model.parameters()}) == 1
    assert optimizer.param_groups[0]["lr"] == step.optimizer.param_groups[0]["lr"] < 0.01


def test_the_rate_of_a_few_steps_that_are_timed_stays(own_model):
    name = own_model(_EVERYTHING.format(more=""))
    _, _, step = task_of(name, Recipe(name, optimizer="own"))
    assert step.schedule is None


def test_an_optimizer_may_read_the_parameters_twice(own_model):
    name = own_model("""
        def groups(p):
            return torch.optim.AdamW([
                {"params": [q for q in p if q.dim() > 1]}, {"params": [q for q in p if q.dim() < 2], "weight_decay": 0},
            ])

        def build():
            model = perceptron()
            model[0].requires_grad_(False)
            return training(model=model, optimizer=groups)
    """)
    _, model, step = task_of(name, Recipe(name, optimizer="own"))
    assert [len(group["params"]) for group in step.optimizer.param_groups] == [2, 2]
    assert sum(p.requires_grad for p in model.parameters()) == 4


def test_an_optimizer_by_name_takes_the_place_of_the_models_own(own_model):
    name = own_model(_EVERYTHING.format(more=""))
    _, _, step = task_of(name, Recipe(name, optimizer="adagrad"))
    assert type(step.optimizer) is torch.optim.Adagrad
    _, _, step = task_of(own_model(), Recipe(name, optimizer="own"))
    assert type(step.optimizer) is torch.optim.AdamW
    assert step.optimizer.defaults["fused"]


def test_all_outputs_selected_is_the_dense_training(own_model):
    name = own_model("def build(): return training(evaluate=accuracy)")
    dense, whole, few = (
        run(task := load_task(name), Recipe(name, method=method, k=k, optimizer="own", epochs=3), 1)
        for method, k in (("dense", None), ("meprop", 16), ("meprop", 2))
    )
    for p, q in zip(dense.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    assert not same(parameters(dense.model), parameters(few.model))
    assert task.metric == "evaluate"


_SHUFFLED = """
from torch.utils.data import DataLoader, TensorDataset

def build():
    return training(
        model=perceptron(nn.Dropout(0.3), nn.BatchNorm1d(16)),
        batches=DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True),
        optimizer=lambda p: torch.optim.Adam(p, lr=0.01),
        schedule=lambda o, n: torch.optim.lr_scheduler.OneCycleLR(o, 0.01, n),
        evaluate=lambda m: accuracy(m) + torch.rand(()),
    )
"""


@pytest.mark.parametrize("method", ["dense", "meprop", "random"])
@pytest.mark.parametrize("kills", [(1, 8), (6,), (7, 9, 17)])  # 6 steps an epoch
def test_a_training_that_was_killed_ends_as_if_nothing_had_been(own_model, tmp_path, method, kills):
    name = own_model(_SHUFFLED)
    recipe = Recipe(name, method=method, k=None if method == "dense" else 4, optimizer="own", epochs=3)
    whole = run(load_task(name), recipe, 4)
    torch.rand(3)

    def killed(at):
        def check(step):
            if step == at:
                raise KeyboardInterrupt

        return check

    for at in kills:
        torch.rand(at)
        with pytest.raises(KeyboardInterrupt):
            run(load_task(name), recipe, 4, checkpoint=tmp_path / "c.pt", after_step=killed(at))
    found = run(load_task(name), recipe, 4, checkpoint=tmp_path / "c.pt")
    assert same(found.model.state_dict().values(), whole.model.state_dict().values())
    assert [(e.step, e.loss, e.dev) for e in found.history] == [(e.step, e.loss, e.dev) for e in whole.history]
    assert found.steps == 18


def test_both_sides_see_the_same_batches_whatever_a_method_draws(own_model):
    name = own_model(_SHUFFLED)
    seen = {}
    for method in ("dense", "random"):
        recipe = Recipe(name, method=method, k=None if method == "dense" else 4, optimizer="own")
        task, _, step = task_of(name, recipe, steps=12)
        seen[method] = []
        for epoch in (0, 1):
            for batch in task.epoch(7, epoch):
                seen[method].append(batch)
                step(batch)
    flat = {method: [x for batch in batches for x in batch] for method, batches in seen.items()}
    assert same(flat["dense"], flat["random"])
    first, second = seen["dense"][:6], seen["dense"][6:]
    assert not same([x for x, _ in first], [x for x, _ in second])


_RECORDS = """
from collections import UserDict
from typing import NamedTuple

@dataclasses.dataclass(frozen=True)
class Record:
    x: torch.Tensor
    y: torch.Tensor
    name: str = "one"

class Named(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor

class Encoding(UserDict):
    def __getattr__(self, name):
        if name == "data": raise AttributeError
        return self.data[name]
"""


@pytest.mark.parametrize(
    ("batch", "x", "y"),
    [
        ("[b[0], b[1]]", "b[0]", "b[1]"),
        ("{'a': {'x': b[0]}, 'y': (b[1], 'text')}", "b['a']['x']", "b['y'][0]"),
        ("Record(*b)", "b.x", "b.y"),
        ("Named(*b)", "b.x", "b.y"),
        ("Encoding(x=b[0], y=b[1])", "b.x", "b['y']"),
        ("(nn.utils.rnn.pack_sequence(list(b[0][:, :, None])), b[1])", "pad(b[0])", "b[1]"),
    ],
)
def test_batches_of_all_kinds_are_moved(own_model, batch, x, y):
    name = own_model(f"""
{_RECORDS}
def pad(packed):
    return nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)[0][..., 0]

def build():
    return training(batches=[{batch} for b in batches()], loss=lambda m, b: loss(m, ({x}, {y})), dtype=torch.float64)
""")
    task = load_task(name)
    model = task.build(0)
    found = next(iter(task.epoch(0, 0)))
    assert task.loss(model, found).dtype == torch.float64  # the loss would refuse the two to differ
    task.loss(model, found).backward()
    untouched = next(iter(task.training.batches))
    assert type(found) is type(untouched)
    assert task.size(found) in (6, 72)
    assert examine(task)[0]["metric"] == "evaluate"
    assert task.steps_per_epoch == 4


def test_models_and_their_data_are_freed(own_model):
    task = load_task(
        own_model("def build():\n    m = perceptron()\n    return training(model=m, evaluate=lambda _: m)")
    )
    models = [weakref.ref(task.build(seed)) for seed in range(4)]
    gc.collect()
    assert [model() is None for model in models] == [True, True, True, False]  # the last one's training is in use


def test_a_model_can_be_copied_and_its_state_is_its_own(own_model):
    task = load_task(own_model())
    model = task.build(0)
    clone = copy.deepcopy(model)
    batch = next(iter(task.epoch(0, 0)))
    assert torch.equal(task.loss(clone, batch), task.loss(model, batch))
    assert [*model.state_dict()] == [*task.build(1).state_dict()]


def test_the_weights_follow_from_the_seed_alone(own_model):
    task, other = load_task(own_model()), load_task(own_model())
    one = parameters(task.build(3))
    torch.rand(7)
    assert same(one, parameters(task.build(3)))
    assert same(one, parameters(other.build(3)))
    assert not same(one, parameters(task.build(4)))


def test_evaluation_leaves_training_alone(own_model):
    name = own_model("""
        def evaluate(model):
            assert not model.training and not torch.is_grad_enabled()
            return torch.rand(()).item()

        def build():
            model = perceptron(nn.Dropout())
            model[2].eval()
            return training(model=model, evaluate=evaluate, metric="luck")
    """)
    task = load_task(name)
    model = task.build(0)
    torch.manual_seed(3)
    found = task.evaluate(model, "dev")
    after = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(2))
    assert task.evaluate(model, "test") == found
    assert [module.training for module in model[1:4]] == [True, False, True]
    assert task.evaluates
    assert task.metric == "luck"


def test_without_evaluate_there_is_no_figure(own_model):
    task = load_task(own_model())
    assert not task.evaluates
    with pytest.raises(UserError, match="does not say how good a model is: add evaluate= to its Training"):
        task.evaluate(task.build(0), "dev")


def test_steps_of_an_epoch(own_model):
    assert load_task(own_model("def build(): return training(accumulate=3)")).steps_per_epoch == 1
    task = load_task(own_model("def build(): return training(accumulate=2)", "two.py"))
    assert [len(batch) for batch in task.epoch(0, 0)] == [2, 2]
    assert task.batch == 6
    endless = (
        "class B:\n    def __iter__(self):\n        while True: yield X, Y\ndef build(): return training(batches=B())"
    )
    assert load_task(own_model(endless, "endless.py")).steps_per_epoch == 10_000


_STREAM = """
class Stream:
    read = 0

    def __iter__(self):
        for batch in 5 * batches():
            Stream.read += 1
            yield batch

def build(): return training(batches=Stream(), accumulate=3)
"""


def test_batches_without_a_length_are_read_no_further_than_they_are_used(own_model):
    """A stream of a large data set would take minutes to be counted, in each process that times a few steps of it."""
    task = load_task(own_model(_STREAM))
    stream = type(task.training.batches)
    assert len(list(itertools.islice(task.epoch(0, 0), 2))) == 2
    assert stream.read == 6
    examine(task)
    assert stream.read < 150
    assert len(list(task.epoch(0, 0))) == 6  # of 20 batches, the last two of which make no update
    assert task.steps_per_epoch == 6
    assert len(list(task.epoch(0, 1))) == 6


def test_a_device_that_is_none(own_model):
    with pytest.raises(UserError, match="the device tpu cannot be used"):
        Own(own_model(), device="tpu")
