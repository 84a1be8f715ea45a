"""How the dense side of each case of a run is run: chosen once for a dense work, by one process, for all of them.

A folder in which the same dense work was run in two ways would hold dense times of two programs. So cases that do the
same dense work, a sweep over k, say, take the same one, and a run that is resumed takes that of its stored rows.

A first `torch.compile` takes seconds or many minutes, and cannot be stopped but by ending its process. Where there is a
limit to it, the best of what needs no compiler is found first, so that it is known if the limit ends the search.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import TypeAlias

from meprop_bench.measure.notes import Note
from meprop_bench.measure.pool import Pool
from meprop_bench.measure.worker import WorkerOverdue
from meprop_bench.results.axes import AXES, DENSE_AXES
from meprop_bench.results.schema import Row
from meprop_bench.results.store import Store
from meprop_bench.sweep.unfinished import discard_unfinished
from meprop_bench.workloads.case import Case
from meprop_bench.workloads.dense_side import DenseSide, candidates, is_searched

__all__ = ["CHOOSING", "COMPILING", "UNCOMPILED", "DenseSides", "dense_work"]

CHOOSING, COMPILING = "choosing the dense side", "compiling the dense side"
"""What a run is at, while a dense side is chosen."""
UNCOMPILED = "uncompiled"
"""The kind of the note that says that there was too little time to compile one."""
_LEAST_S = 10.0
"""Seconds below which it is not tried: to load the compiler, and to compile a small model, takes about as many."""

_Work: TypeAlias = tuple[object, ...]


class DenseSides:
    """The dense sides that were chosen in a run.

    Args:
        store: of its rows.
        seconds: for each comparison of two candidates.
        rng: draws the seeds of their order.

    """

    def __init__(self, store: Store, seconds: float, rng: random.Random) -> None:
        self._store, self._seconds, self._rng = store, seconds, rng
        self.compile_s: Callable[[], float] = lambda: math.inf
        """Gives the seconds that compiling one may take from now on."""
        self._chosen: dict[_Work, tuple[DenseSide, Sequence[Note]]] = {}

    def of(
        self, case: Case, environment_id: str, pool: Pool[int], at: Callable[[str], object]
    ) -> tuple[DenseSide | None, Sequence[Note]]:
        """Return how the dense side of a case is run, and what could not be tried; None where the case says it.

        Args:
            case: about to be measured; its processes have said hello, and it is not set up yet.
            environment_id: of these processes.
            pool: the processes; one that compiles for too long is replaced.
            at: called with what begins, which takes seconds.

        Raises:
            WorkerError: the case cannot be set up.

        """
        if not is_searched(case):
            return None, ()
        work = environment_id, *dense_work(case)
        if work not in self._chosen:
            known = candidates(case)
            self._chosen[work] = (
                (known[0], ()) if len(known) == 1 else self._stored(work, known) or self._found(case, known, pool, at)
            )
        return self._chosen[work]

    def _found(
        self, case: Case, known: Sequence[DenseSide], pool: Pool[int], at: Callable[[str], object]
    ) -> tuple[DenseSide, Sequence[Note]]:
        """Have the first process find out which candidate is the fastest."""
        at(CHOOSING)
        unlimited = math.isinf(self.compile_s())
        eager = [each for each in known if not each.compiled]
        if unlimited or not eager or len(eager) == len(known):
            return self._asked(case, pool)
        best, notes = self._asked(case, pool, eager)
        limit_s = self.compile_s()
        if limit_s >= _LEAST_S:
            at(COMPILING)
            try:
                return self._asked(case, pool, [best, *(each for each in known if each.compiled)], limit_s)
            except WorkerOverdue:
                discard_unfinished()
                pool.replace(0)
        return best, [*notes, Note.of(UNCOMPILED, seconds=limit_s)]

    def _asked(
        self, case: Case, pool: Pool[int], among: Sequence[DenseSide] = (), limit_s: float | None = None
    ) -> tuple[DenseSide, Sequence[Note]]:
        wanted = {"among": [each.to_json() for each in among]} if among else {}
        seed = self._rng.getrandbits(32)
        answer = pool.ask(
            0, "baseline", timeout=limit_s, case=case.to_json(), seconds=self._seconds, seed=seed, **wanted
        )
        return DenseSide.from_json(answer["baseline"]), [*map(Note, answer["notes"])]

    def _stored(self, work: _Work, known: Sequence[DenseSide]) -> tuple[DenseSide, Sequence[Note]] | None:
        names = {str(candidate): candidate for candidate in known}
        for row in self._store.rows():
            if row.baseline_chosen in names and (row.environment_id, *dense_work(row)) == work:
                return names[row.baseline_chosen], [note for note in row.notes if note.kind == UNCOMPILED]
        return None


def dense_work(one: Case | Row) -> _Work:
    """Return what says which dense work is done; whether the method's side is compiled does not."""
    axes = (axis for axis in AXES.values() if axis.field in DENSE_AXES and axis.field != "compile")
    return tuple(None if axis.nullable and not axis.of(one.workload) else getattr(one, axis.field) for axis in axes)
