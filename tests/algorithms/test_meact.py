import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from meprop_bench.algorithms.meact import MeAct, ParameterChange
from meprop_bench.models.mlp import MLP
from meprop_bench.nn import convert
from meprop_bench.ops.kernels import compiled

N = 12
LABELS = torch.arange(N) % 3
X = torch.randn(N, 5, generator=torch.Generator().manual_seed(0))


def train(model, act, ids, lr=0.0):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with act.batch(ids):
        F.cross_entropy(model(X[ids]), LABELS[ids], reduction="sum").backward()
    optimizer.step()
    optimizer.zero_grad()


def gradients(model, ids):
    """The oracle: |dL/dy| of each hidden layer, one example at a time, by autograd alone."""
    found = {"linear0": torch.zeros(N, 9), "linear1": torch.zeros(N, 9)}
    for i in ids.tolist():
        y0 = model.linear0(X[i]).detach().requires_grad_()
        y1 = model.linear1(y0.relu())
        F.cross_entropy(model.output(y1.relu()), LABELS[i]).backward(inputs=[y0])
        found["linear0"][i] += y0.grad.abs()
        y1 = y1.detach().requires_grad_()
        F.cross_entropy(model.output(y1.relu()), LABELS[i]).backward(inputs=[y1])
        found["linear1"][i] += y1.grad.abs()
    return found


EPOCH = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 3, 3])


@pytest.mark.parametrize("absolute", [False, True])
def test_masks_against_the_oracle(absolute):
    model = MLP(5, 9, 3, seed=1)
    act = MeAct(model, N)
    for ids in EPOCH.split(5):  # without changing the model, in batches, and example 3 more often
        train(model, act, ids)
    threshold = 0.1
    g = gradients(model.eval(), EPOCH)
    act.fix(threshold, absolute=absolute)
    everyone = torch.arange(N)
    for name, sums in g.items():
        share = sums if absolute else sums / sums.sum(1, keepdim=True)
        assert torch.equal(act.active(name, everyone), share >= threshold)
        assert torch.equal(act.sizes()[name], (share >= threshold).sum(1))
    assert act.average_size == pytest.approx(sum(float(s.float().mean()) for s in act.sizes().values()) / 2)
    assert 0 < act.average_size < 9


def test_training_goes_through_the_kept_neurons_alone():
    model = MLP(5, 9, 3, seed=1).double()
    act = MeAct(model, N)
    x = X.double()
    with act.batch(torch.arange(N)):
        F.cross_entropy(model(x), LABELS).backward()
    act.fix(0.12)
    ids = torch.tensor([7, 2, 7])
    masks = [act.active(name, ids).double() for name in ("linear0", "linear1")]
    plain = copy.deepcopy(model)
    for parameter in (*model.parameters(), *plain.parameters()):
        parameter.grad = None
    with act.batch(ids):
        y = model(x[ids])
    h = x[ids]
    for name, mask in zip(("linear0", "linear1"), masks, strict=True):
        layer = plain.get_submodule(name)
        h = (F.linear(h, layer.weight, layer.bias) * mask).relu()
    expected = plain.output(h)
    assert torch.equal(y, expected)
    for logits in (y, expected):
        F.cross_entropy(logits, LABELS[ids]).backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    unused = ~masks[1].bool().any(0)
    assert unused.any()
    assert not model.linear1.weight.grad[unused].any()


def fixed(threshold=0.12, **layers):
    """Return a model whose masks are fixed, in float32, and what fixed them."""
    model = MLP(5, 9, 3, seed=1)
    act = MeAct(model, N, **layers)
    train(model, act, torch.arange(N))
    act.fix(threshold)
    return model, act


def parts(model, act, ids):
    """Return the output and all gradients of a batch."""
    with act.batch(ids):
        y = model(X[ids])
        return [y, *torch.autograd.grad(F.cross_entropy(y, LABELS[ids]), list(model.parameters()))]


def defined(model, act, ids):
    """The same by Algorithm 3 written out, layer by layer."""
    h = X[ids]
    for name in ("linear0", "linear1"):
        layer = model.get_submodule(name)
        h = F.linear(h, layer.weight, layer.bias)
        h = (h * act.active(name, ids) if name in act.sizes() else h).relu()
    y = model.output(h)
    return [y, *torch.autograd.grad(F.cross_entropy(y, LABELS[ids]), list(model.parameters()))]


