import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from meprop_bench.algorithms.meact import MeAct
from meprop_bench.algorithms.mesimp import MeSimp
from meprop_bench.algorithms.simplified import describe, export_onnx, load, save
from meprop_bench.models.mlp import MLP
from meprop_bench.models.tagger import Tagger
from meprop_bench.nn import MePropLinear, convert

X = torch.randn(7, 12, generator=torch.Generator().manual_seed(0))


def simplified(*, open_=False):
    torch.manual_seed(0)
    model = MLP(12, 32, 4, dropout=0.2, seed=1)
    convert(model, k=4)
    simp = MeSimp(model, interval=7, rate=0.3)
    model(X).pow(2).sum().backward()
    simp.after_step(7)
    assert simp.mean_size < 32
    if not open_:
        simp.close()
    return model, simp


def test_saved_and_loaded_by_itself(tmp_path):
    model, simp = simplified(open_=True)
    save(model, tmp_path / "model.pt")
    assert model.linear0._forward_hooks  # of the model, which is trained on
    loaded = load(tmp_path / "model.pt")
    assert torch.equal(loaded.eval()(X), model.eval()(X))
    assert isinstance(loaded.linear0, MePropLinear)
    assert (loaded.linear0.k, loaded.linear1.in_features) == (4, simp.sizes["linear0"])
    assert not loaded.linear0._forward_hooks
    loaded.train()(X).sum().backward()
    again = MeSimp(loaded, interval=7, rate=0.3)
    assert again.sizes == simp.sizes


def test_hooks_and_what_they_hold_are_not_saved(tmp_path):
    model = MLP(12, 32, 4)
    act = MeAct(model, 10_000)
    save(model, tmp_path / "model.pt")
    assert (tmp_path / "model.pt").stat().st_size < act.memory_bytes / 50
    assert torch.equal(load(tmp_path / "model.pt")(X), model.eval()(X))


def test_loaded_in_another_process(tmp_path):
    model, _ = simplified()
    save(model, tmp_path / "model.pt")
    torch.save((X, model.eval()(X)), tmp_path / "io.pt")
    program = (
        "import sys, torch; from meprop_bench.algorithms.simplified import load;"
        "x, y = torch.load(sys.argv[2]); assert torch.equal(load(sys.argv[1]).eval()(x), y)"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "model.pt", tmp_path / "io.pt"], check=True)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(3, 4, bidirectional=True, batch_first=True)
        self.out = nn.Linear(8, 2)

    def forward(self, x):
        return self.out(self.rnn(x)[0])


def test_a_class_of_ones_own_has_to_be_trusted(tmp_path):
    model = Own()
    x = torch.randn(2, 5, 3)
    save(model, tmp_path / "own.pt")
    with pytest.raises(ValueError, match=r"own.pt uses .*\.Own: if you trust the file"):
        load(tmp_path / "own.pt")
    assert torch.equal(load(tmp_path / "own.pt", trusted=[Own])(x), model(x))


def test_a_file_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("evil",))

    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil.pt uses \w*builtins.*\.print"):
        load(tmp_path / "evil.pt")


def test_costs_layer_by_layer():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 10), nn.Linear(10, 3))
    conv, norm, hidden, out = describe(model, torch.randn(2, 1, 6, 6))
    assert (conv.name, conv.kind, conv.neurons, conv.parameters, conv.flops) == ("0", "Conv2d", 4, 40, 2 * 36 * 16)
    assert (norm.parameters, norm.flops) == (8, 0)
    assert (hidden.neurons, hidden.parameters, hidden.flops) == (10, 650, 2 * 640)
    assert out.flops == 2 * 30
    assert model.training
    assert not model[0]._forward_hooks


def test_costs_of_a_tagger_are_for_all_its_time_steps():
    model = nn.ModuleDict({"words": nn.Embedding(9, 3), "own": Own()})
    model.forward = lambda words: model["own"](model["words"](words))
    words, rnn, out = describe(model, torch.randint(9, (2, 5)))
    assert (words.neurons, words.parameters, words.flops) == (3, 27, 0)
    assert rnn.flops == 2 * 5 * 2 * (16 * 3 + 16 * 4)
    assert (rnn.neurons, out.neurons, out.flops) == (4, 2, 2 * 5 * 16)


def test_before_and_after():
    before = describe(MLP(12, 32, 4), X)
    model, simp = simplified()
    after = describe(model, X)
    assert [c.name for c in before] == [c.name for c in after] == ["linear0", "linear1", "output"]
    n0, n1 = simp.sizes.values()
    assert [c.flops for c in after] == [2 * 12 * n0, 2 * n0 * n1, 2 * n1 * 4]
    assert [c.parameters for c in after] == [12 * n0 + n0, n0 * n1 + n1, 4 * n1 + 4]
    assert all(a.flops < b.flops and a.latency_s is None for a, b in zip(after, before, strict=True))


def test_latency_is_timed_by_the_caller():
    model = MLP(12, 8, 4).double()
    calls = []

    def timer(call):
        calls.append(call())
        return 0.25 * len(calls)

    costs = describe(model, X.double(), timer=timer)
    assert [c.latency_s for c in costs] == [0.25, 0.5, 0.75]
    assert torch.equal(calls[-1], model(X.double()))
    assert not calls[-1].requires_grad


def test_an_input_that_does_not_reach_a_layer():
    model = Own()
    model.spare = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="does not reach spare"):
        describe(model, torch.randn(2, 5, 3))


def test_export_without_onnx(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r'install "meprop-bench\[onnx\]"'):
        export_onnx(MLP(12, 8, 4), tmp_path / "model.onnx", X)


def simplified_tagger():
    torch.manual_seed(0)
    model = Tagger(12, (3,), 5, hidden=24, layers=2, word_size=6, feature_size=2, seed=1)
    convert(model, k=3, kinds=(nn.LSTM,))
    with MeSimp(model, interval=1, rate=0.2) as simp:
        model(torch.randint(3, (4, 6, 2))).pow(2).sum().backward()
        simp.after_step(4)
    assert simp.mean_size < 24
    return model


@pytest.mark.parametrize("kind", ["mlp", "tagger"])
def test_an_exported_model_gives_the_same_outputs_for_any_batch(tmp_path, kind):
    pytest.importorskip("onnx", reason="the package onnx (extra onnx), which exports and evaluates, is not installed")
    from onnx import load_model
    from onnx.reference import ReferenceEvaluator

    if kind == "mlp":
        model, operators, inputs = simplified()[0], {"Gemm"}, [X, X[:1], torch.randn(30, 12)]
    else:
        model, operators = simplified_tagger(), {"LSTM"}
        inputs = [torch.randint(3, (batch, 6, 2)) for batch in (2, 2, 1, 5)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export_onnx(model, tmp_path / "model.onnx", inputs[0])
    assert operators <= {node.op_type for node in load_model(tmp_path / "model.onnx").graph.node}
    exported = ReferenceEvaluator(str(tmp_path / "model.onnx"))
    for x in inputs:
        (y,) = exported.run(None, {"input0": x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(y), model.eval()(x), rtol=1e-5, atol=1e-5)
