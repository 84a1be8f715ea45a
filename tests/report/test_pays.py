"""The one sentence that says which training steps pay, from the intervals."""

import pytest

from meprop_bench.report.cells import distinct_rows
from meprop_bench.report.document import summary
from meprop_bench.report.pays import which_pay

_STEP = {"workload": "mlp", "phase": "step", "optimizer": "adagrad", "data": "mnist", "in_features": 784, "layers": 2}


@pytest.fixture
def sentence(make_row, rows):
    parities = {row.parity.verdict: row.parity for row in rows if row.parity} | {None: None}

    def say(*steps):
        """Return the sentence of steps; the accuracy of each holds unless its `parity` is another verdict, or None."""
        rows = [
            make_row(str(place), **{**_STEP, "batch": 50, **step, "parity": parities[step.get("parity", "pass")]})
            for place, step in enumerate(steps)
        ]
        return which_pay(rows, distinct_rows(rows))

    return say


def step(hidden, speedup, **changes):
    return {"out_features": hidden, "speedup": speedup, **changes}


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (
            [step(2048, 2.34), step(500, 0.95)],
            "a training step pays at h=2048 (2.34x [2.32, 2.36]), not at h=500 (0.95x [0.94, 0.96]).",
        ),
        ([step(2048, 2.0)], "a training step pays at h=2048 (2.00x [1.98, 2.02])."),
        ([step(500, 0.9)], "a training step does not pay at h=500 (0.90x [0.89, 0.91])."),
        ([step(500, 1.0)], "it is undecided whether a training step pays at h=500 (1.00x [0.99, 1.01])."),
        (
            [step(2048, 2.0), step(500, 1.0)],
            "a training step pays at h=2048 (2.00x [1.98, 2.02]); it is undecided whether it pays at h=500"
            " (1.00x [0.99, 1.01]).",
        ),
        (
            [step(500, 2.0, baseline_disagreement=2.0)],
            "it is undecided whether a training step pays at h=500 (2.00x [1.98, 2.02]).",
        ),
        (
            [step(500, 2.0, speedup_low=0.1, speedup_high=40.0)],
            "it is undecided whether a training step pays at h=500 (cannot tell).",
        ),
        (
            [step(500, 2.0, speedup_low=0.1, speedup_high=40.0, k=k) for k in (4, 8)],
            "it is undecided whether a training step pays at h=500 (cannot tell).",
        ),
        ([step(500, 2.0, k=8), step(500, 4.0, k=4)], "a training step pays at h=500 (2.00x to 4.00x)."),
        (
            [step(500, 2.0, k=8), step(500, 0.5, k=90)],
            "at h=500 a training step pays in 1, does not in 1 of 2 cases.",
        ),
        (
            [step(500, 2.0, k=8), step(500, 0.5, k=90), step(2048, 3.0)],
            "a training step pays at h=2048 (3.00x [2.97, 3.03]); at h=500 it pays in 1, does not in 1 of 2 cases.",
        ),
        (
            [step(500, 2.0, workload="seq2seq"), step(500, 0.9, workload="meact", method="meact")],
            "a training step pays for seq2seq (2.00x [1.98, 2.02]), not for meact (0.90x [0.89, 0.91]).",
        ),
        (
            [step(500, 2.0, batch=10), step(500, 0.9)],
            "a training step pays at B=10 (2.00x [1.98, 2.02]), not at B=50 (0.90x [0.89, 0.91]).",
        ),
        (
            [step(500, 2.0, batch=10), step(500, 0.9), step(900, 3.0)],
            "a training step pays at h=500 B=10 (2.00x [1.98, 2.02]) and at h=900 B=50 (3.00x [2.97, 3.03]), not at"
            " h=500 B=50 (0.90x [0.89, 0.91]).",
        ),
        (
            [*(step(500, 2.0, batch=batch) for batch in (1, 2, 3)), step(500, 0.5, batch=4), step(500, 1.0, batch=5)],
            "a training step pays in 3, does not in 1, is undecided in 1 of 5 cases.",
        ),
    ],
)
def test_it_is_one_sentence(sentence, steps, said):
    assert sentence(*steps) == f"On this machine {said}"


def test_a_step_that_loses_accuracy_does_not_pay(sentence):
    assert sentence(step(2048, 2.0), step(500, 3.0, parity="fail"), step(100, 0.9)) == (
        "On this machine a training step pays at h=2048 (2.00x [1.98, 2.02]), is faster but loses too much accuracy at"
        " h=500 (3.00x [2.97, 3.03]), does not pay at h=100 (0.90x [0.89, 0.91])."
    )
    assert sentence(step(500, 2.0), step(500, 3.0, parity="fail")) == (
        "On this machine at h=500 a training step pays in 1, is faster but loses too much accuracy in 1 of 2 cases."
    )


@pytest.mark.parametrize("parity", [None, "inconclusive"])
def test_what_is_not_known_of_the_accuracy_is_a_condition(sentence, parity):
    assert sentence(step(500, 2.0, parity=parity)) == (
        "On this machine a training step pays at h=500 (2.00x [1.98, 2.02]), if the accuracy holds."
    )
    assert sentence(step(500, 0.9, parity=parity)) == (
        "On this machine a training step does not pay at h=500 (0.90x [0.89, 0.91])."
    )


def test_what_no_optimizer_moves_is_no_step(sentence, make_row):
    assert sentence() is None
    assert sentence({"workload": "linear", "optimizer": "adam"}) is None
    assert sentence(step(500, 2.0, phase="backward")) is None
    assert sentence(step(500, 1.0, method="dense")) is None


def test_the_report_begins_with_it(make_row):
    rows = [make_row("a", **_STEP), make_row("b", k=9)]
    first, second, *_ = summary(rows)
    assert first.startswith("2 cases")
    assert second.startswith("On this machine a training step pays at h=8192 (")
    assert "training step" not in " ".join(summary(rows[1:]))
