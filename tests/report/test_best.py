"""What is recommended of a sweep, from made-up figures whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meprop_bench.errors import UserError
from meprop_bench.methods import METHODS, Method
from meprop_bench.report.best import best, chosen
from meprop_bench.report.reliability import with_disagreements
from meprop_bench.results.schema import Parity
from meprop_bench.stats import mean_difference, non_inferiority

DENSE_S = 4e-3


@pytest.fixture
def case(make_row):
    """A function that makes a case of a model: its k, its speed-up, and what else is not as usual."""

    def make(k, speedup, **changes):
        own = {"workload": "model", "model": "gpt.py:build", "optimizer": "own", "phase": "step", "gradient": "dense"}
        own |= {"batch": None, "in_features": None, "out_features": None}
        return make_row(f"case-{k}-{changes}", k=k, median=DENSE_S / speedup, speedup=speedup, **own | changes)

    return make


def _parity(change, noise=0.1, margin=0.5):
    dense = (90.0, 91.0, 90.5, 89.5, 90.2)
    method = tuple(figure + change + noise * sign for figure, sign in zip(dense, (1, -1, 0, 1, -1), strict=True))
    found = mean_difference(list(zip(dense, method, strict=True)))
    return Parity(
        task="gpt.py:build", metric="accuracy %", seeds=(1, 2, 3, 4, 5), steps=400, baseline=dense, method=method,
        difference=found.estimate, low=found.low, high=found.high, margin=margin,
        verdict=non_inferiority(found, margin),
    )  # fmt: skip


def test_the_fastest_is_taken_with_its_interval(case):
    found = best([case(0.2, 1.2), case(0.05, 1.5), case(0.1, 1.4)])
    assert found
    assert (found.method, found.k, found.decided) == ("unified", 0.05, True)
    assert str(found).splitlines() == [
        "Take unified k=0.05: a training step is 1.50x [1.49, 1.52] as fast as dense.",
        "Its accuracy was not compared: compare it before you use it.",
    ]
    assert found.code == 'meprop_bench.convert(model, k=0.05, selection="unified")'


def test_a_method_of_somebody_else_is_converted_by_its_own_module(case, monkeypatch):
    monkeypatch.setitem(METHODS, "unified", Method("unified", module="elsewhere.first"))
    assert best([case(0.05, 1.5)]).code == 'elsewhere.first.convert(model, k=0.05, selection="unified")'


def test_what_the_intervals_do_not_decide_is_said_before_any_figure(case):
    found = best([case(0.05, 1.5, half=0.05), case(0.1, 1.48, half=0.05), case(0.2, 1.1)])
    assert found.k == 0.05
    assert not found.decided
    first, second, *_ = found.sentences
    assert first.startswith("Which is fastest is not decided: the intervals of unified k=0.1 and unified k=0.05")
    assert second.startswith("unified k=0.05 has the highest figure: a training step is 1.50x [")


def test_a_case_that_loses_accuracy_is_not_taken(case):
    rows = [case(0.05, 2.0, parity=_parity(-2.0)), case(0.2, 1.3, parity=_parity(-0.1))]
    found = best(rows)
    assert found.k == 0.2
    text = str(found)
    assert "Its accuracy holds within 0.5 points (-0.10 [-0.22, +0.02]), over 5 seeds of 400 steps." in text
    assert "unified k=0.05, 2.00x [1.98, 2.02], loses more accuracy than the margin." in text


def test_the_margin_that_is_given_counts(case):
    rows = [case(0.05, 2.0, parity=_parity(-2.0)), case(0.2, 1.3, parity=_parity(-0.1))]
    assert best(rows, margin=3).k == 0.05
    assert not best(rows, margin=0)
    with pytest.raises(UserError, match="margin must be at least 0, not -1"):
        best(rows, margin=-1)


def test_an_accuracy_that_is_not_decided_recommends_nothing(case):
    found = best([case(0.05, 2.0, parity=_parity(-0.4, noise=1.5))])
    assert not found
    assert found.sentences[0].startswith("Not decided: ")
    assert "more seeds" in found.sentences[0]
    assert found.code is None


def test_where_nothing_is_faster_dense_stays(case):
    found = best([case(0.05, 0.9), case(0.1, 1.001, half=0.02)])
    assert not found
    assert found.sentences == (
        "Stay dense: no case is significantly faster than dense.",
        "The highest figure is that of unified k=0.1, 1.00x [0.98, 1.02].",
    )


def test_where_all_that_is_faster_loses_accuracy_dense_stays(case):
    found = best([case(0.05, 2.0, parity=_parity(-2.0))])
    assert found.sentences[0] == "Stay dense: every faster case loses more accuracy than the margin."
    assert found.sentences[-1].startswith("Its accuracy is lost: -2.00 [")


def test_what_failed_its_check_or_cannot_be_believed_is_not_taken(case, failed_row):
    wrong = failed_row("wrong", check="dw differs", workload="model", model="gpt.py:build", phase=None)
    assert best([wrong]).sentences == ("No speed-up was measured: dw differs.",)
    doubtful = replace(case(0.05, 2.0), baseline_disagreement=3.0)
    found = best([doubtful, case(0.1, 1.3)])
    assert found.k == 0.1
    assert found.sentences[-1] == "Not to be believed: unified k=0.05."
    assert best([doubtful]).sentences[0] == "Not decided: no measured speed-up can be believed."


def test_cases_of_different_dense_work_are_not_held_against_each_other(case):
    rows = [case(0.05, 1.5, threads=1), case(0.05, 1.3, threads=2)]
    found = best(rows)
    assert not found
    assert "(threads 1, 2): say which, as in best(threads=1)" in found.sentences[0]
    assert best(chosen(rows, {"threads": 2})).speedup == pytest.approx(1.3, rel=0.01)


def test_an_axis_that_does_not_exist_is_named(case):
    with pytest.raises(UserError, match="did you mean 'threads'"):
        chosen([case(0.05, 1.5)], {"thread": 1})


def test_the_code_says_what_was_measured(case):
    rows = best([case(0.05, 1.5, gradient="rows", kernel_requested="native", method="meprop")])
    assert rows.code == 'meprop_bench.convert(model, k=0.05, selection="example", sparse=True, kernel="native")'


def test_equal_cases_are_not_recommended_by_chance(noisy_row):
    rows = [noisy_row(str(seed), seed=seed, k=seed + 1, phase="step") for seed in range(40)]
    assert any(row.significant for row in rows)
    assert not best(with_disagreements(rows))


def test_a_layer_is_judged_by_its_backward_pass(rows):
    found = best([row for row in rows if row.workload == "linear" and row.batch == 1024 and row.allocator == "kept"])
    assert found.k == 8
    assert "the backward pass is 150x" in found.sentences[0]


def test_of_several_workloads_none_is_chosen(rows):
    found = best([row for row in rows if row.allocator == "kept"])
    assert not found
    assert not found.comparable
    assert "workload linear, mlp" in found.sentences[0]
    assert "best(workload='linear')" in found.sentences[0]


def test_the_code_converts_the_layers_that_were_converted(case):
    layers = {"0": ("Conv2d", 0.5), "2": ("Linear", 0.05), "4": ("Linear", None)}
    found = best([case(0.05, 1.5, convertible=layers, leave="3")])
    assert found.code == (
        "import torch\n"
        'meprop_bench.convert(model, k={"0": 0.5, "*": 0.05}, selection="unified",'
        " kinds=(torch.nn.Conv2d, torch.nn.Linear,))"
    )
    usual = {"2": ("Linear", 0.05), "4": ("Linear", None)}
    found = best([case(0.05, 1.5, convertible=usual, compile="on")])
    assert found.code == 'meprop_bench.convert(model, k=0.05, selection="unified")\nmodel.compile()'
    # Of a row from before nobody knows which layers these were.
    assert best([case(0.05, 1.5, leave="3")]).code is None
    assert best([case(0.05, 1.5, k_by_layer="3=0.5")]).code is None
