"""One check of the examination, as a line; and what all of them together mean for a script.

    ok        as it should be
    note      worth knowing; something optional is absent
    warning   figures get wider, or one feature does not work; measuring is still honest
    problem   a mistake to put right (exit code 2), or a machine that cannot be trusted to measure (exit code 4)

A mistake comes first: with a misspelt key one does not measure what one thinks, on however calm a machine. What is
optional never changes the exit code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from meprop_bench.errors import ExitCode

__all__ = ["SECTIONS", "CheckResult", "State", "exit_code"]

State = Literal["ok", "note", "warning", "problem"]

SECTIONS = {
    "machine": ExitCode.INCONCLUSIVE,
    "clock": ExitCode.INCONCLUSIVE,
    "noise": ExitCode.INCONCLUSIVE,
    "software": ExitCode.USAGE,
    "devices": ExitCode.USAGE,
    "data": ExitCode.USAGE,
    "configuration": ExitCode.USAGE,
}
"""Section, in the order of the screen -> the exit code of a problem in it."""


@dataclass(frozen=True)
class CheckResult:
    """A line: a key of `SECTIONS`; what was looked at, in a word or two; how it is; with figures; what to do, or ""."""

    section: str
    check: str
    state: State
    text: str
    advice: str = ""


def exit_code(findings: Iterable[CheckResult]) -> ExitCode:
    """Return 2 if there is a mistake to put right, else 4 if the machine cannot be trusted, else 0."""
    codes = {SECTIONS[finding.section] for finding in findings if finding.state == "problem"}
    return min(codes, default=ExitCode.OK)
