import json
import math
import re
from importlib import resources
from xml.etree import ElementTree as Xml

import numpy as np
import pytest

from meprop_bench.errors import ExitCode
from meprop_bench.gate.document import OutcomeDocument, change, in_words, margin
from meprop_bench.gate.judgement import ROW, VERDICTS, Judgement, Judgements, Outcome
from meprop_bench.gate.machine_readable import SCHEMA, as_junit, json_pieces
from meprop_bench.gate.markdown import LIMIT, as_comment, write_job_summary
from meprop_bench.report.terminal import as_table
from meprop_bench.stats import Interval


def judgement(verdict="pass", estimate=1.0, **changes):
    base = {"case": "linear k=8", "figure": "backward", "quantity": "time", "unit": "s", "base": 1e-3, "head": 1.03e-3}
    base |= {"change": Interval(estimate, estimate - 0.01, estimate + 0.01), "margin": 0.01, "least": 0.0, "pairs": 8}
    return Judgement(**{**base, "report_only": False, "verdict": verdict, **changes})


def as_json(outcome):
    return "".join(json_pieces(outcome))


def schema():
    return json.loads((resources.files("meprop_bench.gate") / "gate.schema.json").read_text(encoding="utf-8"))


def columns(judgements):
    kinds = list(dict.fromkeys((one.figure, one.quantity, one.unit) for one in judgements))
    reasons = list(dict.fromkeys(one.reason for one in judgements))
    rows = np.zeros(len(judgements), ROW)
    for row, one in zip(rows, judgements, strict=True):
        for name in ("base", "head", "margin", "least", "caught", "pairs", "report_only"):
            row[name] = math.nan if getattr(one, name) is None else getattr(one, name)
        for name in ("estimate", "low", "high"):
            row[name] = math.nan if one.change is None else getattr(one.change, name)
        row["kind"], row["reason"] = kinds.index((one.figure, one.quantity, one.unit)), reasons.index(one.reason)
        row["verdict"] = VERDICTS.index(one.verdict)
    return Judgements([one.case for one in judgements], rows, kinds, reasons)


def outcome(*judgements, notes=(), **more):
    command = "meprop-bench gate --base main"
    return Outcome("main (1a2b)", "the work tree", columns(judgements), notes, command, None, 12.0, **more)


MIXED = outcome(
    judgement(),
    judgement("inconclusive", 1.01),
    judgement("fail", 1.03, case="a|b <c>\x1b & \ud800"),
    judgement("fail", 1.3, case="worst"),
    judgement("fail", 2.0, report_only=True, case="shown"),
    judgement("fail", change=None, base=None, head=None, reason="its gradients are wrong", case="broken"),
    judgement(quantity="accuracy", unit="points", change=Interval(0.2, -0.1, 0.5), base=97.0, head=96.8, margin=0.5),
    judgement(quantity="count", unit="1", change=Interval(1.0, 1.0, 1.0), base=3.0, head=3.0),
    judgement("inconclusive", change=Interval(1.0, math.nan, math.nan), reason="one value"),
    notes=("a note",),
)


def test_the_worst_comes_first_and_what_is_only_reported_last():
    found = [MIXED.judgements[place].case for place in MIXED.judgements.worst_first]
    assert found[:3] == ["worst", "a|b <c>\x1b & \ud800", "broken"]
    assert found[-1] == "shown"


WORST = "most of all linear k=8/backward: 3.0% slower [2.0%, 4.0%]"
ONE = "1 of 1 figures got worse"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"verdict": "pass"}, "Passed: none of 1 figures got worse by as much as its margin."),
        ({"verdict": "fail", "report_only": True}, "Passed: no figure decides."),
        ({"verdict": "fail", "estimate": 1.03}, f"Failed: {ONE}, {WORST}."),
        (
            {"verdict": "fail", "head": None, "change": None, "reason": "it died"},
            "Failed: 1 of 1 figures fails in the head alone, most of all linear k=8/backward: it died.",
        ),
        (
            {"verdict": "fail", "base": 0.0, "change": None, "reason": "up from 0"},
            f"Failed: {ONE}, most of all linear k=8/backward: up from 0.",
        ),
        ({"verdict": "inconclusive", "change": None}, "Inconclusive: 1 of 1 figures is not decided, none failed."),
    ],
)
def test_the_result_says_what_is_so(changes, sentence):
    assert OutcomeDocument(outcome(judgement(**changes))).summary[0] == sentence
    verdict = sentence.removesuffix(".").partition(", most of all")[0]
    first = as_comment(outcome(judgement(**changes))).splitlines()[2]
    assert re.fullmatch(rf"### (\W )?{re.escape(verdict)}", first), first


def test_a_failure_and_a_slowdown_are_both_told():
    both = outcome(judgement("fail", 1.5), judgement("fail", case="b", head=None, change=None, reason="it died"))
    said = "Failed: 1 of 2 figures got worse, 1 fails in the head alone"
    assert OutcomeDocument(both).summary[0] == f"{said}, most of all b/backward: it died."
    assert OutcomeDocument(outcome()).summary[0].startswith("Nothing was judged: ")


