"""An outcome as a comment of a pull request, and as the summary of a GitHub job.

    <!-- meprop-bench gate: SUITE -->        by which the next run of this gate finds the comment, and no other
    ### ❌ Failed: 2 of 31 figures got worse
    what was compared and on which machine, the worst of them in words, what would have been caught
    tables of what failed, with how to repeat it, and of what is inconclusive, of each the first twenty; notes
    <details> the others, what passed, what is only reported, how to read it and the command </details>

The verdict comes first and what needs no action is folded, as in the comments of rust-lang/rustc-perf. A table has four
columns, and the first gives way, so that a phone shows what matters; the others are in JSON and in the printed table.
GitHub refuses a comment of more than 65,536 characters. So as many lines are shown, worst first, as fit, and the rest
is counted: the verdict is over all of them, and the summary of the job holds more.

Names, reasons and paths are text of somebody else: what a code host makes a link or a mention of is broken, as in any
Markdown of this package (`report.markdown.escaped`), and here commits are, too.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from meprop_bench.errors import UserError
from meprop_bench.gate.document import (
    OutcomeDocument,
    amount,
    better,
    change,
    counted,
    in_words,
    left_out,
    margin,
    most_of_all,
    result,
    seen,
    worst,
)
from meprop_bench.gate.judgement import Judgement, Outcome
from meprop_bench.gate.names import LONGEST, shown
from meprop_bench.gate.repeat import commands
from meprop_bench.report.cells import Cell, pair
from meprop_bench.report.markdown import GAP, code_block, escaped, table
from meprop_bench.report.sections import Section

__all__ = [
    "LIMIT",
    "append_job_summary",
    "as_comment",
    "as_refusal",
    "marker",
    "neutral",
    "write_job_summary",
]

LIMIT = 65_536
"""A comment is shorter, in bytes of UTF-8, which are no fewer than its characters however they are counted."""
_SUMMARY_LIMIT = 1_000_000
"""The same of a job's summary: GitHub allows a step 1 MiB."""
_MOST_LINES = 5000
_SHORTEST = 64
"""Bytes that a line mostly has at least."""
_MOST_NOTES = 20
_OPEN = 20
"""Lines of a verdict that are not folded."""
_SUMMARY = "GITHUB_STEP_SUMMARY"

_BLOCK = re.compile(r"^(?=[-+=]|\d+[.)]\s)")
"""A list, or a line under a heading."""
_HASH = re.compile(r"(?<![0-9A-Za-z])[0-9a-fA-F]{7,}(?![0-9A-Za-z])")
_SHORT = 6
"""Digits of a commit's hash that no code host takes for one."""
_COLUMNS = ("figure", "head / base", "margin", "base → head")
_BREAKS = re.compile(r"(?<=[/:_\[\]=,-])(?=\w)|[^\W_]{24}(?=\w)|(?:\\\W){24}(?=\\)")
"""After this a long word may be broken, once it is escaped: a path would be as wide as a page."""
_FIXED = "\u00a0"
_UNDECIDED = (
    "More pairs (`--budget`, `--pairs`), a quieter machine or a wider margin would decide what was measured in both."
)
_UNMEASURED = "What was not measured in both stays open: if that is meant to be so, `report-only` takes it out."
_MARKS = {"Passed": "✅", "Failed": "❌", "Inconclusive": "❔", "Not comparable": "⚠️"}
_RUN = re.compile(r"https://[\w.:-]+/[\w.-]+/[\w.-]+/actions/runs/\d+")


