"""The comment of a pull request: what it says, and that nothing in it says anything else."""

import re

import pytest
from markdown_it import MarkdownIt

from meprop_bench.gate.markdown import LIMIT, as_comment, marker, write_job_summary
from meprop_bench.stats import Interval
from tests.gate.test_outputs import MIXED, judgement, outcome

BASE, HEAD = "1" * 40, "2" * 40
REPEAT = ("gate", "--margin", "0.1", "--base", BASE, "--head", HEAD)
JOB = {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "me/it", "GITHUB_RUN_ID": "17"}
HOSTILE = [
    "</details><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![](https://example.org/pixel.png)",
    "[click](javascript:alert(1))",
    "@everyone fixes #12 and GH-13 in deadbeefcafe https://example.org www.example.org",
    "a | b | c\n\n# heading\n- list\n```\ncode\n```",
    "<!-- meprop-bench gate: other -->",
    "`` ` ``` `code` \\` ||",
    "\x1b[31mred\x1b[0m \u202eright to left\u2066 \x00 \ud800",
    "x" * 10_000,
    "*" * 10_000,
    "::error::no command ##[error]neither",
]


def rendered(text):
    """Return the comment as a page, by CommonMark with GitHub's tables; HTML is let through, as GitHub lets some."""
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(text)


def test_the_verdict_comes_first_then_what_was_compared_and_where():
    found = outcome(
        judgement("fail", case="linear k=8", change=Interval(1.3, 1.25, 1.35)),
        *(judgement(case=f"case {number}") for number in range(3)),
        machine="AMD EPYC, 2 cores, Linux 6.1",
    )
    lines = [line for line in as_comment(found).splitlines() if line]
    assert lines[:4] == [
        "<!-- meprop-bench gate: gate -->",
        "### ❌ Failed: 1 of 4 figures got worse",
        "`the work tree` against `main (1a2b)`, on AMD EPYC, 2 cores, Linux 6.1. 1 failed, 3 passed, in 12 s.",
        "Most of all **linear k=8/backward**: 30% slower \\[25%, 35%\\].",
    ]
    assert lines[4] == "#### Failed"
    folded = as_comment(found).partition("<details><summary>3 passed</summary>")[2]
    assert "case 2" in folded.partition("</details>")[0]


@pytest.mark.parametrize(("verdict", "mark"), [("pass", "✅"), ("fail", "❌"), ("inconclusive", "❔")])
def test_the_verdict_has_a_mark(verdict, mark):
    assert as_comment(outcome(judgement(verdict))).splitlines()[2].startswith(f"### {mark} ")


def test_what_failed_is_there_with_how_to_repeat_it():
    found = outcome(judgement("fail", 1.3, reason="it's slow"), judgement("inconclusive", case="other"), repeat=REPEAT)
    text = as_comment(found)
    block = re.search(r"```sh\n(git.*?)```", text, re.S)[1]
    assert block.splitlines() == [
        f"git fetch origin {BASE} {HEAD}",
        f"meprop-bench gate --margin 0.1 --base {BASE} --head {HEAD} '--cases=linear k=8'",
        "meprop-bench gate explain 'linear k=8/backward'",
    ]
    assert text.index("it's slow") < text.index("git fetch") < text.index("#### Inconclusive")
    assert "git fetch" not in as_comment(outcome(judgement(), repeat=REPEAT))


def test_what_is_open_says_what_would_decide_it():
    noisy, gone = judgement("inconclusive"), judgement("inconclusive", change=None, reason="gone: the head has none")
    runs = {("linear k=8", "backward"): (((1.0, 1.0),),)}
    for figures, says, not_ in (
        ((noisy,), "More pairs", "report-only"),
        ((gone,), "report-only", "More pairs"),
        ((noisy, gone), "More pairs", "nothing of the kind"),
    ):
        text = as_comment(outcome(*figures, runs=runs))
        assert says in text
        assert not_ not in text
    assert "| gone: the head has none | 1% |" in text  # where others have their change
    assert "More pairs" not in as_comment(outcome(noisy))  # stored results are not measured on


@pytest.mark.parametrize("where", ["case", "figure", "reason", "notes", "doubts", "machine", "base", "suite"])
@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_of_somebody_elses_text_is_live(where, text):
    changes = {where: text} if where in ("case", "figure", "reason") else {}
    more = {where: (text,)} if where in ("notes", "doubts") else {}
    found = outcome(judgement("fail", 1.3, **changes), judgement(**changes), repeat=REPEAT, **more)
    if where in ("machine", "base", "suite"):
        from dataclasses import replace

        found = replace(found, **{where: text})
    comment = as_comment(found)
    assert len(comment) < 12_000
    assert comment.splitlines()[0] == marker(text if where == "suite" else "gate")
    page = rendered(comment).replace(comment.splitlines()[0], "")
    assert "<!--" not in page
    tags = set(re.findall(r"<(/?\w+)", page))
    allowed = {"p", "h3", "h4", "table", "thead", "tbody", "tr", "th", "td", "strong", "code", "pre", "ul", "li"}
    assert {tag.strip("/") for tag in tags} <= allowed | {"details", "summary", "wbr"}
    assert page.count("<tr>") == 4  # two tables of one line
    assert page.count("<h3>") == 1
    assert len(re.findall("<td", page)) == 8
    assert not re.search(
        r"(?<![\w\u200b`])@everyone|#12|GH-13|deadbeefcafe|https://example",
        re.sub("<code.*?</code>", "", page, flags=re.S),
    )
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", comment)


def test_what_is_left_out_is_counted_and_found_in_the_run():
    many = outcome(*(judgement(case=f"case {number} " + "y" * 200) for number in range(900)))
    text = as_comment(many, environment=JOB)
    assert LIMIT - 1000 < len(text.encode()) < LIMIT
    more = re.search(r"(\d+) more are not shown: (\d+) passed\.", text)
    assert int(more[1]) + text.count("| case ") == 900
    run = "The summary of [this run](https://github.com/me/it/actions/runs/17) has more of them, and the file that"
    assert f"{more[0]} {run} `--output gate.json` writes has all of them." in text
    assert "this run" not in as_comment(many, environment=JOB | {"GITHUB_REPOSITORY": "me/it](x) ![](y"})


@pytest.mark.parametrize("verdict", ["fail", "inconclusive"])
def test_of_many_twenty_are_open(verdict):
    many = outcome(*(judgement(verdict, case=f"case {number}") for number in range(50)), repeat=REPEAT)
    before, _, folded = as_comment(many).partition("<details><summary>30 more")
    assert (before.count("| case "), folded.count("| case ")) == (20, 30)
    assert ("git fetch" in before) == (verdict == "fail")


def test_the_summary_of_a_job_has_room_for_more(tmp_path):
    many = outcome(*(judgement(case=f"case {number} " + "y" * 200) for number in range(900)))
    path = write_job_summary(many, {"GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")})
    assert path.read_text("utf-8").count("| case ") == 900


def test_all_failures_of_a_comment_are_there_with_their_reason():
    page = rendered(as_comment(MIXED))
    assert "its gradients are wrong" in page
    assert page.index("its gradients are wrong") < page.index("Inconclusive")
