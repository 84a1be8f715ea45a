"""The dense side on the strongest footing: which candidates there are, and that the fastest one is taken."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from meprop_bench.measure.clock import Clock, WallClock
from meprop_bench.measure.paired import Subject
from meprop_bench.optim import RowAdagrad
from meprop_bench.optimizers import fused, is_fused
from meprop_bench.sweep.plan import load_preset, plan_axes, plan_preset, preset_names
from meprop_bench.workloads import Case, DenseSide, choose, compiled, setup
from meprop_bench.workloads.case import WORKLOADS
from meprop_bench.workloads.dense_side import NoDenseSide, candidates, fastest

_EAGER, _FUSED, _COMPILED = DenseSide(), DenseSide(optimizer="fused"), DenseSide(compiled=True)
_BOTH = DenseSide(compiled=True, optimizer="fused")
_OURS, _BOTH_OURS = DenseSide(optimizer="compiled"), DenseSide(compiled=True, optimizer="compiled")
_MODEL = {"batch": 4, "in_features": 64, "out_features": 12, "threads": 1, "k": 3, "data": "digits"}


class _Time:
    """A clock that stands still but for the subjects."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.alive: list[DenseSide] = []

    def now(self) -> float:
        return self.seconds

    def synchronize(self) -> None:
        pass

    def subject(self, **phases: float) -> Subject:
        def timed(loops: int, _: Clock) -> Mapping[str, float]:
            self.seconds += loops * sum(phases.values())
            return phases

        return timed


def _fastest(sides: Mapping[DenseSide, Mapping[str, float]]) -> DenseSide:
    clock: Any = _Time()
    subjects = ((candidate, clock.subject(**phases)) for candidate, phases in sides.items())
    return fastest(subjects, clock, seconds=0.1, rng=random.Random(0))


def test_the_fastest_whole_is_taken_and_of_equal_ones_the_simplest() -> None:
    layer = {_EAGER: {"forward": 2e-3, "backward": 3e-3}, _COMPILED: {"forward": 3e-3, "backward": 1e-3}}
    assert _fastest(layer) == _COMPILED
    slow, fast = ({"step": step, "linear-backward": 9e-3 - step} for step in (4e-3, 2e-3))
    assert _fastest({_EAGER: slow, _FUSED: fast, _COMPILED: slow, _BOTH: fast}) == _FUSED
    assert _fastest({_EAGER: {"step": 1e-3}, _FUSED: {"step": 0.995e-3}}) == _EAGER
    assert _fastest({_EAGER: {"step": 1e-3}}) == _EAGER


def test_a_candidate_without_a_phase_can_be_compared_with_one_that_has_it() -> None:
    assert _fastest({_EAGER: {"step": 2e-3, "linear-backward": 1e-3}, _COMPILED: {"step": 1e-3}}) == _COMPILED


def test_a_candidate_is_made_when_it_is_needed() -> None:
    clock: Any = _Time()
    timed: list[int] = []

    def subjects() -> Iterator[tuple[DenseSide, Subject]]:
        for number, candidate in enumerate((_EAGER, _FUSED, _COMPILED)):
            timed.append(round(clock.now() > 0))
            yield candidate, clock.subject(step=1e-3 * (3 - number))

    assert fastest(subjects(), clock, seconds=0.1, rng=random.Random(0)) == _COMPILED
    assert timed == [0, 0, 1]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (Case(), [_EAGER]),
        (Case(compile="on"), [_COMPILED]),
        (Case(workload="mlp", **_MODEL), [_EAGER]),
        (Case(baseline="fused", workload="mlp", **_MODEL), [_FUSED]),
        (Case(baseline="fused", workload="mlp", compile="on", **_MODEL), [_BOTH]),
        (Case(baseline="fused", workload="mlp", optimizer="adagrad", device="cuda", **_MODEL), [_EAGER]),
        (Case(baseline="best"), [_EAGER, _COMPILED]),
        (Case(baseline="best", compile="on"), [_EAGER, _COMPILED]),
        (Case(baseline="best", workload="lstm"), [_EAGER]),
        (
            Case(baseline="best", workload="mlp", **_MODEL),
            [_EAGER, _FUSED, _OURS, _COMPILED, _BOTH, _BOTH_OURS],
        ),
        (
            Case(baseline="best", workload="mlp", fused_step="both", **_MODEL),
            [DenseSide(optimizer=each, fused_step=True) for each in ("plain", "fused", "compiled")],
        ),
        (Case(baseline="best", workload="mesimp", method="mesimp", **_MODEL), [_EAGER, _FUSED, _OURS]),
        (Case(baseline="best", workload="mlp", optimizer="adagrad", device="cuda", **_MODEL), [_EAGER, _COMPILED]),
    ],
)
def test_there_are_as_many_candidates_as_make_a_difference(case: Case, expected: list[DenseSide]) -> None:
    assert list(candidates(case)) == expected


