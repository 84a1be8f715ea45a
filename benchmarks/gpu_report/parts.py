"""The parts of a GPU's report, one after the other, each within its share of the time that is left.

    tests     `pytest -m cuda`: what only a GPU can show; then the Triton kernels against the oracle, compiled
    sweep     `meprop-bench speedup --preset gpu`: its cases stand in the order of their importance
    tables    `meprop-bench paper run`, for each of the papers' GPU tables: made of the sweep's rows, as far as it came

A GPU is lent for minutes, and what has not been brought back by then is lost. So a part is told by when it has to be
done (the verbs' own --deadline: they begin nothing that would not be done by then); one that is not done some seconds
after its share is interrupted, as by Ctrl-C, upon which a verb writes its page with what it has; one that does not
heed that is ended with all that it started. What a part leaves of its time goes to those after it. Each part is a
process of its own: a fault costs itself alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Protocol

from meprop_bench.errors import ExitCode
from meprop_bench.results.redact import without_paths
from meprop_bench.sweep.deadline import Deadline
from meprop_bench.workloads.case import default_threads

__all__ = [
    "KERNELS",
    "ROOT",
    "SWEEP",
    "TABLES",
    "TESTS",
    "Ended",
    "Outcome",
    "Part",
    "parts_of",
    "run_all",
    "run_process",
]

ROOT = Path(__file__).resolve().parents[2]
TABLES = ("icml:7", "icml:8", "tkde:7a", "tkde:7b")
TESTS, KERNELS, SWEEP = "tests", "kernel-tests", "sweep"

_TESTED = ("tests/ops", "tests/nn", "tests/measure", "tests/workloads")
"""Where tests are that need a GPU. Others would be collected in vain, and import what such a machine may not have."""

_KERNELS = ("tests/ops/test_triton.py",)

_PYTEST = (sys.executable, "-m", "pytest", "-q", "--color", "no", "-p", "no:cacheprovider")

_GRACE_S = 10.0
"""Seconds after its share at which a part is interrupted."""

_PAGE_S = 15.0
"""Seconds that a verb may take after its deadline: the last case, the plots and the pages."""

_GOODBYE_S = 20.0
"""Seconds that a part has after it was interrupted."""


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        name: of its log, too.
        weight: its share of the time that is left is this over the sum of those that are not done.
        command: seconds it may take -> its command; None: it is not to be had, and `reason` says why.
        page_s: seconds after its own deadline that it needs.
        reason: why there is no command.

    """

    name: str
    weight: float
    command: Callable[[float], Sequence[str]] | None
    page_s: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, and whether it had to be interrupted."""

    code: int
    interrupted: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a part; `took_s` of `share_s` seconds. `code` is None where it was not run, `why` says what else."""

    part: Part
    code: int | None
    share_s: float
    took_s: float
    why: str = ""


class Run(Protocol):
    """Runs a command, and interrupts it after some seconds."""

    def __call__(self, command: Sequence[str], log: Path, limit_s: float) -> Ended:
        """Return how it ended; what it prints goes to `log`."""


def parts_of(
    folder: Path,
    device: str,
    *,
    preset: str,
    tables: Sequence[str] = TABLES,
    scale: str = "short",
    latest: Callable[[Path], Path | None],
) -> list[Part]:
    """Return the parts of a report.

    Args:
        folder: where everything goes.
        device: "cuda", "cuda:N" or "cpu".
        preset: of the sweep, a name or a file.
        tables: of the papers.
        scale: of the tables.
        latest: the sweep's results folder, when it has run.

    """
    here = [sys.executable, "-m", "meprop_bench"]
    out = ["--out", str(folder), "--device", device]

    def sweep(seconds: float) -> list[str]:
        return [*here, "speedup", "--preset", preset, *out, "--deadline", f"{seconds:.0f}"]

    def one(table: str) -> Callable[[float], list[str]]:
        def command(seconds: float) -> list[str]:
            found = latest(folder)
            known = [] if found is None else ["--reuse", str(found)]
            return [*here, "paper", "run", table, "--scale", scale, *out, *known, "--deadline", f"{seconds:.0f}"]

        return command

    def tests(_: float) -> list[str]:
        return [*_PYTEST, "-m", "cuda", *_TESTED]

    def kernels(_: float) -> list[str]:
        # Most of it is compiling, which the processor's cores do; each process takes some of the GPU's memory, too.
        together = ["--numprocesses", f"{min(8, default_threads())}"] if find_spec("xdist") else []
        return [*_PYTEST, "-m", "not cuda", *together, *_KERNELS]

    on_cpu = "the tests of the CPU are those of `make test`" if device == "cpu" else ""
    return [
        Part(TESTS, 10, None if on_cpu else tests, 0.0, on_cpu),
        Part(KERNELS, 12, None if on_cpu else kernels, 0.0, on_cpu),
        Part(SWEEP, 66, sweep, _PAGE_S),
        *(Part(table.replace(":", "-"), 12 / len(tables), one(table), _PAGE_S / 2) for table in tables),
    ]


def run_all(
    parts: Sequence[Part],
    folder: Path,
    deadline: Deadline,
    *,
    run: Run,
    told: Callable[[Sequence[Outcome]], object] = lambda _: None,
) -> list[Outcome]:
    """Run the parts and return what came of each.

    Args:
        parts: in order.
        folder: where their logs go.
        deadline: of all of them together.
        run: runs a command.
        told: what is done so far, after each part.

    """
    outcomes: list[Outcome] = []
    for place, part in enumerate(parts):
        begun_s = deadline.left_s
        share_s = begun_s * part.weight / sum(other.weight for other in parts[place:])
        outcome = _run(part, folder, share_s, run)
        outcomes.append(Outcome(part, outcome.code, share_s, begun_s - deadline.left_s, outcome.why))
        told(outcomes)
        if outcome.code == ExitCode.INTERRUPTED and not outcome.why:
            break  # by the user, who wants none of the others either
    return outcomes


def _run(part: Part, folder: Path, share_s: float, run: Run) -> Outcome:
    if part.command is None:
        return Outcome(part, None, share_s, 0.0, part.reason)
    own_s = share_s - part.page_s
    if own_s <= 0:
        return Outcome(part, None, share_s, 0.0, f"its share of the time was {max(share_s, 0.0):.0f} s, too little")
    ended = run(part.command(max(1.0, own_s)), folder / f"{part.name}.log", share_s + _GRACE_S)
    why = f"it was interrupted {_GRACE_S:.0f} s after its share of the time" if ended.interrupted else ""
    return Outcome(part, ended.code, share_s, 0.0, why)


def run_process(command: Sequence[str], log: Path, limit_s: float, *, echo: IO[str] = sys.stderr) -> Ended:
    """Run a command from the project's folder; its output goes to the log, and line by line to `echo`."""
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=_environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        reader = threading.Thread(target=_copy, args=(process.stdout, file, echo), daemon=True)
        reader.start()
        interrupted = False
        try:
            process.wait(limit_s)
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as reason:
            interrupted = isinstance(reason, subprocess.TimeoutExpired)
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_GOODBYE_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if not interrupted:
                return Ended(int(ExitCode.INTERRUPTED))
        finally:
            reader.join(_GOODBYE_S)
    return Ended(process.returncode, interrupted)


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Let every part find the package where it is, installed or not, and compile for the GPU what is Triton's."""
    path = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    return {**environment, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TRITON_INTERPRET": "0"}


def _copy(lines: IO[str] | None, file: IO[str], echo: IO[str]) -> None:
    for line in lines or ():
        file.write(without_paths(line))  # it may be committed
        file.flush()
        echo.write(line)
        echo.flush()
