"""The one program of all measuring processes, and the one table of what they can do.

    python -m meprop_bench.sweep.worker        answers requests until its parent is gone (`measure.worker`)

A request is a line of the table: its name, and the function that answers it. The function is given the session, what
this process holds between requests, and the rest of the request by name; its module is loaded when it is first asked
for. To add one, write the function and its line.

A worker has its threads and allocator from its environment, before torch starts; it reads nothing else from outside.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from meprop_bench.measure.allocator import environment_of
from meprop_bench.measure.worker import Worker, serve

if TYPE_CHECKING:
    from torch import Tensor

    from meprop_bench.measure.clock import Clock
    from meprop_bench.measure.handoff import Handoff
    from meprop_bench.sweep.blocks import Blocks
    from meprop_bench.workloads.case import Case
    from meprop_bench.workloads.prepared import Prepared

__all__ = ["REQUESTS", "Session", "main", "start_for", "start_worker"]

REQUESTS = {
    "hello": "sweep.requests:hello",
    # a case: speedup, profile, gate, doctor
    "setup": "sweep.requests:setup",
    "check": "sweep.requests:check",
    "measure": "sweep.requests:measure",
    "memory": "sweep.requests:memory",
    "utilization": "sweep.requests:utilization",
    "peaks": "sweep.requests:peaks",
    "accuracy": "sweep.requests:accuracy",
    # a case in two revisions: gate
    "meet": "sweep.requests:meet",
    "again": "sweep.requests:again",
    "turns": "sweep.requests:interleave",
    "count": "sweep.requests:count",
    # what takes a case apart: profile
    "stages": "sweep.profile:stages",
    "overhead": "sweep.profile:overhead",
    "trees": "sweep.profile:trees",
    "break_even": "sweep.profile:break_even",
    # trainings: parity, paper
    "train": "sweep.parity:train",
    "train_arm": "paper.requests:train_arm",
    "examples": "paper.requests:examples",
    "cut": "paper.requests:cut",
    "decode": "paper.requests:decode",
}
"""Request -> the function that answers it, as module:function of this package."""


class Session:
    """What a worker holds between requests.

    Attributes:
        environment: this process's, once it has said hello.
        environment_id: of it.
        case: that is set up, or was last tried.
        prepared: its two sides.
        checked: the same with their clock, once the check has passed.
        handoff: to the other worker, for the gate.
        ballast: memory that is in the way when a case is set up again.
        loaded: what takes long to make and serves later requests, by name.

    """

    def __init__(self) -> None:
        self.environment: Mapping[str, Any] = {}
        self.environment_id = "unknown"
        self.case: Case | None = None
        self.prepared: Prepared | None = None
        self.checked: tuple[Prepared, Clock] | None = None
        self.handoff: Handoff | None = None
        self.ballast: list[Tensor] = []
        self.loaded: dict[str, Any] = {}
        self._blocks: Blocks | None = None

    def handle(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer one request."""
        fields = dict(message)
        do = fields.pop("do")
        if do not in REQUESTS:
            raise ValueError(f"a worker does not know the request {do!r}")
        module, _, function = REQUESTS[do].partition(":")
        answer: Mapping[str, Any] = getattr(import_module(f"meprop_bench.{module}"), function)(self, **fields)
        return answer

    def passed(self) -> tuple[Prepared, Clock]:
        """Return the case that is set up and its clock; ValueError unless its check has passed."""
        if self.checked is None:
            raise ValueError("there is no case whose check passed")
        return self.checked

    def blocks(self) -> Blocks:
        """Return what times the case in blocks; meanwhile the garbage collector is at rest."""
        from meprop_bench.sweep.blocks import Blocks

        prepared, clock = self.passed()
        if self._blocks is None:
            self._blocks = Blocks(prepared, clock)
        return self._blocks

    def forget(self) -> None:
        """Let the case go, with its memory."""
        if self._blocks is not None:
            self._blocks.close()
        self._blocks = self.prepared = self.checked = None


def start_worker(env: Mapping[str, str | None] | None = None, *flags: str) -> Worker:
    """Start a measuring process.

    Args:
        env: changes to this process's environment; None removes a variable.
        flags: of the interpreter.

    """
    return Worker([sys.executable, *flags, "-m", "meprop_bench.sweep.worker"], env)


def start_for(case: Case) -> Worker:
    """Start a measuring process with a case's threads and allocator."""
    return start_worker(environment_of(case.allocator, case.threads))


def main() -> None:
    """Serve until the parent is done."""
    serve(Session().handle)


if __name__ == "__main__":
    main()
