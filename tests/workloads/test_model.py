import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from meprop_bench.measure.clock import WallClock
from meprop_bench.results.schema import PASSED
from meprop_bench.tasks import load_task
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.workloads import Case, setup
from meprop_bench.workloads.flops import Work
from meprop_bench.workloads.layer_calls import record
from meprop_bench.workloads.steps import PHASES, WALK, TrainingSide


def prepared(name, **axes):
    return setup(Case(workload="model", model=name, **{"optimizer": "own", "threads": 1, "k": 4, **axes}))


def stepped(name, steps=None, **recipe):
    """Return task, step and batches of one side."""
    made = Recipe(name, optimizer="own", **recipe)
    task = load_task(name)
    model = task.build(0)
    task.sparsify(model, made)
    return task, task.step(model, made, steps), list(task.epoch(0, 0))


def work(name):
    _, step, batches = stepped(name)
    parts = batches[0] if step.accumulate == 1 else batches[0][0]
    found = Work.of(step, parts)
    assert all(p.grad is None for p in step.model.parameters())
    return found


def linear(rows, m, n, products=2):
    return 2.0 * rows * m * n * products


def test_a_model_as_it_is_trained_is_two_dense_sides(own_model):
    found = prepared(own_model(), method="dense")
    assert found.phases == PHASES
    assert found.check() == PASSED
    assert (found.kernel, found.converted) == ("dense", 0.0)
    assert set(found.method(1, WallClock())) == set(PHASES)
    case = Case(workload="model", model=own_model(), method="dense", optimizer="own")
    assert Case.from_json(case.changed()) == case


def test_phases_and_what_a_reader_is_told(own_model):
    found = prepared(own_model())
    assert found.phases == PHASES
    assert found.check() == PASSED
    share = (12 * 16 + 2 * 16 * 16) / (12 * 16 + 2 * 16 * 16 + 2 * 16 * 4)  # the first layer needs no dx
    assert found.converted == pytest.approx(share)
    assert found.notes == (
        "2 of 3 layers are sparsified (85% of the backward pass's operations)",
        "left dense: 4 (15% of the backward pass's operations)",
    )
    for side in (found.baseline, found.method):
        times = side(3, WallClock())
        assert times.keys() == set(PHASES)
        assert times["step"] == pytest.approx(sum(times[phase] for phase in PHASES[:3]))


def test_all_layers_can_be_sparsified_some_left_and_k_be_their_own(own_model):
    found = prepared(own_model("def build(): return training(filter=lambda m, n: True, k={'2': 16})"))
    assert found.notes[0].startswith("3 of 3 layers are sparsified (100%")
    assert len(found.notes) == 1
    assert found.check() == PASSED
    found = prepared(own_model("def build(): return training()", "other.py"), leave="2")
    assert found.notes[0].startswith("1 of 3 layers are sparsified (23%")
    assert found.notes[1].startswith("left dense: 2 (62% of the backward pass's operations), 4 (15%")


def test_a_task_is_timed_by_its_name():
    found = setup(Case(workload="model", model="digits", optimizer="adam", threads=1, k=30))
    assert found.check() == PASSED
    assert found.notes[-2].startswith("2 of 3 layers are sparsified")


_GPT = """
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        x = x + self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(x)))

class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.blocks = nn.Embedding(30, 16), nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(16, 30)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = run_block(block, x)
        return self.head(x)

def run_block(block, x):
    return block(x)

TEXT = list(torch.randint(0, 30, (8, 6), generator=torch.Generator().manual_seed(2)).split(2))

def language(model, tokens):
    return F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

def build():
    return training(model=GPT(), loss=language, batches=TEXT)
"""
_TOKENS, _BLOCK = 2 * 6, {"qkv": (16, 48), "out": (16, 16), "up": (16, 64), "down": (64, 16)}
_ATTENTION = 2 * 2 * linear(2 * 2 * 6, 8, 6)  # two blocks, two products each, of 2 examples with 2 heads
_LAYERS = sum(2 * linear(_TOKENS, m, n) for m, n in _BLOCK.values())
_HEAD = linear(_TOKENS, 16, 30)