def close(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


IDS = torch.tensor([7, 2, 7, 11])


def nodes(y):
    """Return the names of all nodes of a graph."""
    seen, left = set(), [y.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [other for other, _ in node.next_functions]
    return {node.name() for node in seen}


def test_fixed_layers_compute_their_active_neurons_alone():
    model, act = fixed()
    close(parts(model, act, IDS), defined(model, act, IDS))
    native = compiled.load("meprop_bench.ops.kernels.native.active") is not None
    names = nodes(parts(model, act, IDS)[0])
    assert ("_ActiveBackward" in names, "MaskedFillBackward0" in names) == (native, not native)


def test_a_model_is_as_it_was_outside_of_a_batch():
    model, act = fixed()
    with pytest.raises(RuntimeError, match="mat1 and mat2"), act.batch(IDS):
        model.linear0(X[:4, :4])
    assert not any("forward" in vars(module) for module in model.modules())
    with pytest.raises(ValueError, match="does not know which examples"):
        model(X[IDS])
    twin = pickle.loads(pickle.dumps(model))
    assert torch.equal(twin.eval()(X), model.eval()(X))


def test_evaluation_within_a_batch_is_full():
    model, act = fixed()
    model.eval()
    with act.batch(IDS):
        found = model(X[IDS])
    assert torch.equal(found, model(X[IDS]))


@pytest.mark.parametrize("ids", [IDS, torch.arange(3)])
def test_rows_that_do_not_fit_are_refused_when_fixed(ids):
    model, act = fixed()
    with pytest.raises(ValueError, match=r"meAct needs one row for each example"), act.batch(ids):
        model(X[:5])
    with pytest.raises(ValueError, match=r"meAct needs one row for each example"), act.batch(ids):
        model(X[None])


def test_other_hooks_see_all_of_an_output():
    """One on the layer that was there before sees, and may change, what is then masked: as before the masks."""
    model = MLP(5, 9, 3, seed=1)
    seen = []

    def double(module, args, y):
        seen.append(y)
        return y + 1

    model.linear0.register_forward_hook(double)
    act = MeAct(model, N)
    train(model, act, torch.arange(N))
    act.fix(0.12)
    with act.batch(IDS):
        h = model.linear0(X[IDS])
    layer = model.linear0
    assert torch.equal(seen[-1], F.linear(X[IDS], layer.weight, layer.bias))
    assert torch.equal(h, (seen[-1] + 1).masked_fill(~act.active("linear0", IDS), 0))


def test_global_hooks_see_all_of_an_output():
    model, act = fixed()
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, y: seen.append((module, y)))
    try:
        found = parts(model, act, IDS)
    finally:
        handle.remove()
    layer = model.linear0
    (y,) = (y for module, y in seen if module is layer)
    assert torch.equal(y, F.linear(X[IDS], layer.weight, layer.bias))
    close(found, defined(model, act, IDS))


def test_a_forward_that_somebody_replaced_is_kept():
    model, act = fixed()
    layer = model.linear0

    def forward(x):
        return F.linear(x, layer.weight, layer.bias) + 1

    layer.forward = forward
    with act.batch(IDS):
        h = layer(X[IDS])
    assert torch.equal(h, forward(X[IDS]).masked_fill(~act.active("linear0", IDS), 0))
    assert layer.forward is forward


def test_weights_that_are_computed():
    model, act = fixed()
    nn.utils.parametrizations.weight_norm(model.linear1)
    close(parts(model, act, IDS), defined(model, act, IDS))


def test_layers_that_are_sparsified_are_masked_behind():
    model, act = fixed()
    convert(model, k=9)  # dense, so that it is the definition, but not torch's layer
    found = parts(model, act, IDS)
    close(found, defined(model, act, IDS))
    assert "_ActiveBackward" not in nodes(found[0])


def test_layers_without_masks_are_left():
    model, act = fixed(layers=["linear1"])
    with act.batch(IDS):
        assert "forward" not in vars(model.linear0)
    close(parts(model, act, IDS), defined(model, act, IDS))


def test_once_closed_a_model_is_plain():
    model, act = fixed()
    act.close()
    with act.batch(IDS):
        found = model(X[IDS])
    assert torch.equal(found, model(X[IDS]))
    assert not any(module._forward_hooks for module in model.modules())


def test_a_state_is_taken_over_with_its_masks():
    model, act = fixed()
    twin = MLP(5, 9, 3, seed=1)
    other = MeAct(twin, N)
    other.load_state_dict(act.state_dict())
    assert all(map(torch.equal, parts(model, act, IDS), parts(twin, other, IDS)))


def test_what_is_inactive_is_zero_whatever_it_would_be():
    model, act = fixed()
    with torch.no_grad():
        model.linear0.bias.fill_(float("inf"))
    with act.batch(IDS):
        h = model.linear0(X[IDS])
    assert torch.equal(h == 0, ~act.active("linear0", IDS))
    handle = model.linear0.register_forward_hook(lambda *_: None)  # computed in full and masked
    with act.batch(IDS):
        assert torch.equal(model.linear0(X[IDS]), h)
    handle.remove()


def test_a_model_that_is_compiled():
    torch.compiler.reset()
    model, act = fixed()
    compiled_model = torch.compile(model, backend="aot_eager")
    for ids in (IDS, IDS + 1 - 12 * (IDS == 11).long(), IDS):
        close(parts(compiled_model, act, ids), defined(model, act, ids))
    torch.compiler.reset()


def test_evaluation_is_full_and_needs_no_ids():
    model = MLP(5, 9, 3, seed=1)
    before = model(X)
    act = MeAct(model, N)
    train(model, act, torch.arange(N))
    act.fix(0.2)
    model.eval()
    assert torch.equal(model(X), before)


def test_accumulating_does_not_change_training():
    plain, watched = (MLP(5, 9, 3, seed=1) for _ in range(2))
    act = MeAct(watched, N)
    ids = torch.arange(N)
    train(watched, act, ids, lr=0.1)
    F.cross_entropy(plain(X), LABELS, reduction="sum").backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), watched.parameters(), strict=True))