_SIZES: dict[str, dict[str, Any]] = {
    "seq2seq": {"batch": 2, "hidden": 8, "length": 4, "k": 3},
    "transformer": {"batch": 2, "hidden": 16, "heads": 2, "layers": 1, "length": 8, "k": 3, "data": "made-up"},
    "model": {"model": "digits", "options": "batch=4;hidden=12", "k": 3, "baseline": "fused"},
}
_PERCEPTRON = {"batch": 4, "hidden": 12, "k": 3, "data": "digits"}
_TRAINED = [name for name, workload in WORKLOADS.items() if workload.trains]
_DENSE = ("adam", "adamw", "sgd", "adagrad")


def _planned(workload: str, **axes: Any) -> Case:
    sizes = _SIZES.get(workload, _PERCEPTRON)
    named = {"workload": workload, "threads": 1, "method": WORKLOADS[workload].methods[0], **sizes, **axes}
    (case,) = plan_axes({axis: [value] for axis, value in named.items()}).cases
    return case


def _optimizers(case: Case) -> list[torch.optim.Optimizer]:
    prepared: Any = setup(case)
    return [side.step.optimizer for side in (prepared.baseline, prepared.method)]


@pytest.mark.parametrize("optimizer", _DENSE)
@pytest.mark.parametrize("workload", _TRAINED)
def test_no_trained_case_is_measured_against_a_weaker_dense_side_than_asked(workload: str, optimizer: str) -> None:
    case = _planned(workload, optimizer=optimizer)
    assert case.baseline == "fused"
    prepared: Any = setup(case)
    assert prepared.dense_side == "eager, fused optimizer"
    for side in (prepared.baseline, prepared.method):  # the method's gradients are dense, and take it, too
        assert type(side.step.optimizer).__module__ == f"torch.optim.{optimizer}"
        assert is_fused(side.step.optimizer)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowadam", "rowadamw"])
@pytest.mark.parametrize("workload", ["mlp", "transformer", "model"])
def test_rows_do_not_take_the_fused_optimizer_from_the_dense_side(workload: str, optimizer: str) -> None:
    dense, method = _optimizers(_planned(workload, optimizer=optimizer, gradient="rows"))
    assert type(dense).__module__ == f"torch.optim.{optimizer.removeprefix('row')}"
    assert is_fused(dense)
    assert not is_fused(method)


def test_the_papers_optimizer_is_not_fused_on_either_side() -> None:
    for gradient in ("dense", "rows"):
        case = _planned("mlp", baseline="same", optimizer="sgd", gradient=gradient)
        assert not any(is_fused(optimizer) for optimizer in _optimizers(case))
        assert setup(case).dense_side is None


def test_rows_of_another_algorithm_say_so() -> None:
    found = {
        name: [note for note in setup(_planned("mlp", optimizer=name, gradient=gradient)).notes if "algorithm" in note]
        for name, gradient in (("rowadam", "rows"), ("adagrad", "rows"), ("adam", "dense"))
    }
    assert found["rowadam"] == ["RowAdam is another algorithm than Adam, which also moves the rows without a gradient"]
    assert found["adagrad"] == ["RowAdagrad is the same algorithm as Adagrad: a row without a gradient stays as it is"]
    assert found["adam"] == []


@pytest.mark.parametrize("workload", ["mlp", "meact", "transformer", "model"])
def test_the_best_dense_side_may_have_this_package_s_optimizer(workload: str) -> None:
    case = _planned(workload, optimizer="adagrad", baseline="best")
    prepared: Any = setup(case, _OURS)
    assert prepared.dense_side == "eager, this package's optimizer"
    assert prepared.check() == "passed"
    assert [type(side.step.optimizer) for side in (prepared.baseline, prepared.method)] == [RowAdagrad] * 2