def test_what_got_better_is_told_as_well():
    found = outcome(
        judgement("fail", 1.5),
        judgement(case="b", change=Interval(0.7, 0.65, 0.75)),
        judgement(case="c", change=Interval(0.8, 0.75, 0.85)),
        judgement(case="d", change=Interval(0.99, 0.97, 1.01)),
        judgement(case="e", quantity="accuracy", unit="points", change=Interval(-2.0, -2.5, -1.5), margin=0.5),
        judgement(case="f", change=Interval(0.1, 0.1, 0.1), report_only=True),
        judgement("inconclusive", case="g", change=Interval(0.5, math.nan, math.nan)),
        judgement("inconclusive", case="h", change=None),
    )
    line = "3 got better by more than their margin, most of all b/backward: 30% less [25%, 35%]."
    assert OutcomeDocument(found).summary[1] == line
    assert line.replace("b/backward", "**b/backward**") in as_comment(found).replace("\\", "")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"estimate": 1.03}, "3.0% slower [2.0%, 4.0%]"),
        ({"change": Interval(1.3, 1.25, 1.35)}, "30% slower [25%, 35%]"),
        ({"change": Interval(1.02, 0.98, 1.06)}, "2.0% slower [-2.0%, 6.0%]"),
        ({"change": Interval(4.0, 3.8, 4.2)}, "4.00x as long [3.80x, 4.20x]"),
        ({"change": Interval(0.8, 0.75, 0.86)}, "20% less [14%, 25%]"),
        ({"change": Interval(1.2, math.nan, math.nan)}, "20% slower"),
        ({"quantity": "memory", "unit": "B", "change": Interval(1.5, 1.5, 1.5)}, "50% larger"),
        ({"quantity": "count", "unit": "1", "change": Interval(1.5, 1.5, 1.5)}, "50% more"),
        ({"quantity": "accuracy", "unit": "points", "change": Interval(1.2, 1, 1.5)}, "1.20 points lost [1.00, 1.50]"),
        ({"quantity": "accuracy", "unit": "points", "change": Interval(-1, -2, 1)}, "1.00 points gained [-1.00, 2.00]"),
        ({"change": None, "reason": "its gradients\nare wrong"}, "its gradients\\nare wrong"),
        ({"change": Interval(1.0, 0.004, 216.0)}, "cannot tell"),
    ],
)  # fmt: skip
def test_a_change_in_words(changes, words):
    assert in_words(judgement("fail", **changes)) == words


def test_each_figure_shows_ratio_interval_and_margin():
    assert change(judgement(estimate=1.03)) == "1.030 [1.020, 1.040]"
    assert change(MIXED.judgements[6]) == "+0.20 [-0.10, +0.50] points"
    assert change(MIXED.judgements[7]) == "1.000"
    assert change(MIXED.judgements[8]) == "1.000, no interval"
    assert margin(judgement(least=1e-6)) == "1%, 1.00 µs"
    assert margin(MIXED.judgements[6]) == "0.5 points"


def test_the_table_says_all_and_has_colour_on_a_terminal_alone():
    clean = outcome(judgement("fail", 1.03))
    text = " ".join(as_table(OutcomeDocument(clean)).split())
    for word in ("FAIL", "1.030 [1.020, 1.040]", "1%", "±0.97%", "1 failed, in 12 s.", "Failed: 1 of 1 figures"):
        assert word in text
    assert "\x1b" not in text
    assert "\x1b[" in as_table(OutcomeDocument(clean), terminal=True, width=200)


@pytest.mark.parametrize("count", [0, 3, 3000])
def test_a_comment_fits_and_counts_what_it_leaves_out(count):
    many = outcome(*(judgement(case=f"case {i} " + "x" * 100) for i in range(count)), judgement("fail", case="worst"))
    text = as_comment(many)
    assert len(text) <= LIMIT
    assert "worst" in text
    assert ("more are not shown" in text) == ("`--output gate.json` writes has all of them" in text) == (count == 3000)
    assert f"1 failed, {count} passed" in text or count == 0


def test_a_comment_fits_whatever_the_notes_are():
    text = as_comment(outcome(judgement(), notes=tuple("n" * 10_000 for _ in range(500))))
    assert len(text) <= LIMIT
    assert "480 more notes" in text


def test_the_summary_of_a_job_is_appended_to(tmp_path):
    path = tmp_path / "summary.md"
    path.write_text("before\n")
    assert write_job_summary(MIXED, {"GITHUB_STEP_SUMMARY": str(path)}) == path
    assert path.read_text(encoding="utf-8", errors="replace").startswith("before\n")
    assert write_job_summary(MIXED, {}) is None


def test_json_names_the_cases_that_the_base_cannot_do():
    found = outcome(judgement(), incomparable=("linear k=8",))
    assert json.loads(as_json(found))["incomparable"] == ["linear k=8"]
    assert found.exit_code == ExitCode.NOT_COMPARABLE