def test_the_operations_of_a_gpt_with_tied_weights(own_model):
    found = work(own_model(_GPT))
    assert found.layers == {
        **{f"blocks.{i}.{name}": linear(_TOKENS, *shape) for i in (0, 1) for name, shape in _BLOCK.items()},
        "head": _HEAD,
    }
    assert found.total == _LAYERS + _HEAD + _ATTENTION
    assert prepared(own_model(_GPT), method="unified").converted == pytest.approx(_LAYERS / found.total)


@pytest.mark.parametrize(("reentrant", "again"), [(False, 0), (True, 1)])
def test_what_is_computed_once_more_is_no_layers_own(own_model, reentrant, again):
    name = own_model(
        _GPT + "from torch.utils.checkpoint import checkpoint\n"
        f"def run_block(block, x): return checkpoint(block, x, use_reentrant={reentrant})\n"
    )
    found = work(name)
    assert found.layers["blocks.0.qkv"] == linear(_TOKENS, 16, 48)
    # Without reentrance the last product of each block, whose result nothing needs, is not made again.
    last = 2 * linear(_TOKENS, 64, 16, 1)
    computed = _LAYERS / 2 + _ATTENTION / 2 - (0 if again else last)
    assert found.total == _LAYERS + _HEAD + _ATTENTION + computed
    assert prepared(name).check() == PASSED


def test_the_parts_of_a_model_may_be_called_by_the_loss(own_model):
    plain = work(own_model(_GPT))
    name = own_model(
        _GPT + "def build(): return training(model=nn.ModuleDict({'body': GPT()}), batches=TEXT,"
        " loss=lambda m, b: language(m['body'], b))",
        "parts.py",
    )
    assert work(name).layers == {f"body.{layer}": count for layer, count in plain.layers.items()}
    assert prepared(name).converted == pytest.approx(_LAYERS / plain.total)


_NET = """
class Net(nn.Module):
    def __init__(self, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return run(self, x)
"""


def net(own_model, layers, forward, more=""):
    return own_model(f"{_NET}\ndef run(m, x):\n    {forward}\ndef build(): return training(model=Net({layers}){more})")


def test_a_layer_that_is_used_twice_counts_twice(own_model):
    name = net(
        own_model,
        "a=nn.Linear(12, 16), h=nn.Linear(16, 16), again=None, o=nn.Linear(16, 4)",
        "x = m.h(F.relu(m.h(F.relu(m.a(x))))); return m.o(x)",
    )
    found = work(name)
    assert found.layers == {"a": linear(6, 12, 16, 1), "h": 2 * linear(6, 16, 16), "o": linear(6, 16, 4)}
    assert found.total == sum(found.layers.values())
    assert prepared(name).check() == PASSED


def test_a_layer_of_two_names_is_one(own_model):
    name = net(
        own_model,
        "a=nn.Linear(12, 16), b=(h := nn.Linear(16, 16)), c=h, o=nn.Linear(16, 4)",
        "return m.o(m.c(F.relu(m.b(F.relu(m.a(x))))))",
    )
    assert work(name).layers["b"] == 2 * linear(6, 16, 16)
    found = prepared(name)
    assert found.notes[0].startswith("2 of 3 layers are sparsified")
    assert found.check() == PASSED


def test_frozen_layers_have_dx_alone_and_convolutions_their_filters(own_model):
    name = own_model("""
        def build():
            model = nn.Sequential(
                nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 4, 2, padding=1), nn.ReLU(),
                nn.Conv2d(4, 8, 3, groups=2, padding=1),
                nn.ConvTranspose2d(8, 2, 2, stride=2), nn.Flatten(), nn.Linear(72, 16), nn.Linear(16, 4),
            )
            model[6].requires_grad_(False)
            return training(model=model)
    """)
    found = work(name)
    assert found.layers == {
        "1": linear(6 * 9, 3 * 4, 4, 1),
        "3": linear(6 * 9, 2 * 9, 8),
        "4": linear(6 * 9, 2 * 4, 8),
        "6": linear(6, 72, 16, 1),
        "7": linear(6, 16, 4),
    }
    assert found.total == pytest.approx(sum(found.layers.values()))