def as_comment(outcome: Outcome, limit: int = LIMIT, environment: Mapping[str, str] = os.environ) -> str:
    """Return Markdown of fewer than `limit` bytes.

    Of a name, or another text, 300 characters are shown at most, and of the notes the first twenty. The environment
    says which job of a code host this is, so that what is left out can be found.
    """
    shown_at_most, _ = worst(outcome.judgements, min(_MOST_LINES, limit // _SHORTEST))
    rows = [(one, _row(one)) for one in shown_at_most]
    whole = _whole(environment)
    low, high = 0, len(rows)
    while low < high:  # the most lines that fit
        middle = (low + high + 1) // 2
        text = _text(outcome, rows[:middle], whole)
        low, high = (middle, high) if len(text.encode()) < limit else (low, middle - 1)
    return _text(outcome, rows[:low], whole)


def marker(suite: str) -> str:
    """Return the hidden line that a comment of this gate begins with: the same for one suite, another for another."""
    name = quote(suite, safe=" /:.,()", errors="surrogatepass").replace("--", "-%2D")
    if len(name) > LONGEST:
        name = f"{name[: LONGEST - 64]}{hashlib.sha256(name.encode()).hexdigest()}"
    return f"<!-- meprop-bench gate: {name} -->"


def as_refusal(reason: str, suite: str) -> str:
    """Return the comment of a gate that came to no verdict: why, under its marker."""
    return f"{marker(suite)}\n\n### ⚠️ No verdict\n\n{escaped(neutral(reason))}\n"


def write_job_summary(outcome: Outcome, environment: Mapping[str, str] = os.environ) -> Path | None:
    """Append the outcome to the summary of the GitHub job that this runs in, if it runs in one; return its path."""
    if not environment.get(_SUMMARY):
        return None
    return append_job_summary(as_comment(outcome, _SUMMARY_LIMIT, {}), environment)


def append_job_summary(text: str, environment: Mapping[str, str] = os.environ) -> Path | None:
    """Append Markdown to the summary of the GitHub job that this runs in, if it runs in one; return its path."""
    if not (name := environment.get(_SUMMARY)):
        return None
    path = Path(name)
    try:
        with path.open("a", encoding="utf-8") as target:
            target.write(text + "\n")
    except OSError as error:
        raise UserError(f"cannot write ${_SUMMARY}: {error.strerror}") from None
    return path


def neutral(text: str) -> str:
    """Return text that Markdown, once it is escaped, shows as it is and a code host makes nothing of.

    Escapes and all it has at most 300 characters.
    """
    limit = LONGEST
    while True:
        found = _BLOCK.sub(GAP, shown(text, limit))
        found = _HASH.sub(lambda one: GAP.join(re.findall(f".{{1,{_SHORT}}}", one[0])), found)
        if (more := len(escaped(found)) - LONGEST) <= 0:
            return found
        limit -= max(1, more // 3)  # a character becomes three at most


def _text(outcome: Outcome, rows: Sequence[tuple[Judgement, str]], whole: str) -> str:
    parts: dict[str, list[str]] = {"fail": [], "inconclusive": [], "pass": [], "report_only": []}
    for one, row in rows:
        parts["report_only" if one.report_only else one.verdict].append(row)
    counts, more = outcome.judgements.counts(), left_out(outcome.judgements, len(rows))
    lines = [marker(outcome.suite), *_heading(outcome), f"{more} {whole}" if more else ""]
    for verdict, title in (("fail", "failed"), ("inconclusive", "inconclusive")):
        first, rest = parts[verdict][:_OPEN], parts[verdict][_OPEN:]
        lines += [f"#### {title.capitalize()}", _table(first)] if first else []
        if verdict == "fail" and counts["fail"]:
            failed = [one for one, _ in rows if one.verdict == "fail" and not one.report_only]
            again = commands(outcome.repeat, failed if len(failed) == counts["fail"] else ())
            lines += ["To repeat it locally:", code_block("\n".join(again))] if again else []
        elif first and outcome.runs:  # what is stored is not measured on
            measured = {one.change is not None for one, _ in rows if one.verdict == verdict and not one.report_only}
            lines.append(" ".join([_UNDECIDED] * (True in measured) + [_UNMEASURED] * (False in measured)))
        lines += _folded(f"{len(rest)} more {title}", _table(rest)) if rest else []
    further = len(outcome.notes) - _MOST_NOTES
    notes = [*outcome.notes[:_MOST_NOTES], *([f"and {further} more notes"] if further > 0 else [])]
    lines.append("\n".join(f"- {escaped(neutral(note.strip()))}" for note in notes))
    for verdict, title in (("pass", "passed"), ("report_only", "only reported, which do not decide")):
        if parts[verdict]:
            lines += _folded(f"{counts[verdict]} {title}", _table(parts[verdict]))
    hints = OutcomeDocument(outcome).hints
    lines += _folded("How to read this, and the command", *map(escaped, hints), code_block(shown(outcome.command)))
    return "\n\n".join(filter(None, lines)) + "\n"


def _heading(outcome: Outcome) -> list[str]:
    """Return the verdict, what was compared and where, the worst in words, and what would have been caught."""
    verdict, what = result(outcome)
    mark = f"{_MARKS[verdict]} " if verdict in _MARKS else ""
    busy = ", but the machine was busy" if outcome.doubts else ""
    lines = [f"### {mark}{verdict}: {what}{busy}"]
    lines += [f"**{escaped(neutral(line))}**" for line in outcome.doubts[:_OPEN]]
    where = f", on {escaped(neutral(outcome.machine))}" if outcome.machine else ""
    counts = f"{counted(outcome.judgements.counts()).capitalize()}, in {outcome.seconds:.0f} s."
    lines.append(f"{_span(outcome.head)} against {_span(outcome.base)}{where}. {counts}")
    if (one := most_of_all(outcome)) is not None:
        lines.append(f"Most of all {_told(one)}.")
    gains, best = better(outcome)
    lines += [f"{gains}, most of all {_told(best)}."] if best else []
    return [*lines, *map(escaped, seen(outcome))]


def _told(one: Judgement) -> str:
    return f"**{escaped(neutral(one.name))}**: {escaped(neutral(in_words(one)))}"


def _whole(environment: Mapping[str, str]) -> str:
    """Return where the rest is, as Markdown: in JSON, and in the summary of the job that this is."""
    all_of_it = "the file that `--output gate.json` writes has all of them."
    names = ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_RUN_ID")
    url = "{}/{}/actions/runs/{}".format(*(environment.get(name, "") for name in names))
    if _RUN.fullmatch(url):
        return f"The summary of [this run]({url}) has more of them, and {all_of_it}"
    return f"{all_of_it[0].upper()}{all_of_it[1:]}"


def _folded(summary: str, *parts: str) -> list[str]:
    return [f"<details><summary>{summary}</summary>", *parts, "</details>"]


def _table(rows: Sequence[str]) -> str:
    return "\n".join([table(Section("", _COLUMNS, (), left=frozenset(_COLUMNS))), *rows])


def _row(one: Judgement) -> str:
    """Return a line of a table; why there is no change stands in its place."""
    values, why = pair(amount(one, one.base), amount(one, one.head)), neutral(one.reason) if one.reason else ""
    found, most, both = (neutral(text).replace(" ", _FIXED) for text in (change(one), margin(one), values))
    what = f"{neutral(one.case)} / {neutral(one.figure)}" + (f": {why}" if why and one.change else "")
    cells = (what, why if why and not one.change else found, most, both)
    line = table(Section("", _COLUMNS, ((tuple(map(Cell, cells)),),))).splitlines()[-1]
    return re.sub(r"\S{20,}", lambda word: _BREAKS.sub(r"\g<0><wbr>", word[0]), line)


def _span(text: str) -> str:
    """Return code within a line, which no run of backticks in it can end: a revision's hash is there to be copied."""
    text = shown(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"
