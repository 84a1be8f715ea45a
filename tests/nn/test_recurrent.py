import copy
import inspect
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

from meprop_bench.nn import MePropGRU, MePropLSTM, MePropRNN, convert
from meprop_bench.ops.recurrent import reference

PAIRS = {"lstm": (nn.LSTM, MePropLSTM), "gru": (nn.GRU, MePropGRU), "tanh": (nn.RNN, MePropRNN)}
PAIRS["relu"] = PAIRS["tanh"]
SHAPES = {
    "plain": {},
    "deep": {"num_layers": 3},
    "both ways": {"bidirectional": True},
    "all": {"num_layers": 2, "bidirectional": True, "bias": False, "batch_first": True},
}


def make(cell, k=3, dtype=torch.float64, **keywords):
    """torch's layer and ours with the same weights."""
    torch.manual_seed(0)
    method = {name: keywords.pop(name) for name in ("selection", "kernel") if name in keywords}
    if cell == "relu":
        keywords["nonlinearity"] = "relu"
    theirs, ours = PAIRS[cell]
    dense = theirs(5, 7, dtype=dtype, **keywords)
    layer = ours(5, 7, dtype=dtype, k=k, **method, **keywords)
    layer.load_state_dict(dense.state_dict())
    return dense, layer


def initial(layer, batch, dtype=torch.float64):
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    shape = (count, 7) if batch is None else (count, batch, 7)
    states = tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(1 + (layer.mode == "LSTM")))
    return states if layer.mode == "LSTM" else states[0]


def tensors(output):
    """All tensors of what a layer returns."""
    if isinstance(output, torch.Tensor):
        return [output]
    if isinstance(output, nn.utils.rnn.PackedSequence):
        return [output.data]
    return [t for part in output for t in tensors(part)]


def gradients(layer, output, *inputs):
    torch.manual_seed(9)
    found = tensors(output)
    wanted = [t for value in inputs for t in tensors(value)]
    return torch.autograd.grad(
        found, [*layer.parameters(), *wanted], [torch.randn(t.shape, dtype=t.dtype) for t in found]
    )


CASES = [pytest.param(cell, keywords, id=f"{cell} {name}") for cell in PAIRS for name, keywords in SHAPES.items()]


