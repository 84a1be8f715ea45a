"""Both sides through torch.compile: what is compiled computes what it computes eagerly, and stays as it is."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch.nn import functional as F

from meprop_bench.errors import UserError
from meprop_bench.measure.clock import WallClock
from meprop_bench.ops.node.build import compiler_command
from meprop_bench.training import Step
from meprop_bench.workloads import Case, DenseSide, choose, compiled, setup
from meprop_bench.workloads.compiled import CannotCompile, as_eager, compilation, compile_steps, function
from meprop_bench.workloads.dense_side import NoDenseSide
from meprop_bench.workloads.linear import timed_backward

_LAYER = {"batch": 4, "in_features": 6, "out_features": 10, "threads": 1, "k": 3}
_MODEL = {"batch": 4, "in_features": 64, "out_features": 12, "threads": 1, "k": 3, "data": "digits"}


@pytest.fixture(autouse=True)
def _afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compile by a backend that makes no code, and leave the process as it was."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    yield
    compiled._lasting.close()


def _case(**changes: Any) -> Case:
    return Case(**{**_LAYER, "compile": "on", **changes})


def _numbers(found: object) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)  # type: ignore[call-overload]


def _same(case: Case, eager: Case) -> None:
    """Compare all calls of both sides of two cases, each made twice."""
    expected = {phase: [_numbers(call()) for call in pair] for phase, pair in setup(eager).memory.items()}
    prepared = setup(case)
    assert prepared.check() == "passed"
    for call in prepared.memory.get("forward", ()):
        assert "CompiledFunction" in type(call().grad_fn).__name__  # type: ignore[attr-defined]
    for phase, pair in prepared.memory.items():
        for _ in range(2):
            for call, numbers in zip(pair, expected[phase], strict=True):
                torch.manual_seed(0)
                for mine, theirs in zip(_numbers(call()), numbers, strict=True):
                    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "unified", "kernel": "masked"},
        {"k": 10},
        {"dtype": "bfloat16"},
        {"dtype": "float64", "caches": "cold"},
        {"method": "dense", "k": 1},
        {"workload": "conv", "size": 7, "filter": 3},
    ],
)
def test_a_compiled_layer_computes_what_an_eager_one_does(changes: dict[str, object]) -> None:
    case = _case(**changes)
    _same(case, _case(**{**changes, "compile": "off"}))


@pytest.mark.skipif(not compiler_command(), reason="torch's compiler needs a C++ compiler")
def test_torch_s_own_compiler_compiles_both_sides_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    _same(_case(method="unified"), _case(method="unified", compile="off"))


def test_a_random_selection_is_checked_by_its_seed() -> None:
    assert setup(_case(method="random")).check() == "passed"


def test_the_sides_of_a_model_are_compiled_each_for_itself() -> None:
    case = Case(workload="mlp", **_MODEL, compile="on")
    prepared = setup(case)
    assert prepared.check() == "passed"
    assert prepared.phases == ("forward", "backward", "update", "step")
    assert any(note.startswith("linear-backward is not timed") for note in prepared.notes)
    for side in (prepared.baseline, prepared.method):
        assert set(side(2, WallClock())) == set(prepared.phases)
        assert side.step.model._compiled_call_impl is not None  # type: ignore[attr-defined]
    prepared = setup(Case(workload="mlp", **_MODEL, baseline="best"), DenseSide(compiled=True, optimizer="fused"))
    assert prepared.check() == "passed"
    baseline, method = prepared.baseline.step, prepared.method.step  # type: ignore[attr-defined]
    assert baseline.model._compiled_call_impl is not None
    assert method.model._compiled_call_impl is None
    assert all(step.optimizer.defaults["fused"] for step in (baseline, method))


def test_the_translator_is_compiled_around_its_recurrent_layers() -> None:
    case = Case(workload="seq2seq", k=3, batch=2, out_features=8, layers=1, length=3, threads=1, compile="on")
    prepared = setup(case)
    assert prepared.check() == "passed"
    assert any(note.startswith("torch.compile broke the graph ") for note in prepared.notes)
    assert set(prepared.method(33, WallClock())) == set(prepared.phases)


_OWN = """
import torch
from meprop_bench.training import Training

def build():
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    numbers = torch.Generator().manual_seed(0)
    batches = [torch.randn(4 + i % 3, 6, generator=numbers) for i in range(40)]
    return Training(model=model, loss=lambda model, x: model(x).square().mean(), batches=batches, optimizer=make)