def test_an_example_without_gradient_has_no_active_neuron():
    model = MLP(5, 9, 3, seed=1)
    act = MeAct(model, N)
    train(model, act, torch.tensor([1, 4]))
    act.fix(0.05)
    assert act.sizes()["linear1"].nonzero().flatten().tolist() == [1, 4]


def test_memory_is_stated_and_bounded():
    model = MLP(784, 500, 10, layers=2)
    with pytest.raises(ValueError, match=r"need 2200000000 bytes.*raise memory_limit, or name fewer layers"):
        MeAct(model, 550_000)
    act = MeAct(model, 550, memory_limit=550 * 1000 * 4)
    assert act.memory_bytes == 2_200_000
    assert 55_000 * 1000 * 4 < 1 << 30
    with act.batch(torch.arange(2)):
        model(torch.randn(2, 784)).sum().backward()
    act.fix(0.004)
    assert all(layer.gradients is None and layer.bits.nbytes == 550 * 63 for layer in act._layers.values())


def test_with_meprop_and_with_layers_named():
    model = MLP(5, 9, 3, seed=1)
    convert(model, k=3)
    act = MeAct(model, N, layers=["linear1"])
    train(model, act, torch.arange(N))
    act.fix(0.1)
    assert list(act.sizes()) == ["linear1"]
    assert not model.linear0._forward_hooks
    act.close()
    model(X)


def test_wrong_use():
    model = MLP(5, 9, 3, seed=1)
    act = MeAct(model, N)
    with pytest.raises(ValueError, match="does not know which examples reach 'linear0': train within"):
        model(X)
    with pytest.raises(ValueError, match=r"'linear0' gives \(12, 9\) for 3 ids"), act.batch(torch.arange(3)):
        model(X)
    for ids, message in (
        (torch.arange(N) + 1, r"ids must lie in \[0, 12\), not in \[1, 12\]"),
        (torch.zeros(3), "ids must be one int64 number"),
        (torch.zeros(3, 1, dtype=torch.int64), "ids must be one int64 number"),
    ):
        with pytest.raises(ValueError, match=message), act.batch(ids):
            pass
    with pytest.raises(ValueError, match="no gradient was accumulated"):
        act.fix(0.1)
    with pytest.raises(ValueError, match="not fixed yet"):
        act.active("linear0", torch.arange(2))
    train(model, act, torch.arange(N))
    for threshold in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="greater than 0"):
            act.fix(threshold)
    act.fix(0.1)
    assert act.fixed
    with pytest.raises(ValueError, match="fixed already"):
        act.fix(0.1)
    with pytest.raises(ValueError, match="examples must be"):
        MeAct(model, 0)
    with pytest.raises(ValueError, match="no linear layer 'relu0': choose from linear0, linear1, output"):
        MeAct(model, N, layers=["relu0"])
    with pytest.raises(ValueError, match="at least one"):
        MeAct(model, N, layers=[])
    with pytest.raises(ValueError, match="no hidden linear layer"):
        MeAct(nn.Sequential(nn.Linear(5, 3)), N)


def test_parameter_change():
    parameters = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(4))]
    meter = ParameterChange(parameters)
    assert meter.take() != meter.take()
    with torch.no_grad():
        parameters[0] -= 1
    assert meter.after_update() == pytest.approx(0.6)
    with torch.no_grad():
        parameters[1][0] += 2
    assert meter.after_update() == pytest.approx(0.2)
    assert meter.take() == pytest.approx(0.4)
