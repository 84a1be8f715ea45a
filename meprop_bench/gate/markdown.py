"""An outcome as a comment of a pull request, and as the summary of a GitHub job.

GitHub refuses a comment of more than 65,536 characters. So as many lines are shown, worst first, as fit, and the rest
is counted: the verdict above the table is over all of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from meprop_bench.errors import UserError
from meprop_bench.gate.document import OutcomeDocument
from meprop_bench.gate.judgement import Outcome
from meprop_bench.report.markdown import as_markdown
from meprop_bench.results.redact import one_line

__all__ = ["LIMIT", "as_comment", "write_job_summary"]

LIMIT = 65_536
_MOST_LINES = 1000
_MOST_NOTES = 20
_LONGEST = 300
_SUMMARY = "GITHUB_STEP_SUMMARY"


def as_comment(outcome: Outcome, limit: int = LIMIT) -> str:
    """Return Markdown of at most `limit` characters.

    What is shown of a case is cut to 300 characters, and of the notes the first twenty are shown.
    """
    low, high = 0, min(len(outcome.judgements), _MOST_LINES)
    while low < high:  # the most lines that fit
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(_text(outcome, middle)) <= limit else (low, middle - 1)
    return _text(outcome, low)[:limit]


def write_job_summary(outcome: Outcome, environment: Mapping[str, str] = os.environ) -> Path | None:
    """Append the outcome to the summary of the GitHub job that this runs in, if it runs in one; return its path."""
    if not (name := environment.get(_SUMMARY)):
        return None
    path = Path(name)
    try:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as target:
            target.write(as_comment(outcome) + "\n")
    except OSError as error:
        raise UserError(f"cannot write ${_SUMMARY}: {error.strerror}") from None
    return path


def _text(outcome: Outcome, most: int) -> str:
    document = OutcomeDocument(outcome, most)
    notes = [one_line(note, _LONGEST) for note in outcome.notes[:_MOST_NOTES]]
    if more := len(outcome.notes) - len(notes):
        notes.append(f"and {more} more notes")
    shown = _Comment(document, notes)
    return as_markdown(shown)


class _Comment:
    """The document with its notes among the sentences, which is where Markdown has them."""

    def __init__(self, document: OutcomeDocument, notes: list[str]) -> None:
        self.title, self.notes, self.hints = document.title, notes, document.hints
        self.command = one_line(document.command, 10 * _LONGEST)
        self.summary = [*document.summary, *notes]
        self.sections = document.sections
