"""How the dense side of each case of a run is run: chosen once for a dense work, by one process, for all of them.

A folder in which the same dense work was run in two ways would hold dense times of two programs. So cases that do the
same dense work, a sweep over k, say, take the same one, and a run that is resumed takes that of its stored rows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeAlias

from meprop_bench.measure.pool import Pool
from meprop_bench.results.axes import AXES, DENSE_AXES
from meprop_bench.results.schema import Row
from meprop_bench.results.store import Store
from meprop_bench.workloads.case import Case
from meprop_bench.workloads.dense_side import DenseSide, candidates, is_searched

__all__ = ["DenseSides", "dense_work"]

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
        self._chosen: dict[_Work, tuple[DenseSide, Sequence[str]]] = {}

    def of(
        self, case: Case, environment_id: str, pool: Pool[int], starting: Callable[[], object]
    ) -> tuple[DenseSide | None, Sequence[str]]:
        """Return how the dense side of a case is run, and what could not be tried; None where the case says it.

        Args:
            case: about to be measured; its processes have said hello, and it is not set up yet.
            environment_id: of these processes.
            pool: the processes.
            starting: called before a search, which takes seconds.

        Raises:
            WorkerError: the case cannot be set up.

        """
        if not is_searched(case):
            return None, ()
        work = environment_id, *dense_work(case)
        if work not in self._chosen:
            known = candidates(case)
            if found := known[0] if len(known) == 1 else self._stored(work, known):
                self._chosen[work] = found, ()
            else:
                starting()
                seed = self._rng.getrandbits(32)
                answer = pool.ask(0, "baseline", case=case.to_json(), seconds=self._seconds, seed=seed)
                self._chosen[work] = DenseSide.from_json(answer["baseline"]), tuple(answer["notes"])
        return self._chosen[work]

    def _stored(self, work: _Work, known: Sequence[DenseSide]) -> DenseSide | None:
        names = {str(candidate): candidate for candidate in known}
        for row in self._store.rows():
            if row.baseline_chosen in names and (row.environment_id, *dense_work(row)) == work:
                return names[row.baseline_chosen]
        return None


def dense_work(one: Case | Row) -> _Work:
    """Return what says which dense work is done; whether the method's side is compiled does not."""
    axes = (axis for axis in AXES.values() if axis.field in DENSE_AXES and axis.field != "compile")
    return tuple(None if axis.nullable and not axis.of(one.workload) else getattr(one, axis.field) for axis in axes)
