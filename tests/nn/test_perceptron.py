"""`FusedMLP` against its own modules, trained by autograd."""

import copy
import itertools
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils._python_dispatch import TorchDispatchMode

import meprop_bench
from meprop_bench.algorithms.activeness import Activeness, watch
from meprop_bench.algorithms.schedule import KScheduler, Linear
from meprop_bench.models.mlp import MLP
from meprop_bench.nn import FusedMLP, convert
from meprop_bench.ops import perceptron
from meprop_bench.optim import RowAdagrad, RowAdam, RowSGD

pytestmark = pytest.mark.usefixtures("one_thread")

ACTIVATIONS = ("relu", "tanh", "sigmoid", "gelu")


def modules_of(model):
    """Return the same modules, copied, as torch's container has them."""
    return nn.Sequential(OrderedDict(copy.deepcopy(model)._modules))


def batch_of(model, size, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    x = torch.randn(size, layers[0].in_features, generator=generator).to(dtype)
    return x, torch.randint(layers[-1].out_features, (size,), generator=generator)


def dense_gradients(model):
    return [None if p.grad is None else p.grad.to_dense() for p in model.parameters()]


def assert_same_step(model, size=7, seed=0, exact=False, dtype=torch.float32):
    """Compare loss and gradients with the modules'."""
    modules = modules_of(model)
    x, y = batch_of(model, size, seed, dtype)
    torch.manual_seed(seed)  # the random selections draw in the same order
    expected = F.cross_entropy(modules(x), y)
    expected.backward()
    torch.manual_seed(seed)
    loss = model.loss(x, y)
    assert not loss.requires_grad
    assert loss.shape == ()
    model.backward(loss)
    same = torch.testing.assert_close if not exact else (lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=0))
    same(loss, expected.detach())
    for p, q in zip(model.parameters(), modules.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            assert p.grad.is_sparse == q.grad.is_sparse
            if p.grad.is_sparse:
                assert torch.equal(p.grad.coalesce().indices(), q.grad.coalesce().indices())
            same(p.grad.to_dense(), q.grad.to_dense())


@pytest.fixture(params=["compiled", "operators"])
def way(request, monkeypatch):
    """How it is computed: by compiled products where they can be used, and by torch's operators."""
    if request.param == "compiled":
        pytest.importorskip("numba")
    else:
        monkeypatch.setattr(perceptron, "_compiled", lambda *_: (None, None))
    return request.param


@pytest.mark.parametrize("hidden", [(), (13,), (17, 9), (16, 5, 8)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("size", [1, 7])
def test_a_dense_step(way, hidden, activation, size):
    torch.manual_seed(1)
    assert_same_step(FusedMLP(21, *hidden, 5, activation=activation), size, exact=way == "operators")


@pytest.mark.parametrize("selection", ["example", "unified", "random", "random-unified"])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("k", "size"), [(1, 7), (4, 1), (4, 40), (0.3, 7), (12, 7), (13, 7), (40, 7)])
def test_a_sparsified_step(way, selection, sparse, k, size):
    torch.manual_seed(1)
    model = FusedMLP(21, 13, 13, 5, k=k, selection=selection, sparse=sparse)
    assert_same_step(model, size, exact=way == "operators")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("k", [None, 4])
def test_a_step_without_biases(way, activation, k):
    torch.manual_seed(1)
    assert_same_step(FusedMLP(21, 13, 13, 5, activation=activation, k=k, bias=False), exact=way == "operators")


@pytest.mark.parametrize("kernel", ["masked", "coo", "embedding_bag", "native"])
def test_every_kernel(way, kernel):
    if kernel == "native":
        pytest.importorskip("numba")
    torch.manual_seed(1)
    assert_same_step(FusedMLP(21, 13, 13, 5, k=4, kernel=kernel, sparse=True), exact=way == "operators")


def test_a_kernel_that_cannot_do_the_case():
    model = FusedMLP(21, 13, 5, k=4, kernel="gather")
    batch = batch_of(model, 3)
    with pytest.raises(ValueError, match="'gather' does not support this case"):
        model.loss(*batch)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_have_the_modules_bits(dtype):
    torch.manual_seed(1)
    for keywords in ({}, {"k": 4, "selection": "unified", "sparse": True}, {"activation": "gelu", "k": 0.2}):
        assert_same_step(FusedMLP(21, 13, 13, 5, dtype=dtype, **keywords), exact=True, dtype=dtype)


@pytest.mark.parametrize(("activation", "module"), [("gelu", nn.GELU(approximate="tanh")), ("relu", nn.ReLU(True))])
def test_variants_of_activations(way, activation, module):
    torch.manual_seed(1)
    stack = nn.Sequential(nn.Linear(9, 12), module, nn.Linear(12, 12), nn.Linear(12, 4), copy.deepcopy(module))
    assert_same_step(FusedMLP.from_modules(stack), exact=way == "operators")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("k", [None, 30])
def test_the_papers_perceptron(way, threads, k):
    torch.set_num_threads(threads)
    for size in (10, 50):
        model = MLP(784, 500, 10)
        if k:
            convert(model, k=k, selection="unified", sparse=True)
        assert_same_step(FusedMLP.from_modules(model), size, exact=way == "operators")


OPTIMIZERS = [
    (False, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    (False, lambda p: torch.optim.Adam(p, lr=1e-3, fused=True)),
    (False, lambda p: torch.optim.Adagrad(p, lr=0.05, fused=True)),
    (True, lambda p: torch.optim.SGD(p, lr=0.1)),
    (True, lambda p: torch.optim.Adagrad(p, lr=0.05)),
    (True, lambda p: RowAdam(p, lr=1e-3)),
    (True, lambda p: RowAdagrad(p, lr=0.05)),
    (False, lambda p: RowAdagrad(p, lr=0.05)),
    (True, lambda p: RowSGD(p, lr=0.1)),
]


@pytest.mark.parametrize(("sparse", "make"), OPTIMIZERS)
@pytest.mark.parametrize("selection", ["example", "unified", "random"])
def test_several_steps_with_any_optimizer(way, sparse, make, selection):
    torch.manual_seed(2)
    model = FusedMLP(21, 33, 33, 5, k=6, selection=selection, sparse=sparse)
    modules = modules_of(model)
    optimizer, theirs = make(model.parameters()), make(modules.parameters())
    for seed, size in enumerate((16, 16, 7, 16, 1, 16)):
        x, y = batch_of(model, size, seed)
        torch.manual_seed(seed)
        loss = model.step(x, y, optimizer)
        torch.manual_seed(seed)
        expected = F.cross_entropy(modules(x), y)
        theirs.zero_grad()
        expected.backward()
        theirs.step()
        torch.testing.assert_close(loss, expected.detach())
        assert all(p.grad is None for p in model.parameters())
    for p, q in zip(model.parameters(), modules.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_an_optimizer_that_needs_a_closure():
    torch.manual_seed(0)
    model = FusedMLP(6, 8, 3)
    x, y = batch_of(model, 20)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5)

    def closure():
        optimizer.zero_grad()
        loss = model.loss(x, y)
        model.backward(loss)
        return loss

    assert optimizer.step(closure) > model.loss(x, y)


@pytest.mark.parametrize("sparse", [False, True])
def test_gradients_add_up(way, sparse):
    torch.manual_seed(0)
    model = FusedMLP(21, 13, 13, 5, k=4, selection="unified", sparse=sparse)
    modules = modules_of(model)
    for seed in range(3):
        x, y = batch_of(model, 6, seed)
        model.backward(model.loss(x, y))
        F.cross_entropy(modules(x), y).backward()
    torch.testing.assert_close(dense_gradients(model), dense_gradients(modules))


@pytest.mark.parametrize("first", [False, True])
def test_rows_and_dense_gradients_add_up(first):
    torch.manual_seed(0)
    model = FusedMLP(21, 13, 13, 5, k=4)
    modules = modules_of(model)
    for seed, sparse in enumerate((first, not first)):
        x, y = batch_of(model, 6, seed)
        for stack in (model, modules):
            stack.linear0.sparse = stack.linear1.sparse = sparse
        model.backward(model.loss(x, y))
        F.cross_entropy(modules(x), y).backward()
    torch.testing.assert_close(dense_gradients(model), dense_gradients(modules))


@pytest.mark.parametrize("hidden", [13, 400])  # of the larger the memory of dense gradients is kept
@pytest.mark.parametrize(("k", "sparse"), [(None, False), (4, False), (4, True)])
def test_a_gradient_that_somebody_keeps_stays_what_it_is(way, hidden, k, sparse):
    torch.manual_seed(0)
    model = FusedMLP(60, hidden, hidden, 5, k=k, selection="unified", sparse=sparse)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for seed in range(2):
        model.step(*batch_of(model, 6, seed), optimizer)
    loss = model.loss(*batch_of(model, 6))
    model.backward(loss)
    kept = [p.grad for p in model.parameters()]
    values, first = [g.to_dense().clone() for g in kept], loss.clone()
    optimizer.zero_grad()
    for seed in range(1, 4):
        model.step(*batch_of(model, 6, seed), optimizer)
    assert all(torch.equal(g.to_dense(), v) for g, v in zip(kept, values, strict=True))
    assert torch.equal(loss, first)


def test_the_memory_of_a_gradient_goes_from_dense_steps_to_sparsified_ones_and_back():
    pytest.importorskip("numba")
    torch.manual_seed(0)
    model = FusedMLP(60, 400, 400, 5, k=4, selection="unified")
    places = []
    for k in (1.0, 4, 5, 1.0, 1.0, 4, 1.0):
        model.linear0.k = model.linear1.k = k
        model.zero_grad()
        assert_same_step(model, seed=len(places))
        places.append(model.linear1.weight.grad.data_ptr())
    assert len(set(places)) == 1


def test_tied_weights(way):
    torch.manual_seed(0)
    model = FusedMLP(13, 13, 13, 5, k=4)
    model.linear1.weight = model.linear0.weight
    assert_same_step(model)


def test_frozen_parameters(way):
    names = ("linear0.weight", "linear0.bias", "linear1.weight", "linear1.bias", "output.weight", "output.bias")
    for frozen in itertools.product((True, False), repeat=6):
        if all(frozen):
            continue
        torch.manual_seed(0)
        model = FusedMLP(11, 8, 8, 3, k=3)
        for name, off in zip(names, frozen, strict=True):
            model.get_parameter(name).requires_grad_(not off)
        assert_same_step(model, 4, exact=way == "operators")


def test_input_of_any_layout(way):
    torch.manual_seed(0)
    model, x = FusedMLP(12, 13, 5, k=4, sparse=True), torch.randn(24, 7).t()[:, ::2]
    model.linear0.weight = nn.Parameter(torch.randn(12, 13).t())
    model.linear0.bias = nn.Parameter(torch.randn(26)[::2])
    modules, y = modules_of(model), torch.arange(14)[::2] % 5
    F.cross_entropy(modules(x), y).backward()
    model.backward(model.loss(x, y))
    torch.testing.assert_close(dense_gradients(model), dense_gradients(modules))


def test_an_empty_batch(way):
    model = FusedMLP(6, 7, 3, k=2)
    modules = modules_of(model)
    x, y = torch.empty(0, 6), torch.empty(0, dtype=torch.int64)
    loss = model.loss(x, y)
    model.backward(loss)
    F.cross_entropy(modules(x), y).backward()
    assert loss.isnan()
    for p, q in zip(model.parameters(), modules.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("widths", [(0, 4, 3), (6, 0, 3), (6, 4, 0, 4, 3)])
def test_layers_without_neurons(way, widths):
    assert_same_step(FusedMLP(*widths, k=2), 5)
    model = FusedMLP(*widths, k=0.5)
    for _ in range(2):
        assert model.step(*batch_of(model, 5), torch.optim.SGD(model.parameters(), lr=0.1)).isfinite()


def test_images_are_flattened(way):
    torch.manual_seed(0)
    model = FusedMLP.from_modules(nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)))
    modules = modules_of(model)
    x, y = torch.randn(5, 3, 4), torch.arange(5) % 3
    model.backward(model.loss(x, y))
    F.cross_entropy(modules(x), y).backward()
    torch.testing.assert_close(dense_gradients(model), dense_gradients(modules))


@pytest.mark.parametrize("label", [5, -1, -99, 2**40])
def test_a_label_that_is_no_class_is_refused_as_by_torch(way, label):
    model = FusedMLP(6, 7, 5)
    x, y = batch_of(model, 4)
    y[2] = label
    with pytest.raises(IndexError, match=f"Target {label} is out of bounds"):
        F.cross_entropy(model(x), y)
    with pytest.raises(IndexError, match=f"Target {label} is out of bounds"):
        model.loss(x, y)


@pytest.mark.parametrize("ignored", [1, 3, 4])
def test_ignored_examples(way, ignored):
    torch.manual_seed(0)
    model = FusedMLP(6, 7, 5)
    modules = modules_of(model)
    x, y = batch_of(model, 4)
    y[:ignored] = -100
    loss, expected = model.loss(x, y), F.cross_entropy(modules(x), y)
    torch.testing.assert_close(loss, expected.detach(), equal_nan=True)
    model.backward(loss)
    expected.backward()
    torch.testing.assert_close(dense_gradients(model), dense_gradients(modules))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("k", [None, 3])
def test_numbers_that_are_none(way, value, activation, k):
    torch.manual_seed(0)
    model = FusedMLP(20, 7, 5, activation=activation, k=k, selection="unified")
    x, _ = batch_of(model, 4)
    for where in (x, model.linear0.weight, model.output.bias, model.output.weight):
        twin = copy.deepcopy(model)
        changed = x.clone() if where is x else x
        tensor = (
            changed
            if where is x
            else dict(twin.named_parameters())[next(name for name, p in model.named_parameters() if p is where)]
        )
        with torch.no_grad():
            tensor.view(-1)[3] = value
        modules = modules_of(twin)
        y = torch.arange(4)
        loss, expected = twin.loss(changed, y), F.cross_entropy(modules(changed), y)
        torch.testing.assert_close(loss, expected.detach(), equal_nan=True)
        twin.backward(loss)
        expected.backward()
        torch.testing.assert_close(dense_gradients(twin), dense_gradients(modules), equal_nan=True)


def test_many_classes(way):
    torch.manual_seed(0)
    assert_same_step(FusedMLP(6, 7, 3000, k=2), 8, exact=way == "operators")


def test_it_is_the_module_of_its_layers():
    torch.manual_seed(0)
    model, mlp = FusedMLP(20, 16, 16, 4, k=3, selection="unified"), MLP(20, 16, 4)
    assert list(model.state_dict()) == list(mlp.state_dict())
    model.load_state_dict(mlp.state_dict())
    mlp.load_state_dict(model.state_dict())
    x, y = batch_of(model, 6)
    assert torch.equal(model(x), mlp(x))
    assert [type(layer).__name__ for layer in model] == ["MePropLinear", "ReLU", "MePropLinear", "ReLU", "Linear"]
    F.cross_entropy(model(x), y).backward()
    by_autograd = dense_gradients(model)
    model.zero_grad()
    model.backward(model.loss(x, y))
    torch.testing.assert_close(dense_gradients(model), by_autograd)
    assert type(model[:2]) is nn.Sequential
    assert model[:2](x).shape == (6, 16)
    assert model[0] is model.linear0


def test_a_copy_does_not_hold_what_was_kept_for_the_gradients():
    model = FusedMLP(20, 16, 4, k=3)
    x, y = batch_of(model, 6)
    loss = model.loss(x, y)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert repr(twin) == repr(model)
        with pytest.raises(RuntimeError, match="the very loss"):
            twin.backward(loss)
        twin.backward(twin.loss(x, y))
        assert model.linear0.weight.grad is None
    model.backward(loss)


def test_from_modules_shares_everything():
    mlp = MLP(20, 16, 4, layers=1)
    convert(mlp, k=3)
    mlp.eval()
    model = FusedMLP.from_modules(mlp)
    assert all(p is q for p, q in zip(model.parameters(), mlp.parameters(), strict=True))
    assert model.linear0 is mlp.linear0
    assert not model.training
    assert list(model.state_dict()) == list(mlp.state_dict())


def test_the_method_may_change_between_steps(way):
    torch.manual_seed(0)
    model = FusedMLP(20, 16, 16, 4)
    assert_same_step(model)
    convert(model, k=3, selection="unified", sparse=True)
    schedule = KScheduler(model, Linear(0.25, 1.0, steps=3))
    for step in range(5):
        schedule.start_step(step)
        model.zero_grad()
        assert_same_step(model)
    assert model.linear0.k == 1.0


def test_evaluation_keeps_nothing():
    model = FusedMLP(20, 16, 4)
    x, y = batch_of(model, 6)
    loss = model.loss(x, y)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            other = model.loss(x, y)
            torch.testing.assert_close(other, loss)
            with pytest.raises(RuntimeError, match="gradients enabled"):
                model.backward(other)


def test_only_the_last_loss_has_gradients_and_once():
    model = FusedMLP(20, 16, 4)
    first, second = (model.loss(*batch_of(model, 6, seed)) for seed in range(2))
    for wrong in (first, second / 2, second.clone()):
        model.loss(*batch_of(model, 6))
        with pytest.raises(RuntimeError, match=r"the very loss that model\.loss"):
            model.backward(wrong)
    loss = model.loss(*batch_of(model, 6))
    model.backward(loss)
    with pytest.raises(RuntimeError, match="once"):
        model.backward(loss)
    model.requires_grad_(False)
    with pytest.raises(RuntimeError, match="parameters to train"):
        model.backward(model.loss(*batch_of(model, 6)))


@pytest.mark.parametrize("what", ["x", "y", "output.weight"])
def test_changes_in_place_before_the_backward_pass_are_noticed(what):
    model = FusedMLP(20, 16, 4)
    x, y = batch_of(model, 6)
    loss = model.loss(x, y)
    with torch.no_grad():
        {"x": x, "y": y, **dict(model.named_parameters())}[what].mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        model.backward(loss)


def test_other_data_before_the_backward_pass_changes_nothing(way):
    torch.manual_seed(0)
    model = FusedMLP(20, 16, 4, k=3)
    modules = modules_of(model)
    x, y = batch_of(model, 6)
    loss, expected = model.loss(x, y), F.cross_entropy(modules(x), y)
    for stack in (model, modules):
        for p in stack.parameters():
            p.data = torch.full_like(p, 7.0)
    model.backward(loss)
    expected.backward()
    torch.testing.assert_close(dense_gradients(model), dense_gradients(modules))


CHANGES = [
    (lambda m: m.linear0.register_forward_hook(lambda *_: None), "linear0 has a hook"),
    (lambda m: m.relu0.register_forward_pre_hook(lambda *_: None), "relu0 has a hook"),
    (lambda m: m.output.register_full_backward_hook(lambda *_: None), "output has a hook"),
    (lambda m: m.output.register_full_backward_pre_hook(lambda *_: None), "output has a hook"),
    (lambda m: m.register_forward_hook(lambda *_: None), "the model has a hook"),
    (lambda m: watch(m.linear0, Activeness(16)), "linear0 has a hook"),
    (lambda m: m.linear0.weight.register_hook(lambda g: g), "a parameter of linear0 has a hook"),
    (lambda m: m.output.bias.register_post_accumulate_grad_hook(lambda p: None), "a parameter of output has a hook"),
    (lambda m: setattr(m.relu0, "forward", lambda x: x), "the forward of relu0 was replaced"),
    (lambda m: parametrizations.weight_norm(m.output), "output is .*ParametrizedLinear"),
    (lambda m: nn.utils.weight_norm(m.output), "output has a hook"),
    (lambda m: prune.l1_unstructured(m.output, "weight", 0.5), "output has a hook"),
    (lambda m: setattr(m, "relu0", nn.Dropout(0.5)), "relu0 is .*Dropout, not a plain linear layer or one of relu,"),
    (lambda m: setattr(m, "relu0", type("Mine", (nn.ReLU,), {})()), "relu0 is .*Mine"),
    (lambda m: m.append(nn.ReLU()).append(nn.ReLU()), "4, ReLU, does not stand directly behind a linear layer"),
    (lambda m: m.__setitem__(0, nn.ReLU()), "linear0, ReLU, does not stand"),
    (lambda m: m.append(nn.Flatten()), "3, Flatten, does not stand"),
    (lambda m: m.output.register_parameter("scale", nn.Parameter(torch.ones(1))), "parameters of output"),
    (lambda m: setattr(m.output, "weight", nn.Parameter(m.output.weight.double())), "of one floating-point dtype"),
    (lambda m: m.to("meta"), "plain tensors"),
    (lambda m: m.__delitem__(slice(None)), "it has no linear layers"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[message for _, message in CHANGES])
def test_what_a_step_would_pass_over_is_refused(change, message):
    model = FusedMLP(20, 16, 4, k=3)
    x, y = batch_of(model, 6)
    change(model)
    with pytest.raises(RuntimeError, match=message) as raised:
        model.loss(x, y)
    assert "\n" not in str(raised.value)
    assert "take model(x) and loss.backward() for that" in str(raised.value)
    if not any(word in message for word in ("plain tensors", "dtype")):
        with pytest.raises(ValueError, match=message):
            FusedMLP.from_modules(model)


def test_hooks_of_all_modules_are_refused():
    model = FusedMLP(20, 16, 4)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(RuntimeError, match="hooks of all modules"):
            model.loss(*batch_of(model, 6))
    finally:
        handle.remove()


def test_a_class_with_a_forward_of_its_own_is_refused():
    class Mine(FusedMLP):
        def forward(self, x):
            return -super().forward(x)

    with pytest.raises(RuntimeError, match="Mine has a forward of its own"):
        Mine(20, 16, 4).loss(torch.randn(2, 20), torch.zeros(2, dtype=torch.int64))
    for model in (nn.ModuleList([nn.Linear(2, 2)]), nn.Linear(2, 2), Mine(20, 16, 4)):
        with pytest.raises(ValueError, match="FusedMLP"):
            FusedMLP.from_modules(model)


def test_what_would_change_or_watch_the_operators_is_refused():
    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    model = FusedMLP(20, 16, 4, k=3)
    x, y = batch_of(model, 6)
    for context, message in (
        (lambda: torch.autocast("cpu", torch.bfloat16), "without autocast"),
        (Watching, "watches operators"),
        (torch.autograd.forward_ad.dual_level, "forward-mode"),
        (lambda: torch.autograd.set_detect_anomaly(True), "anomaly"),
    ):
        with context(), pytest.raises(RuntimeError, match=message):
            model.loss(x, y)
    with pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.func.vmap(lambda x: model.loss(x, y))(x[None])
    with pytest.raises(RuntimeError, match="x needs a gradient"):
        model.loss(x.clone().requires_grad_(), y)
    for wrong in (x.double(), x.to("meta"), x.long(), x.to_sparse(), x.tolist(), type("T", (torch.Tensor,), {})):
        with pytest.raises(RuntimeError, match="plain tensors"):
            model.loss(wrong, y)
    with torch.device("meta"):  # a mode, and makes no difference
        loss = model.loss(x, y)
        model.backward(loss)
    assert not loss.is_meta


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.randn(20), torch.tensor(1), r"x \(B, m\) and y \(B,\), not \(20,\) and \(\)"),
        (torch.randn(2, 3, 20), torch.zeros(2, 3, dtype=torch.int64), "not"),
        (torch.randn(3, 20), torch.zeros(2, dtype=torch.int64), "not"),
        (torch.randn(2, 20), torch.zeros(2, 4), "not"),
        (torch.randn(2, 20), torch.zeros(2), "int64 numbers, not torch.float32"),
        (torch.randn(2, 20), [0, 1], "y must be a tensor"),
        (torch.randn(2, 19), torch.zeros(2, dtype=torch.int64), "do not go with 19 inputs"),
    ],
)
def test_batches_that_do_not_fit(way, x, y, message):
    model = FusedMLP(20, 16, 4, k=3)
    with pytest.raises(ValueError, match=message):
        model.loss(x, y)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("linear1.weight", (16, 15)), ("output.weight", (0, 16)), ("linear0.bias", (3,)), ("output.weight", (4,))],
)
def test_layers_that_do_not_fit_each_other(way, name, shape):
    model = FusedMLP(20, 16, 16, 4)
    model.get_parameter(name).data = torch.zeros(shape)
    with pytest.raises(ValueError, match="do not go with"):
        model.loss(*batch_of(model, 6))