_SEQUENCES = """
class Tagger(nn.Module):
    def __init__(self, kind, **more):
        super().__init__()
        self.cells, self.out = kind(3, 8, batch_first=True, **more), nn.LazyLinear(4)

    def forward(self, x):
        y, state = self.cells(x.unflatten(1, (4, 3)))
        return self.out(last(y, state))
"""


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("last", ["y[:, -1]", "(state[0] if isinstance(state, tuple) else state)[-1]"])
@pytest.mark.parametrize("directions", [1, 2])
def test_recurrent_layers_are_counted_and_checked_whatever_is_used_of_them(own_model, kind, gates, last, directions):
    more = f"bidirectional={directions == 2}, num_layers=2"
    name = own_model(
        f"{_SEQUENCES}\ndef last(y, state): return {last}\n"
        f"def build(): return training(model=Tagger(nn.{kind}, {more}), kinds=(nn.{kind},))"
    )
    rows, first = 6 * 4, 6
    weights = sum(rows * inputs + (2 * rows - first) * 8 + deeper for inputs, deeper in ((3, 0), (8 * directions, 0)))
    weights += rows * 8 * directions  # dx of the second layer
    found = work(name)
    assert found.layers["cells"] == 2.0 * directions * gates * 8 * weights
    if last.startswith("y") and directions == 1:
        assert found.total == pytest.approx(found.layers["cells"] + found.layers["out"], rel=0.1)
    case = prepared(name, k=3)
    assert case.check() == PASSED
    assert case.notes[0].startswith("1 of 2 layers are sparsified")


def test_layers_may_be_called_by_keyword(own_model):
    name = net(
        own_model,
        "a=nn.Linear(12, 16), cells=nn.LSTM(4, 8, batch_first=True), o=nn.Linear(8, 4)",
        "h = torch.full((1, len(x), 8), 0.5); "
        "return m.o(m.cells(input=m.a(input=x).unflatten(1, (4, 4)), hx=(h, h))[0][:, -1])",
        ", kinds=(nn.Linear, nn.LSTM)",
    )
    _, step, batches = stepped(name, method="meprop", k=3)
    calls = record(step, batches[0])
    assert [*calls] == ["a", "cells"]
    x, (h, _) = calls["cells"].x
    assert x.shape == (6, 4, 4)
    assert h.unique().tolist() == [0.5]
    assert (calls["a"].needs_dx, calls["cells"].needs_dx) == (False, True)
    assert prepared(name, k=3).check() == PASSED


@pytest.mark.parametrize(
    "made",
    [
        "model=perceptron(nn.BatchNorm1d(16), nn.Dropout(0.5))",
        "model=perceptron(nn.Dropout(0.5)), autocast=torch.bfloat16",
        "dtype=torch.bfloat16",
        "dtype=torch.float64, accumulate=2, clip=0.1",
        "model=nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(12, 16)), nn.ReLU(), *perceptron()[2:])",
        "model=nn.Sequential(nn.utils.spectral_norm(nn.Linear(12, 16)), nn.ReLU(), *perceptron()[2:])",
        "model=nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.LazyLinear(4))",
        "model=nn.Sequential(nn.Linear(12, 16), nn.ReLU(inplace=True), *perceptron()[2:])",
        "model=nn.Sequential(nn.EmbeddingBag(4, 16, sparse=True), *perceptron()[2:]),"
        " loss=lambda m, b: loss(m, (b[1][:, None], b[1])), optimizer=lambda p: torch.optim.SGD(p, 0.1)",
        "loss=lambda m, b: loss(m, ((b[0] * (1 + 2j)).abs(), b[1])).reshape(1)",
        "loss=lambda m, b: loss(m, b) + m[0](b[0]).pow(2).mean()",
        "optimizer=lambda p: torch.optim.SGD(p, 0.1)",
    ],
)
@pytest.mark.parametrize("method", ["meprop", "unified", "random"])
def test_models_of_all_kinds_pass_their_check_and_can_be_timed(own_model, made, method):
    found = prepared(own_model(f"def build(): return training({made})"), method=method)
    assert found.check() == PASSED
    assert found.converted is not None
    assert 0 < found.converted < 1
    for side in (found.baseline, found.method):
        assert all(math.isfinite(seconds) for seconds in side(2, WallClock()).values())
        assert all(torch.isfinite(p).all() for p in side.step.model.parameters())


