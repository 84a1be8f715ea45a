"""The tools of torch that read a model take the layers of this package as they take torch's own."""

import copy
import importlib.util
import io
import logging

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn.utils import parametrizations

from meprop_bench.nn import MePropLinear, convert

logging.getLogger("torch.onnx").setLevel(logging.ERROR)

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{name}")
    for name in ("DeprecationWarning", "UserWarning", "torch.jit.TracerWarning")
]
MODES = [(False, True), (True, True), (False, False)]
"""Training mode, and whether gradients are recorded."""
KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.LSTM, nn.GRU, nn.RNN, nn.MultiheadAttention)


class Recurrent(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        y, _ = self.layer(x)
        return y


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2)  # torch.jit.trace refuses the fast path of `batch_first`

    def forward(self, x):
        y, _ = self.layer(x, x, x, need_weights=False)
        return y


MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(5, 20), nn.ReLU(), nn.Linear(20, 9)), (4, 5)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 4, 4, padding="same")), (4, 3, 9)),
    "conv2d": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU()), (4, 3, 8, 7)),
    "lstm": (lambda: Recurrent(nn.LSTM(5, 7, bidirectional=True, batch_first=True)), (4, 3, 5)),
    "gru": (lambda: Recurrent(nn.GRU(5, 7, batch_first=True)), (4, 3, 5)),
    "rnn": (lambda: Recurrent(nn.RNN(5, 7, 2, batch_first=True)), (4, 3, 5)),
    "attention": (SelfAttention, (4, 3, 8)),
    "layer": (lambda: nn.Linear(5, 20), (4, 5)),
}


@pytest.fixture(params=MODELS)
def models(request):
    """A model of torch's layers, its converted twin, and an input."""
    torch.manual_seed(0)
    make, size = MODELS[request.param]
    plain = make()
    ours = copy.deepcopy(plain)
    assert convert(ours, k=0.2, kinds=KINDS, filter=lambda *_: True)
    return plain, ours, torch.randn(size)


@pytest.mark.parametrize(
    ("training", "gradients", "how"),
    [*[(*mode, "at once") for mode in MODES], (False, True, "strict"), (False, True, "any batch")],
)
def test_an_exported_program_is_that_of_torchs_layers(models, training, gradients, how):
    plain, ours, x = models
    shapes = ({0: Dim("batch")},) if how == "any batch" else None
    programs = []
    with torch.set_grad_enabled(gradients):
        for model in (plain, ours):
            model.train(training)
            programs.append(torch.export.export(model, (x,), dynamic_shapes=shapes, strict=how == "strict"))
    theirs, found = programs
    assert [str(node.target) for node in found.graph.nodes] == [str(node.target) for node in theirs.graph.nodes]
    assert torch.equal(found.module()(x), theirs.module()(x))


@pytest.mark.parametrize(("training", "gradients"), MODES)
def test_a_trace_is_saved_and_loaded(models, training, gradients):
    plain, ours, x = models
    file = io.BytesIO()
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(ours.train(training), x)
        expected = torch.jit.trace(plain.train(training), x)
    torch.jit.save(traced, file)
    file.seek(0)
    assert torch.equal(torch.jit.load(file)(x), plain(x))
    assert [n.kind() for n in traced.inlined_graph.nodes()] == [n.kind() for n in expected.inlined_graph.nodes()]


def test_the_script_compiler_is_refused_in_one_line_and_changes_nothing():
    model = nn.Sequential(nn.Linear(5, 9), nn.Linear(9, 3))
    converted = convert(model, k=2)
    for what in (model, model[0]):
        with pytest.raises(
            RuntimeError, match=r"cannot compile MePropLinear: script meprop_bench\.nn\.revert"
        ) as raised:
            torch.jit.script(what)
        assert "\n" not in str(raised.value)
    assert model[0] is converted["0"]
    assert type(model[0]) is MePropLinear


def rows_with_a_gradient(layer, model, x):
    layer.weight.grad = None
    model(x).pow(2).sum().backward()
    return int(layer.weight.grad.ne(0).flatten(1).any(1).sum())


