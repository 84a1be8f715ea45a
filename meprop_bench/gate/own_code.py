"""Each process runs its own revision's code, and no other: or base and head would be one, and nothing would ever fail.

    start      this package, of a fork or an older one that of its revision; a protocol that both speak
    a project  imports its modules from its revision's folder or environment. An editable installation leads to the work
               tree, an environment that is kept may hold the other revision: both are refused

A process that borrows from the gate's environment what its own has not says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import meprop_bench
from meprop_bench.errors import ExitCode, UserError
from meprop_bench.gate.case_records import SIDES, Side
from meprop_bench.gate.processes import cores_of, request
from meprop_bench.gate.targets import Measurable
from meprop_bench.gate.worktree import PACKAGE, Checkout
from meprop_bench.measure.pool import Pool
from meprop_bench.measure.worker import WorkerError
from meprop_bench.results.redact import one_line
from meprop_bench.sweep.function_case import FunctionCase
from meprop_bench.sweep.worker import PROTOCOL

__all__ = ["borrowed", "check_origins", "greet", "sparsified"]

_SHOWN = 8
"""Names of modules in a note."""


def sparsified(case: Measurable) -> bool:
    """Whether a case has a dense side that is another one than the one that is judged."""
    return not isinstance(case, FunctionCase) and case.method != "dense"


def greet(pool: Pool[Side], checkouts: Mapping[Side, Checkout], case: Measurable) -> Mapping[str, Any]:
    """Have both processes import what takes seconds; return the head's environment.

    Raises:
        UserError: one does not start (exit code 3 for the base, 2 for the head), speaks another protocol, or runs
            another package than its own (3).

    """
    # A model that is trained as it is needs none, and compiling them takes half a minute.
    needless = checkouts["head"].project is not None and not sparsified(case)
    kernels: dict[str, Any] = {"kernels": False} if needless and not isinstance(case, FunctionCase) else {}
    try:
        answers = pool.ask_all(
            request(case, "hello"), threads=case.threads, device=case.device, pin=bool(cores_of(case)), **kernels
        )
    except WorkerError as error:
        side: Side = error.worker
        raise UserError(
            f"the {side}, {checkouts[side].name}, does not start: {error}",
            ExitCode.NOT_COMPARABLE if side == "base" else ExitCode.USAGE,
        ) from None
    for side in SIDES:
        answer, checkout = answers[side], checkouts[side]
        if (spoken := answer.get("protocol")) != PROTOCOL:
            knows = "no protocol of the gate" if spoken is None else f"protocol {spoken}, not {PROTOCOL}"
            raise UserError(
                f"the {side}, {checkout.name}, cannot be compared: its worker knows {knows}; choose a revision that"
                " does",
                ExitCode.NOT_COMPARABLE,
            )
        ours = Path(meprop_bench.__file__).parent
        wanted, found = ours if checkout.project else checkout.folder / PACKAGE, Path(answer["package"])
        if found.resolve() != wanted.resolve():
            raise UserError(
                f"the {side}, {checkout.name}, ran the package in {found} instead of its own: unset what puts it"
                " first on Python's path",
                ExitCode.NOT_COMPARABLE,
            )
        if checkout.project is not None:
            pool.ask(side, "enter_project", path=checkout.project.path, first=checkout.project.python is None)
    environment: Mapping[str, Any] = answers["head"]["environment"]
    return environment


def check_origins(pool: Pool[Side], checkouts: Mapping[Side, Checkout]) -> None:
    """Refuse a project whose modules are not its revision's (exit code 3); they have been imported."""
    for side, checkout in checkouts.items():
        if checkout.project is None:
            return
        answer = pool.ask(side, "origins", names=checkout.modules, below=str(checkout.project.source))
        for module, file in answer["origins"].items():
            if not checkout.owns(Path(file)):
                raise UserError(
                    f"the {side}, {checkout.name}, imports {module} from {one_line(file)}, which is not that"
                    " revision's, so base and head would be one code: name the folder that it is in as path, or the"
                    " command that installs it as build, in [tool.meprop-bench.gate]",
                    ExitCode.NOT_COMPARABLE,
                )


def borrowed(pool: Pool[Side], checkouts: Mapping[Side, Checkout]) -> dict[Side, str]:
    """Return a line for each side of a project whose modules are the gate's in part."""
    lines: dict[Side, str] = {}
    for side, checkout in checkouts.items():
        if checkout.project is not None and (names := pool.ask(side, "borrowed")["borrowed"]):
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            lines[side] = (
                f"the {side}'s environment has not all that is imported: {', '.join(names[:_SHOWN])}{more} are those of"
                " the gate's"
            )
    return lines
