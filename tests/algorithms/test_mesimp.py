import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from meprop_bench.algorithms.mesimp import Cycle, MeSimp
from meprop_bench.models.cnn import CNN
from meprop_bench.models.mlp import MLP
from meprop_bench.nn import MePropLinear, convert
from meprop_bench.nn.recurrent import MePropLSTM

FEATURES, CLASSES, BATCH = 12, 4, 10
CENTRES = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(9))


def batch(seed, dtype=torch.float64):
    """Noisy clusters."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    return (CENTRES[labels] + 0.7 * torch.randn(BATCH, FEATURES, generator=generator)).to(dtype), labels


def build(k=4, hidden=32, **method):
    model = MLP(FEATURES, hidden, CLASSES, seed=1).double()
    convert(model, k=k, **method)
    return model


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def step(model, optimizer, seed):
    x, labels = batch(seed)
    loss = F.cross_entropy(model(x), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss


def error(model):
    with torch.no_grad():
        return sum(float(F.cross_entropy(model(x), y)) for x, y in map(batch, range(1000, 1010))) / 10


@pytest.mark.parametrize("method", [{"k": 4}, {"k": 0.125}, {"k": 4, "selection": "unified"}, {"k": 20}])
@pytest.mark.parametrize("optimizer", [adam, lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)])
def test_removal_is_masking_step_by_step(method, optimizer):
    runs = []
    for mode in ("remove", "mask"):
        model = build(**method)
        its = optimizer(model)
        runs.append((model, its, MeSimp(model, its, interval=55, rate=0.12, mode=mode, cycle=Cycle(2, 1), round_to=2)))
    for seed in range(60):
        losses = [step(model, its, seed).item() for model, its, _ in runs]
        assert losses[0] == pytest.approx(losses[1], abs=1e-9)
        prunings = [simp.after_step(BATCH) for *_, simp in runs]
        assert (prunings[0] is None) == (prunings[1] is None)
        if seed % 20 == 19:
            for *_, simp in runs:
                simp.after_epoch()
        assert runs[0][2].sizes == runs[1][2].sizes
    (small, _, simp), (large, _, _) = runs
    x = batch(77)[0]
    torch.testing.assert_close(small(x), large(x), rtol=0, atol=1e-9)
    assert [p.sizes for p in simp.history] == [p.sizes for p in runs[1][2].history]
    assert simp.mean_size < 32
    assert small.linear1.weight.shape == (simp.sizes["linear1"], simp.sizes["linear0"])
    assert large.linear1.weight.shape == (32, 32)


def test_pruning_by_hand():
    model = build(k=4, hidden=8)
    simp = MeSimp(model, adam(model), interval=100, rate=0.5)
    before = copy.deepcopy(model.state_dict())
    simp.records["linear0"]._hits.copy_(torch.tensor([49, 50, 51, 0, 100, 1, 2, 50]))
    simp.records["linear1"]._hits.copy_(torch.tensor([0, 0, 3, 9, 9, 0, 0, 0]))
    for record in simp.records.values():
        record.examples = 101  # int(101 / 2) = 50
    pruning = simp.prune()
    assert pruning.sizes == simp.sizes == {"linear0": 4, "linear1": 1}
    rows = [1, 2, 4, 7]
    assert torch.equal(model.linear0.weight, before["linear0.weight"][rows])
    assert torch.equal(model.linear1.weight, before["linear1.weight"][[3]][:, rows])
    assert torch.equal(model.output.weight, before["output.weight"][:, [3]])
    assert simp.mean_size == 2.5
    assert all(r.examples == 0 for r in simp.records.values())
    with pytest.raises(ValueError, match="nothing has been recorded of 'linear0'"):
        simp.prune()


def test_the_interval_is_in_examples():
    model = build()
    its = adam(model)
    simp = MeSimp(model, its, interval=25, rate=0.01)
    for seed in range(10):
        step(model, its, seed)
        simp.after_step(BATCH)
    assert [p.examples for p in simp.history] == [30, 50, 80, 100]
    assert simp.records["linear0"].examples == 0


def test_a_pruned_model_goes_on_improving():
    model = build(k=6)
    its = adam(model)
    simp = MeSimp(model, its, interval=100, rate=0.3)
    losses = []
    for seed in range(150):
        step(model, its, seed)
        if simp.after_step(BATCH):
            losses.append(error(model))
        if len(losses) == 4:
            break
    assert simp.mean_size < 32
    sizes, weights = simp.sizes, model.linear1.weight.detach().clone()
    live = {id(p) for p in model.parameters()}
    assert {id(p) for group in its.param_groups for p in group["params"]} == live
    assert {id(p) for p in its.state} == live
    assert all(its.state[p]["exp_avg"].shape == p.shape for p in model.parameters())
    for seed in range(200, 300):
        step(model, its, seed)
    assert simp.sizes == sizes
    assert (model.linear1.weight != weights).all()
    assert error(model) < losses[-1]


def test_cycles_reset_the_optimizer_and_suspend_simplification():
    model = build()
    its = adam(model)
    simp = MeSimp(model, its, interval=10, rate=0.01, cycle=Cycle(simplify=2, normal=1))
    seen = []
    for _ in range(6):
        seen.append(simp.simplifying)
        step(model, its, 0)
        simp.after_step(BATCH)
        simp.after_epoch()
        seen.append(len(its.state) == 0)
    #       simplify  turn? ...
    assert seen == [True, False, True, True, False, True, True, False, True, True, False, True]
    assert len(simp.history) == 4
    assert simp.examples == 40


def test_by_default_there_is_no_turn():
    simp = MeSimp(build(), interval=10, rate=0.1)
    for _ in range(12):
        simp.after_epoch()
    assert simp.simplifying


def test_a_ratio_becomes_a_number_and_stays():
    model = build(k=0.125)
    MeSimp(model, interval=10, rate=0.1)
    assert (model.linear0.k, model.linear1.k) == (4, 4)


def test_the_fully_connected_part_of_a_cnn():
    model = CNN(64, 3, maps=(2,), taps=3, hidden=16)
    convert(model, k=3)
    its = adam(model)
    simp = MeSimp(model, its, interval=10, rate=0.2)
    F.cross_entropy(model(torch.rand(10, 64)), torch.arange(10) % 3).backward()
    its.step()
    simp.after_step(10)
    assert simp.sizes["linear"] < 16
    assert model.output.weight.shape == (3, simp.sizes["linear"])
    assert model.conv0.weight.shape == (2, 1, 3, 3)
    assert model(torch.rand(4, 64)).shape == (4, 3)


def test_close_leaves_an_ordinary_model():
    model = build()
    with MeSimp(model, interval=10, rate=0.1) as simp:
        step(model, adam(model), 0)
        assert simp.records["linear0"].examples == BATCH
    step(model, adam(model), 0)
    assert simp.records["linear0"].examples == BATCH
    assert not model.linear0._forward_hooks
    with MeSimp(model, interval=10, rate=0.1, mode="mask") as simp:
        step(model, adam(model), 0)
        simp.after_step(BATCH)
        assert simp.mean_size < 32
        weight = model.linear1.weight
        assert weight._post_accumulate_grad_hooks
    assert not weight._post_accumulate_grad_hooks


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.lstm = nn.LSTM(4, 8, bidirectional=True)
        self.output = nn.Linear(16, 3)

    def forward(self, words):
        return self.output(self.lstm(self.embedding(words))[0])


def simplified_tagger(mode):
    """Prune an LSTM after one step, by a record filled by hand; train on; return the model, its past and the losses."""
    torch.manual_seed(0)
    model = Tagger().double()
    its = adam(model)
    simp = MeSimp(model, its, interval=10, rate=0.5, layers=["lstm"], mode=mode)
    assert simp.sizes == {"lstm.l0": 8, "lstm.l0_reverse": 8}
    words, losses = torch.randint(9, (5, 2)), []
    for at in range(4):
        loss = F.cross_entropy(model(words).flatten(0, 1), torch.arange(10) % 3)
        loss.backward()
        its.step()
        its.zero_grad()
        losses.append(loss.item())
        if at == 0:
            before = copy.deepcopy(model)
            # Gate by gate: forward neurons 1 and 2 are active in one gate each, backward ones 4, 5 and 7.
            for name, columns in {"lstm.l0": [1, 8 + 2], "lstm.l0_reverse": [4, 8 + 5, 24 + 7]}.items():
                dy = torch.zeros(10, 32)
                dy[:, columns] = 1
                simp.records[name](dy, dy.topk(8, dim=1).indices)
            assert simp.prune().sizes == {"lstm.l0": 3, "lstm.l0_reverse": 3}
            after = copy.deepcopy(model)
    if mode == "remove":
        assert its.state[model.lstm.weight_hh_l0]["exp_avg"].shape == (12, 3)
    return before, after, losses


def test_lstm_cells_keep_as_many_and_each_its_own():
    before, after, losses = simplified_tagger("remove")
    forward, backward = [0, 1, 2], [4, 5, 7]  # of the forward cell's inactive neurons, the first stays, too
    for end, cell in (("", forward), ("_reverse", backward)):
        rows = [gate * 8 + i for gate in range(4) for i in cell]
        was, now = before.lstm, after.lstm
        for name in ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0"):
            assert torch.equal(getattr(now, name + end), getattr(was, name + end)[rows])
        weight_hh = getattr(was, "weight_hh_l0" + end)
        assert torch.equal(getattr(now, "weight_hh_l0" + end), weight_hh[rows][:, cell])
    assert torch.equal(after.output.weight, before.output.weight[:, forward + [8 + i for i in backward]])
    assert losses == pytest.approx(simplified_tagger("mask")[2], abs=1e-12)


def test_recurrent_layers_are_given_records_to_call():
    """The contract with a recurrent layer: an attribute `activeness`, records by cell, and what happens to k."""
    torch.manual_seed(0)
    model = Tagger()
    model.lstm = MePropLSTM(4, 8, k=0.25, bidirectional=True)
    if not hasattr(model.lstm, "activeness"):
        model.lstm.activeness = None
    its = adam(model)
    simp = MeSimp(model, its, interval=10, rate=0.5)
    assert model.lstm.k == 2
    assert model.lstm.activeness == {"l0": simp.records["lstm.l0"], "l0_reverse": simp.records["lstm.l0_reverse"]}
    dy = torch.zeros(10, 32)
    dy[:, [1, 8 + 3]] = 1
    for record in model.lstm.activeness.values():
        record.clear()
        record(dy, dy.topk(8, dim=1).indices)
    assert simp.prune().sizes == {"lstm.l0": 2, "lstm.l0_reverse": 2}
    assert model(torch.randint(9, (5, 2))).shape == (5, 2, 3)
    assert simp.prune().sizes == {"lstm.l0": 2, "lstm.l0_reverse": 2}  # dense by now, so that nothing is recorded
    simp.close()
    assert model.lstm.activeness is None
    model = Tagger()
    model.lstm = MePropLSTM(4, 8, k=3, bidirectional=True, selection="random")
    model.lstm.activeness = None
    with pytest.raises(ValueError, match="chance tells nothing"):
        MeSimp(model, interval=10, rate=0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interval": 0}, "interval and round_to must be at least 1, not 0"),
        ({"round_to": 0}, "at least 1"),
        ({"rate": 0.0}, r"rate must lie in \(0, 1\], not 0"),
        ({"mode": "hide"}, "mode must be one of remove, mask, not 'hide'"),
        ({"mode": "mask", "count_zeros": True}, "does not go with count_zeros"),
        ({"layers": ["none"]}, "cannot simplify 'none': there is no such layer"),
        ({"layers": ["relu0"]}, "cannot simplify 'relu0': it is ReLU"),
        ({"layers": ["output"]}, "cannot simplify 'output': it is Linear; name layers turned by nn.convert"),
    ],
)
def test_wrong_use(settings, message):
    with pytest.raises(ValueError, match=message):
        MeSimp(build(), **{"interval": 10, "rate": 0.1, **settings})


def test_models_that_cannot_be_simplified():
    with pytest.raises(ValueError, match="no layer to simplify: turn hidden layers"):
        MeSimp(MLP(5, 6, 2), interval=10, rate=0.1)
    with pytest.raises(ValueError, match="chance tells nothing"):
        MeSimp(build(selection="random"), interval=10, rate=0.1)
    whole = nn.Sequential(MePropLinear(5, 6, k=2), nn.ReLU(), MePropLinear(6, 2, k=1))
    assert list(MeSimp(whole, interval=10, rate=0.1).groups) == ["0"]
    with pytest.raises(ValueError, match="cannot simplify '2': it is the output layer"):
        MeSimp(whole, interval=10, rate=0.1, layers=["0", "2"])
    normed = nn.Sequential(MePropLinear(5, 6, k=2), nn.LayerNorm(6), nn.Linear(6, 2))
    with pytest.raises(ValueError, match=r"'0'.*'1' \(LayerNorm\)"):
        MeSimp(normed, interval=10, rate=0.1)
    for settings in ({"simplify": 0}, {"normal": 0}):
        with pytest.raises(ValueError, match="must be at least 1 epoch, not 0"):
            Cycle(**settings)