def test_channels_last_convolutions(own_model):
    name = own_model("""
        def build():
            model = nn.Sequential(
                nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 8, 3, padding=2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(),
                nn.Linear(32, 4),
            )
            return training(model=model.to(memory_format=torch.channels_last), kinds=(nn.Conv2d, nn.Linear))
    """)
    found = prepared(name, k=3)
    assert found.check() == PASSED
    assert found.notes[0].startswith("2 of 3 layers")
    assert found.layers() == ()  # the stages of a dense linear layer would pass for those of what is sparsified


def test_the_first_losses_are_compared(own_model):
    """A penalty on a gradient, which the method changes, makes another training of it."""
    name = own_model("""
        def penalised(model, batch):
            x = batch[0].clone().requires_grad_()
            gradient, = torch.autograd.grad(model(x).sum(), x, create_graph=True)
            return loss(model, batch) + gradient.pow(2).mean()

        def build(): return training(loss=penalised)
    """)
    found = prepared(name)
    assert found.check().startswith("the first losses differ: ")
    assert found.converted is None
    assert found.notes[0] == "2 of 3 layers are sparsified"


def test_a_wrong_gradient_is_found_in_the_model(own_model, monkeypatch):
    from meprop_bench.workloads import model

    monkeypatch.setattr(model, "check_layer", lambda layer, x, dy, seed: PASSED if x.shape[1] == 12 else "wrong")
    assert prepared(own_model()).check() == "2: wrong"


def test_layers_that_no_gradient_reaches_are_named(own_model):
    name = net(
        own_model,
        "a=nn.Linear(12, 16), unused=nn.Linear(3, 3), cut=nn.Linear(12, 16), o=nn.Linear(16, 4)",
        "return m.o(F.relu(m.a(x) + m.cut(x).detach()))",
    )
    found = prepared(name)
    assert found.check() == PASSED
    assert found.notes[0].startswith("3 of 4 layers are sparsified (60% of")
    assert (
        "no gradient reaches cut, unused in the first batches: sparsified for nothing, and not checked" in found.notes
    )
    assert found.converted == pytest.approx(0.6)
    name = own_model("""
        def build():
            model = perceptron()
            model[:3].requires_grad_(False)
            return training(model=model)
    """, "frozen.py")  # fmt: skip
    assert prepared(name).check() == "none of the sparsified layers gets a gradient in a step: 0, 2"


def test_experts_that_the_first_batch_does_not_need_are_checked_by_later_ones(own_model):
    name = net(
        own_model,
        "a=nn.Linear(12, 16), e=nn.Linear(16, 16), f=nn.Linear(16, 16), o=nn.Linear(16, 4)",
        "return m.o(F.relu((m.e if x[0, 0] in EVEN else m.f)(F.relu(m.a(x)))))\nEVEN = X[::12, 0].tolist()",
    )
    found = prepared(name)
    assert len(found.notes) == 2
    assert found.check() == PASSED
    for side in (found.baseline, found.method):
        side(WALK + 3, WallClock())  # goes back once, with moments that came later
        side.restart()


def test_a_model_in_evaluation_mode_is_said_to_be(own_model):
    found = prepared(own_model("def build(): return training(model=perceptron(nn.Dropout()).eval())"))
    assert any(note.startswith("the model is in evaluation mode") for note in found.notes)


_STATEFUL = """
def build():
    return training(
        model=perceptron(nn.BatchNorm1d(16)), batches=list(zip(X.split(2), Y.split(2))), accumulate={accumulate},
        optimizer=lambda p: torch.optim.Adam(p, 0.01), clip=0.2,
    )
"""


def snapshot(step):
    state = [value for each in step.optimizer.state.values() for value in each.values()]
    return [tensor.detach().clone() for tensor in (*step.model.parameters(), *step.model.buffers(), *state)]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_phases_make_the_steps_that_whole_steps_make(own_model, accumulate):
    name = own_model(_STATEFUL.format(accumulate=accumulate))

    def side():
        _, step, batches = stepped(name, method="meprop", k=4)
        return TrainingSide(step, [part for batch in batches for part in (batch if accumulate > 1 else (batch,))])

    by_phases, by_steps, apart, written = side(), side(), side(), side()
    start = snapshot(by_phases.step)
    by_phases(5, WallClock())
    for number in range(5):
        by_steps.next_step()
        apart.next_pass()
        apart.update()
        written.step(written._of_step(number))
    after = snapshot(by_phases.step)
    assert same(after, snapshot(by_steps.step))
    assert same(after, snapshot(apart.step))
    assert same(after, snapshot(written.step))
    assert not same(after, start)
    for each in (by_phases, by_steps, apart):
        each.restart()
        assert same(snapshot(each.step), start)
    by_phases(5, WallClock())
    assert same(snapshot(by_phases.step), after)