def make(parameters):
    return torch.optim.SGD(parameters, lr=0.01)

def beside():
    training = build()
    model = training.model
    return Training(model=model, loss=lambda model, x: model[2](model[0](x)).square().mean(), batches=training.batches)
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own_model.py").write_text(_OWN)
    return tmp_path / "own_model.py"


def test_a_model_whose_batches_have_several_shapes_is_compiled_for_all_of_them(own: Path) -> None:
    case = Case(workload="model", model=f"{own}:build", optimizer="own", k=3, threads=1, compile="on")
    prepared = setup(case)
    assert prepared.check() == "passed"
    for side in (prepared.baseline, prepared.method):
        assert set(side(40, WallClock())) == {"forward", "backward", "update", "step"}


def test_a_loss_that_does_not_call_its_model_leaves_nothing_to_compile(own: Path) -> None:
    with pytest.raises(CannotCompile, match="finds nothing to compile in it"):
        setup(Case(workload="model", model=f"{own}:beside", optimizer="own", k=3, threads=1, compile="on"))


def test_what_torch_cannot_compile_in_a_loss_is_not_the_loss_s_fault(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(compiled, "BACKEND", broken)
    case = Case(workload="model", model=f"{own}:build", optimizer="own", k=3, threads=1)
    with pytest.raises(CannotCompile, match="for it here: RuntimeError: no such instruction; leave --compile off"):
        setup(replace(case, compile="on"))
    chosen, untried = choose(replace(case, baseline="best"), WallClock(), seconds=0.01, rng=random.Random(0))
    assert not chosen.compiled
    assert len(untried) == 1


def test_a_model_s_own_optimizer_is_fused_on_both_sides(own: Path) -> None:
    how = DenseSide(optimizer="fused")
    case = Case(workload="model", model=f"{own}:build", optimizer="own", k=3, threads=1, baseline="best")
    prepared = setup(case, how)
    assert prepared.check() == "passed"
    sides: list[Any] = [prepared.baseline, prepared.method]
    assert [side.step.optimizer.defaults["fused"] for side in sides] == [True, True]
    assert [side.step.optimizer.defaults["lr"] for side in sides] == [0.01, 0.01]
    assert any(note.endswith("the fastest here; the method has that optimizer, too") for note in prepared.notes)
    rows: Any = setup(replace(case, gradient="rows"), how)
    assert [side.step.optimizer.defaults["fused"] for side in (rows.baseline, rows.method)] == [True, None]
    assert any(note.endswith("the fastest here") for note in rows.notes)
    with pytest.raises(NoDenseSide, match="cannot be fused, or is"):  # the usual one is
        setup(replace(case, model=f"{own}:beside"), how)


def test_a_model_s_optimizer_that_cannot_be_fused_stays_as_it_is_and_the_row_says_so(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(workload="model", model=f"{own}:build", optimizer="own", k=3, threads=1, baseline="fused")
    for name in ("build", "beside"):  # the second one is fused as it is
        assert setup(replace(case, model=f"{own}:{name}")).dense_side == "eager, fused optimizer"
    monkeypatch.setattr("meprop_bench.workloads.dense_side.fused", lambda _: None)
    prepared = setup(case)
    assert prepared.dense_side == "eager"
    assert any(note.startswith("torch has no fused optimizer like that of ") for note in prepared.notes)


def _wrong(graph: Any, _: object) -> Callable[..., Any]:
    return lambda *inputs: [2 * found for found in graph.forward(*inputs)]


@pytest.mark.parametrize("case", [_case(), Case(workload="mlp", **_MODEL, compile="on")])
def test_what_is_compiled_wrongly_is_noticed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", _wrong)
    assert setup(case).check().startswith("compiled and eager differ: ")


def test_a_nan_that_a_compiled_layer_hides_is_noticed() -> None:
    x, w, b = (torch.randn(*shape, requires_grad=True) for shape in ((4, 6), (10, 6), (10,)))
    dy = torch.randn(4, 10)

    class Hiding(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, y: Tensor) -> Tensor:
            return y.clone()

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> Tensor:  # type: ignore[override]
            return dy.nan_to_num()

    def hiding() -> Tensor:
        return Hiding.apply(F.linear(x, w, b))  # type: ignore[no-any-return, no-untyped-call]

    def honest() -> Tensor:
        return F.linear(x, w, b)

    assert as_eager(honest, honest, (x, w, b), dy, 0) is None
    assert (
        as_eager(hiding, honest, (x, w, b), dy, 0)
        == "compiled and eager differ: a NaN in dy does not show in dx, dw, db"
    )


def test_nothing_is_compiled_after_the_set_up_and_all_is_before_the_next() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    step = _Sum(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with compilation(wanted=True):
        compile_steps([step], torch.randn(4, 3), 0)
        step(torch.randn(4, 3))
    step(torch.randn(4, 3))
    with pytest.raises(RuntimeError, match="recompile"):
        step(torch.randn(4, 3, dtype=torch.float64))
    with compilation(wanted=False):
        pass
    torch.compile(F.relu, backend="eager")(torch.randn(2))


class _Sum(Step):
    def forward(self, batch: Any) -> Tensor:
        return self.model(batch).sum()  # type: ignore[no-any-return]


@pytest.mark.skipif(not compiler_command(), reason="torch's compiler needs a C++ compiler")
def test_a_graph_that_is_kept_serves_again_whatever_it_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "inductor")  # which alone writes into what was saved
    x = torch.randn(4, 4, requires_grad=True)

    def forward() -> Tensor:
        return (x @ x).sin() @ x  # the product is saved, and nobody's but the graph's

    def twice(*, keep_graph: bool) -> Tensor:
        with compilation(wanted=True, keep_graph=keep_graph):
            found = function(forward)
            torch.autograd.grad(found(), x, torch.ones(4, 4))  # this graph serves once
            backward = timed_backward(found(), (x,), torch.ones(4, 4))
            return [backward()[0] for _ in range(2)][1]

    expected = torch.autograd.grad(forward(), x, torch.ones(4, 4))[0]
    # What is cached knows of the first backward pass that was ever made.
    with functorch_config.patch(enable_autograd_cache=False):
        torch.testing.assert_close(twice(keep_graph=True), expected)
        with pytest.raises(RuntimeError, match="donated"):
            twice(keep_graph=False)


def test_what_cannot_be_compiled_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(CannotCompile, match=r"^torch.compile finds nothing to compile in it; leave --compile off$"),
        compilation(wanted=True),
    ):
        pass

    def no_compiler(*_: object) -> None:
        from torch._inductor.exc import InvalidCxxCompiler

        raise InvalidCxxCompiler

    monkeypatch.setattr(compiled, "BACKEND", no_compiler)
    with pytest.raises(UserError, match=r"here: there is no C\+\+ compiler .*; leave --compile off$") as found:
        setup(_case())
    assert "\n" not in str(found.value)

    def too_old(*_: object, **__: object) -> None:
        raise RuntimeError("torch.compile is not supported on Python 3.99+")

    monkeypatch.setattr(torch, "compile", too_old)
    with pytest.raises(UserError, match=r"here: torch.compile is not supported on Python 3.99\+; leave"):
        setup(_case())


def test_an_error_of_our_own_stays_what_it_is() -> None:
    with pytest.raises(ValueError, match="gather"):
        setup(_case(kernel="gather"))


@pytest.mark.skipif(not compiler_command(), reason="torch's compiler needs a C++ compiler")
def test_a_model_with_random_numbers_is_compared_with_eager_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(), nn.Linear(8, 2))
    step = _Sum(model, torch.optim.SGD(model.parameters(), lr=0.1))
    batch = torch.randn(4, 3)
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    with compilation(wanted=True):
        differs = compile_steps([step], batch, 0)
        step(batch)
    assert differs() is None
    with compilation(wanted=True):
        monkeypatch.setattr(compiled, "as_eager_step", lambda *_: "the loss is off")
        differs = compile_steps([step], batch, 0)
        step(batch)
    assert differs() == "the loss is off"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gradient": "rows"}, "gradient 'rows' cannot be compiled.*--gradient dense, or --compile off"),
        ({"workload": "lstm"}, "the workload lstm: it leaves recurrent layers to Python"),
        ({"workload": "gru"}, "the workload gru: it leaves recurrent layers to Python"),
        ({"workload": "mesimp", "method": "mesimp", **_MODEL}, "mesimp: meSimp changes the sizes of its layers"),
        ({"workload": "meact", "method": "meact", **_MODEL, "k": 1}, "meact: meAct masks its layers by hooks"),
        ({"launch": "graph", "device": "cuda"}, "leave --compile and --baseline out, or it"),
        ({"compile": "off", "baseline": "best", "method": "dense"}, "baseline 'best' is for a method"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words) as found:
        _case(**changes)
    assert "\n" not in str(found.value)
