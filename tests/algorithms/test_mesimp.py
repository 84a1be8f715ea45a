import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from meprop_bench.algorithms.mesimp import Cycle, MeSimp
from meprop_bench.models import tagger
from meprop_bench.models.cnn import CNN
from meprop_bench.models.mlp import MLP
from meprop_bench.nn import MePropGRU, MePropLinear, MePropLSTM, MePropRNN, convert
from meprop_bench.ops import reference

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
    assert model.lstm.activeness is None
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
    with pytest.raises(ValueError, match="chance tells nothing"):
        MeSimp(model, interval=10, rate=0.5)


def sentences(seed, length=6, batch=4):
    """Words, a feature, and tags that follow from the word before."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(12, (batch, length), generator=generator)
    feature = torch.randint(3, (batch, length), generator=generator)
    return torch.stack((words, feature), -1), words.roll(1, 1) % 5


def build_tagger(dtype=torch.float64, *, hidden=24, layers=1, **method):
    model = tagger.Tagger(12, (3,), 5, hidden=hidden, layers=layers, word_size=6, feature_size=2, seed=1).to(dtype)
    convert(model, kinds=(nn.LSTM,), **{"k": 3, **method})
    return model


def tag(model, optimizer, seed, lengths=None):
    ids, tags = sentences(seed)
    real = torch.ones_like(tags).bool() if lengths is None else torch.arange(6) < lengths.unsqueeze(1)
    loss = F.cross_entropy(model(ids, lengths)[real], tags[real])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def hits_by_hand(model, ids, tags, k):
    """Run the tagger's cells step by step, select at the gates by hooks; returns c_i of both."""
    x = torch.cat((model.word(ids[..., 0]), model.features[0](ids[..., 1])), -1)
    hits, outputs = {}, []
    for end, times in (("l0", range(6)), ("l0_reverse", range(5, -1, -1))):
        w_ih, w_hh, b_ih, b_hh = (getattr(model.lstm, f"{name}_{end}") for name in ("weight_ih", "weight_hh", "bias_ih",
                                                                                    "bias_hh"))  # fmt: skip
        h = c = torch.zeros(4, 24, dtype=x.dtype)
        count = hits[end] = torch.zeros(4, 24, dtype=torch.int64)

        def select(dp, count=count):
            kept = torch.cat([reference.keep(reference.select(d, k, "example"), *d.shape) for d in dp.chunk(4, 1)], 1)
            count += (kept & (dp != 0)).sum(0).view(4, 24)
            return dp * kept

        y = {}
        for t in times:
            p = x[:, t] @ w_ih.t() + h @ w_hh.t() + b_ih + b_hh
            p.register_hook(select)
            i, f, g, o = p.chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            y[t] = h = o.sigmoid() * c.tanh()
        outputs.append(torch.stack([y[t] for t in range(6)], 1))
    F.cross_entropy(model.output(torch.cat(outputs, 2)).flatten(0, 1), tags.flatten()).backward()
    return {end: count.amax(0).tolist() for end, count in hits.items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_tagger_is_found_and_its_records_count_every_cell(dtype):
    model = build_tagger(dtype)
    simp = MeSimp(model, interval=100, rate=0.1)
    assert simp.sizes == {"lstm.l0": 24, "lstm.l0_reverse": 24}
    ids, tags = sentences(0)
    F.cross_entropy(model(ids).flatten(0, 1), tags.flatten()).backward()
    expected = hits_by_hand(model, ids, tags, 3)
    assert {cell: simp.records[f"lstm.{cell}"].counts.tolist() for cell in expected} == expected
    assert {record.examples for record in simp.records.values()} == {24}
    # The forget gates of the first of six steps have no c to forget: one in 24 gates has no gradient.
    assert {record.mean_nonzeros for record in simp.records.values()} == {23}
    simp.close()
    assert model.lstm.activeness is None


@pytest.mark.parametrize("method", [{"k": 3}, {"k": 3, "selection": "unified"}, {"k": 0.5, "layers": 2}])
def test_removal_from_a_tagger_is_masking_step_by_step(method):
    """At k = 12 of 24 some layers come down to k neurons, are dense from then on, and stay as they are."""
    runs = []
    for mode in ("remove", "mask"):
        model = build_tagger(**method)
        its = adam(model)
        runs.append((model, its, MeSimp(model, its, interval=20, rate=0.35 if method["k"] == 0.5 else 0.2, mode=mode)))
    for seed in range(40):
        lengths = torch.tensor([6, 2, 5, 3]) if seed % 3 == 0 else None
        losses = [tag(model, its, seed, lengths) for model, its, _ in runs]
        assert losses[0] == pytest.approx(losses[1], abs=1e-9)
        for *_, simp in runs:
            simp.after_step(4)
        assert runs[0][2].sizes == runs[1][2].sizes
    small, large = runs[0][0], runs[1][0]
    assert small.lstm.hidden_size < 24
    assert large.lstm.hidden_size == 24
    with torch.no_grad():
        torch.testing.assert_close(small(sentences(99)[0]), large(sentences(99)[0]), rtol=0, atol=1e-9)


class Recall(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn
        self.output = nn.Linear(16, 3)

    def forward(self, x):
        return self.output(self.rnn(x)[0])


@pytest.mark.parametrize("cell", [MePropGRU, MePropRNN])
def test_other_cells_come_down_to_k_neurons_and_train_on(cell):
    """With ReLU many gradients are exactly zero, so that a dense layer's neurons could go on dying in a mask alone."""
    keywords = {} if cell is MePropGRU else {"nonlinearity": "relu"}
    runs = []
    for mode in ("remove", "mask"):
        torch.manual_seed(0)
        model = Recall(cell(4, 16, k=5, batch_first=True, **keywords)).double()
        its = adam(model)
        runs.append((model, its, MeSimp(model, its, interval=8, rate=0.6, mode=mode)))
    torch.manual_seed(1)
    for _ in range(8):
        x, losses = torch.randn(4, 5, 4, dtype=torch.float64), []
        for model, its, simp in runs:
            loss = F.cross_entropy(model(x).flatten(0, 1), (x[..., 0] > 0).long().flatten())
            loss.backward()
            its.step()
            its.zero_grad()
            simp.after_step(4)
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], abs=1e-9)
        assert runs[0][2].sizes == runs[1][2].sizes
    assert runs[0][0].rnn.hidden_size <= 5


def test_a_pruned_tagger_goes_on_improving():
    model = build_tagger(torch.float32, k=4)
    its = adam(model)
    losses = []
    with MeSimp(model, its, interval=40, rate=0.15) as simp:
        for seed in range(120):
            losses.append(tag(model, its, seed))
            if seed < 40:
                simp.after_step(4)
    sizes = [pruning.sizes["lstm.l0"] for pruning in simp.history]
    assert len(sizes) == 4
    assert 24 > sizes[0] > sizes[-1] > 4
    assert model.lstm.weight_hh_l0.shape == (4 * sizes[-1], sizes[-1])
    before, pruned, after = (sum(losses[at : at + 10]) / 10 for at in (0, 30, 110))
    assert pruned < before
    assert after < 0.7 * pruned


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
        ({"layers": ["output"]}, "cannot simplify 'output': it is Linear; name layers converted by nn.convert"),
    ],
)
def test_wrong_use(settings, message):
    with pytest.raises(ValueError, match=message):
        MeSimp(build(), **{"interval": 10, "rate": 0.1, **settings})


def test_models_that_cannot_be_simplified():
    with pytest.raises(ValueError, match="no layer to simplify: convert hidden layers"):
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
