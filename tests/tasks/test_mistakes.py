import re

import pytest

from meprop_bench.errors import UserError
from meprop_bench.sweep.models import examine
from meprop_bench.tasks import load_task
from meprop_bench.tasks.recipe import Recipe

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
        "builds a different model each time, though torch, random and NumPy are seeded: .* differs",
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
        "a model that is compiled: return it without torch.compile, and use --compile on instead",
    ),
    "model that compiles itself": ("training(model=(m := perceptron(), m.compile())[0])", "a model that is compiled: "),
    "model of torch.jit": (
        "training(model=torch.jit.trace(perceptron(), X))",
        "a model of torch.jit, whose layers cannot be changed: return the module that it was made from",
    ),
    "all parameters frozen": ("training(model=perceptron().requires_grad_(False))", "without parameters that are"),
    "no batches": ("training(batches=[])", "has 0 batches: give it some"),
    "too few batches": ("training(accumulate=9)", "has 4 batches, fewer than the 9 of one update"),
    "random batches": ("training(batches=Fresh(lambda: torch.rand(6, 12) + os.urandom(1)[0]))", "differ each time"),
    "random arrays": (
        "training(batches=Fresh(lambda: os.urandom(12)), loss=lambda m, b: loss(m, (torch.frombuffer("
        "bytearray(b[0]), dtype=torch.uint8).float()[None] , b[1][:1])))",
        "the loss of .* differs from one call to the next.* or its batches, draw from",
    ),
    "batches of another build": ("training(batches=[(X + os.urandom(1)[0] + next(N), Y)])", "differ each time"),
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
        "waits for a metric, which is not known",
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
    assert examine(None, [{**rows.to_json(), "task": own_model(_SGD, "sgd.py")}], 1)["metric"] == "evaluate"


_SGD = "def build(): return training(optimizer=lambda p: torch.optim.SGD(p, 0.1))"

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
