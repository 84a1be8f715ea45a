"""An outcome as a comment of a pull request, and as the summary of a GitHub job.

    <!-- meprop-bench gate: SUITE -->        by which the next run of this gate finds the comment, and no other
    ### Failed: `head` against `base`
    what that means, how many failed, passed, ...
    tables of what failed and of what is inconclusive, notes
    <details> what passed, what is only reported, how to read it and the command </details>

The verdict comes first and what needs no action is folded, as in the comments of rust-lang/rustc-perf. GitHub refuses a
comment of more than 65,536 characters. So as many lines are shown, worst first, as fit, and the rest is counted: the
verdict is over all of them.

Names are text of somebody else: what a code host makes a link or a mention of is broken, as in any Markdown of this
package (`report.markdown.escaped`), and here commits are, too.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from meprop_bench.errors import UserError
from meprop_bench.gate.document import OutcomeDocument, caught, counted, result, section, worst
from meprop_bench.gate.judgement import Judgement, Outcome
from meprop_bench.gate.names import LONGEST, shown
from meprop_bench.report.markdown import GAP, code_block, escaped, table

__all__ = ["LIMIT", "as_comment", "marker", "neutral", "write_job_summary"]

LIMIT = 65_536
"""A comment is shorter, in bytes of UTF-8, which are no fewer than its characters however they are counted."""
_MOST_LINES = 1000
_MOST_NOTES = 20
_SUMMARY = "GITHUB_STEP_SUMMARY"

_BLOCK = re.compile(r"^(?=[-+=]|\d+[.)]\s)")
"""A list, or a line under a heading."""
_HASH = re.compile(r"(?<![0-9A-Za-z])[0-9a-fA-F]{7,}(?![0-9A-Za-z])")
_SHORT = 6
"""Digits of a commit's hash that no code host takes for one."""


def as_comment(outcome: Outcome, limit: int = LIMIT) -> str:
    """Return Markdown of fewer than `limit` bytes.

    Of a name, or another text, 300 characters are shown at most, and of the notes the first twenty.
    """
    low, high = 0, min(len(outcome.judgements), _MOST_LINES)
    while low < high:  # the most lines that fit
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(_text(outcome, middle).encode()) < limit else (low, middle - 1)
    return _text(outcome, low)


def marker(suite: str) -> str:
    """Return the hidden line that a comment of this gate begins with: the same for one suite, another for another."""
    name = quote(suite, safe=" /:.,()", errors="surrogatepass").replace("--", "-%2D")
    if len(name) > LONGEST:
        name = f"{name[: LONGEST - 64]}{hashlib.sha256(name.encode()).hexdigest()}"
    return f"<!-- meprop-bench gate: {name} -->"


def write_job_summary(outcome: Outcome, environment: Mapping[str, str] = os.environ) -> Path | None:
    """Append the outcome to the summary of the GitHub job that this runs in, if it runs in one; return its path."""
    if not (name := environment.get(_SUMMARY)):
        return None
    path = Path(name)
    try:
        with path.open("a", encoding="utf-8") as target:
            target.write(as_comment(outcome) + "\n")
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


def _text(outcome: Outcome, most: int) -> str:
    every = outcome.judgements
    first, more = worst(every, most)
    parts: dict[str, list[Judgement]] = {"fail": [], "inconclusive": [], "pass": [], "report_only": []}
    for one in first:
        parts["report_only" if one.report_only else one.verdict].append(one)
    counts = every.counts()
    verdict, what = result(outcome)
    lines = [
        marker(outcome.suite),
        *(f"**{escaped(neutral(line))}**" for line in outcome.doubts),
        f"### {verdict}: {_span(outcome.head)} against {_span(outcome.base)}",
        f"{what[0].upper()}{what[1:]}. {counted(counts).capitalize()}, in {outcome.seconds:.0f} s.",
        *caught(every.caught),
        more,
    ]
    for verdict, title in (("fail", "Failed"), ("inconclusive", "Inconclusive")):
        if parts[verdict]:
            lines += [f"#### {title}", _table(parts[verdict])]
    further = len(outcome.notes) - _MOST_NOTES
    notes = [*outcome.notes[:_MOST_NOTES], *([f"and {further} more notes"] if further > 0 else [])]
    lines.append("\n".join(f"- {escaped(neutral(note.strip()))}" for note in notes))
    for verdict, title in (("pass", "passed"), ("report_only", "only reported, and not decided by")):
        if parts[verdict]:
            lines += _folded(f"{counts[verdict]} {title}", _table(parts[verdict]))
    hints = OutcomeDocument(outcome).hints
    lines += _folded("How to read this, and the command", *map(escaped, hints), code_block(shown(outcome.command)))
    return "\n\n".join(filter(None, lines)) + "\n"


def _folded(summary: str, *parts: str) -> list[str]:
    return [f"<details><summary>{summary}</summary>", *parts, "</details>"]


def _table(judgements: Sequence[Judgement]) -> str:
    found = section("", judgements)
    groups = tuple(
        tuple(tuple(replace(cell, text=neutral(cell.text)) for cell in line) for line in group)
        for group in found.groups
    )
    return table(replace(found, groups=groups))


def _span(text: str) -> str:
    """Return code within a line, which no run of backticks in it can end: a revision's hash is there to be copied."""
    text = shown(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"