def test_going_back_restores_what_came_later_and_what_is_no_tensor(own_model):
    name = own_model("""
        class Counting(torch.optim.SGD):
            def step(self, closure=None):
                for group in self.param_groups:
                    for p in group["params"]:
                        if p.grad is not None:
                            state = self.state[p]
                            state["seen"] = state.get("seen", 0) + 1
                            state["all"] = [*state.get("all", []), p.grad.sum()]
                super().step(closure)

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.early, self.late, self.calls = nn.Linear(12, 4), nn.Linear(12, 4), 0
                self.register_buffer("cache", torch.zeros(0), persistent=False)

            def forward(self, x):
                self.calls += 1
                self.cache = torch.ones(self.calls)
                return self.early(x) if self.calls < 4 else self.late(x)

        def build():
            return training(model=Net(), optimizer=lambda p: Counting(p, 0.1))
    """)
    _, step, batches = stepped(name)
    side = TrainingSide(step, batches)
    start = [p.detach().clone() for p in step.model.parameters()]
    for _ in range(4):
        side.next_step()
    assert len(step.optimizer.state) == 4
    side.restart()
    assert same([p.detach() for p in step.model.parameters()], start)
    assert [state["seen"] for state in step.optimizer.state.values()] == [2, 2]
    assert all(len(state["all"]) == 2 for state in step.optimizer.state.values())
    side(WALK + 1, WallClock())


def test_both_sides_start_from_the_same_weights_and_see_the_same_batches(own_model):
    name = own_model("""
        from torch.utils.data import DataLoader, TensorDataset

        def build():
            return training(batches=DataLoader(TensorDataset(X, Y), batch_size=6, shuffle=True))
    """)
    found = prepared(name, method="random")
    sides = (found.baseline, found.method)
    first, second = ([x for batch in side.batches for x in batch] for side in sides)
    assert same(first, second)
    again = prepared(name, method="unified")
    assert same(first, [x for batch in again.baseline.batches for x in batch])


def test_linear_layers_are_given_to_a_profile_in_order(own_model):
    layers = prepared(own_model(_GPT)).layers()
    assert [layer.w.shape for layer in layers[:4]] == [(48, 16), (16, 16), (64, 16), (16, 64)]
    assert all(layer.need_dx for layer in layers)  # of an embedding's output, too
    assert [layer.need_dx for layer in prepared(own_model("def build(): return training()", "p.py")).layers()] == [
        False, True, True,
    ]  # fmt: skip


def test_the_ceiling_of_a_step():
    from meprop_bench.sweep.rows import _ceiling

    class Found:
        def __init__(self, phase, seconds):
            self.phase, self.baseline_median_s = phase, seconds

    phases = [Found("forward", 2.0), Found("backward", 4.0), Found("update", 2.0), Found("step", 8.0)]
    assert _ceiling(phases, 0.75) == pytest.approx(8 / (8 - 3))
    assert _ceiling(phases, 0.0) == 1.0
    assert _ceiling(phases, None) is None


def test_models_that_hold_complex_numbers_are_refused_by_torch(own_model):
    from meprop_bench.errors import UserError
    from meprop_bench.sweep.models import examine

    name = own_model("""
        def build():
            return training(
                model=nn.Sequential(nn.Linear(12, 16, dtype=torch.cfloat), nn.Linear(16, 4, dtype=torch.cfloat)),
                loss=lambda m, b: F.cross_entropy(m(b[0] + 0j).abs(), b[1]),
            )
    """)
    with pytest.raises(UserError, match="failed in a training step by dense"):
        examine(None, [Recipe(name, method="meprop", k=4, optimizer="own").to_json()], 1)


def test_no_module_of_the_model_keeps_a_hook(own_model):
    found = prepared(own_model())
    found.layers()
    for side in (found.baseline, found.method):
        for module in side.step.model.modules():
            assert not module._forward_hooks
            assert isinstance(module, nn.Module)


