from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.report.compare import compare
from meprop_bench.report.document import Document
from meprop_bench.report.page import as_html
from meprop_bench.report.terminal import as_table
from meprop_bench.results.axes import AXES
from meprop_bench.stats import independent_estimate
from tests.report.texts import as_csv, as_markdown


def document(rows, title="base", environments=None):
    return Document(title, f"meprop-bench speedup {title}", "2026", rows, environments or {})


@pytest.fixture
def measured(make_row):
    """A function that makes a result of three cases, the first of them `factor` times as fast as usual."""

    def made(title, factor=1.0, seed=0, **changes):
        source = random.Random(seed)

        def times(seconds):
            levels = [math.exp(source.gauss(0, 0.004)) for _ in range(5)]
            return [seconds * level * source.uniform(0.99, 1.01) for level in levels for _ in range(4)]

        rows = [
            make_row(f"case-{place}", k=8 + place, values_s=times(1e-3 / (factor if place == 0 else 1)),
                     baseline_values_s=times(5e-3), **changes)
            for place in range(3)
        ]  # fmt: skip
        return document(rows, title, {"aabbccddeeff": {"cpu_model": "EPYC"}})

    return made


def test_a_faster_case_is_found_and_identical_ones_are_not(measured):
    found = compare(measured("before", seed=1), measured("after", factor=1.2, seed=10))
    assert [found.verdict(place, "time") for place in range(3)] == ["better", "not significant", "not significant"]
    assert found.changes[0].ratio("time").estimate == pytest.approx(1.2, rel=0.02)
    assert found.changes[0].ratio("speedup").estimate == pytest.approx(1.2, rel=0.02)
    turned = compare(measured("after", factor=1.2, seed=10), measured("before", seed=1))
    assert turned.verdict(0, "time") == "worse"
    assert turned.changes[0].ratio("time").estimate == pytest.approx(1 / found.changes[0].ratio("time").estimate)


def test_the_judgement_is_holm_s_over_all_ratios(measured):
    found = compare(measured("before", seed=1), measured("after", seed=30))
    smallest = min(independent_estimate([c.samples(f)]).p_value() for c in found.changes for f in ("time", "speedup"))
    assert min(found.adjusted.values()) == pytest.approx(min(1.0, 6 * smallest))


def test_the_mean_is_geometric(measured):
    found = compare(measured("before", seed=1), measured("after", factor=1.2, seed=10))
    singles = [change.ratio("time").estimate for change in found.changes]
    assert found.mean(found.changes, "time").estimate == pytest.approx(math.prod(singles) ** (1 / 3))
    assert "linear backward, 3 cases: time 1.0" in found.summary[-1]


def test_every_format_says_the_same(measured):
    found = compare(measured("before", seed=1), measured("after", factor=1.2, seed=10))
    table, text = as_table(found), as_markdown(found)
    record, lines = json.loads(json.dumps(found.to_json(), allow_nan=False)), as_csv(found).splitlines()
    assert record["rows"][0].keys() >= {axis.stored for axis in AXES.values()}
    cell = found.sections[0].groups[0][0][-3].text
    assert cell in table
    assert "not significant" in table
    assert "speedup before" in text
    assert "speedup after" in text
    assert record["rows"][0]["time"]["ratio"] == pytest.approx(found.changes[0].ratio("time").estimate)
    assert record["rows"][0]["time"]["verdict"] == "better"
    assert record["means"][0]["cases"] == 3
    assert len(lines) == 4
    assert lines[0].startswith("case_id,phase,workload")


def test_other_environments_are_refused_unless_asked_for(measured):
    base = measured("before", seed=1)
    head = measured("after", seed=2, environment_id="bbbb")
    head = replace(head, environments={"bbbb": {"cpu_model": "Xeon", "load_average": [1.0]}})
    with pytest.raises(UserError, match="cpu_model EPYC → Xeon") as raised:
        compare(base, head)
    assert raised.value.exit_code == ExitCode.NOT_COMPARABLE
    assert "load_average" not in str(raised.value)
    found = compare(base, head, across_environments=True)
    assert any("cpu_model EPYC → Xeon" in line for line in found.summary)
    assert "environment" in found.sections[1].columns


def test_a_variable_that_was_set_is_named(measured):
    base, head = measured("before", seed=1), measured("after", seed=2, environment_id="bbbb")
    variables = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    base = replace(base, environments={"aabbccddeeff": {"variables": variables}})
    head = replace(head, environments={"bbbb": {"variables": {**variables, "MEPROP_BENCH_GRADIENTS": "fresh"}}})
    with pytest.raises(UserError, match=r"\(MEPROP_BENCH_GRADIENTS none → fresh\)"):
        compare(base, head)
    first = compare(base, head, across_environments=True).sections[0]
    assert [[cell.text for cell in line] for line in first.groups[0]] == [["MEPROP_BENCH_GRADIENTS", "none", "fresh"]]


def test_nothing_in_common_or_nothing_at_all(measured, make_row):
    base = measured("before")
    for head, code in (
        (document([make_row("other")]), ExitCode.NOT_COMPARABLE),
        (document([]), ExitCode.NOTHING_MEASURED),
    ):
        with pytest.raises(UserError) as raised:
            compare(base, head)
        assert raised.value.exit_code == code


