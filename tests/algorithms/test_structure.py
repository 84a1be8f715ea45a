import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, rnn

from meprop_bench.algorithms.removal import remove
from meprop_bench.algorithms.structure import trace
from meprop_bench.models.mlp import MLP


def linears(model, *names):
    return {name: model.get_submodule(name) for name in names}


class Net(nn.Module):
    """A forward given as a function of the module and its input."""

    def __init__(self, run, **modules):
        super().__init__()
        self.run = run
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.run(self, x)


def silence(structure, keep):
    """The oracle of removal: put all that reads a removed neuron to zero, and leave every shape as it is."""
    with torch.no_grad():
        for axis in structure.axes:
            tensor = getattr(axis.owner, axis.tensor)
            if axis.dim == 1:
                gone = ~axis.keep(keep)
                tensor[:, gone] = 0


def check(model, x, layers, keep, *, tolerance=1e-12):
    """Remove, and hold the outputs against those of the model whose removed neurons are read by nobody."""
    model = model.double().eval()
    structure = trace(model, layers)
    kept = {g: torch.zeros(g.size, dtype=torch.bool).index_fill_(0, torch.tensor(keep[g.name]), True)
            for g in structure.groups}  # fmt: skip
    silence(structure, kept)
    expected = model(x)
    remove(structure, kept)
    found = model(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    assert {g.name: g.size for g in structure.groups} == {name: len(v) for name, v in keep.items()}
    return structure


X = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_mlp_with_its_output_layer_left_alone():
    model = MLP(5, 8, 3, layers=3, dropout=0.5)
    names = ["linear0", "linear1", "linear2", "output"]
    keep = {"linear0": [0, 3, 7], "linear1": [5], "linear2": [1, 2]}
    check(model, X, linears(model, *names), keep)
    shapes = [(m.out_features, m.in_features, tuple(m.weight.shape)) for m in model if isinstance(m, nn.Linear)]
    assert shapes == [(3, 5, (3, 5)), (1, 3, (1, 3)), (2, 1, (2, 1)), (3, 2, (3, 2))]
    assert model.linear1.bias.shape == (1,)


def test_one_layer_of_several():
    model = MLP(5, 8, 3, layers=2)
    check(model, X, linears(model, "linear1"), {"linear1": [2, 6]})
    assert model.linear0.weight.shape == (8, 5)


@pytest.mark.parametrize(
    "module", [nn.Sigmoid(), nn.Softplus(), nn.Identity(), nn.PReLU(), nn.GELU(), nn.Dropout(0.3), nn.BatchNorm1d(8)]
)
def test_modules_on_the_way(module):
    if isinstance(module, nn.BatchNorm1d):
        module(torch.randn(20, 8) * 3 + 1)  # statistics that are not the initial ones
        nn.init.normal_(module.weight)
    model = nn.Sequential(nn.Linear(5, 8, bias=False), module, nn.Linear(8, 3))
    check(model, X, linears(model, "0"), {"0": [0, 4, 5]})
    if isinstance(module, nn.BatchNorm1d):
        assert (module.num_features, len(module.running_var)) == (3, 3)
        nn.Sequential(model).train()(X)


def test_batch_normalisation_without_parameters_or_statistics():
    for settings in ({"affine": False}, {"track_running_stats": False}):
        model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8, **settings), nn.Linear(8, 3))
        check(model, X, linears(model, "0"), {"0": [1, 2]})
        assert model[1].num_features == 2


def test_functions_and_numbers_on_the_way():
    def run(net, x):
        y = F.dropout(torch.relu(net.a(x)) * 2 + 1, 0.5, net.training)
        assert y.shape is not None
        return net.b((-y).tanh().contiguous() / 3)

    model = Net(run, a=nn.Linear(5, 8), b=nn.Linear(8, 3))
    check(model, X, linears(model, "a"), {"a": [1, 6]})


