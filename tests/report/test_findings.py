"""The paragraph that says which training steps pay, what layers gain and what the accuracy does, from the intervals."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from meprop_bench.report.document import Document
from meprop_bench.report.findings import findings
from meprop_bench.report.formats import as_json
from meprop_bench.report.fragment import as_fragment
from meprop_bench.report.markdown import as_readme
from meprop_bench.report.page import as_html
from meprop_bench.report.sections import distinct_rows
from meprop_bench.report.terminal import as_table
from tests.report.texts import as_csv, as_markdown

_STEP = {"workload": "mlp", "phase": "step", "optimizer": "adagrad", "data": "mnist", "in_features": 784, "layers": 2}
_PASS = "and accuracy holds within 0.5 points (+0.04 [-0.26, +0.34])"
_ALL = "All {} cases passed the correctness check."


@pytest.fixture
def parities(rows):
    return {row.parity.verdict: row.parity for row in rows if row.parity} | {None: None}


@pytest.fixture
def found(make_row, parities):
    def find(*steps):
        """Return the findings of steps; the accuracy of each holds unless its `parity` is another verdict, or None."""
        rows = [
            make_row(str(place), **{**_STEP, "batch": 50, **step, "parity": parities[step.get("parity", "pass")]})
            for place, step in enumerate(steps)
        ]
        return findings(rows, distinct_rows(rows))

    return find


def step(hidden, speedup, **changes):
    return {"out_features": hidden, "speedup": speedup, **changes}


@pytest.mark.parametrize(
    ("steps", "kinds", "texts"),
    [
        (
            [step(500, 0.95), step(2048, 2.34)],
            ["pays", "does not pay"],
            [
                f"On this machine at h=2048 unified k=8 pays: a training step is 2.34x [2.32, 2.36] as fast as dense,"
                f" {_PASS}.",
                "At h=500 unified k=8 does not pay: a training step is 0.95x [0.94, 0.96] as fast as dense; accuracy"
                " holds within 0.5 points (+0.04 [-0.26, +0.34]).",
            ],
        ),
        (
            [step(500, 1.0)],
            ["undecided"],
            [
                "On this machine at h=500 it is undecided whether unified k=8 pays: a training step is 1.00x"
                " [0.99, 1.01]"
                " as fast as dense, not told apart from 1.00x; accuracy holds within 0.5 points (+0.04 [-0.26, +0.34])."
            ],
        ),
        (
            [step(500, 2.0, parity=None)],
            ["pays if the accuracy holds"],
            [
                "On this machine at h=500 unified k=8 pays if the accuracy holds: a training step is 2.00x [1.98, 2.02]"
                " as fast as dense; its accuracy was not compared."
            ],
        ),
        (
            [step(500, 2.0, parity="fail")],
            ["loses accuracy"],
            [
                "On this machine at h=500 unified k=8 does not pay: a training step is 2.00x [1.98, 2.02] as fast as"
                " dense, but accuracy is lost: -2.40 [-3.20, -1.60] points, where 0.5 may be."
            ],
        ),
        (
            [step(500, 2.0, parity=None, baseline_disagreement=2.0)],
            ["undecided"],
            [
                "On this machine at h=500 it is undecided whether unified k=8 pays: a training step is 2.00x"
                " [1.98, 2.02]"
                " as fast as dense, which is not to be believed: its dense time disagrees with another's."
            ],
        ),
        (
            [step(500, 2.0, parity=None, speedup_low=0.1, speedup_high=40.0)],
            ["undecided"],
            [
                "On this machine at h=500 it is undecided whether unified k=8 pays: how fast a training step is"
                " cannot be"
                " told."
            ],
        ),
        (
            [step(500, 2.0, parity=None, processes=1)],
            ["undecided"],
            [
                "On this machine at h=500 it is undecided whether unified k=8 pays: a training step is 2.00x as fast as"
                " dense, from a single process, without an interval."
            ],
        ),
        (
            [step(500, 2.0, k=8), step(500, 4.0, k=4, parity="fail"), step(500, 0.5, k=90)],
            ["pays"],
            [
                f"On this machine at h=500 unified k=8 pays: a training step is 2.00x [1.98, 2.02] as fast as"
                f" dense, {_PASS}"
                " (of 3 cases there, a step pays in 1, is faster but loses accuracy in 1, does not pay in 1)."
            ],
        ),
        (
            [step(500, 2.0, workload="seq2seq"), step(500, 0.9, workload="meact", method="meact", parity=None)],
            ["pays", "does not pay"],
            [
                "On this machine for seq2seq unified k=8 pays: a training step is 2.00x [1.98, 2.02] as fast as dense,"
                f" {_PASS}.",
                "For meact meact does not pay: a training step is 0.90x [0.89, 0.91] as fast as dense.",
            ],
        ),
        (
            [step(500, 2.0, batch=10), step(500, 0.9, parity=None), step(900, 3.0)],
            ["pays", "pays", "does not pay"],
            [
                f"On this machine at h=500 B=10 unified k=8 pays: a training step is 2.00x [1.98, 2.02] as fast"
                f" as dense, {_PASS}.",
                f"At h=900 B=50 unified k=8 pays: a training step is 3.00x [2.97, 3.03] as fast as dense, {_PASS}.",
                "At h=500 B=50 unified k=8 does not pay: a training step is 0.90x [0.89, 0.91] as fast as dense.",
            ],
        ),
    ],
)
def test_places_are_told_one_by_one_the_best_first(found, steps, kinds, texts):
    said = found(*steps)
    assert [one.text for one in said[: len(texts)]] == texts
    assert [one.kind for one in said[: len(kinds)]] == kinds
    assert len(said) == len(texts) + 1


def test_what_is_open_says_how_many_seeds_would_tell(found):
    (first, _) = found(step(500, 2.0, parity="inconclusive"))
    assert first.text.endswith(
        "; whether accuracy holds within 0.5 points is undecided (-0.30 [-0.80, +0.20]): about 29 more seeds"
        " would tell."
    )


def test_the_backward_pass_is_said_with_the_step(make_row, parities):
    rows = [
        make_row("a", **{**_STEP, "phase": phase, "speedup": speedup})
        for phase, speedup in (("backward", 12.0), ("step", 2.0))
    ]
    assert (
        "2.00x [1.98, 2.02] as fast as dense, the backward pass 12.0x [11.9, 12.1];"
        in findings(rows, distinct_rows(rows))[0].text
    )


def test_many_places_are_counted(found):
    first, most, accuracy, last = found(
        *(step(500, 2.0, batch=batch) for batch in (1, 2, 3)),
        step(500, 0.5, batch=4),
        step(500, 1.0, batch=5, parity="inconclusive"),
    )
    assert (first.kind, most.kind, accuracy.kind) == ("mixed", "remark", "undecided")
    assert first.text == (
        "On this machine a training step pays in 3, is undecided in 1, does not pay in 1 of 5 cases: 0.50x to"
        " 2.00x as fast"
        " as dense, geometric mean 1.32x [1.31, 1.33]."
    )
    assert most.text.startswith("The fastest is mlp mnist h=500 ")
    assert accuracy.text == "Accuracy holds in 4, is undecided in 1 of 5 cases; about 29 more seeds would tell."
    assert last.text == _ALL.format(5)


def test_layers_are_told_workload_by_workload(rows):
    said = findings(rows, distinct_rows(rows))
    texts = [one.text for one in said]
    assert texts[0] == "1 of 24 cases failed the correctness check: no speed-up is shown."
    assert texts[1].startswith(
        "On this machine at h=500 unified k=20 pays: a training step is 2.90x [2.87, 2.93] as fast"
    )
    assert texts[2].startswith(
        "The backward pass of linear is faster in 12, slower in 1, undecided in 2 of 15 cases: 0.81x to 150x as fast as"
        " dense, geometric mean 18.5x; the most with 8192→8192 B=1024 unified k=8 rows gradient."
    )
    assert [one.kind for one in said] == ["failed", "pays", "mixed", "failed", "remark"]
    assert texts[3:] == ["1 of 24 cases could not be run.", "22 of 24 cases passed the correctness check."]


def test_one_layer_is_told_by_itself(make_row):
    (first, last) = findings(rows := [make_row("a")], distinct_rows(rows))
    assert (
        first.text
        == "On this machine with unified k=8 the backward pass of linear is 5.00x [4.95, 5.05] as fast as dense."
    )
    assert (first.kind, first.tone, first.cases) == ("faster", "good", ("a",))
    assert last.text == "The case passed the correctness check."


def test_what_is_not_believed_is_in_no_range(make_row):
    rows = [
        make_row("a", speedup=7.0),
        make_row("b", speedup=21.0, baseline_disagreement=3.0),
        make_row("c", speedup=8.0),
    ]
    text = findings(rows, distinct_rows(rows))[0].text
    assert "21" not in text
    assert (
        "7.00x to 8.00x as fast as dense, geometric mean 7.48x [7.41, 7.56], without 1 whose dense times disagree"
        in text
    )
    only = findings(rows[1:2] * 2, distinct_rows(rows))[0].text
    assert "no speed-up is to be believed, without 2 whose dense times disagree" in only


def test_trainings_alone_are_told(make_row, failed_row, parities):
    row = replace(failed_row("a", **{**_STEP, "phase": None}), parity=parities["pass"])
    said = findings([row], frozenset())
    assert [one.text for one in said] == [
        "Digits, unified k=8: accuracy holds within 0.5 points (+0.04 [-0.26, +0.34]), over 5 seeds."
    ]


def test_nothing_measured_is_said():
    assert [one.text for one in findings([], frozenset())] == ["Nothing is measured yet."]


def test_names_without_end_are_shortened_in_every_format(make_row):
    pytest.importorskip("jinja2", reason="needs the report extra")
    rows = [
        make_row(f"{phase}-{k}", k=k, phase=phase, speedup=40 / k, method="m" * 10_000, kernel="n" * 10_000,
                 workload="w" * 10_000, allocator="a" * 10_000)
        for k in (8, 32)
        for phase in ("backward", "step")
    ]  # fmt: skip
    document = Document("t", "c", "s", rows)
    for text in (
        as_table(document), as_markdown(document), as_readme(document, []), as_html(document, ()),
        as_fragment(document), json.dumps([found.to_json() for found in document.findings]),
    ):  # fmt: skip
        assert re.search(r"([manw])\1{100}", text)
        assert not re.search(r"([manw])\1{700}", text)
    assert rows[0].method in as_csv(document)  # data stay data


def test_every_format_begins_with_the_same_findings(make_row, parities):
    states = [{"cpu_usable_cores": 2, "others_cores": 1.5, "stolen_cores": 0, "load_average": [3, 3, 3]}]
    rows = [make_row("a", **_STEP, parity=parities["pass"])]
    document = Document("t", "meprop-bench speedup", "2026", rows, states=states)
    doubt, first, *_ = document.findings
    assert doubt.kind == "doubt"
    assert doubt.text.startswith("This machine was busy")
    words = f"{doubt.text} {first.text}"
    assert " ".join(as_table(document).split()).startswith(words)
    plain = as_markdown(document).replace("\\", "").replace("*", "").replace("\n\n", " ")
    assert plain.startswith(words)
    assert words in as_readme(document, []).replace("\\", "").replace("*", "").replace("\n\n", " ")
    record = json.loads(as_json(document))
    assert [one["text"] for one in record["findings"]][:2] == [doubt.text, first.text]
    assert record["doubts"] == [doubt.text]
