"""The machine of a search: fresh processes that time steps (`sweep.runner`) and train (`sweep.trainers`).

Steps are timed as `speedup --workload model` times them, in the same results folder, by interleaved pairs, each arm
after its check; trainings run side by side, each on one thread, from checkpoints that a kill leaves behind.

Every process is ended with the budget that it works for, whatever it is at, and what takes long is said meanwhile.
Compiling the dense side has a share of its own: where it takes longer, the dense side is the fastest of the others.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.measure.lock import DeviceLock, device_lock, waiting_for
from meprop_bench.measure.pool import Pool
from meprop_bench.measure.worker import WorkerError, WorkerLike
from meprop_bench.results.axes import OWN, default_allocator, default_threads
from meprop_bench.results.schema import PASSED, Row
from meprop_bench.results.store import Store
from meprop_bench.stats import Interval, too_wide
from meprop_bench.sweep.deadline import Deadline
from meprop_bench.sweep.dense_sides import UNCOMPILED, DenseSides
from meprop_bench.sweep.models import check_recipes
from meprop_bench.sweep.plan import Plan
from meprop_bench.sweep.runner import Runner, SweepProgress
from meprop_bench.sweep.trainers import Trainers, TrainingJob
from meprop_bench.sweep.unfinished import discard_unfinished
from meprop_bench.sweep.waiting import Waiting
from meprop_bench.sweep.worker import start_for, start_trainer
from meprop_bench.tasks.build import is_model
from meprop_bench.tasks.recipe import Recipe, by_layer_text
from meprop_bench.tuning.arms import Arm, Layer
from meprop_bench.tuning.budget import Bounded, Budget, Over
from meprop_bench.tuning.journal import Job, Trained
from meprop_bench.tuning.outlook import BATCHES, EXAMINING, TIMES, TIMES_LATE, WAITING, too_short
from meprop_bench.tuning.timing import Costs, Timing
from meprop_bench.workloads.case import Case
from meprop_bench.workloads.dense_side import candidates

__all__ = ["Processes", "case_of", "options_text"]

_TARGET = 0.03
"""Half-width at which a step's ratio is narrow enough to choose by."""
_CASE_S = (3.0, 20.0)
"""Seconds of timing of an arm, at least and at most."""
_MANY, _FEW, _SHORT_S = 5, 3, 60.0
"""Processes that time a step, and fewer where all timings have less than a minute: starting one takes seconds."""
_BESIDES_S = 2.0
"""Seconds of a case that are no timing: it is set up and checked."""
_WARM_STEPS = 20
"""Steps of a training that goes before one by the real clock."""
_CHOICE_S = 0.5
"""Seconds for each comparison of two dense sides."""
_COMPILING = 0.5
"""Share of the time for timings that compiling the dense side may take: as much again goes to compile it in each
process, for each arm."""
_WORKING_SILENT_S = 30.0
"""Seconds of a measurement, or a training, after which that is said: each has a line when it is done."""


def case_of(arm: Arm, recipe: Recipe, threads: int, device: str) -> Case:
    """Return the case that times an arm's step, against dense on the strongest footing."""
    return Case(
        workload=OWN,
        model=recipe.task,
        options=options_text(recipe),
        method=arm.method,
        k=arm.k,
        gradient=arm.gradient,
        kernel=arm.kernel,
        leave=";".join(arm.left) or None,
        k_by_layer=by_layer_text(arm.ks),
        optimizer=recipe.optimizer,
        device=device,
        threads=threads,
        baseline="best",
        compile="on" if arm.compiled else "off",
    )


def options_text(recipe: Recipe) -> str | None:
    """Return a recipe's options of its task as the axis of that name has them; None where there are none."""
    chosen = {name: value for name, value in recipe.options.items() if name != "device" and value is not None}
    return ";".join(f"{name}={value}" for name, value in chosen.items()) or None


