"""What a node of a Ray cluster does for a sweep, in a process of Ray's: it measures cases as a run at home does.

    code()                  which code this is; the node's has to be the driver's
    Measurer(plan)          holds the node, or one of its GPUs
        examine(cases)      whether they can be measured here, and what the machine does
        measure(case)       where it is, stage by stage, and at the end its rows
    WorkerActor(start)      has one process that trains, and passes requests on to it
    Doer(folder)            does anything else that needs the node to itself

Nothing here writes: rows and environments go to the driver. The processes that measure are this one's children, by the
same `Runner`, so that one case is timed as anywhere else: no message crosses the network between its beginning and its
end but what is shown of its progress, and that while nothing is timed.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import meprop_bench
from meprop_bench.errors import UserError
from meprop_bench.measure.environment import git_revision, hardware
from meprop_bench.measure.machine import state
from meprop_bench.measure.procfs import PROC, Unavailable
from meprop_bench.measure.worker import Message, WorkerDied, WorkerLike
from meprop_bench.optional import said
from meprop_bench.results.schema import Row
from meprop_bench.results.store import Store
from meprop_bench.sweep.feasible import check_feasible
from meprop_bench.sweep.plan import Plan
from meprop_bench.sweep.runner import Runner, SweepProgress
from meprop_bench.tasks.build import source_of
from meprop_bench.workloads.case import Case

__all__ = ["CaseResult", "Doer", "Failed", "Measurer", "WorkerActor", "code", "undo_threads", "work_in"]

_CODE = (".py", ".toml", ".cpp", ".h", ".json")


@dataclass(frozen=True)
class CaseResult:
    """What came of a case."""

    rows: tuple[Row, ...]
    environments: Mapping[str, Mapping[str, Any]]  # by their id, those of the rows
    peaks: Mapping[str, Any]  # of the machine: what they are filed under -> their JSON object


@dataclass(frozen=True)
class Failed:
    """Why the node cannot go on, in one line."""

    reason: str


def code() -> dict[str, str | None]:
    """Return the package's version, its revision in a checkout, and 12 hexadecimal digits of its files."""
    root = Path(meprop_bench.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.suffix in _CODE and path.is_file():
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    revision = None
    with suppress(Unavailable):
        revision = git_revision()
    return {"version": meprop_bench.__version__, "revision": revision, "digest": digest.hexdigest()[:12]}


def undo_threads() -> None:
    """Give this process back what its node has in OMP_NUM_THREADS: Ray sets it, where nobody has, to the cores held.

    It does so anew before each task. What a measuring process has is the case's affair, and is recorded.
    """
    own: list[bytes] = []
    with suppress(OSError):
        own = (PROC / "self/environ").read_bytes().split(b"\0")
    if not any(line.startswith(b"OMP_NUM_THREADS=") for line in own):
        os.environ.pop("OMP_NUM_THREADS", None)


def work_in(folder: str) -> None:
    """Work where the driver does, if there is such a folder here: users' files are named relative to it."""
    with suppress(OSError):
        os.chdir(folder)


class Measurer:
    """Measures one case after the other.

    Args:
        plan: of the sweep.
        folder: the driver's.

    """

    def __init__(self, plan: Plan, folder: str) -> None:
        work_in(folder)
        self._plan, self._folder = plan, _InMemory()
        self._messages: queue.SimpleQueue[SweepProgress | CaseResult | Failed] = queue.SimpleQueue()
        self._runner = Runner(plan, self._folder, progress=self._messages.put)

    def examine(self, cases: Sequence[Case], sources: Mapping[str, str | None], evaluates: bool) -> dict[str, Any]:
        """Say whether these cases can be measured here: `refused`, why not; else the machine's `state`, and which
        `hardware` it is.

        Args:
            cases: that the cluster may give it.
            sources: users' models -> what their files are at the driver's.
            evaluates: whether each model has to say how good it is.

        """
        undo_threads()
        try:
            for model, source in sources.items():
                if source_of(model) != source:
                    raise UserError(f"its file of the model {model} is not the one here: copy it there")
            check_feasible(cases, pin=self._plan.pin, evaluates=evaluates, ranks=True)
        except UserError as error:
            return {"refused": str(error)}
        threads = max(case.threads for case in cases)
        return {"state": state(threads), "hardware": json.dumps(hardware(), sort_keys=True)}

    def measure(self, case: Case, known: Sequence[Row]) -> Iterator[SweepProgress | CaseResult | Failed]:
        """Measure a case: yield each stage that it is in, and at the end what came of it.

        `known` are rows of the sweep that say how the case's dense side is run.
        """
        undo_threads()
        self._folder.know(known)
        threading.Thread(target=self._measure, args=(case,), daemon=True).start()
        while True:
            message = self._messages.get()
            yield message
            if not isinstance(message, SweepProgress):
                return

    def _measure(self, case: Case) -> None:
        try:
            rows = self._runner.measure(case) or []
            header = self._folder.header
            ids = {row.environment_id for row in rows}
            environments = {key: found for key, found in header["environments"].items() if key in ids}
            self._messages.put(CaseResult(tuple(rows), environments, header["peaks"]))
        except UserError as error:
            self._messages.put(Failed(str(error)))
        except Exception as error:  # noqa: BLE001  the driver says it, in a line
            self._messages.put(Failed(said(error)))


class WorkerActor:
    """Has one measuring process, which trains, say, beside others.

    Args:
        start: starts it.
        folder: the driver's.

    """

    def __init__(self, start: Callable[[], WorkerLike], folder: str) -> None:
        work_in(folder)
        undo_threads()
        self._worker = start()
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def request(self, message: Message, timeout: float) -> Message:
        """Return its answer; `died`, why there is none.

        A checkpoint is where the driver has it, if the file system is shared, and else in a folder of this process's.
        """
        if (path := message.get("checkpoint")) is not None and not Path(path).parent.is_dir():
            self._scratch = self._scratch or tempfile.TemporaryDirectory(prefix="meprop-bench-")
            message = {**message, "checkpoint": str(Path(self._scratch.name) / Path(path).name)}
        try:
            return self._worker.request(message, timeout)
        except WorkerDied as died:
            return {"died": died.reason}

    def close(self) -> None:
        """End it."""
        self._worker.close()
        if self._scratch is not None:
            self._scratch.cleanup()


class Doer:
    """Calls functions; `folder` is the driver's."""

    def __init__(self, folder: str) -> None:
        work_in(folder)

    def do(self, function: Callable[..., Any], *arguments: object) -> Any:
        """Return what the function does."""
        undo_threads()
        return function(*arguments)


class _InMemory(Store):
    """In place of a results folder: what is known of the driver's, and what is to go there."""

    def __init__(self) -> None:
        self.folder, self.notes, self._fd, self._rows = Path(), [], None, []
        self.header = {"environments": {}, "peaks": {}}

    def know(self, rows: Sequence[Row]) -> None:
        """Have these rows."""
        self._rows = list(rows)

    def _save(self) -> None:
        """Leave it in memory."""
