"""What goes wrong with a case in two revisions, and what that means: a line among the figures, at no other case's cost.

    base         head
    can          cannot (it raises, its check fails, it dies)    failed
    can          has none                                        gone, which is inconclusive
    has none     can                                             new, which decides nothing
    has none     cannot                                          failed
    cannot       can, or cannot either                           not comparable
    has none     has none                                        wrong usage: the settings name something else

A process that dies takes its round of the case along, and the others go on with a fresh pair; the second time, the case
is given up. An older revision of this package has no case that it refuses; a project has none that is not there.
"""

from __future__ import annotations

from collections.abc import Mapping

from meprop_bench.errors import UserError
from meprop_bench.gate.case_records import CaseRecords, Side
from meprop_bench.gate.processes import request
from meprop_bench.gate.targets import Measurable
from meprop_bench.measure.pool import Pool
from meprop_bench.measure.worker import WorkerAbsent, WorkerDied, WorkerError, WorkerRefused

__all__ = ["settle"]

_MOST = 2
"""Processes that die of a case before it is given up."""


def settle(known: CaseRecords, error: WorkerError, pool: Pool[Side], *, project: bool, warm_s: float) -> None:
    """Decide what the error of one side means for a case.

    Of a `project` the other side is asked as well: it may not have been yet, or have failed, too.

    Raises:
        UserError: neither has what was named.

    """
    errors: dict[Side, WorkerError] = {error.worker: error}
    if project:
        side: Side = "head" if error.worker == "base" else "base"
        errors |= {side: other} if (other := _cannot(side, known.case, pool, warm_s)) else {}
    _decide(known, errors, WorkerAbsent if project else WorkerRefused)


def _cannot(side: Side, case: Measurable, pool: Pool[Side], warm_s: float) -> WorkerError | None:
    """Return why a side cannot do a case; None where it can."""
    try:
        pool.ask(side, request(case, "setup"), case=case.changed())
        pool.ask(side, request(case, "check"), warm_s=warm_s)
    except WorkerError as error:
        return error
    return None


def _decide(known: CaseRecords, errors: Mapping[Side, WorkerError], none: type[WorkerError]) -> None:
    """Note what the errors of one side, or of both, mean; `none` is that of a base that has no such case."""
    for side, error in errors.items():
        if isinstance(error, WorkerDied):
            known.faults[side].append(error.reason)
            if len(known.faults[side]) < _MOST:
                return
    base, head = errors.get("base"), errors.get("head")
    if base is None:
        gone = isinstance(head, WorkerAbsent)
        known.gone, known.failure = (str(head), "") if gone else ("", str(head))
    elif head is None:
        known.new = isinstance(base, none)
        known.missing = str(base) if known.new else f"the base cannot do it: {base}"
    elif isinstance(base, none) and isinstance(head, WorkerAbsent):
        raise UserError(f"[tool.meprop-bench.gate] names what neither revision has: {head}")
    elif isinstance(base, none):
        known.failure = f"new, and it fails: {head}"
    else:
        known.missing = f"neither can do it: the base: {base}; the head: {head}"
