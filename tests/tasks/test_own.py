import copy
import gc
import itertools
import re
import weakref

import pytest
import torch
from torch import nn

from meprop_bench.errors import UserError
from meprop_bench.sweep.models import examine
from meprop_bench.tasks import load_task
from meprop_bench.tasks.own import Own
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.tasks.run import run

_MISTAKES = {
    "loss of many numbers": ("training(loss=lambda m, b: m(b[0]))", r"the loss of .* has 6 x 4 numbers: return their"),
    "loss without a graph": ("training(loss=lambda m, b: loss(m, b).detach())", "has no graph: do not detach it"),
    "loss that is a float": ("training(loss=lambda m, b: loss(m, b).item())", "is of type float: return a tensor"),
    "loss that is None": ("training(loss=lambda m, b: None)", "is of type NoneType: return a tensor"),
    "loss that is NaN": ("training(loss=lambda m, b: loss(m, b) * float('nan'))", "is nan on its first batch"),
    "loss that goes backward": (
        "training(loss=lambda m, b: (x := loss(m, b), x.backward())[0])",
        "the loss of .* computes gradients: return the loss alone",
    ),
    "loss that takes a step": (
        "training(loss=lambda m, b: (x := loss(m, b), x.backward())[0].detach())",
        "the loss of .* computes gradients",
    ),
    "loss that changes its batch": (
        "training(loss=lambda m, b: loss(m, (b[0].mul_(0.5), b[1])))",
        "changes its batch, which is used again: make a copy",
    ),
    "loss that takes labels out": (
        "training(batches=[{'x': X, 'y': Y}], loss=lambda m, b: loss(m, (b['x'], b.pop('y'))))",
        "changes its batch, which is used again",
    ),
    "loss that fails": ("training(loss=lambda m, b: 1 / 0)", r"failed in its loss \(my_model\.py, line \d+\): ZeroDiv"),
    "random loss": (
        "training(loss=lambda m, b: loss(m, b) * int.from_bytes(os.urandom(4)))",
        "the loss of .* differs from one call to the next, though torch, random and NumPy are seeded: .*; seed",
    ),
    "loss that changes the process": (
        "training(loss=lambda m, b: (torch.set_num_threads(3), loss(m, b))[1])",
        r"changes torch's number of threads when it is trained \(1 to 3\)",
    ),
    "random model": (
        "training(model=perceptron(*(nn.Linear(16, 16) for _ in range(os.urandom(1)[0] % 5 + next(N) * 5))))",
        "builds another model each time, though torch, random and NumPy are seeded: .* differs",
    ),
    "same model": ("training(model=M)", "returns the same model, or parameters, each time: make it inside"),
    "shared layer": ("training(model=nn.Sequential(M[0], nn.ReLU(), nn.Linear(16, 4)))", "the same model, or param"),
    "model on meta": ("training(model=perceptron().to('meta'))", "on the meta device, without numbers"),
    "model on CUDA": ("training(model=perceptron().to('cuda:77'))", r"cannot be called \(my_model.py, line \d+\)"),
    "model sparsified already": (
        "training(model=(m := perceptron(), mb.convert(m, k=4))[0])",
        r"returns a model that is sparsified already \(0, 2\): return it dense",
    ),
    "model compiled already": (
        "training(model=torch.compile(perceptron()))",
        "a model that is compiled: return it as it is without torch.compile, and choose that by --compile on",
    ),
    "model that compiles itself": ("training(model=(m := perceptron(), m.compile())[0])", "a model that is compiled: "),
    "model of torch.jit": (
        "training(model=torch.jit.trace(perceptron(), X))",
        "a model of torch.jit, whose layers cannot be changed: return the module that it was made of",
    ),
    "all parameters frozen": ("training(model=perceptron().requires_grad_(False))", "without parameters that are"),
    "no batches": ("training(batches=[])", "has 0 batches: give it some"),
    "too few batches": ("training(accumulate=9)", "has 4 batches, fewer than the 9 of one update"),
    "random batches": ("training(batches=Fresh(lambda: torch.rand(6, 12) + os.urandom(1)[0]))", "are others each time"),
    "random arrays": (
        "training(batches=Fresh(lambda: os.urandom(12)), loss=lambda m, b: loss(m, (torch.frombuffer("
        "bytearray(b[0]), dtype=torch.uint8).float()[None] , b[1][:1])))",
        "the loss of .* differs from one call to the next.* or its batches, draw from",
    ),
    "batches of another build": ("training(batches=[(X + os.urandom(1)[0] + next(N), Y)])", "are others each time"),
    "fewer batches later": ("training(batches=Ends())", "ran out after 1 of 3 steps, though there were more before"),
    "batches that are read once": (
        "training(batches=Once())",
        "ran out after 0 of 4 steps, though there were more bef",
    ),
    "batches that fail": ("training(batches=Fresh(lambda: 1 / 0))", r"failed to give a batch \(my_model.*ZeroDivision"),
    "batches that fail to begin": ("training(batches=Ends(None))", r"failed to give batches \(my_model.py, line"),
    "evaluate that is NaN": ("training(evaluate=lambda m: float('nan'))", "evaluate of .* returned nan: it has to"),
    "evaluate of many numbers": ("training(evaluate=lambda m: m(X))", "returned something of type Tensor: it has to"),
    "evaluate that is None": ("training(evaluate=lambda m: None)", "returned something of type NoneType"),
    "evaluate that fails": ("training(evaluate=lambda m: m.no)", r"failed in its evaluate \(my_model.*AttributeError"),
    "optimizer that is None": ("training(optimizer=lambda p: None)", "optimizer of .* is of type NoneType"),
    "optimizer of another model": (
        "training(optimizer=lambda p: torch.optim.SGD(M.parameters(), 0.1))",
        "has 6 of 6 parameters that are not the model's: make it of those that it is called with",
    ),
    "optimizer of more than the model": (
        "training(optimizer=lambda p: torch.optim.SGD([*p, nn.Parameter(torch.ones(2))], 0.1))",
        "has 1 of 7 parameters that are not the model's",
    ),
    "optimizer that fails": ("training(optimizer=lambda p: torch.optim.SGD(p, lr=-1))", "failed to make its optimizer"),
    "optimizer with a closure": ("training(optimizer=torch.optim.LBFGS)", "failed in a training step by dense: Type"),
    "schedule that is None": ("training(schedule=lambda o, n: None)", "schedule of .* is of type NoneType"),
    "schedule that fails": ("training(schedule=lambda o, n: 1 / 0)", "failed to make its schedule of 1000 steps"),
    "schedule that waits": (
        "training(schedule=lambda o, n: torch.optim.lr_scheduler.ReduceLROnPlateau(o))",
        "waits for a metric, which is not there",
    ),
    "filter that fails": ("training(filter=lambda name: True)", "failed to choose its layers: TypeError"),
    "filter that takes none": (
        "training(filter=lambda layer, name: False)",
        "no layer can be converted: 3 x left out by the filter; kinds and filter of its Training choose them",
    ),
    "k of no layer": ("training(k={'blocks.*': 0.1})", r"'blocks\.\*'"),
    "k that is none": ("training(k={'0': 7.5})", "k must be an int >= 1 or a ratio"),
    "kinds that cannot be": ("training(kinds=(nn.Bilinear,))", "can be converted: choose from nn.Linear"),
}

