"""A training step, dense against sparsified, measured by the runner that `speedup` has.

A batch of processes is a run of one case: they check the gradients of every sparsified layer, and then take their pairs
(`sweep.runner`). What a model does wrong is one line, found in a process of its own before anything is timed.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from meprop_bench.errors import one_of
from meprop_bench.measure.environment import machine_slug
from meprop_bench.measure.notes import OTHER, Note
from meprop_bench.measure.paired import Measurement
from meprop_bench.measure.pool import Pool
from meprop_bench.measure.worker import WorkerError, WorkerLike
from meprop_bench.results.axes import AXES, OWN
from meprop_bench.results.schema import PASSED, Row
from meprop_bench.results.store import Store
from meprop_bench.sweep.dense_sides import DenseSides
from meprop_bench.sweep.feasible import check_feasible
from meprop_bench.sweep.plan import Plan
from meprop_bench.sweep.runner import Runner, SweepProgress
from meprop_bench.sweep.worker import start_for
from meprop_bench.tasks.recipe import by_layer_text
from meprop_bench.testing.claim import PROCESS_S, Evidence
from meprop_bench.testing.functions import FunctionError
from meprop_bench.workloads.case import Case

__all__ = ["TrainingTimes", "case_of"]

_TIMED_SHARE = 0.5
"""Of the seconds that the budget has for a process: the rest is for its start, the set-up and the check."""
_NEVER = 1e-9
"""A half-width that no interval has: the looks say when it is enough, and not the runner."""
_CHOICE_S = 1.0
"""Seconds for each comparison of two dense sides, where the best is asked for."""
_SIDES: dict[int, DenseSides] = {}
"""Seed -> the dense sides that were chosen in this process: batches, and claims, of one dense work have the same."""
_MEANWHILE = ("others", "steal", "quota", "heat", "swap", "amdahl", OTHER)
"""Kinds of a row's notes that say something of the whole; the others are about the pairs of one batch."""


def case_of(model: str, axes: Mapping[str, Any]) -> Case:
    """Return the case of a model, by its name or that of a task.

    Its dense side is the best that there is here, as for `speedup --model`, unless the axes say otherwise.

    Raises:
        UserError: an axis that there is not, or a value that is not allowed.

    """
    fields = {axis.field for axis in AXES.values()} - {"workload", "model"}
    for name in axes:
        one_of("axis", name, sorted(fields))
    (best,) = AXES["baseline"].swept(OWN)
    usual: dict[str, Any] = {} if axes.get("method") == "dense" else {"baseline": best}
    if isinstance(ks := axes.get("k_by_layer"), Mapping):
        usual["k_by_layer"] = by_layer_text(ks.items())
        axes = {name: value for name, value in axes.items() if name != "k_by_layer"}
    return Case(workload=OWN, model=model, **{**usual, **axes})


class TrainingTimes:
    """The evidence about a phase of a case, batch by batch of fresh processes; dense is the reference.

    Args:
        case: what is trained, and how.
        phase: "step", "forward", "backward" or "update".
        seed: of the order of processes and pairs.
        waiting: called with a line where another run measures on the device.
        start: starts a process for the case.

    """

    changed: tuple[str, ...] = ()

    def __init__(
        self,
        case: Case,
        phase: str,
        *,
        seed: int = 0,
        waiting: Callable[[str], object] = lambda _: None,
        start: Callable[[Case], WorkerLike] = start_for,
    ) -> None:
        self._case, self._phase, self._seed, self._waiting, self._start = case, phase, seed, waiting, start
        self._rows: list[Row] = []
        check_feasible([case])

    def once(self) -> None:
        """Check the case in a fresh process, and time nothing; raises `FunctionError` where it fails."""
        case = replace(self._case, baseline="same")  # nothing is timed, so that any dense side will do
        with Pool.of(lambda: self._start(case), 1) as pool:
            try:
                pool.hello(threads=case.threads, device=case.device)
                self._phase_of(pool.ask(0, "setup", case=case.to_json())["phases"])
                check = pool.ask(0, "check", warm_s=0.0)["check"]
            except WorkerError as error:
                raise FunctionError(error.sentence(f"the process that checks {case.label}")) from None
        if check != PASSED:
            raise FunctionError(f"wrong gradients: {check}")

    def take(self, processes: int) -> Evidence:
        """Measure in so many more processes; return all that there is. Raises `FunctionError` where it fails."""
        plan = Plan(
            name="paired",
            cases=(self._case,),
            checks=("gradients",),
            target=_NEVER,
            budget=_TIMED_SHARE * PROCESS_S * processes,
            processes=processes,
            utilization=False,
            seed=self._seed + len(self._rows),
        )
        with tempfile.TemporaryDirectory(prefix="meprop-bench-") as folder:
            created = Store.create(Path(folder), plan.name, machine_slug(), "pytest", plan.to_json())
            with created as store:
                sides = _SIDES.setdefault(self._seed, DenseSides(store, _CHOICE_S, random.Random(self._seed)))
                Runner(plan, store, start=self._start, progress=self._progress, dense_sides=sides).run()
                rows = store.rows()
        for row in rows:
            if not row.passed:
                raise FunctionError(row.error or f"wrong gradients: {row.check}")
        self._phase_of([row.phase for row in rows])
        self._rows += [row for row in rows if row.phase == self._phase]
        found = [row.measurement for row in self._rows if row.measurement is not None]
        return Evidence(_joined(found), self._seconds, self._notes)

    @property
    def _seconds(self) -> float:
        return sum(row.elapsed_s or 0.0 for row in self._rows)

    @property
    def _notes(self) -> tuple[Note, ...]:
        """The last of each text: what a model has sparsified is said by every batch."""
        notes = {note.text: note for row in self._rows for note in row.notes if note.kind in _MEANWHILE}
        latest = {note.kind if note.kind != OTHER else note.text: note for note in notes.values()}
        return tuple(latest.values())

    def _phase_of(self, phases: Any) -> None:
        one_of("phase", self._phase, list(phases))

    def _progress(self, progress: SweepProgress) -> None:
        if progress.waits:
            self._waiting(progress.stage)


def _joined(found: list[Measurement]) -> Measurement:
    """Return what several batches measured, as one."""
    marks = [one.disturbed for one in found]
    disturbed = None if any(mark is None for mark in marks) else tuple(run for mark in marks for run in mark or ())
    first = found[0]
    return replace(first, runs=tuple(run for one in found for run in one.runs), disturbed=disturbed,
                   loops=max(one.loops for one in found))  # fmt: skip