@pytest.mark.parametrize(
    ("widths", "keywords", "message"),
    [
        ((3,), {}, "inputs, the hidden neurons and the classes"),
        ((3, 2.5), {}, "as integers"),
        ((3, 4, 2), {"activation": "cube"}, "relu, tanh, sigmoid, gelu, not 'cube'"),
        ((3, 4, 2), {"k": 0}, "not 0"),
        ((3, 4, 2), {"k": 2, "selection": "no"}, "'no'"),
        ((3, 2), {"k": 2}, "there are none"),
    ],
)
def test_misuse_at_construction(widths, keywords, message):
    with pytest.raises(ValueError, match=message):
        FusedMLP(*widths, **keywords)


def test_within_a_compiled_function_it_runs_as_it_is():
    torch.manual_seed(0)
    model = FusedMLP(20, 16, 4, k=3)
    twin = copy.deepcopy(model)
    x, y = batch_of(model, 6)
    optimizer, other = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, twin))

    @torch.compile(backend="eager")
    def step(x, y):
        loss = model.loss(x * 2, y)
        model.backward(loss)
        return loss + 1

    loss = step(x, y)
    optimizer.step()
    assert torch.equal(loss, twin.step(x * 2, y, other) + 1)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_it_trains_where_there_is_no_numba():
    program = """
import sys; sys.modules["numba"] = None
import torch
from meprop_bench.nn import FusedMLP
torch.manual_seed(0)
model = FusedMLP(12, 30, 30, 4, k=5, selection="unified", sparse=True)
x = torch.randn(200, 12); y = x[:, :4].argmax(1)
optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
losses = [model.step(x, y, optimizer).item() for _ in range(60)]
assert losses[-1] < losses[0] / 4, losses
"""
    root = Path(meprop_bench.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
