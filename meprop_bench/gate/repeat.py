"""The command that repeats a comparison elsewhere: its revisions by their commits, without what is of one run alone.

    typed       gate --base origin/main --output gate.md --margin 0.1
    repeated    git fetch origin BASE HEAD
                meprop-bench gate --margin 0.1 --base BASE --head HEAD '--cases=linear meprop k=30'
                meprop-bench gate explain 'linear meprop k=30/backward'

The case is named as it stands, which globs allow (`settings.matches`); one whose name is not shown as it stands is left
out, and then all are measured.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence

from meprop_bench.gate.judgement import Judgement
from meprop_bench.gate.names import shown

__all__ = ["commands", "words"]

_OF_ONE_RUN = ("--base", "--head", "--output", "--format", "--suite", "--shard", "--save")
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_MOST = 5
"""Cases that a command names; of more, it measures all."""


def words(typed: Sequence[str], base: str | None = None, head: str | None = None) -> tuple[str, ...]:
    """Return the words of a command line that repeat it: those that were typed, from `gate`, and its commits if any."""
    found = [shown(word, 1000) for word in _without(typed, _OF_ONE_RUN)]  # without the folders of a machine
    for option, commit in (("--base", base), ("--head", head)):
        found += [option, commit] if commit else []
    return tuple(found)


def commands(repeat: Sequence[str], failed: Iterable[Judgement]) -> list[str]:
    """Return the lines of a shell that repeat a comparison for the figures that failed; none where nobody knows how."""
    if not repeat:
        return []
    every = list(failed)
    cases = list(dict.fromkeys(one.case for one in every))
    found, lines = list(repeat), []
    if 0 < len(cases) <= _MOST and all(shown(case) == case for case in cases):
        found = [*_without(found, ("--cases",)), *(f"--cases={case}" for case in cases)]
    if commits := [word for word in repeat if _COMMIT.fullmatch(word)]:
        lines.append(shlex.join(["git", "fetch", "origin", *commits]))
    lines.append(shown(shlex.join(["meprop-bench", *found]), 4000))
    if commits and every and shown(every[0].name) == every[0].name:
        lines.append(shlex.join(["meprop-bench", "gate", "explain", every[0].name]))
    return lines


def _without(typed: Sequence[str], options: Sequence[str]) -> list[str]:
    """Return words without some options and their values."""
    found, of_option = [], False
    for word in typed:
        if not (of_option or word.split("=")[0] in options):
            found.append(word)
        of_option = not of_option and word in options
    return found