_BROKEN = """
import itertools
N = itertools.count()
M = perceptron()

class Fresh:
    def __init__(self, make): self.make = make
    def __len__(self): return 3
    def __iter__(self): return ((self.make(), Y[:6]) for _ in range(3))

class Once:
    def __init__(self): self.left = iter(batches())
    def __iter__(self): return self.left

class Ends:
    def __init__(self, left=4): self.left = left
    def __len__(self): return 3
    def __iter__(self):
        first, self.left = self.left, self.left - 3
        return iter(batches()[:first])

def build(): return {}
"""


@pytest.mark.parametrize(("made", "message"), _MISTAKES.values(), ids=_MISTAKES)
def test_a_mistake_is_one_line_that_names_it(own_model, made, message):
    name = own_model(_BROKEN.format(made))
    with pytest.raises(UserError) as caught:
        examine(None, [Recipe(name, method="meprop", k=4, optimizer="own").to_json()], 1)
    found = str(caught.value)
    assert re.search(message, found), found
    assert len(found.splitlines()) == 1
    assert "my_model.py" in found


def test_rows_need_an_optimizer_that_takes_them(own_model):
    name = own_model()
    rows = Recipe(name, method="unified", k=4, gradient="rows", optimizer="own")
    with pytest.raises(
        UserError, match=r"gradients as rows, .*\(Adam does not support .*\): use RowSGD, RowAdagrad or RowAdam"
    ):
        examine(None, [rows.to_json()], 1)
    assert examine(None, [{**rows.to_json(), "task": own_model(_SGD + ")", "sgd.py")}], 1)["metric"] == "evaluate"


