"""Equal dense work takes an equal time, or the report says that it is not to be believed."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import fields
from pathlib import Path

import pytest

from meprop_bench.measure.paired import Measurement
from meprop_bench.report.compare import compare
from meprop_bench.report.document import Document
from meprop_bench.report.formats import as_json
from meprop_bench.report.markdown import as_readme
from meprop_bench.report.reliability import (
    disagreement,
    judged_runs,
    mean_speedup,
    significant_rows,
    with_disagreements,
)
from meprop_bench.report.terminal import as_table
from meprop_bench.results.axes import DENSE_AXES
from meprop_bench.results.schema import Row
from meprop_bench.stats import holm, ratio_p_value
from meprop_bench.workloads.case import Case
from tests.report.texts import as_csv, as_markdown

METHODS_REPORT = Path(__file__).parents[2] / "reports" / "2026-11-21_amd-epyc-2c_methods"


def dense(make_row, case_id, seconds, **changes):
    """A row whose dense side takes so many seconds, and whose sparse one a millisecond."""
    return make_row(case_id, median=1e-3, speedup=seconds / 1e-3, **changes)


def flagged(rows):
    return [row.case_id for row in with_disagreements(rows) if row.baseline_disagreement is not None]


def test_equal_dense_work_that_takes_three_times_as_long_is_marked_on_both_sides(make_row):
    rows = [
        dense(make_row, "a", 7.3e-3, k=10),
        dense(make_row, "b", 21.5e-3, k=50),
        dense(make_row, "c", 7e-3, batch=9),
    ]
    assert flagged(rows) == ["a", "b"]
    assert with_disagreements(rows)[0].baseline_disagreement == pytest.approx(21.5 / 7.3)


@pytest.mark.parametrize(("factor", "marked"), [(1.2, False), (1.24, False), (1.26, True)])
def test_a_quarter_is_where_it_begins(make_row, factor, marked):
    rows = [dense(make_row, "a", 1e-2), dense(make_row, "b", factor * 1e-2)]
    assert bool(flagged(rows)) == marked


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "meprop"},
        {"k": 99},
        {"kernel": "masked", "kernel_requested": "masked"},
        {"gradient": "dense"},
        {"seed": 3},
        {"rate": 0.2},
    ],
)
def test_what_the_dense_side_does_not_depend_on_makes_no_other_work(make_row, changes):
    assert flagged([dense(make_row, "a", 1e-2), dense(make_row, "b", 2e-2, **changes)]) == ["a", "b"]


@pytest.mark.parametrize(
    "changes",
    [
        {"batch": 9},
        {"in_features": 9},
        {"phase": "step"},
        {"dtype": "float64"},
        {"threads": 1},
        {"allocator": "default"},
        {"caches": "cold"},
        {"launch": "graph"},
        {"device": "cuda:0"},
        {"optimizer": "sgd"},
        {"compile": "on"},
        {"baseline": "best"},
        {"baseline_chosen": "compiled"},
        {"environment_id": "another"},
    ],
)
def test_other_dense_work_may_take_another_time(make_row, changes):
    assert flagged([dense(make_row, "a", 1e-2), dense(make_row, "b", 2e-2, **changes)]) == []


def test_every_axis_of_a_case_is_in_a_row_and_is_the_dense_sides_or_not():
    names = {spec.name for spec in fields(Row)}
    assert {spec.name for spec in fields(Case)} <= names
    alone = {spec.name for spec in fields(Case)} - set(DENSE_AXES)
    assert alone == {
        *("method", "k", "kernel", "gradient", "rate", "share", "slowdown", "leave", "k_by_layer", "exchange", "seed"),
    }


def test_a_report_says_so_first_in_each_format_and_in_the_row(make_row):
    rows = [
        dense(make_row, "a", 7.3e-3, k=10),
        dense(make_row, "b", 21.5e-3, k=50),
        dense(make_row, "c", 7e-3, batch=9),
    ]
    found = Document("t", "meprop-bench speedup", "2026", rows)
    line = "2 cases' dense times disagree by up to 2.9x for the same work: do not believe their speed-ups"
    assert " ".join(as_table(found).split()).startswith(line)
    assert as_markdown(found).startswith(f"**{line}")
    assert as_readme(found, []).splitlines()[2].startswith(f"**{line}")
    for text in (as_table(found), as_markdown(found).replace("\\", "")):
        assert "21.5x [21.3, 21.7] do not believe (b)" in text
        assert "dense times of the same work differ by up to 2.95x here: do not believe this speed-up" in " ".join(
            text.split()
        )
    page = pytest.importorskip("jinja2") and __import__("meprop_bench.report.page", fromlist=["as_html"]).as_html(
        found, []
    )
    assert line.replace("'", "&#39;") in page
    assert page.index("dense times disagree") < page.index("meprop-bench speedup")
    record = json.loads(as_json(found))
    assert record["doubts"][0].startswith(line)
    assert [row["baseline_disagreement"] for row in record["rows"]] == [pytest.approx(2.945, rel=1e-3)] * 2 + [None]
    read = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [bool(one["baseline_disagreement"]) for one in read] == [True, True, False]


def test_no_speed_up_that_is_marked_is_a_headline(make_row):
    rows = [
        dense(make_row, "a", 7.3e-3, k=10),
        dense(make_row, "b", 21.5e-3, k=50),
        dense(make_row, "c", 7e-3, batch=9),
    ]
    text = " ".join(Document("t", "c", "s", rows).summary)
    assert "7.00x as fast as dense, without 2 whose dense times disagree" in text
    assert "21" not in text
    only = " ".join(Document("t", "c", "s", rows[:2]).summary)
    assert "no speed-up is to be believed, without 2 whose dense times disagree." in only


def test_the_committed_report_of_the_methods_does_not_print_26x():
    found = Document.load(METHODS_REPORT)
    assert found.doubts[0].startswith("2 cases' dense times disagree by up to 3.0x")
    assert "26" not in next(line for line in found.summary if line.startswith("The backward pass of gru"))
    assert [(row.workload, row.batch) for row in found.rows if row.baseline_disagreement] == [("gru", 1), ("gru", 1)]


def test_calm_rows_are_left_as_they_are_and_marks_do_not_add_up(make_row):
    calm = [dense(make_row, "a", 1e-2), dense(make_row, "b", 1.1e-2)]
    assert with_disagreements(calm) == calm
    assert disagreement(with_disagreements(calm)) == ""
    wild = with_disagreements([dense(make_row, "a", 1e-2), dense(make_row, "b", 2e-2)])
    assert with_disagreements(wild) == wild
    assert with_disagreements(wild[:1])[0].notes == ()


def test_a_comparison_leaves_out_what_is_not_to_be_believed(make_row):
    base = [dense(make_row, name, 1e-2, k=k) for name, k in (("a", 8), ("b", 9))]
    other = [dense(make_row, "c", 5e-3, batch=9)]
    head = [dense(make_row, "a", 3e-2, k=8), dense(make_row, "b", 1e-2, k=9)]
    environments = {"aabbccddeeff": {"cpu_model": "EPYC"}}
    changed = compare(
        Document("base", "c", "s", other, environments),
        Document("head", "c", "s", [dense(make_row, "c", 9e-3, batch=9)], environments),
    )
    assert changed.doubts[0].startswith("1 case's dense times disagree by up to 1.8x")  # the machine changed in between
    assert changed.to_json()["means"] == []
    found = compare(
        Document("base", "c", "s", [*base, *other], environments),
        Document("head", "c", "s", [*head, *other], environments),
    )
    assert found.doubts[0].startswith("2 cases' dense times disagree by up to 3.0x")
    assert "4 phases" not in " ".join(found.summary)
    assert "2 phases whose dense times disagree are in no mean." in found.summary
    assert [mean["cases"] for mean in found.to_json()["means"]] == [1]
    assert "do not believe" in as_table(found)


def test_no_picture_shows_what_is_not_to_be_believed(make_row):
    pytest.importorskip("matplotlib")
    from meprop_bench.report.formats import draw

    wild = [dense(make_row, str(k), seconds, k=k) for k, seconds in ((8, 1e-2), (16, 3e-2), (32, 1e-2))]
    assert draw(Document("t", "c", "s", wild))[0] == []
    calm = [dense(make_row, str(k), 1e-2, k=k) for k in (8, 16, 32)]
    assert draw(Document("t", "c", "s", calm))[0] != []


def test_disturbed_pairs_are_left_out_here_too(make_row):
    marks = [False, False, True, False] * 5
    row = make_row("a", disturbed=marks)
    runs = judged_runs(row)
    assert [len(run) for run in runs] == [3] * 5
    whole = Measurement.from_values(
        "backward",
        row.measurement.baseline_values_s,
        row.measurement.values_s,
        row.measurement.run_lengths,
        1,
        marks,
    )
    assert runs == whole.judged_runs


def test_without_values_or_with_one_process_there_is_nothing_to_judge_by(make_row, failed_row):
    bare = make_row("a", values_s=None, baseline_values_s=None, run_lengths=None)
    assert judged_runs(bare) is None
    assert judged_runs(failed_row("b", error="out of memory")) is None
    assert significant_rows([bare, make_row("c", processes=1)]) == {0}  # its interval is all there is
    assert significant_rows([]) == frozenset()


def test_the_rows_that_remain_are_those_of_the_definition(noisy_row):
    rows = [noisy_row(str(seed), seed=seed, speedup=1 + seed / 400) for seed in range(20)]
    adjusted = holm([ratio_p_value(judged_runs(row)) for row in rows])
    assert significant_rows(rows) == {place for place, p in enumerate(adjusted) if p <= 0.05}
    uncorrected = {place for place, row in enumerate(rows) if row.significant}
    assert significant_rows(rows) < uncorrected


def test_an_interval_that_holds_1_is_never_significant(make_row):
    assert significant_rows([make_row("a", speedup=1.01, half=0.05)]) == frozenset()


def test_the_mean_of_several_speed_ups_is_geometric(make_row, noisy_row):
    mean = mean_speedup([make_row("a", speedup=2.0), make_row("b", speedup=8.0)])
    assert mean.estimate == pytest.approx(4.0)
    noisy = mean_speedup([noisy_row(str(seed), seed=seed, speedup=4.0) for seed in range(3)])
    assert noisy.low < noisy.estimate < noisy.high
    others = mean_speedup([noisy_row("a", seed=1), noisy_row("b", seed=2, processes=4)])
    assert others.bounded
    assert mean_speedup([make_row("a", values_s=None, baseline_values_s=None, run_lengths=None)]) is None
    assert mean_speedup([]) is None
