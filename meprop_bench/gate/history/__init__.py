"""A gate with a memory: one run of a suite against the runs before it, in a folder.

    folder  ->  History     (runs, figures), cached: asv's results, pytest-benchmark's storage, results folders of ours
    the last runs in the candidate's environment, before it  ->  Expected       of each figure level, spread, tails
    candidate, up to two more runs of it  ->  Found  ->  Outcome       verdicts on all figures at once

Two runs cannot decide a large suite: one figure of a thousand is elsewhere by a tenth and more in any run. Its own past
tells what a figure does without a change, and where that is not enough a second run does (`--confirm`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from meprop_bench.errors import UserError
from meprop_bench.gate.files import read_file
from meprop_bench.gate.history.compared import compare
from meprop_bench.gate.history.table import History, read_history
from meprop_bench.gate.judgement import Outcome
from meprop_bench.gate.settings import Settings

__all__ = ["History", "compare", "judge_run", "read_history"]


def judge_run(
    folder: Path,
    candidate: Path,
    settings: Settings,
    *,
    confirm: bool = False,
    again: Sequence[Path] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Judge a run by those in a folder; with `confirm` what stands out awaits another run, or is judged by those that
    were made `again`, two at most.

    `progress` is called with how many of how many files of the history are read. Raises `UserError` for what cannot be
    read (exit code 2), and where no run, or too few, can be compared (3).
    """
    seen = [candidate.resolve()]
    for path in again:
        if path.resolve() in seen:
            which = "candidate" if path.resolve() == seen[0] else "second run"
            raise UserError(f"{path.name} is the {which} itself: measure once more, and name that file")
        seen.append(path.resolve())
    if len(again) > 2:
        raise UserError("--confirm takes two runs at most: leave the others out")
    head = read_file(candidate)
    more = [read_file(path) for path in again]
    return compare(read_history(folder, progress), folder.resolve().name, head, settings, confirm=confirm, again=more)
