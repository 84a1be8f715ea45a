"""The processes of a case, and how they are asked.

    start_team      fresh processes with the case's threads and allocator
    ask             one of them
    ask_together    all at once, each its own message

An answer that is an error becomes an exception that says what it costs: the case (`CaseFailed`), the case alone and not
its processes (`CaseRefused`), or the processes where the memory is the processor's (`NoRoom`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from meprop_bench.measure.allocator import environment_of
from meprop_bench.measure.replicate import Asked, Replicates
from meprop_bench.workloads.case import Case

__all__ = ["PATIENCE_S", "CaseFailed", "CaseRefused", "NoRoom", "Team", "ask", "ask_together", "start_team"]

PATIENCE_S = 900.0
"""Seconds after which a silent worker counts as hung; the largest case takes a tenth of that to set up on two cores."""


class Team(Protocol):
    """The processes of a case."""

    @property
    def workers(self) -> Sequence[Asked]:
        """All of them, each fresh when the team started."""

    def close(self) -> None:
        """End them."""


def start_team(case: Case, count: int) -> Team:
    """Start fresh processes with the case's threads and allocator."""
    argv = [sys.executable, "-m", "meprop_bench.sweep.worker"]
    return Replicates(argv, environment_of(case.allocator, case.threads), count)


class CaseFailed(Exception):
    """A case cannot be measured; the message is one line. The processes are not to be used again."""


class CaseRefused(CaseFailed):
    """It cannot be measured by anybody, as was found before anything happened: the processes are as they were."""


class NoRoom(CaseFailed):
    """Memory ran out. A GPU's is whole again before the next case; of the processor's one cannot be sure."""


def ask(worker: Asked, message: Mapping[str, Any], timeout: float = PATIENCE_S) -> dict[str, Any]:
    """Return a worker's answer; raises `CaseFailed` where it is an error, and `WorkerDied` where none comes."""
    return _sound(worker.request(message, timeout))


def _sound(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        kind, reason = answer.get("kind"), answer["error"]
        if kind == "user":
            raise CaseRefused(str(reason))
        if kind == "out-of-memory":
            raise NoRoom(f"out of memory: {reason}")
        raise CaseFailed(str(reason))
    return answer


def ask_together(
    workers: Sequence[Asked],
    messages: Sequence[Mapping[str, Any]],
    timeout: float = PATIENCE_S,
    *,
    one_first: bool = False,
) -> list[dict[str, Any]]:
    """Ask all workers at once, each its own message; with `one_first` the others when the first has answered."""
    if one_first and len(workers) > 1:
        first = ask(workers[0], messages[0], timeout)
        return [first, *ask_together(workers[1:], messages[1:], timeout)]
    pool = ThreadPoolExecutor(len(workers))
    try:
        # All have answered when one of them is found to have refused: they may be asked again.
        answers = list(pool.map(lambda worker, message: worker.request(message, timeout), workers, messages))
        return [_sound(answer) for answer in answers]
    finally:
        # Not waiting: after an interrupt or a fault the team is closed next, and that is what ends the other requests.
        pool.shutdown(wait=False, cancel_futures=True)