def test_without_numba_this_package_s_optimizer_is_no_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meprop_bench.ops.kernels.compiled.unavailable_reason", lambda: "there is no Numba")
    case = _planned("mesimp", optimizer="sgd", baseline="best")
    with pytest.raises(NoDenseSide):
        setup(case, _OURS)
    chosen, untried = choose(case, WallClock(), seconds=0.01, rng=random.Random(0))
    assert chosen in (_EAGER, _FUSED)
    assert untried == ()


def test_where_torch_has_no_fused_step_the_row_says_so() -> None:
    case = _planned("mlp", optimizer="adagrad", device="cuda")
    (note,) = DenseSide.of(case).notes(case)
    assert note == "torch has no fused adagrad on cuda:0: the dense side's is as it comes"
    own = Case(workload="model", model="own_mlp.py:lbfgs", baseline="fused", threads=1, optimizer="own")
    plain = DenseSide()
    assert plain.notes(own) == (
        "torch has no fused optimizer like that of own_mlp.py:lbfgs: the dense side's is as it comes",
    )


@pytest.mark.parametrize("name", preset_names())
def test_the_presets_hold_trained_cases_against_the_strongest_dense_side(name: str) -> None:
    found = {case.baseline for case in plan_preset(load_preset(name)).cases if WORKLOADS[case.workload].trains}
    allowed = {"fused", "best"} | (
        {"same"} if name == "gpu" else set()
    )  # the papers' tables are made of that one's rows
    assert found <= allowed


def test_a_best_side_cannot_be_set_up_before_it_was_chosen() -> None:
    with pytest.raises(ValueError, match="has to be chosen"):
        setup(Case(baseline="best", threads=1))


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    yield monkeypatch
    compiled._lasting.close()


def test_the_candidates_of_a_model_are_timed_and_one_is_named(backend: pytest.MonkeyPatch) -> None:
    case = Case(baseline="best", workload="mlp", optimizer="sgd", **_MODEL)
    chosen, untried = choose(case, WallClock(), seconds=0.01, rng=random.Random(0))
    assert chosen in candidates(case)
    assert untried == ()
    prepared = setup(case, chosen)
    assert prepared.check() == "passed"
    assert any(note.startswith(f"the dense side is {chosen}, the fastest here") for note in prepared.notes)


def test_what_cannot_be_compiled_is_said_and_eager_is_taken(backend: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such instruction")

    backend.setattr(compiled, "BACKEND", broken)
    case = Case(baseline="best", batch=4, in_features=6, out_features=10, k=3, threads=1)
    chosen, (untried,) = choose(case, WallClock(), seconds=0.01, rng=random.Random(0))
    assert chosen == _EAGER
    assert untried.startswith("the dense side is not compiled: torch.compile cannot be used for it here: ")
    assert "no such instruction" in untried


def test_an_optimizer_is_fused_with_all_of_its_settings() -> None:
    w, b = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    groups = [{"params": [w], "weight_decay": 0.1}, {"params": [b], "lr": 0.5}]
    found = fused(torch.optim.AdamW(groups, lr=0.25, betas=(0.5, 0.75), foreach=True))
    assert isinstance(found, torch.optim.AdamW)
    assert [group["fused"] for group in found.param_groups] == [True, True]
    assert [(group["lr"], group["weight_decay"]) for group in found.param_groups] == [(0.25, 0.1), (0.5, 0.01)]
    assert found.param_groups[0]["betas"] == (0.5, 0.75)
    plain = torch.optim.AdamW([nn.Parameter(torch.ones(2, 2))], lr=0.25)
    again = fused(torch.optim.AdamW([w], lr=0.25, weight_decay=0.01))
    assert again is not None
    for optimizer in (plain, again):
        optimizer.param_groups[0]["params"][0].grad = torch.full((2, 2), 3.0)
        optimizer.step()
    torch.testing.assert_close(w, plain.param_groups[0]["params"][0])


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, fused=True),
        torch.optim.LBFGS,
        lambda p: torch.optim.Adam(p, differentiable=True),
        lambda p: type("Mine", (torch.optim.SGD,), {"__module__": "mine"})(p, lr=0.1),
    ],
    ids=["fused", "without", "refused", "own"],
)
def test_an_optimizer_that_cannot_be_fused_or_is_has_no_such_candidate(make: Any) -> None:
    assert fused(make([nn.Parameter(torch.ones(2))])) is None