ENCODER = """
class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        block = nn.TransformerEncoderLayer(8, 2, 32, batch_first=True)
        self.table, self.blocks = nn.Embedding(20, 8), nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.out = nn.Linear(8, 20)

    def forward(self, x):
        return self.out(self.blocks(self.table(x), src_key_padding_mask=x == 0))

def build():
    batches = [(torch.randint(20, (4, 6)), torch.randint(20, (4, 6))) for _ in range(3)]
    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())
    return mb.Training(model=Encoder(), loss=loss, batches=batches, kinds=KINDS)
"""


def test_attention_is_a_layer_with_its_share(own_model):
    linear_alone = prepared(own_model("KINDS = (nn.Linear,)" + ENCODER))
    everything = prepared(own_model("KINDS = (nn.Linear, nn.MultiheadAttention)" + ENCODER, "other.py"))
    for found, share in ((linear_alone, "4 of 7"), (everything, "6 of 7")):
        assert found.check() == PASSED
        assert found.notes[0].startswith(f"{share} layers are sparsified")
    assert linear_alone.notes[1].startswith("left dense: blocks.layers.0.self_attn (")
    assert everything.notes[1].startswith("left dense: out (")
    # Two products each of 24 rows: 8 x 24 into attention and 8 x 8 out of it, against 2 x 8 x 32 of a block's others.
    assert everything.converted / linear_alone.converted == pytest.approx((8 * 32 + 2 * 8 * 32) / (2 * 8 * 32))


def test_attention_is_checked_on_what_it_got(own_model):
    name = own_model("KINDS = (nn.Linear, nn.MultiheadAttention)" + ENCODER)
    _, step, batches = stepped(name, method="meprop", k=2)
    call = record(step, batches[0])["blocks.layers.0.self_attn"]
    assert call.dy.shape == (4, 6, 8)
    query, key, value, padding, *_ = call.x
    assert query is key is value
    assert padding.shape == (4, 6)


def test_the_perceptron_by_either_way_takes_the_same_steps():
    """What `own_mlp.py` measures on a quiet machine: here, that it is the same work, step by step and call by call."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    from meprop_bench.sweep.plan import plan_axes

    name = f"{Path(__file__).with_name('own_mlp.py')}:build"
    axes = {"workload": ["mlp"], "method": ["meprop"], "k": [30], "threads": [1], "baseline": ["same"]}
    (built_in,) = plan_axes(axes).cases
    one, other = setup(built_in), prepared(name, method="meprop", k=30)
    assert one.check() == other.check() == PASSED
    assert one.kernel == other.kernel
    for built_in_side, own in ((one.baseline, other.baseline), (one.method, other.method)):
        for side in (built_in_side, own):
            side.restart()
            side(3, WallClock())
        assert same(snapshot(built_in_side.step), snapshot(own.step))
    operators = []
    for side in (one.method, other.method):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            side.next_step()
        operators.append(sorted((event.key, event.count) for event in profile.key_averages()))
    assert operators[0] == operators[1]


def test_the_preset_of_either_way_measures_the_same_one_after_the_other(monkeypatch):
    from meprop_bench.sweep.plan import load_preset, plan_preset

    monkeypatch.chdir(Path(__file__).parents[2])
    cases = plan_preset(load_preset("tests/workloads/own_mlp.toml")).cases
    assert [case.workload for case in cases] == 3 * ["mlp", "model"]
    axes = [(case.method, case.k, case.threads, case.baseline, case.allocator) for case in cases]
    assert axes[::2] == axes[1::2]


def test_a_step_of_a_users_model_makes_no_detours(own_model):
    """Python's calls in a step are those of the loop that one would write, and one or two for each phase."""
    _, step, batches = stepped(own_model(), method="meprop", k=4)
    calls = []

    def count(frame, event, _):
        if event == "call" and "meprop_bench" in frame.f_code.co_filename and "/tests/" not in frame.f_code.co_filename:
            calls.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}")

    step(batches[0])
    sys.setprofile(count)
    try:
        step(batches[0])
    finally:
        sys.setprofile(None)
    of_the_step = [call for call in calls if call.startswith(("own.py", "training.py", "build.py"))]
    assert of_the_step == [
        "training.py:__call__", "own.py:forward", "own.py:loss_of", "own.py:backward", "own.py:update",
        "training.py:update",
    ]  # fmt: skip