def test_what_failed_on_one_side_is_told_and_the_rest_compared(measured, failed_row):
    base, head = measured("before", seed=1), measured("after", seed=2)
    broken = [failed_row("case-0", error="killed by signal 9", phase=None), *head.rows[1:]]
    for found, which in (
        (compare(base, document(broken, "after")), "head"),
        (compare(document(broken, "before"), head), "base"),
    ):
        reasons = [change.reason for change in found.changes]
        assert reasons.count(f"{which} has no figures: killed by signal 9") == 1
        assert reasons.count("") == 2
        assert "killed by signal 9" in as_table(found)
        assert (
            found.to_json()["rows"][reasons.index(f"{which} has no figures: killed by signal 9")]["time"]["ratio"]
            is None
        )


def test_other_dense_sides_of_the_best_baseline_are_not_compared(measured):
    base, head = (
        measured(title, seed=seed, baseline="best", baseline_chosen=chosen)
        for title, seed, chosen in (("before", 1, "eager"), ("after", 2, "compiled"))
    )
    found = compare(base, head)
    assert [change.reason for change in found.changes] == ["the dense sides differ: eager → compiled"] * 3
    assert found.changes[0].ratio("speedup") is None
    assert not compare(base, base).changes[0].reason


def test_what_only_one_has_is_counted(measured, make_row):
    base = measured("before", seed=1)
    found = compare(base, document([*measured("after", seed=2).rows, make_row("new"), make_row("newer")], "after"))
    assert found.apart == (0, 2)
    assert "Not compared: 2 phases in head alone." in found.summary


def test_one_process_has_no_interval(measured):
    def joined(found):
        return replace(found, runs=(tuple(pair for run in found.runs for pair in run),))

    def single(found):
        return document([
            replace(row, measurement=joined(row.measurement), speedup_low=None, speedup_high=None)
            for row in found.rows
        ])  # fmt: skip

    found = compare(single(measured("before", seed=1)), single(measured("after", seed=2)))
    assert found.verdict(0, "time") == "no interval"
    assert "no interval" in as_table(found)
    assert found.to_json()["rows"][0]["time"]["low"] is None


def test_another_kernel_and_allocator_have_columns(measured):
    base, head = measured("before", seed=1), measured("after", seed=2, kernel="native")
    rows = [replace(row, allocator="default" if place else "kept") for place, row in enumerate(head.rows)]
    found = compare(base, document(rows, "after"))
    assert {"kernel", "allocator"} <= set(found.sections[0].columns)
    assert "gather → native" in as_table(found)


def wide(measured, title, seed, factor, make_row, count=20):
    """A result of many cases, of which the one in the middle changes most."""
    source = random.Random(seed)
    rows = []
    for place in range(count):
        seconds = 1e-3 / (factor if place == count // 2 else 1)
        values = [seconds * source.uniform(0.99, 1.01) for _ in range(20)]
        rows.append(make_row(f"case-{place}", k=8 + place, values_s=values,
                             baseline_values_s=[5e-3 * source.uniform(0.99, 1.01) for _ in range(20)]))  # fmt: skip
    return document(rows, title, {"aabbccddeeff": {"cpu_model": "EPYC"}})


def test_the_biggest_changes_come_first(measured, make_row):
    found = compare(wide(measured, "before", 1, 1.0, make_row), wide(measured, "after", 2, 0.5, make_row))
    biggest, table = found.sections
    assert biggest.title == "The 12 biggest changes of 20"
    assert "k=18" in biggest.groups[0][0][0].text
    assert table.groups[0][0][table.columns.index("k")].text == "18"
    assert found.to_json()["rows"][0]["k"] == 8  # for programs the order stays


def test_environments_that_differ_stand_before_all_else(measured):
    base = measured("before", seed=1)
    base = replace(base, environments={"aabbccddeeff": {"cpu_model": "EPYC", "git_revision": "one", "torch": "2.13"}})
    head = replace(
        measured("after", seed=2, environment_id="bbbb"),
        environments={"bbbb": {"cpu_model": "Xeon", "git_revision": "two", "torch": "2.13", "load_average": [1.0]}},
    )
    first = compare(base, head, across_environments=True).sections[0]
    assert first.title == "The environments differ"
    assert [[cell.text for cell in line] for line in first.groups[0]] == [
        ["git_revision", "one", "two"],
        ["cpu_model", "EPYC", "Xeon"],
    ]


def test_what_only_one_has_is_listed_and_bounded(measured, make_row):
    more = [make_row(f"new-{place}", k=100 + place) for place in range(60)]
    head = measured("after", seed=2)
    found = compare(measured("before", seed=1), document([*head.rows, *more], "after", head.environments))
    last = found.sections[-1]
    assert last.title == "In head alone"
    assert len(last.groups[0]) == 50
    assert last.footnotes == ("10 more are not shown.",)
    assert found.to_json()["in_one_alone"] == {"base": 0, "head": 60}


def test_it_is_a_page_as_well(measured):
    pytest.importorskip("jinja2")
    evil = "</script><img src=x onerror=alert(1)>" + "x" * 10_000
    base = measured("before", seed=1)
    head = replace(measured("after", seed=2, environment_id="bbbb"), environments={"bbbb": {"cpu_model": evil}})
    page = as_html(compare(base, head, across_environments=True), [])
    assert "<img src=x" not in page
    assert "The environments differ" in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert "x" * 300 not in page.partition("How to read this")[0]  # whole in the environment alone, at the end