def test_gradients_as_rows_are_clipped_as_dense_ones_are(own_model):
    """SGD leaves a row without gradient as it is, so that both layouts are one training, whose norm is that of all."""
    name = own_model(_SGD + ", clip=0.05)")
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


_SGD = "def build(): return training(optimizer=lambda p: torch.optim.SGD(p, 0.1)"

_FINE = {
    "as it is": "training()",
    "batch norm": "training(model=perceptron(nn.BatchNorm1d(16)))",
    "dropout": "training(model=perceptron(nn.Dropout()))",
    "spectral norm": (
        "training(model=nn.Sequential(nn.utils.spectral_norm(nn.Linear(12, 16)), nn.ReLU(), *perceptron()[2:]))"
    ),
    "lazy layers": "training(model=nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, 16), nn.LazyLinear(4)))",
    "loss of shape (1,)": "training(loss=lambda m, b: loss(m, b).reshape(1))",
    "batches without a length": "training(batches=type('B', (), {'__iter__': lambda self: iter(batches())})())",
    "numbers that are NaN": (
        "training(batches=[(b[0].where(b[0] > 0, float('nan')), b[1]) for b in batches()],"
        " loss=lambda m, b: loss(m, (b[0].nan_to_num(), b[1])))"
    ),
    "sparse batches": (
        "training(batches=[(b[0].to_sparse(), b[1]) for b in batches()],"
        " loss=lambda m, b: loss(m, (b[0].to_dense(), b[1])))"
    ),
    "batch of no dimension": "training(batches=[torch.tensor(1.0)], loss=lambda m, b: loss(m, (b * X, Y)))",
    "warm-up": (
        "training(schedule=lambda o, n: torch.optim.lr_scheduler.LambdaLR(o, lambda step: step / (n // 20)),"
        " evaluate=accuracy)"
    ),
    "several outputs": "training(loss=lambda m, b: loss(m, b) + m[0](b[0]).pow(2).mean())",
}


@pytest.mark.parametrize("made", _FINE.values(), ids=_FINE)
def test_what_is_no_mistake(own_model, made):
    name = own_model(f"def build(): return {made}")
    found = examine(None, [Recipe(name, method="unified", k=4, optimizer="own").to_json()], 1)
    assert found == {"evaluates": found["evaluates"], "metric": "evaluate", "differs": None}
    assert load_task(name).steps_per_epoch in (1, 4)


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
    assert task.examine()[0]["metric"] == "evaluate"
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
    task.examine()
    assert stream.read < 150
    assert len(list(task.epoch(0, 0))) == 6  # of 20 batches, the last two of which make no update
    assert task.steps_per_epoch == 6
    assert len(list(task.epoch(0, 1))) == 6


def test_a_device_that_is_none(own_model):
    with pytest.raises(UserError, match="the device tpu cannot be used"):
        Own(own_model(), device="tpu")