class Processes:
    """Measures and trains for a search; use it by `with`.

    Args:
        recipe: the dense training.
        store: the results folder.
        budget: all that the search has: at its end trainings are ended, too, and go on another time.
        threads: of a timed step.
        processes: trainings that run side by side, each on one thread.
        showing: called with what a run of timings reports.
        say: called with what it waits for, in a line.
        idle: called now and then while trainings run.
        start: starts a process that trains.
        now: the clock, in seconds.

    """

    def __init__(
        self,
        recipe: Recipe,
        store: Store,
        budget: Budget,
        *,
        threads: int | None = None,
        processes: int | None = None,
        showing: Callable[[SweepProgress], None] = lambda _: None,
        say: Callable[[str], None] = lambda _: None,
        idle: Callable[[], object] = lambda: None,
        start: Callable[[], WorkerLike] = start_trainer,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._recipe, self._store, self._budget = recipe, store, budget
        self._showing, self._say, self._idle, self._start, self._now = showing, say, idle, start, now
        self._device = recipe.device
        self._threads = threads or default_threads()
        self.processes = processes or (default_threads() if self._device == "cpu" else 1)
        self._pool: Trainers | None = None
        self._examined: Mapping[str, Any] | None = None
        self._waiting = Waiting(say)
        self._dense_sides = DenseSides(store, _CHOICE_S, random.Random(0))
        self._dense_sides.compile_s = lambda: _COMPILING * self._timing.left_s
        self._timing = budget  # of the timings in hand
        self._starting_s = 0.0  # that the processes of the last timings took to start

    @property
    def stages(self) -> Mapping[str, float]:
        """What has been waited for -> its seconds."""
        return self._waiting.spent

    def __enter__(self) -> Processes:
        self._waiting.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._waiting.__exit__()

    def close(self) -> None:
        """End the processes that train."""
        if self._pool is not None:
            pool, self._pool = self._pool, None
            pool.close()

    def examine(self) -> Mapping[str, Any]:
        """Return what a training is besides its steps: see `tuning.requests`.

        `UserError`: what is wrong with the model, in one line; or that the budget is too short for this.
        """
        if self._examined is None:
            try:
                self._examined = self._examine(self._recipe.dense())
            except Over:
                self._waiting.on("")
                raise UserError(too_short(self.stages), ExitCode.NOTHING_MEASURED) from None
            finally:
                self._waiting.on("")
        return self._examined

    def _examine(self, dense: Recipe) -> Mapping[str, Any]:
        bounded = partial(Bounded, budget=self._budget)
        if is_model(dense.task):
            self._waiting.on(EXAMINING)
            ways = [dense, replace(dense, method="meprop", k=0.5)]
            needs: dict[str, Any] = {"evaluates": True, "differs": True, "say": lambda _: None, "bounded": bounded}
            check_recipes(ways, threads=self._threads, allocator=default_allocator(), **needs)
        with self._alone(self._budget), Pool.of(lambda: bounded(self._start()), 1) as pool:
            self._waiting.on(BATCHES)
            pool.hello(threads=self._threads, device=self._device, kernels=False)
            try:
                return pool.ask(0, "costs", recipe=dense.to_json())
            except WorkerError as error:
                raise UserError(f"nothing can be tuned: {error.sentence('a measuring process')}") from None

    def costs(self) -> Costs:
        """Measure what a training takes besides its steps, and list the layers."""
        found, recipe = self.examine(), self._recipe
        per_epoch = int(found["per_epoch"])
        return Costs(
            batch_s=found["batch_s"],
            evaluation_s=found["evaluation_s"] * recipe.evaluations,
            per_epoch=per_epoch,
            whole=recipe.epochs * per_epoch if recipe.steps is None else recipe.steps,
            layers=tuple(Layer(*layer) for layer in found["layers"]),
            step_s=found["step_s"],
        )

    def measure(self, arms: Sequence[Arm], budget: Budget) -> Mapping[Arm, Timing]:
        """Time the steps of arms; what the budget leaves no time for is missing.

        What is stored is not timed again, unless it was too uncertain to say anything.
        """
        cases: dict[Arm, Case] = {}
        found: dict[Arm, Timing] = {}
        for arm in arms:
            try:
                cases[arm] = case_of(arm, self._recipe, self._threads, self._device)
            except UserError as error:
                found[arm] = Timing.without(str(error))
        stored = self._timings(cases)
        unsure = [cases[arm] for arm, known in stored.items() if known.unsure]
        todo = [*(case for arm, case in cases.items() if arm not in stored), *unsure]
        if todo and budget.allows(self._starting_s):
            self._time(todo, {case.case_id for case in unsure}, budget)
        return found | self._timings(cases)

    def _time(self, cases: Sequence[Case], unsure: set[str], budget: Budget) -> None:
        """Measure cases into the store, as many as the budget allows."""
        left_s = budget.left_s if math.isfinite(budget.left_s) else None
        short = left_s is not None and left_s < _SHORT_S and len(unsure) < len(cases)
        seconds = min(_CASE_S[1], max(_CASE_S[0], budget.left_s / (2 * len(cases))))
        plan = Plan(
            name="tune",
            cases=tuple(cases),
            checks=("gradients",),
            target=_TARGET,
            budget=seconds,
            processes=_FEW if short else _MANY,
            keep_processes=True,
            utilization=False,
        )
        self.close()  # nothing else may run beside what is timed
        self._timing, before_s = budget, self.stages.get("starting", 0.0)
        first = not any(row.phase == "step" for row in self._store.rows())
        # The deadline says when the last one begins, by how long they usually take; what takes longer may end later.
        later = self._budget.until(budget.left_s + 2 * (seconds + _BESIDES_S))
        until = self._budget.part(TIMES + (1 - TIMES) * TIMES_LATE) if first else later
        try:
            Runner(
                plan,
                self._store,
                start=lambda case: Bounded(start_for(case), until),
                progress=self._report,
                lock=self._lock(budget),
                deadline=Deadline(left_s, usual_s=seconds + _BESIDES_S),
                dense_sides=self._dense_sides,
                again=unsure,
            ).run()
            self._starting_s = self.stages.get("starting", 0.0) - before_s
        except Over:  # what is not done is missing
            discard_unfinished()
        self._waiting.on("")

    def _report(self, progress: SweepProgress) -> None:
        self._showing(progress)
        silent_s = _WORKING_SILENT_S if progress.stage == "measuring" else None
        stage = WAITING if progress.waits else "" if progress.stage == "done" else progress.stage
        self._waiting.on(stage, of=progress.case.label, silent_s=silent_s)
        if not self._budget.allows():
            raise Over

    def _lock(self, budget: Budget) -> DeviceLock:
        """Return what waits for a device as long as the budget lasts."""

        def sleep(seconds: float) -> None:
            if not budget.allows():
                raise Over
            time.sleep(seconds)

        return partial(device_lock, sleep=sleep)

    def _waits(self, holder: int | None) -> None:
        self._say(f"{waiting_for(holder)}, which measures on {self._device}")
        self._waiting.on(WAITING)

    @contextmanager
    def _alone(self, budget: Budget) -> Iterator[None]:
        """Hold the device; `UserError` if others measure on it until the budget ends."""
        with ExitStack() as stack:
            try:
                stack.enter_context(self._lock(budget)(self._device, self._waits))
            except Over:
                others = "other runs measured on the device until the budget ended: try again, or give more"
                raise UserError(others, ExitCode.NOTHING_MEASURED) from None
            yield

    def _timings(self, cases: Mapping[Arm, Case]) -> dict[Arm, Timing]:
        """Return what is stored of the steps of arms."""
        rows: dict[str, list[Row]] = {}
        for row in self._store.rows():
            rows.setdefault(row.case_id, []).append(row)
        return {arm: _timing(case, rows[case.case_id]) for arm, case in cases.items() if case.case_id in rows}

    def train(self, jobs: Iterator[Job], budget: Budget) -> Iterator[tuple[Job, Trained]]:
        """Train side by side; at the end of all time what is in hand is left at its checkpoint."""
        first = next(jobs, None)
        if first is None:
            return
        begun: dict[Job, float] = {}

        def training(job: Job) -> TrainingJob:
            begun[job] = self._now()
            self._waiting.on("in training", of=job.label, silent_s=_WORKING_SILENT_S)
            return self._training(job)

        def all_jobs() -> Iterator[Job]:
            yield first
            yield from jobs

        try:
            if self._pool is None:
                self._waiting.on("starting the processes that train")
                self._pool = self._trainers(self.processes, self._budget)
                hello = self._pool.hello
                self._store.write_environment({hello["environment_id"]: hello["environment"]})
            for job, answer in self._pool.share(all_jobs(), training, self._watch):
                seconds = self._now() - begun[job]
                self._training(job).forget(self._store)
                if isinstance(answer, WorkerError):
                    yield job, Trained(None, seconds, 0.0, answer.sentence("its process"))
                else:
                    yield job, Trained(float(answer["figure"]), seconds, float(answer["seconds"]))
        except Over:
            self.close()
        finally:
            self._waiting.on("")

    def _trainers(self, count: int, budget: Budget, threads: int = 1) -> Trainers:
        def start() -> Bounded:
            return Bounded(self._start(), budget)

        return Trainers(start, count, self._store, device=self._device, threads=threads)

    def _watch(self) -> None:
        self._idle()
        if not self._budget.allows():
            raise Over

    def _training(self, job: Job) -> TrainingJob:
        dense = replace(self._recipe.dense(), steps=job.steps)
        key = hashlib.sha256(f"{'dense' if job.arm is None else job.arm.key} {job.steps}".encode()).hexdigest()[:12]
        return TrainingJob(dense if job.arm is None else job.arm.recipe(dense), job.seed, key)

    def alone(self, job: Job, budget: Budget) -> float:
        """Return the real seconds of a training's steps and batches, on all threads, with nothing beside it.

        A short one goes before it in the same process: the first steps of all load and compile kernels, which is of no
        training's length. `UserError`: it fails, or the budget ends.
        """
        short = replace(job, steps=min(job.steps, _WARM_STEPS))
        trainings = [
            each._replace(name=f"{each.name}-{name}")
            for each, name in ((self._training(short), "warm"), (self._training(job), "alone"))
        ]
        self.close()
        try:
            with self._alone(budget), self._trainers(1, budget, self._threads) as trainers:
                self._waiting.on("by the real clock", of=job.label)
                *_, (_, answer) = trainers.share(iter(trainings), lambda wanted: wanted, lambda: None)
        except Over:
            raise UserError(f"the budget ended in training {job.label}") from None
        finally:
            for training in trainings:
                training.forget(self._store)
            self._waiting.on("")
        if isinstance(answer, WorkerError):
            raise UserError(f"training {job.label} failed: {answer.sentence('its process')}")
        return float(answer["seconds"])


def _timing(case: Case, rows: Sequence[Row]) -> Timing:
    """Return what the rows of an arm's case say of its step."""
    row = rows[-1]  # of one that is timed again, the latest
    step = next((each for each in rows if each.phase == "step"), None) if row.passed else None
    if step is None:
        return Timing.without(row.error or (row.check if row.check not in (None, PASSED) else None) or "not measured")
    if step.speedup is None or step.dense.median_s is None:
        return Timing.without("its step has no time")
    if too_wide(step.half_width):
        width = "" if step.half_width is None else f" (±{step.half_width:.0%})"
        return Timing.without(f"the time of its step is too uncertain{width}: measure on an idle machine", unsure=True)
    dense_side = next((each for each in candidates(case) if str(each) == step.baseline_chosen), None)
    return Timing(
        Interval.of(step.speedup, step.speedup_low, step.speedup_high),
        step.dense.median_s,
        case_id=step.case_id,
        baseline=step.baseline_chosen,
        compiled=dense_side is not None and dense_side.compiled,
        uncompiled_s=next((note.values["seconds"] for note in step.notes if note.kind == UNCOMPILED), None),
    )