def test_through_flatten_a_neuron_is_many_columns():
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    for flatten in (nn.Flatten(), None):
        model = Net(
            lambda net, x: net.b(net.bn((net.flat(net.a(x)) if net.flat else net.a(x).flatten(1)).relu())),
            a=nn.Linear(5, 8), bn=nn.BatchNorm1d(24), b=nn.Linear(24, 2), flat=flatten,
        )  # fmt: skip
        check(model, x, linears(model, "a"), {"a": [1, 2, 7]})
        assert model.b.in_features == model.bn.num_features == 9


def test_the_fully_connected_part_of_a_cnn():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 3)
    )
    check(model, torch.randn(2, 1, 6, 6, dtype=torch.float64), linears(model, "4"), {"4": [0, 9]})
    assert model[4].weight.shape == (2, 16)


def test_two_readers_are_both_cut():
    def run(net, x):
        h = net.a(x).relu()
        return net.b(h), net.c(h)

    model = Net(run, a=nn.Linear(5, 8), b=nn.Linear(8, 2), c=nn.Linear(8, 3))
    check(model, X, linears(model, "a"), {"a": [3, 4]})
    assert model.b.in_features == model.c.in_features == 2


class Tagger(nn.Module):
    """Embedding, recurrent layer, output; with lengths, as a packed sequence."""

    def __init__(self, kind, packed=False, **settings):
        super().__init__()
        self.embedding = nn.Embedding(11, 5)
        self.rnn = kind(5, 6, batch_first=True, **settings)
        self.output = nn.Linear(6 * (1 + self.rnn.bidirectional), 3)
        self.packed = packed

    def forward(self, words):
        x = self.embedding(words)
        if self.packed:
            x = rnn.pack_padded_sequence(x, torch.tensor([4, 2]), batch_first=True)
        y, _ = self.rnn(x)
        if self.packed:
            y, _ = rnn.pad_packed_sequence(y, batch_first=True)
        return self.output(y)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"bidirectional": True}, {"num_layers": 2},
                                      {"num_layers": 2, "bidirectional": True}])  # fmt: skip
def test_recurrent_layers(kind, packed, settings):
    torch.manual_seed(0)
    model = Tagger(kind, packed, **settings)
    cells = [
        f"rnn.l{i}{end}" for i in range(model.rnn.num_layers) for end in ("", "_reverse")[: 1 + model.rnn.bidirectional]
    ]
    keep = {cell: sorted({i % 6, (i + 2) % 6, (i + 3) % 6}) for i, cell in enumerate(cells)}
    words = torch.randint(11, (2, 4))
    structure = check(model, words, linears(model, "rnn"), keep)
    assert [g.gates for g in structure.groups] == [{"LSTM": 4, "GRU": 3, "RNN": 1}[kind.__name__]] * len(cells)
    assert (model.rnn.hidden_size, model.rnn.input_size) == (3, 5)
    model.train()(words).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_recurrent_layer_reads_pruned_neurons():
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.LSTM(8, 4, bidirectional=True))
    model = Net(lambda net, x: net.out(net.body(x)[0]), body=model, out=nn.Linear(8, 2))
    check(model, torch.randn(3, 2, 5, dtype=torch.float64), linears(model, "body.0"), {"body.0": [2, 3, 4]})
    assert model.body[2].input_size == 3


def test_the_output_of_a_recurrent_model_is_left_alone():
    model = Net(lambda net, x: net.b(net.a(x).relu())[0], a=nn.Linear(5, 8), b=nn.LSTM(8, 4))
    assert [g.name for g in trace(model, linears(model, "a", "b")).groups] == ["a"]


