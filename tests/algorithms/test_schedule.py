import math

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from meprop_bench.algorithms.schedule import Constant, Cosine, KScheduler, Linear, sparsified_layers
from meprop_bench.nn import MePropLinear, convert


def model():
    torch.manual_seed(0)
    net = nn.Sequential()
    net.encoder = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 12))
    net.decoder = nn.Sequential(nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    convert(net, k=2, kernel="masked")
    return net


def ks(net):
    return {name: layer.k for name, layer in sparsified_layers(net).items()}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(7), [7, 7, 7, 7, 7, 7]),
        (Constant(0.25), [0.25] * 6),
        (Linear(10, 2, 4), [10, 8, 6, 4, 2, 2]),
        (Linear(2, 10, 4), [2, 4, 6, 8, 10, 10]),
        (Linear(1, 4, 2), [1, 3, 4, 4, 4, 4]),
        (Linear(1.0, 0.5, 4), [1.0, 0.875, 0.75, 0.625, 0.5, 0.5]),
        (Cosine(10, 2, 4), [10, 9, 6, 3, 2, 2]),
        (Cosine(0.1, 0.9, 2), [0.1, 0.5, 0.9, 0.9, 0.9, 0.9]),
        (Linear(3, 3, 1), [3] * 6),
    ],
)
def test_values(schedule, expected):
    got = [schedule(step) for step in range(6)]
    assert got == pytest.approx(expected, abs=1e-12)
    assert [type(k) for k in got] == [type(k) for k in expected]
    assert schedule(10**9) == expected[-1]


@pytest.mark.parametrize("kind", [Linear, Cosine])
@pytest.mark.parametrize(("start", "end"), [(1, 500), (500, 1), (0.001, 1.0), (1.0, 0.001)])
def test_every_value_is_a_k_between_the_ends_and_they_go_one_way(kind, start, end):
    got = [kind(start, end, 97)(step) for step in range(120)]
    assert got[0] == start
    assert got[97:] == [end] * 23
    assert all(min(start, end) <= k <= max(start, end) for k in got)
    assert got == sorted(got, reverse=start > end)
    assert len(set(map(type, got))) == 1


def test_cosine_is_flat_at_both_ends_and_meets_the_line_in_the_middle():
    line, curve = Linear(0.2, 0.8, 100), Cosine(0.2, 0.8, 100)
    assert curve(50) == pytest.approx(line(50))
    assert curve(10) < line(10)
    assert curve(90) > line(90)
    assert curve(1) - curve(0) == pytest.approx(0.6 * (1 - math.cos(math.pi / 100)) / 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(0), "k must be .* not 0"),
        (lambda: Linear(0.0, 0.5, 3), r"not 0\.0"),
        (lambda: Linear(3, 1.5, 3), r"not 1\.5"),
        (lambda: Linear(1, 0.1, 3), r"both be counts .* not 1 and 0\.1"),
        (lambda: Cosine(8, 2, 0), "steps must be an int of at least 1, not 0"),
        (lambda: Cosine(8, 2, 2.5), r"steps .* not 2\.5"),
        (lambda: Linear(8, 2, True), "steps .* not True"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_one_schedule_for_all_layers():
    net = model()
    assert ks(net) == {"encoder.0": 2, "encoder.2": 2, "decoder.1": 2}
    scheduler = KScheduler(net, Linear(12, 2, 5))
    assert set(ks(net).values()) == {2}, "nothing is set before the first step"
    for step, k in ((0, 12), (1, 10), (5, 2), (3, 6)):  # any order: a schedule has no state
        scheduler.start_step(step)
        assert set(ks(net).values()) == {k}


def test_a_schedule_for_each_pattern_and_the_first_that_matches_counts():
    net = model()
    scheduler = KScheduler(net, {"encoder.2": Constant(0.5), "encoder.*": Linear(4, 8, 2)})
    scheduler.start_step(1)
    assert ks(net) == {"encoder.0": 6, "encoder.2": 0.5, "decoder.1": 2}
    KScheduler(net, {"*.1": Constant(9), "*": Constant(1)}).start_step(0)
    assert ks(net) == {"encoder.0": 1, "encoder.2": 1, "decoder.1": 9}


def test_patterns_and_models_without_effect_are_refused():
    for schedules in ({"encodr.*": Constant(1)}, {"*": Constant(1), "encoder.0": Constant(2)}):
        with pytest.raises(
            ValueError, match=r"no layer is left for the pattern '(encodr\.\*|encoder\.0)': .*encoder\.0, enc"
        ):
            KScheduler(model(), schedules)
    with pytest.raises(ValueError, match="no layer of Sequential has a k"):
        KScheduler(nn.Sequential(nn.Linear(3, 3)), Constant(1))


def test_a_layer_is_known_by_what_it_can_do():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.k = nn.Linear(3, 3)  # keys, and no count

    class Mine(nn.Module):
        k = 1

        def configure(self, *, k):
            self.k = k

    net = nn.Sequential(Attention(), Mine())
    KScheduler(net, Constant(5)).start_step(0)
    assert ks(net) == {"1": 5}


def test_the_layers_get_the_gradients_of_their_k():
    net = model()
    scheduler = KScheduler(net, {"encoder.0": Linear(1, 12, 11)})
    x = torch.randn(1, 5)
    for step in range(12):
        scheduler.start_step(step)
        net.zero_grad()
        net(x).pow(2).sum().backward()
        kept = int(net.encoder[0].weight.grad.ne(0).any(1).sum())
        assert kept <= step + 1
        fresh = MePropLinear.from_linear(net.encoder[0], k=step + 1, kernel="masked")
        (expected,) = torch.autograd.grad(net.decoder(net.encoder[1:](fresh(x))).pow(2).sum(), net.encoder[0].weight)
        assert torch.equal(net.encoder[0].weight.grad, expected)


def test_a_schedule_compiles_again_at_the_first_change_alone():
    torch._dynamo.reset()
    net = model()
    scheduler = KScheduler(net, {"encoder.*": Linear(1, 11, 10), "decoder.*": Linear(0.9, 0.1, 10)})
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    for step in range(12):
        scheduler.start_step(step)
        compiled(torch.ones(2, 5)).sum().backward()
    assert counter.frame_count == 2
