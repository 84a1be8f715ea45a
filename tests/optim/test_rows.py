"""What all optimizers by rows promise, compiled and by torch's operators."""

import copy
import gc
import io
import pickle
import random
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import profile

from meprop_bench.nn import MePropLinear
from meprop_bench.ops import kernels, memory, node
from meprop_bench.ops.kernels import compiled
from meprop_bench.optim import RowAdagrad, RowAdam, RowAdamW, RowOptimizer, RowSGD, table
from tests.ops.test_compiled import fresh
from tests.optim.conftest import KINDS, Plain, parameters, rows

SETTINGS = {
    RowAdagrad: [
        {"lr": 0.05},
        {"lr": 0.1, "lr_decay": 0.3, "eps": 1e-2, "initial_accumulator_value": 0.5, "maximize": True},
        {"lr": 0.1, "weight_decay": 0.1},
        {"lr": 0.0},
    ],
    RowSGD: [
        {"lr": 0.05},
        {"lr": 0.05, "maximize": True},
        {"lr": 0.05, "weight_decay": 0.1},
        {"lr": 0.05, "momentum": 0.9, "dampening": 0.3},
        {"lr": 0.05, "momentum": 0.5, "nesterov": True, "weight_decay": 0.1, "maximize": True},
        {"lr": 0.0},
    ],
    RowAdam: [
        {"lr": 0.05},
        {"lr": 0.05, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.3, "maximize": True},
        {"lr": 0.0},
    ],
    RowAdamW: [
        {"lr": 0.05, "weight_decay": 0.3},
        {"lr": 0.05, "betas": (0.0, 0.9), "eps": 1e-3, "maximize": True},
    ],
}
CASES = [(kind, settings) for kind, all_settings in SETTINGS.items() for settings in all_settings]
SHAPES = [(1,), (7,), (5, 1), (3, 16), (4, 65), (9, 2, 3), (37, 31)]


def gradient(p, generator, *, zeros=False):
    """A dense gradient, or one of some rows, none and all among them, in order or not."""
    draw = random.Random(int(torch.randint(1 << 30, (), generator=generator)))
    if draw.random() < 0.3:
        return torch.randn(p.shape, generator=generator)
    n = len(p)
    count = draw.choice([0, n, draw.randint(0, n)])
    idx = torch.randperm(n, generator=generator)[:count]
    if draw.random() < 0.7:
        idx = idx.sort().values
    values = torch.randn(count, *p.shape[1:], generator=generator)
    if zeros and count:
        values[draw.randrange(count)] = 0
    if draw.random() < 0.3 and count > 1:
        return rows(torch.cat([idx, idx[:2]]), torch.cat([values, values[:2]]), n, coalesced=False)
    return rows(idx, values, n)


@pytest.mark.parametrize(("kind", "settings"), CASES)
@pytest.mark.parametrize("seed", range(2))
def test_any_mixture_of_gradients_is_as_defined(kind, settings, seed, how, monkeypatch):
    """Dense gradients and rows, in turn and side by side, some parameters without any."""
    if how == "compiled":  # rows in disorder are sorted, and left to the operators
        monkeypatch.undo()
    ps = parameters(*SHAPES, seed=seed)
    references = [Plain(kind, p, **settings) for p in ps]
    optimizer = kind(ps, **settings)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(6):
        for p in ps:
            p.grad = gradient(p, generator, zeros=True) if torch.rand((), generator=generator) < 0.9 else None
        for p, reference in zip(ps, references, strict=True):
            if p.grad is not None:
                reference.step(p.grad)
        optimizer.step()
        optimizer.zero_grad()
        assert all(p.grad is None for p in ps)
    for p, reference in zip(ps, references, strict=True):
        torch.testing.assert_close(p.detach().double(), reference.w, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("kind", "settings"), CASES)