A, B = (5, 8), (8, 8)
REFUSED = {
    "residual": (lambda net, x: net.c(net.b(h := net.a(x)) + h), r"'[ab]'.*residual addition 'add' \('b' \+ 'a'\)"),
    "in place": (lambda net, x: net.c(net.a(x).add_(net.e(x))), r"'a'.*residual addition 'add_' \('a' \+ 'e'\)"),
    "norm": (lambda net, x: net.c(net.norm(net.a(x))), r"'a'.*'norm' \(LayerNorm\)"),
    "softmax": (lambda net, x: net.c(net.a(x).softmax(-1)), "'a'.*'softmax'"),
    "view": (lambda net, x: net.c(net.a(x).view(-1, 8)), "'a'.*'view'"),
    "flatten all": (lambda net, x: net.c(torch.flatten(net.a(x))), "'a'.*'flatten'"),
    "flatten batch": (lambda net, x: net.c(net.a(x).flatten(0, 1)), "'a'.*'flatten'"),
    "transpose": (lambda net, x: net.c(net.a(x).T), "'a'.*'getattr"),
    "product": (lambda net, x: net.c(net.a(x) * net.e(x)), "'a'.*'mul'"),
    "wide": (lambda net, x: net.wide(net.a(x)), "'a'.*'wide' takes 9 features, not 8"),
    "twice": (lambda net, x: net.c(net.b(net.b(net.a(x)))), "'[ab]'.*more than once"),
    "two outputs": (lambda net, x: (net.c(h := net.a(x)), h), "'a'.*also outputs"),
    "unread": (lambda net, x: net.c(net.e(x + 0 * net.a(x)[:, :5])), "'a'.*'getitem'"),
    "nobody": (lambda net, x: (net.a(x), net.c(net.e(x)))[1], "'a'.*no layer reads"),
    "conv": (lambda net, x: net.c(net.conv(net.a(x))), r"'a'.*'conv' \(Conv1d\)"),
    "computed": (lambda net, x: net.c(net.normed(net.a(x))), "'normed'.*computed from others"),
    "subclass": (lambda net, x: net.c(net.odd(net.a(x))), "'odd'.*Odd may hold more"),
    "functional": (lambda net, x: F.linear(net.a(x), net.c.weight), "'a'.*'linear'"),
    "direct": (lambda net, x: net.c(net.a(x)) @ net.c.weight, "'a'.*'?c.weight'? is shared"),
    "branch": (lambda net, x: net.c(net.a(x)) if x.sum() > 0 else x, "cannot follow the forward of Net"),
    "states": (lambda net, x: net.c(net.lstm(x)[1][0]), "'lstm.l0'.*'getitem"),
    "initial": (lambda net, x: net.c(net.lstm(x, (x, x))[0]), "'lstm'.*initial state"),
    "projection": (lambda net, x: net.c(net.proj(x)[0]), "'proj'.*projection"),
}


class Odd(nn.Linear):
    pass


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_removed_exactly_is_refused_by_name(case):
    run, message = REFUSED[case]
    model = Net(
        run, a=nn.Linear(*A), b=nn.Linear(*B), c=nn.Linear(8, 3), e=nn.Linear(*A), norm=nn.LayerNorm(8),
        wide=nn.Linear(9, 3), conv=nn.Conv1d(8, 8, 1), normed=parametrizations.weight_norm(nn.Linear(8, 8)),
        odd=Odd(8, 8), lstm=nn.LSTM(5, 8), proj=nn.LSTM(5, 8, proj_size=4),
    )  # fmt: skip
    layers = linears(model, "a", "b", "lstm", "proj")
    with pytest.raises(ValueError, match=message):
        trace(model, layers)


def test_shared_parameters_are_refused():
    model = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    model[2].weight = model[1].weight
    with pytest.raises(ValueError, match=r"1\.weight and 2\.weight is shared"):
        trace(model, linears(model, "0"))
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3))
    model[1] = model[0]
    with pytest.raises(ValueError, match="more than once"):
        trace(model, linears(model, "0"))


def test_activations_may_be_used_more_than_once():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(5, 8), relu, nn.Linear(8, 8), relu, nn.Linear(8, 3))
    check(model, X, linears(model, "0", "2"), {"0": [1], "2": [0, 7]})