def test_constructor_is_torchs_plus_keywords():
    for cell in PAIRS:
        dense, layer = make(cell)
        assert repr(layer).replace(", k=3, selection=example", "") == "MeProp" + repr(dense)
        assert list(inspect.signature(type(layer).forward).parameters) == ["self", "input", "hx"]
    assert "kernel=masked" in repr(MePropLSTM(2, 3, k=1, kernel="masked"))
    torch.manual_seed(1)
    one = nn.LSTM(5, 7, 2, True, False, 0.0, True)
    torch.manual_seed(1)
    two = MePropLSTM(5, 7, 2, True, False, 0.0, True, k=3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize(("cell", "keywords"), CASES)
@pytest.mark.parametrize("given", [False, True])
def test_forward_is_torchs_up_to_rounding(cell, keywords, given):
    for dtype, kernel in ((torch.float64, "auto"), (torch.float32, "masked"), (torch.float32, "auto")):
        dense, layer = make(cell, dtype=dtype, kernel=kernel, **keywords)
        dense.load_state_dict(layer.state_dict())  # fits the other way, too
        for shape in ((4, 3, 5), (3, 1, 5), (4, 5)):
            x = torch.randn(shape, dtype=dtype)
            batch = None if len(shape) == 2 else shape[0 if layer.batch_first else 1]
            hx = initial(layer, batch, dtype) if given else None
            expected, found = tensors(dense(x, hx)), tensors(layer(x, hx))
            torch.testing.assert_close(found, expected)
            with torch.no_grad():
                assert all(torch.equal(a, b) for a, b in zip(tensors(layer(x, hx)), tensors(dense(x, hx)), strict=True))


@pytest.mark.parametrize(("cell", "keywords"), CASES)
@pytest.mark.parametrize("k", [7, 9, 1.0])
def test_all_neurons_kept_is_exactly_torchs_layer(cell, keywords, k):
    dense, layer = make(cell, k, **keywords)
    x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    hx = initial(layer, 4 if layer.batch_first else 3)
    theirs, ours = dense(x, hx), layer(x, hx)
    assert all(torch.equal(a, b) for a, b in zip(tensors(theirs), tensors(ours), strict=True))
    pairs = zip(gradients(dense, theirs, x, hx), gradients(layer, ours, x, hx), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("cell", PAIRS)
@pytest.mark.parametrize("selection", ["example", "unified"])
def test_a_bidirectional_stack_equals_the_oracle(cell, selection):
    _, layer = make(cell, 2, num_layers=2, bidirectional=True, selection=selection)
    x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    hx = initial(layer, 3)
    output = layer(x, hx)
    found = gradients(layer, output, x, hx)
    torch.manual_seed(9)
    y, last = output
    dy, *d_last = (torch.randn(t.shape, dtype=t.dtype) for t in tensors((y, last)))
    states = hx if cell == "lstm" else (hx,)
    flow, taped = [x.detach().flatten(0, 1)], []
    sizes = (3,) * 4
    with torch.no_grad():
        for i in (0, 2):
            parts = []
            for j in (i, i + 1):
                args = [cell, flow[-1], tuple(s[j] for s in states), [getattr(layer, n) for n in layer._all_weights[j]]]
                outputs, _ = reference.run(
                    *args, sizes, j % 2 == 1, 2, selection, torch.zeros(12, 7), [torch.zeros(3, 7)] * len(states)
                )
                parts.append(outputs[0])
                taped.append(args)
            flow.append(torch.cat(parts, 1))
        torch.testing.assert_close(flow[-1].view(4, 3, 14), y)
        d, weights, initial_states = dy.flatten(0, 1), [], []
        for i in (2, 0):
            below = torch.zeros_like(flow[i // 2])
            for j in (i, i + 1):
                part = d[:, 7 * (j - i) : 7 * (j - i + 1)]
                _, (dx, *dw, dh) = _split(reference.run(*taped[j], sizes, j % 2 == 1, 2, selection, part,
                                                        tuple(s[j] for s in d_last)))  # fmt: skip
                below += dx
                weights.append((j, dw))
                initial_states.append((j, dh))
            d = below
    expected = [g for _, dw in sorted(weights, key=lambda item: item[0]) for g in dw]
    by_layer = [dh for _, dh in sorted(initial_states, key=lambda item: item[0])]
    expected += [d.view(4, 3, 5), *(torch.stack(parts) for parts in zip(*by_layer, strict=True))]
    torch.testing.assert_close(list(found), expected)


def _split(result):
    outputs, grads = result
    return outputs, (grads[0], *grads[1:5], grads[5:])


@pytest.mark.parametrize("cell", PAIRS)
@pytest.mark.parametrize("enforce_sorted", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_packed_sequences(cell, enforce_sorted, given):
    dense, layer = make(cell, 3, num_layers=2, bidirectional=True)
    lengths = [5, 4, 2, 2] if enforce_sorted else [2, 5, 2, 4]
    padded = torch.randn(5, 4, 5, dtype=torch.float64, requires_grad=True)
    hx = initial(layer, 4) if given else None
    packed = pack_padded_sequence(padded, torch.tensor(lengths), enforce_sorted=enforce_sorted)
    theirs, ours = dense(packed, hx), layer(packed, hx)
    assert torch.equal(theirs[0].batch_sizes, ours[0].batch_sizes)
    torch.testing.assert_close(tensors(ours), tensors(theirs))
    torch.testing.assert_close(pad_packed_sequence(ours[0]), pad_packed_sequence(theirs[0]))
    inputs = (padded, hx) if given else (padded,)
    found = gradients(layer, ours, *inputs)
    assert not any(grad.isnan().any() for grad in found)
    # One example at a time, which needs no packing: with a selection for each example, it is the same.
    states = () if hx is None else (hx if cell == "lstm" else (hx,))
    torch.manual_seed(9)
    d = [torch.randn(t.shape, dtype=t.dtype) for t in tensors(ours)]
    dy = pad_packed_sequence(ours[0]._replace(data=d[0]))[0]
    total = [torch.zeros_like(grad) for grad in found]
    for e, length in enumerate(lengths):
        own = tuple(s[:, e : e + 1] for s in states)
        y, last = layer(padded[:length, e : e + 1], (own if cell == "lstm" else own[0]) if given else None)
        top = [dy[:length, e : e + 1], *(part[:, e : e + 1] for part in d[1:])]
        wanted = [*layer.parameters(), *tensors(inputs)]
        for so_far, grad in zip(total, torch.autograd.grad(tensors((y, last)), wanted, top), strict=True):
            so_far.add_(grad)
    torch.testing.assert_close(list(found), total)


def test_packed_sequences_in_single_precision():
    dense, layer = make("lstm", 3, torch.float32, bidirectional=True)
    packed = pack_sequence([torch.randn(n, 5) for n in (2, 4, 1)], enforce_sorted=False)
    torch.testing.assert_close(tensors(layer(packed)), tensors(dense(packed)))


@pytest.mark.parametrize("cell", PAIRS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dropout_draws_what_torchs_layer_draws(cell, packed, dtype):
    dense, layer = make(cell, num_layers=3, dropout=0.5, bidirectional=True, dtype=dtype)
    x = torch.randn(4, 3, 5, dtype=dtype)
    x = pack_padded_sequence(x, torch.tensor([4, 3, 1])) if packed else x
    results = []
    for one in (dense, layer):
        torch.manual_seed(4)
        results.append(tensors(one(x)))
    torch.testing.assert_close(*results)
    torch.testing.assert_close(tensors(layer.eval()(x)), tensors(dense.eval()(x)))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"k": 0}, "not 0"),
        ({"k": 1.5}, "not 1.5"),
        ({"k": 3, "selection": "no"}, "not 'no'"),
        ({"k": 3, "kernel": "gather"}, "not 'gather'"),
        ({"k": 3, "proj_size": 2}, "projections are not supported"),
    ],
)
def test_misuse_at_construction(keywords, message):
    with pytest.raises(ValueError, match=message):
        MePropLSTM(5, 7, **keywords)


def test_misuse_at_call():
    _, layer = make("lstm")
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"torch\.float64"):
        layer(x.float())
    for wrong in (x[..., :4], x[None]):
        with pytest.raises((RuntimeError, ValueError)):
            layer(wrong)
    with pytest.raises(ValueError, match="must have 2 dimensions"):
        layer(x[:, 0], initial(layer, 3))
    with pytest.raises(RuntimeError, match="Expected hidden"):
        layer(x, initial(layer, 2))
    with pytest.raises(RuntimeError):
        layer(x[:0])
    assert layer(x[:, :0])[0].shape == (4, 0, 7)


def test_k_changes_while_training_and_ratios_are_of_the_hidden_size():
    layer = MePropRNN(5, 20, k=1)
    x = torch.randn(1, 1, 5)
    for k, rows in ((1, 1), (4, 4), (0.25, 5), (20, 20)):
        layer.k = k
        layer.zero_grad()
        layer(x)[0].pow(2).sum().backward()
        assert int(layer.weight_ih_l0.grad.ne(0).any(1).sum()) == rows
    with pytest.raises(ValueError, match="not 0"):
        layer.k = 0


def test_records_are_told_by_cell():
    for dtype in (torch.float32, torch.float64):
        _, layer = make("gru", 2, dtype, num_layers=2, bidirectional=True)
        x = torch.randn(4, 3, 5, dtype=dtype)
        assert layer.activeness is None
        said = []
        layer.activeness = {name: _Record(said, name) for name in ("l0", "l0_reverse", "l1", "l1_reverse")}
        layer(x)[0].sum().backward()
        assert sorted(said) == [(name, (12, 21), (12, 6)) for name in layer.activeness]
        layer.activeness = {"l1": _Record(said, "last")}
        layer.k = 7
        layer(x)[0].sum().backward()  # torch's own layer, which tells nobody
        assert len(said) == 4
        layer.k = 0.3
        layer(pack_padded_sequence(x, torch.tensor([4, 2, 1])))[0].data.sum().backward()
        assert said[4:] == [("last", (7, 21), (7, 6))]


class _Record:
    enabled = True

    def __init__(self, said, name):
        self.said, self.name = said, name

    def __call__(self, dy, idx):
        self.said.append((self.name, tuple(dy.shape), tuple(idx.shape)))


def test_copy_pickle_and_functional_call():
    for cell in PAIRS:
        _, layer = make(cell, dtype=torch.float32)
        x = torch.randn(4, 3, 5)
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert repr(twin) == repr(layer)
            assert torch.equal(twin(x)[0], layer(x)[0])
        doubled = {name: 2 * p.detach() for name, p in layer.named_parameters()}
        other = copy.deepcopy(layer)
        other.load_state_dict(doubled)
        assert torch.equal(torch.func.functional_call(layer, doubled, (x,))[0], other(x)[0])


def test_convert_turns_recurrent_layers():
    model = nn.Sequential(nn.LSTM(5, 7, bidirectional=True))
    before = dict(model.named_parameters())
    turned = convert(model, k=3, selection="unified", kinds=(nn.LSTM, nn.GRU, nn.RNN))
    assert list(turned) == ["0"]
    assert type(model[0]) is MePropLSTM
    assert (model[0].k, model[0].selection) == (3, "unified")
    assert all(p is before[name] for name, p in model.named_parameters())
    with pytest.raises(ValueError, match="sparse=True does not apply"):
        convert(nn.GRU(5, 7), k=3, sparse=True, kinds=(nn.GRU,))


def test_a_trained_layer_learns():
    """Recall the first input's sign after five steps: with k of 16 neurons a gate the loss falls, too."""
    torch.manual_seed(0)
    for make_layer in (lambda: MePropLSTM(2, 16, k=4), lambda: MePropGRU(2, 16, k=4)):
        layer, output = make_layer(), nn.Linear(16, 2)
        optimizer = torch.optim.Adam([*layer.parameters(), *output.parameters()], lr=0.02)
        losses = []
        for _ in range(150):
            x = torch.randn(5, 32, 2)
            loss = nn.functional.cross_entropy(output(layer(x)[0][-1]), (x[0, :, 0] > 0).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert sum(losses[-20:]) / 20 < 0.35