@pytest.mark.parametrize("gradients", ["dense", "rows"])
def test_large_parameters_in_several_shares(kind, settings, gradients, how, two_threads):
    ps = parameters((300, 257), (513,), (64, 33))
    references = [Plain(kind, p, **settings) for p in ps]
    optimizer = kind(ps, **settings)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for p, reference in zip(ps, references, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            if gradients == "rows":
                idx = torch.randperm(len(p), generator=generator)[: 2 * len(p) // 3].sort().values
                p.grad = rows(idx, p.grad[idx], len(p))
            reference.step(p.grad)
        optimizer.step()
    for p, reference in zip(ps, references, strict=True):
        torch.testing.assert_close(p.detach().double(), reference.w, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gradients", ["dense", "rows"])
def test_the_number_of_threads_changes_no_bit(kind, gradients, compiled_alone):
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        (p,) = parameters((200, 301))
        optimizer = kind([p], lr=0.05)
        idx = torch.arange(0, 200, 2)
        for seed in range(3):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
            if gradients == "rows":
                p.grad = rows(idx, p.grad[idx], 200)
            optimizer.step()
        found.append(p.detach())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_code_and_operators_agree(kind, monkeypatch):
    """The whole of the state, too."""
    found = []
    for usable in (True, False):
        if not usable:
            monkeypatch.setattr(compiled, "load", lambda module: None)
        ps = parameters((12, 5), (12,))
        optimizer = kind(ps, lr=0.05)
        generator = torch.Generator().manual_seed(3)
        for _ in range(5):
            for p in ps:
                p.grad = gradient(p, generator)
            optimizer.step()
        found.append((ps, optimizer.state_dict()))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[0][1]["state"], found[1][1]["state"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_left_to_torch(kind, dtype, operators):
    ps = parameters((6, 5), (6,), dtype=dtype)
    twins = [p.detach().double() for p in ps]
    references = [Plain(kind, twin, lr=0.05) for twin in twins]
    optimizer = kind(ps, lr=0.05)
    generator = torch.Generator().manual_seed(5)
    for _ in range(4):
        for p, reference in zip(ps, references, strict=True):
            p.grad = gradient(p, generator).to(dtype)
            reference.step(p.grad)
        optimizer.step()
    assert len(operators) == 8
    rtol, atol = {torch.float64: (1e-12, 1e-13), torch.bfloat16: (5e-2, 5e-2), torch.float16: (1e-2, 1e-2)}[dtype]
    for p, reference in zip(ps, references, strict=True):
        assert p.dtype == dtype
        torch.testing.assert_close(p.detach().double(), reference.w, rtol=rtol, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_that_are_not_contiguous(kind, operators):
    """Transposed, with gaps, channels last: with gradients in any layout, dense and by rows."""
    a, b, c = (p.detach() for p in parameters((6, 5), (6, 5), (4, 3, 2, 2)))
    wide = torch.zeros(6, 9)
    wide[:, 2:7] = b
    ps = [
        nn.Parameter(a.t().contiguous().t()),
        nn.Parameter(wide[:, 2:7]),
        nn.Parameter(c.contiguous(memory_format=torch.channels_last)),
        nn.Parameter(c.clone()),
    ]
    references = [Plain(kind, p, lr=0.05) for p in ps]
    optimizer = kind(ps, lr=0.05)
    generator = torch.Generator().manual_seed(6)
    for step in range(6):
        for p, reference in zip(ps, references, strict=True):
            grad = torch.randn(p.shape, generator=generator)
            if step in {2, 3}:
                values = torch.randn(3, *p.shape[1:], 2, generator=generator)[..., 0]  # with gaps
                grad = rows([0, 1, 3], values, len(p))
            elif step % 2:
                grad = grad.transpose(0, 1).contiguous().transpose(0, 1)
            p.grad = grad
            reference.step(grad)
        optimizer.step()
    for p, reference in zip(ps, references, strict=True):
        torch.testing.assert_close(p.detach().double(), reference.w, rtol=2e-5, atol=2e-6)
    assert torch.equal(wide[:, :2], torch.zeros(6, 2))
    assert torch.equal(wide[:, 7:], torch.zeros(6, 2))
    assert not any(p is ps[3] for p in operators)
    assert sum(p is ps[2] for p in operators) == 2, "channels last needs no operators but for rows"


@pytest.mark.parametrize("kind", KINDS)
def test_no_parameters_numbers_or_gradients(kind, how):
    empty, none, some = nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.zeros(3, 0)), nn.Parameter(torch.ones(()))
    optimizer = kind([empty, none, some, *parameters((2, 2))], lr=0.1)
    optimizer.step()
    some.grad = torch.ones(())
    optimizer.step()
    assert some.item() == pytest.approx(0.9, abs=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_empty_parameters(kind):
    ps = [nn.Parameter(torch.zeros(shape)) for shape in ((0, 3), (3, 0), (0,))]
    optimizer = kind(ps, lr=0.1)
    for p in ps:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    ps[1].grad = rows([1], torch.zeros(1, 0), 3)
    optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinity_stay_where_they_are(kind, how):
    values = torch.ones(3, 4)
    values[0, 1], values[1, 2], values[2, 3] = torch.nan, torch.inf, -torch.inf
    found = {}
    for layout in ("rows", "dense"):
        (p,) = parameters((6, 4))
        grad = rows([0, 2, 5], values, 6)
        p.grad = grad if layout == "rows" else grad.to_dense()
        kind([p], lr=0.1).step()
        found[layout] = p.detach()
    assert torch.isnan(found["rows"][0, 1])
    finite = torch.isfinite(found["rows"])
    assert (~finite).sum() == (1 if kind is RowSGD else 3) + (2 if kind is RowSGD else 0)
    assert finite[[1, 3, 4]].all()
    if kind in (RowSGD, RowAdagrad):
        assert torch.equal(found["rows"].nan_to_num(3.0), found["dense"].nan_to_num(3.0))


@pytest.mark.parametrize("kind", KINDS)
def test_infinite_weights_are_not_multiplied_by_no_decay(kind, how):
    (p,) = parameters((2, 3))
    with torch.no_grad():
        p[0, 0] = torch.inf
    p.grad = torch.ones_like(p)
    kind([p], lr=0.1, **({"weight_decay": 0.0} if kind is RowAdamW else {})).step()
    assert p[0, 0] == torch.inf
    assert p.isfinite().sum() == 5


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_that_share_memory_are_moved_one_after_the_other(kind, operators):
    """As torch does; several threads at once would not."""
    moved = []
    for made in (kind, KINDS[kind]):
        block = parameters((60, 40))[0].detach().clone()
        ps = [nn.Parameter(block[:40]), nn.Parameter(block[20:])]
        optimizer = made(ps, lr=0.1)
        for seed in range(3):
            for p in ps:
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
            optimizer.step()
        moved.append(block)
    torch.testing.assert_close(*moved, rtol=1e-5, atol=1e-6)
    assert len(operators) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_views_of_one_block_that_do_not_overlap(kind, compiled_alone):
    block = parameters((10, 4))[0].detach().clone()
    references = [Plain(kind, part, lr=0.1) for part in (block[:4], block[4:])]
    ps = [nn.Parameter(block[:4]), nn.Parameter(block[4:])]
    optimizer = kind(ps, lr=0.1)
    for p, reference in zip(ps, references, strict=True):
        p.grad = torch.ones_like(p)
        reference.step(p.grad)
    optimizer.step()
    torch.testing.assert_close(block.double(), torch.cat([reference.w for reference in references]))


@pytest.mark.parametrize("kind", KINDS)
def test_one_gradient_of_two_parameters(kind, how):
    ps = parameters((5, 3), (5, 3), seed=2)
    references = [Plain(kind, p, lr=0.1) for p in ps]
    grad = torch.randn(5, 3)
    for p, reference in zip(ps, references, strict=True):
        p.grad = grad
        reference.step(grad)
    kind(ps, lr=0.1).step()
    for p, reference in zip(ps, references, strict=True):
        torch.testing.assert_close(p.detach().double(), reference.w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_data_that_are_replaced_between_steps(kind, how):
    """Other memory, another state, and back."""
    (p,) = parameters((6, 4))
    reference = Plain(kind, p, lr=0.1)
    optimizer = kind([p], lr=0.1)
    generator = torch.Generator().manual_seed(8)
    for step in range(6):
        if step in {2, 4}:
            p.data = p.data.clone()
        if step == 3:
            optimizer.state[p] = {name: value.clone() for name, value in optimizer.state[p].items()}
        p.grad = gradient(p, generator) if step else torch.randn(p.shape, generator=generator)
        if p.grad.is_sparse:
            p.grad = rows([1, 2], torch.randn(2, 4, generator=generator), 6)
        reference.step(p.grad)
        optimizer.step()
    torch.testing.assert_close(p.detach().double(), reference.w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sum", "step"])
def test_a_state_of_another_dtype_is_seen(name, operators):
    """The compiled step would read it as float32."""
    (p,), (q,) = parameters((6, 4)), parameters((6, 4))
    first, second = RowAdagrad([p], lr=0.1, lr_decay=0.1), RowAdagrad([q], lr=0.1, lr_decay=0.1)
    for step in range(4):
        for w, optimizer in ((p, first), (q, second)):
            w.grad = torch.full((6, 4), float(step + 1))
            if step == 2 and w is p:
                optimizer.state[p][name] = optimizer.state[p][name].double()
            optimizer.step()
    torch.testing.assert_close(p, q)
    assert len(operators) == 2
    assert all(w is p for w in operators)


@pytest.mark.parametrize("kind", KINDS)
def test_smaller_data_with_the_state_of_old_are_refused(kind):
    (p,) = parameters((6, 4))
    optimizer = kind([p], lr=0.1, **({"momentum": 0.9} if kind is RowSGD else {}))
    p.grad = torch.ones_like(p)
    optimizer.step()
    p.grad = None
    p.data = p.data[:3]
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError):
        optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_autograd_notices_the_step(kind, how):
    """A graph from before the step must not be used after it: the weights that it saved are others now."""
    p, x = parameters((3, 3), (3, 3))
    loss = (x @ p).sum()
    p.grad = torch.ones_like(p)
    version = p._version
    kind([p], lr=0.1).step()
    assert p._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_and_schedulers(kind, compiled_alone):
    (p,) = parameters((3, 2))
    optimizer = kind([p], lr=0.5)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)
    seen = []
    handles = [
        optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: seen.append(("before", p[0, 0].item()))),
        optimizer.register_step_post_hook(lambda optimizer, args, kwargs: seen.append(("after", p[0, 0].item()))),
        register_optimizer_step_post_hook(lambda *_: seen.append("everywhere")),
    ]
    p.grad = torch.ones_like(p)
    before = p[0, 0].item()
    optimizer.step()
    assert seen == [("before", before), ("after", p[0, 0].item()), "everywhere"]
    for handle in handles:
        handle.remove()
    with warnings.catch_warnings(action="error"):  # it warns where it has not seen the step
        schedule.step()
    middle = p.detach().clone()
    assert middle[0, 0] != before
    optimizer.step()
    assert torch.equal(p, middle)
    assert len(seen) == 3


def test_a_pre_hook_may_change_the_arguments(compiled_alone):
    (p,) = parameters((3, 2))
    optimizer = RowSGD([p], lr=0.5)
    optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: ((optimizer, lambda: 7.0), {}))
    assert optimizer.step() == 7.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_profiler_sees_the_step(kind):
    (p,) = parameters((3, 2))
    optimizer = kind([p])
    with profile() as found:
        p.grad = torch.ones_like(p)
        optimizer.step()
        optimizer.zero_grad()
    names = {event.key for event in found.key_averages()}
    assert f"Optimizer.step#{kind.__name__}.step" in names
    assert f"Optimizer.zero_grad#{kind.__name__}.zero_grad" in names


@pytest.mark.parametrize("kind", KINDS)
def test_a_closure_has_gradients_and_its_loss_is_returned(kind, how):
    (p,) = parameters((3, 2))
    optimizer = kind([p], lr=0.05)

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        losses = [optimizer.step(closure).item() for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_zero_grad_to_zeros(kind):
    p, q = parameters((3, 2), (3, 2))
    optimizer = kind([p, q])
    p.grad, q.grad = torch.ones_like(p), rows([1], torch.ones(1, 2), 3)
    optimizer.zero_grad(set_to_none=False)
    assert torch.equal(p.grad, torch.zeros(3, 2))
    assert q.grad is not None
    assert not q.grad.to_dense().any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_rate_that_is_a_tensor(kind, how):
    (p,) = parameters((3, 2))
    (q,) = parameters((3, 2))
    rate = torch.tensor(0.1)
    first, second = kind([p], lr=rate), kind([q], lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(first, factor=0.5, total_iters=1)
    for step in range(2):
        first.param_groups[0]["lr"].fill_(0.1)
        for w in (p, q):
            w.grad = torch.ones_like(w) if step else rows([1], torch.ones(1, 2), 3)
        first.step()
        second.step()
    torch.testing.assert_close(p, q)
    schedule.step()
    assert isinstance(first.param_groups[0]["lr"], torch.Tensor)


@pytest.mark.parametrize("kind", KINDS)
def test_groups_have_settings_of_their_own(kind, how):
    ps = parameters((3, 4), (4, 2), (5,))
    own = [{"lr": 0.1}, {"lr": 0.01, "weight_decay": 0.5}, {"lr": 0.2, "maximize": True}]
    references = [Plain(kind, p, **settings) for p, settings in zip(ps, own, strict=True)]
    optimizer = kind([{"params": [p], **settings} for p, settings in zip(ps[:2], own[:2], strict=True)])
    optimizer.add_param_group({"params": [ps[2]], **own[2]})
    for seed in range(3):
        for p, reference in zip(ps, references, strict=True):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
            reference.step(p.grad)
        optimizer.step()
    for p, reference in zip(ps, references, strict=True):
        torch.testing.assert_close(p.detach().double(), reference.w, rtol=1e-5, atol=1e-6)


def some_steps(optimizer, ps, seeds):
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for p in ps:
            p.grad = torch.randn(p.shape, generator=generator)
            if p.dim() > 1 and seed % 2:
                p.grad = rows([0, 2], p.grad[[0, 2]], len(p))
        optimizer.step()


@pytest.mark.parametrize(("kind", "settings"), CASES)
@pytest.mark.parametrize("copied", ["pickle", "deepcopy", "state dict"])
def test_training_goes_on_from_a_copy(kind, settings, copied, how):
    ps = parameters((4, 3), (5,))
    optimizer = kind(ps, **settings)
    some_steps(optimizer, ps, range(3))
    if copied in {"pickle", "deepcopy"}:
        both = copy.deepcopy if copied == "deepcopy" else lambda pair: pickle.loads(pickle.dumps(pair))
        again, twins = both((optimizer, ps))
    else:
        twins = [nn.Parameter(p.detach().clone()) for p in ps]
        again = kind(twins)
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        again.load_state_dict(torch.load(file, weights_only=True))
    some_steps(optimizer, ps, range(3, 6))
    some_steps(again, twins, range(3, 6))
    for p, q in zip(ps, twins, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [7, -1, 1 << 40])
def test_rows_that_are_not_there_are_refused_and_nothing_is_moved(kind, bad):
    """Written to, they would be somebody else's memory."""
    p, q = parameters((4, 3), (7, 3))
    before = [p.detach().clone(), q.detach().clone()]
    optimizer = kind([p, q], lr=0.1)
    p.grad = torch.ones_like(p)
    q.grad = rows([min(0, bad), max(bad, 0)], torch.ones(2, 3), 7)
    with pytest.raises(ValueError, match=rf"a parameter \(7, 3\) has row {bad}, which"):
        optimizer.step()
    assert torch.equal(p, before[0])
    assert torch.equal(q, before[1])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_in_disorder(kind):
    """Such as say that they are coalesced, and are not: twice the same, or not ascending."""
    p, q = parameters((7, 3), (7, 3), seed=4)
    with torch.no_grad():
        q.copy_(p)
    optimizers = [kind([w], lr=0.1) for w in (p, q)]
    values = torch.randn(4, 3)
    p.grad = rows([5, 2, 2, 0], values, 7)
    q.grad = rows([5, 2, 2, 0], values, 7, coalesced=False).coalesce()
    for optimizer in optimizers:
        optimizer.step()
    torch.testing.assert_close(p, q)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_with_its_sign_in_a_bit(kind):
    """torch keeps the sign of a conjugate's imaginary part beside the numbers."""
    p, q = parameters((4, 2), (4, 2), seed=3)
    with torch.no_grad():
        q.copy_(p)
    grad = torch.randn(4, 2, dtype=torch.complex64).conj().imag
    assert grad.is_neg()
    p.grad, q.grad = grad, grad.clone().resolve_neg()
    for w in (p, q):
        kind([w], lr=0.1).step()
    torch.testing.assert_close(p, q)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_with_a_graph(kind, how):
    """As `backward(create_graph=True)` leaves them."""
    layer = MePropLinear(5, 6, k=2, selection="unified", sparse=True, kernel="masked")
    optimizer = kind(layer.parameters(), lr=0.1)
    before = layer.weight.detach().clone()
    layer.bias.grad = (layer.bias * 2).clone()
    layer(torch.randn(3, 5)).square().sum().backward()
    optimizer.step()
    assert not layer.weight.requires_grad or layer.weight.grad_fn is None
    assert not torch.equal(layer.weight, before)


@pytest.mark.parametrize("kind", KINDS)
def test_settings_out_of_range(kind):
    for settings, message in [
        ({"lr": -1.0}, "lr must be a number of at least 0, not -1.0"),
        ({"lr": torch.ones(2)}, "lr must be a number"),
        ({"lr": float("nan")}, "lr must be .* not nan"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"weight_decay": "much"}, "weight_decay must be a number"),
    ]:
        with pytest.raises(ValueError, match=message):
            kind(parameters((2,)), **settings)
        optimizer = kind(parameters((2,)))
        with pytest.raises(ValueError, match=message):
            optimizer.add_param_group({"params": parameters((3,)), **settings})
        assert len(optimizer.param_groups) == 1
        assert len(optimizer.state) <= 1
    for name in ("differentiable", "capturable", "fused", "foreach"):
        with pytest.raises(TypeError, match=name):
            kind(parameters((2,)), **{name: True})


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_supported_is_refused(kind):
    with pytest.raises(ValueError, match="complex64"):
        kind([nn.Parameter(torch.ones(2, dtype=torch.complex64))])
    with pytest.raises(ValueError, match="sparse_coo"):
        kind([torch.ones(2, 2).to_sparse().requires_grad_()])
    first, second = parameters((7, 3), (7, 3))
    optimizer = kind([first, second])
    before = first.detach().clone()
    first.grad = torch.ones_like(first)
    second.grad = torch.eye(7, 3).to_sparse()
    with pytest.raises(ValueError, match=r"whole rows.* parameter \(7, 3\) has 2 sparse dimensions"):
        optimizer.step()
    assert torch.equal(first, before), "a refused step moves nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_no_memory_is_held_from_step_to_step(kind, compiled_alone):
    (p,) = parameters((4, 3))
    optimizer = kind([p])
    p.grad = torch.ones(4, 3)
    gone = weakref.ref(p.grad)
    optimizer.step()
    optimizer.zero_grad()
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("kind", KINDS)
def test_subclasses_of_tensors_are_left_to_torch(kind, operators):
    class Own(torch.Tensor):
        pass

    (p,) = parameters((4, 3))
    own = p.detach().clone().as_subclass(Own).requires_grad_()
    for w in (p, own):
        w.grad = torch.ones(4, 3) if w is p else torch.ones(4, 3).as_subclass(Own)
        kind([w], lr=0.1).step()
    torch.testing.assert_close(p.detach(), own.detach().as_subclass(torch.Tensor))
    assert len(operators) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_training_step(kind, compiled_alone):
    """torch.compile breaks the graph at the step, and the step is as ever."""
    models = [nn.Linear(4, 3), None]
    models[1] = copy.deepcopy(models[0])
    x = torch.randn(5, 4)
    for index, model in enumerate(models):
        optimizer = kind(model.parameters(), lr=0.1)

        def step(model=model, optimizer=optimizer):
            model(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        run = torch.compile(step, backend="eager") if index else step
        for _ in range(3):
            run()
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_by_rows_learns_as_the_dense_one(kind, how):
    """SGD and AdaGrad do the same by rows and by the dense gradient of a sparsified layer, from end to end."""
    torch.manual_seed(0)
    x, y = torch.randn(64, 8), torch.randint(4, (64,))
    net = nn.Sequential(MePropLinear(8, 40, k=6, selection="unified", kernel="masked"), nn.ReLU(), nn.Linear(40, 4))
    models = [copy.deepcopy(net) for _ in range(2)]
    models[1][0].sparse = True
    losses = []
    for model in models:
        optimizer = kind(model.parameters(), lr=0.05)
        first = F.cross_entropy(model(x), y).item()
        for batch in range(40):
            chosen = slice(8 * (batch % 8), 8 * (batch % 8) + 8)
            loss = F.cross_entropy(model(x[chosen]), y[chosen])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(F.cross_entropy(model(x), y).item())
    assert losses[1] < first - 0.1
    if kind in (RowSGD, RowAdagrad):
        torch.testing.assert_close(models[0].state_dict(), models[1].state_dict(), rtol=1e-5, atol=1e-6)


WITHOUT = """
import sys
sys.modules["numba"] = None
import torch
from meprop_bench.optim import RowAdagrad, RowAdam, RowAdamW, RowSGD
from meprop_bench.ops import kernels, memory, node
from meprop_bench.ops.kernels import compiled
from torch.optim import SGD, Adagrad, Adam, AdamW

for ours, theirs in ((RowAdagrad, Adagrad), (RowSGD, SGD), (RowAdam, Adam), (RowAdamW, AdamW)):
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(5, 3))
    q = torch.nn.Parameter(p.detach().clone())
    first, second = ours([p], lr=0.1), theirs([q], lr=0.1)
    for _ in range(3):
        q.grad = torch.randn(5, 3)
        p.grad = q.grad.to_sparse(1)
        first.step()
        second.step()
    torch.testing.assert_close(p, q)
print(compiled.unavailable_reason())
"""


def test_without_numba():
    assert fresh(WITHOUT) == "Numba is not installed (extra `cpu`)"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_on_a_gpu(kind, settings):
    """By torch's operators, without waiting for the device."""
    ps = [nn.Parameter(p.detach().cuda()) for p in parameters((37, 31), (7,))]
    references = [Plain(kind, p.detach().cpu(), **settings) for p in ps]
    optimizer = kind(ps, **settings)
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        for p, reference in zip(ps, references, strict=True):
            grad = torch.randn(p.shape, generator=generator)
            if step % 2:
                grad = rows([1, 4, 6], grad[[1, 4, 6]], len(p))
            reference.step(grad)
            idx = grad._indices().cuda() if grad.is_sparse else None
            p.grad = grad.cuda() if idx is None else rows(idx[0], grad._values().cuda(), len(p))
        torch.cuda.synchronize()
        if step > 1 and not optimizer.moves_all_rows(optimizer.param_groups[0]):
            torch.cuda.set_sync_debug_mode("error")
        optimizer.step()
        torch.cuda.set_sync_debug_mode("default")
    for p, reference in zip(ps, references, strict=True):
        torch.testing.assert_close(p.detach().cpu().double(), reference.w, rtol=2e-5, atol=2e-6)


def test_the_base_is_no_optimizer_of_its_own():
    assert all(issubclass(kind, RowOptimizer) for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_in_order_are_not_coalesced_again(kind, monkeypatch):
    """Autograd forgets that a gradient is coalesced when it stores it, and to coalesce takes longer than the step."""
    if compiled.unavailable_reason() is not None:
        pytest.skip("the order is seen by compiled code")
    layer = MePropLinear(9, 6, k=3, selection="unified", sparse=True)
    layer(torch.randn(4, 9)).square().sum().backward()
    assert layer.weight.grad.is_sparse
    assert not layer.weight.grad.is_coalesced()
    optimizer = kind(layer.parameters(), lr=0.1)
    monkeypatch.setattr(torch.Tensor, "coalesce", None)
    optimizer.step()


def test_rows_of_a_layer_on_a_device_are_not_coalesced_again(monkeypatch):
    """There the host would wait. What anybody else has made, or added up, is."""
    monkeypatch.setattr(memory, "is_read_at_once", lambda _: False)
    layer = MePropLinear(9, 6, k=3, selection="unified", sparse=True, kernel="gather")
    w = layer.weight

    def step(seed):
        layer(torch.randn(4, 9, generator=torch.Generator().manual_seed(seed))).square().sum().backward()

    step(0)
    assert not w.grad.is_coalesced()
    assert table.each_once(w, w.grad) is w.grad
    other = torch.sparse_coo_tensor(w.grad._indices().clone(), w.grad._values(), w.shape, check_invariants=False)
    assert table.each_once(w, other).is_coalesced()
    step(1)  # is added up
    assert table.each_once(w, w.grad).is_coalesced()
    w.grad = None
    step(2)
    one = torch.sparse_coo_tensor(
        w.grad._indices()[:, :1].expand(1, 3), w.grad._values(), w.shape, check_invariants=True
    )
    assert table.each_once(w, one).is_coalesced()


def test_what_is_known_of_rows_goes_with_them(monkeypatch):
    monkeypatch.setattr(memory, "is_read_at_once", lambda _: False)
    monkeypatch.setattr(kernels, "_MANY", 10)
    monkeypatch.setattr(kernels, "_ascending", {})
    held = [kernels.hybrid_rows(torch.tensor([1, 3]), torch.ones(2, 4), 5) for _ in range(3)]
    for _ in range(100):
        kernels.hybrid_rows(torch.tensor([1, 3]), torch.ones(2, 4), 5)
    assert len(kernels._ascending) <= 10
    assert all(kernels.is_hybrid_rows(grad) for grad in held)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_a_layer_does_not_wait(kind):
    """With the gradient as autograd has stored it."""
    layer = MePropLinear(40, 30, k=5, selection="unified", sparse=True, bias=False, device="cuda")
    optimizer = kind(layer.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        layer(torch.randn(8, 40, device="cuda")).square().sum().backward()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first makes states
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", KINDS)
def test_looking_in_cxx_and_in_python_agree(kind, monkeypatch):
    """Of gradients that compiled code takes, and of those that it leaves."""
    found = []
    for find in (node.gradients(), None):
        monkeypatch.setattr(table, "_find_gradients", lambda find=find: find)
        places = []
        table_of = table.Table.places

        def watched(self, parameters, *, rows, places=places, table_of=table_of):
            given = table_of(self, parameters, rows=rows)
            places += [each if each is None else type(each) is tuple for each in given]
            return given

        monkeypatch.setattr(table.Table, "places", watched)
        ps = parameters((12, 5), (5, 12), (4, 3), (6, 2), (2, 3, 4, 4), (7, 3), (3, 3))
        ps[1] = ps[1].detach().t().requires_grad_()
        ps[2] = ps[2].detach().double().requires_grad_()
        ps[3] = ps[3].detach().as_subclass(type("Sub", (torch.Tensor,), {})).requires_grad_()
        ps[4] = ps[4].detach().to(memory_format=torch.channels_last).requires_grad_()
        optimizer = kind(ps, lr=0.05)
        generator = torch.Generator().manual_seed(5)
        for _ in range(6):
            for p in ps[:-2]:
                p.grad = gradient(p, generator).to(p.dtype)
            ps[-2].grad = rows([], torch.empty(0, 3), 7)
            optimizer.step()
        monkeypatch.undo()
        numbers = [p.detach().as_subclass(torch.Tensor) for p in ps]
        numbers += [t.as_subclass(torch.Tensor) for p in ps for t in optimizer.state[p].values()]
        found.append((numbers, optimizer.state_dict()["param_groups"], places))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=0)
    assert found[0][1:] == found[1][1:]
    assert {True, False, None} <= set(found[0][2])