def test_a_symbolic_trace_has_the_layers_as_nodes_and_trains_them_sparsely(models):
    plain, ours, x = models
    if isinstance(plain, Recurrent):
        expected, found = (torch.fx.symbolic_trace(model.eval()) for model in (plain, ours))
        assert [str(node) for node in found.graph.nodes] == [str(node) for node in expected.graph.nodes]
    traced = torch.fx.symbolic_trace(ours)
    torch.testing.assert_close(traced(x), plain(x))
    for name in dict(ours.named_parameters()):
        assert traced.get_parameter(name) is ours.get_parameter(name)
    for one, other in zip(gradients(traced, x), gradients(ours, x), strict=True):
        assert torch.equal(one, other)


def gradients(model, x):
    return torch.autograd.grad(model(x).pow(2).sum(), [*model.parameters()])


def test_a_traced_layer_is_the_layer_with_its_hooks_and_its_k():
    calls = []
    model = nn.Sequential(nn.Linear(5, 20), nn.Linear(20, 9))
    convert(model, k=3)
    model[0].register_forward_hook(lambda module, args, y: calls.append(tuple(y.shape)) or y + 1)
    x = torch.randn(1, 5)
    traced = torch.fx.symbolic_trace(model)
    assert calls == []
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "call_module", "output"]
    assert torch.equal(traced(x), model(x))
    assert calls == [(1, 20)] * 2
    for k in (3, 7):
        model[0].k = k
        assert rows_with_a_gradient(model[0], traced, x) == k


def test_feature_extraction_cuts_a_model_and_keeps_the_method():
    """As torchvision does it: a tracer that goes by the names of layers, and an output put in their place."""

    class Named(torch.fx.Tracer):
        current = ""

        def call_module(self, m, forward, args, kwargs):
            before, self.current = self.current, self.path_of_module(m)
            try:
                return super().call_module(m, forward, args, kwargs)
            finally:
                self.current = before

        def create_node(self, *args, **kwargs):
            node = super().create_node(*args, **kwargs)
            names[node] = self.current
            return node

    names = {}
    model = nn.Sequential(nn.Linear(5, 20), nn.ReLU(), nn.Linear(20, 30), nn.Linear(30, 9))
    convert(model, k=3)
    graph = Named().trace(model)
    assert [names[node] for node in graph.nodes][1:-1] == ["0", "1", "2", "3"]
    inner = next(node for node in graph.nodes if names[node] == "2")
    output = next(node for node in graph.nodes if node.op == "output")
    output.args = (inner,)
    extractor = torch.fx.GraphModule(model, graph)
    graph.eliminate_dead_code()
    extractor.recompile()
    x = torch.randn(1, 5)
    assert torch.equal(extractor(x), model[:3](x))
    assert rows_with_a_gradient(model[2], extractor, x) == 3


@pytest.mark.skipif(importlib.util.find_spec("onnx") is None, reason="needs onnx")
@pytest.mark.parametrize("gradients", [False, True])
def test_onnx(models, gradients):
    plain, ours, x = models
    dynamo = importlib.util.find_spec("onnxscript") is not None
    files = []
    with torch.set_grad_enabled(gradients):
        for model in (plain, ours):
            files.append(io.BytesIO())
            torch.onnx.export(model.eval(), (x,), files[-1], dynamo=False)
            if dynamo:
                assert torch.onnx.export(model, (x,), dynamo=True, verbose=False) is not None
    assert operators(files[0]) == operators(files[1])


def operators(file):
    import onnx

    return [node.op_type for node in onnx.load_model_from_string(file.getvalue()).graph.node]


def test_a_parametrized_layer_exports_as_well():
    model = nn.Sequential(nn.Linear(5, 9), nn.Linear(9, 3))
    convert(model, k=2)
    parametrizations.weight_norm(model[0])
    x = torch.randn(4, 5)
    assert torch.equal(torch.export.export(model, (x,)).module()(x), model(x))