def test_json_follows_its_schema():
    found = json.loads(as_json(MIXED))
    assert found["schema"] == SCHEMA == schema()["properties"]["schema"]["const"]
    assert set(schema()["required"]) < set(found) == set(schema()["properties"])
    wanted = schema()["$defs"]["judgement"]["required"]
    assert all(list(one) == wanted for one in found["judgements"])
    assert found["counts"] == {"pass": 3, "fail": 3, "inconclusive": 2, "report_only": 1}
    assert found["judgements"][8]["change_low"] is None


def test_many_are_all_in_the_json_and_the_worst_of_them_in_the_rest(monkeypatch):
    monkeypatch.setattr("meprop_bench.gate.machine_readable.MOST", 10)
    monkeypatch.setattr("meprop_bench.gate.machine_readable._AT_ONCE", 7)
    many = [
        judgement("fail" if i % 40 == 39 else "pass", case=f"case {i} é" if i > 90 else f"case {i}") for i in range(100)
    ]
    found = outcome(*many, judgement("inconclusive", 1.01), judgement("fail", report_only=True))
    assert [one["case"] for one in json.loads(as_json(found))["judgements"]] == [one.case for one in found.judgements]
    (suite,) = Xml.fromstring(as_junit(found).encode())
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("10", "2", "1")
    assert len(suite.findall("testcase")) == 10
    assert suite.find("system-out").text == "92 more are not in this file: 91 passed, 1 only reported"
    assert "99 more are not shown: 1 inconclusive" not in as_table(OutcomeDocument(found, most=3))
    assert "99 more are not shown: 98 passed, 1 only reported." in as_table(OutcomeDocument(found, most=3))


def test_junit_is_xml_whatever_the_names_are():
    root = Xml.fromstring(as_junit(MIXED).encode())
    (suite,) = root
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped"), suite.get("errors")) == (
        "9",
        "3",
        "2",
        "0",
    )
    assert len(suite.findall("testcase")) == 9
    assert len(suite.findall("testcase/failure")) == 3
    assert len(suite.findall("testcase/skipped")) == 2


@pytest.mark.parametrize(
    ("judgements", "code"),
    [
        ([judgement()], ExitCode.OK),
        ([judgement(), judgement("inconclusive")], ExitCode.INCONCLUSIVE),
        ([judgement("fail"), judgement("inconclusive")], ExitCode.REGRESSION),
        ([judgement("fail", report_only=True)], ExitCode.OK),
        ([], ExitCode.NOTHING_MEASURED),
    ],
)
def test_exit_codes(judgements, code):
    assert outcome(*judgements).exit_code == code


BUSY = "This machine was busy (load 3.1 on 2 cores): the times and ratios below may be off by a factor of 2 or more."


def test_a_busy_machine_comes_before_everything_else():
    found = outcome(judgement("pass"), doubts=(BUSY,))
    assert " ".join(as_table(OutcomeDocument(found)).split()).startswith(BUSY)
    lines = as_comment(found).replace("\\", "").splitlines()[2:]  # behind the hidden marker
    assert lines[0].endswith(", but the machine was busy")
    assert lines[2] == f"**{BUSY}**"
    assert json.loads(as_json(found))["doubts"] == [BUSY]
    assert BUSY in Xml.fromstring(as_junit(found).encode()).find("testsuite/system-out").text


def test_what_would_have_been_caught_is_the_worst_of_the_times_that_decide():
    found = outcome(
        judgement(caught=0.071),
        judgement(caught=0.092),
        judgement(quantity="ratio", caught=0.3),
        judgement(report_only=True, caught=0.5),
        judgement(),
    )
    line = "A slowdown of 9.2% or more, of any time judged here, would have failed with 95% probability."
    assert OutcomeDocument(found).summary[0].endswith(f"margin. {line}")
    text = " ".join(as_table(OutcomeDocument(found)).split())
    assert text.index("A slowdown of 9.2%") < text.index("Verdicts") < text.index("linear k=8")
    record = json.loads(as_json(found))
    assert (record["caught"], record["judgements"][4]["caught"]) == (pytest.approx(0.092), None)
    assert len(OutcomeDocument(outcome(judgement())).summary) == 2
    noisy = OutcomeDocument(outcome(judgement(caught=40.0)))
    assert noisy.summary[0].endswith("What slowdown would have failed: cannot tell, a time is too noisy.")


def test_an_interval_that_is_too_wide_is_no_figure():
    wide = judgement("inconclusive", change=Interval(1.0, 0.0046, 216.3))
    assert change(wide) == "cannot tell"
    assert "cannot tell" in as_table(OutcomeDocument(outcome(wide)))
    assert "±" not in as_table(OutcomeDocument(outcome(wide)))
    assert change(judgement("fail", change=Interval(17.0, 3.0, 100.0))) == "cannot tell, above 3.000"
    share = judgement(quantity="accuracy", unit="%", change=Interval(2.5, 1.5, 3.5), margin=0.5)
    assert (change(share), margin(share)) == ("+2.50 [+1.50, +3.50]% of the base's", "0.5% of the base's")
    points = judgement(quantity="accuracy", unit="points", change=Interval(2.5, -40.0, 45.0))
    assert change(points) == "cannot tell"
