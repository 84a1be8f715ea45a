"""A search as it is asked for: by `meprop-bench tune`, by `meprop-bench parity --budgets`, and in Python.

request = TuneRequest(Recipe("mnist", schedule="cosine"), margin=0.5)
result = request.run(store, seconds_of("20m"))
print(result.sentence)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from meprop_bench.durations import duration
from meprop_bench.errors import ExitCode, UserError
from meprop_bench.optimizers import OPTIMIZERS
from meprop_bench.results.axes import default_threads
from meprop_bench.results.shards import Shard, ShardOf
from meprop_bench.results.store import Store
from meprop_bench.stats import LEVEL, median
from meprop_bench.sweep.runner import SweepProgress
from meprop_bench.tasks import editions
from meprop_bench.tasks.build import is_model, source_of
from meprop_bench.tasks.recipe import Recipe, by_layer
from meprop_bench.tuning.arms import LADDER, METHODS_TRIED, Arm, arms_of
from meprop_bench.tuning.budget import Budget
from meprop_bench.tuning.curve import Curve, time_to_quality
from meprop_bench.tuning.journal import Job, Journal
from meprop_bench.tuning.processes import Processes
from meprop_bench.tuning.search import Answer, Search
from meprop_bench.tuning.session import Question, Session
from meprop_bench.tuning.shards import (
    FOUND,
    ShardFindings,
    level_of,
    own_arms,
    own_seeds,
    part_of_curve,
    part_of_search,
    units_of,
)

__all__ = ["Result", "TuneRequest", "Watcher", "folder_name"]

_FOR_REAL = 0.8
"""Share of the budget that the search has where a run by the real clock follows it."""
_ALONE_S = 20.0
"""Seconds of two trainings by the real clock besides their steps: a process is started for each."""
_REAL_RUNS = 3
"""Such pairs of trainings at most, as far as the budget goes."""
_RESERVE_S, _RESERVE = 5.0, 0.05
"""Seconds, and share of the budget, that imports, the end of the processes and the report have at most."""
_CURVE_SEEDS = 5
_CURVE_KS = (1 / 4, 1 / 16)
"""Ratios whose curve is drawn if nothing is said: each one more is as many trainings for each budget."""


@dataclass(frozen=True)
class Watcher:
    """What is called while a search runs."""

    line: Callable[[str], None] = lambda _: None  # with what happened, in a line
    timing: Callable[[SweepProgress], None] = lambda _: None  # with where the timing of steps is
    idle: Callable[[], object] = lambda: None  # now and then while trainings run


@dataclass(frozen=True)
class TuneRequest:
    """What to tune, and how; `UserError` for a value that is not allowed."""

    recipe: Recipe  # dense
    margin: float | None = None  # that may be lost; None for half a point, or half a percent of dense's figure
    methods: tuple[str, ...] = ()  # the usual ones if none is named; likewise what follows
    ks: tuple[int | float, ...] = ()
    gradients: tuple[str, ...] = ()
    kernel: str = "auto"
    leave: tuple[str, ...] = ()  # layers that every arm leaves dense
    k_by_layer: str | None = None  # k of some layers in every arm: see `tasks.recipe.by_layer`
    steps: int | None = None  # of a training; None for as many as fit
    seeds: int | None = None
    threads: int | None = None  # of a step that is timed
    processes: int | None = None  # trainings side by side
    budgets: tuple[float, ...] = ()  # seconds in which qualities are compared; none to search
    real_clock: bool = False
    part: ShardOf | None = None  # whose arms, or seeds, alone are tried here, where others try the rest

    def __post_init__(self) -> None:
        if self.recipe != self.recipe.dense():
            raise UserError("the training to tune is dense: method, k and what goes with them are searched")
        for name in ("threads", "processes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        self.arms(rows=True)

    def to_json(self) -> dict[str, Any]:
        """Return the plan that a results folder keeps: what the answer depends on."""
        return {
            "name": "tune",
            "recipe": self.recipe.to_json(),
            "source": source_of(self.recipe.task) if is_model(self.recipe.task) else None,
            "margin": self.margin,
            "arms": {"methods": self.methods, "k": self.ks, "gradients": self.gradients, "kernel": self.kernel,
                     "leave": self.leave, **({"k_by_layer": self.k_by_layer} if self.k_by_layer else {})},
            "steps": self.steps,
            "seeds": self.seeds,
            "threads": self.threads,
            "budgets": self.budgets,
            **editions(self.recipe.task),
        }  # fmt: skip

    @classmethod
    def from_json(cls, plan: Mapping[str, Any]) -> Self:
        """Return what the plan of a results folder asks for; KeyError or TypeError for one that is none."""
        arms = plan["arms"]
        return cls(
            Recipe(**plan["recipe"]),
            plan["margin"],
            methods=tuple(arms["methods"]),
            ks=tuple(arms["k"]),
            gradients=tuple(arms["gradients"]),
            kernel=arms["kernel"],
            leave=tuple(arms["leave"]),
            k_by_layer=arms.get("k_by_layer"),
            steps=plan["steps"],
            seeds=plan["seeds"],
            threads=plan["threads"],
            budgets=tuple(plan["budgets"]),
        )

    def sharded(self, shard: Shard) -> Self:
        """Return what a shard does of it.

        Raises:
            UserError: there is less to share than there are shards, and nothing for this one (exit code 5).

        """
        if self.real_clock:
            raise UserError("--real-clock runs what is taken, which no shard knows: leave it out")
        if self.budgets:
            units = tuple((str(seed), f"seed {seed}") for seed in range(1, self.curve_seeds + 1))
        else:
            units = units_of(self.arms(rows=False))
        part = ShardOf(shard, self.to_json(), units)
        part.checked_own("seed" if self.budgets else "arm")
        return replace(self, part=part)

    @property
    def curve_seeds(self) -> int:
        """How many seeds a curve has."""
        return self.seeds or _CURVE_SEEDS

    def arms(self, *, rows: bool) -> list[Arm]:
        """Return the arms to begin with; `rows` says whether the optimizer takes gradients as rows."""
        gradients = self.gradients or (("dense", "rows") if rows else ("dense",))
        ks = self.ks or (_CURVE_KS if self.budgets else LADDER)
        methods = self.methods or (METHODS_TRIED[:1] if self.budgets else METHODS_TRIED)
        fixed: dict[str, Any] = {"left": self.leave, "ks": tuple(by_layer(self.k_by_layer).items())}
        return [replace(arm, **fixed) for arm in arms_of(methods, ks, gradients, kernel=self.kernel)]

    def run(self, store: Store, seconds: float, watcher: Watcher | None = None) -> Result:
        """Search, or draw the curve, within so many seconds, those of earlier runs in this folder among them.

        Raises:
            UserError: the model cannot be trained, nothing can be measured, or the seconds are spent.

        """
        if "merged" in store.header:
            raise UserError(
                f"{store.folder.name} was merged from shards: go on with these (--shard I/N --resume) and merge them"
                " again, or search anew without --resume"
            )
        watcher = watcher or Watcher()
        journal = Journal(store.folder)
        left = seconds - journal.spent_s
        if left <= 0:
            raise UserError(
                f"the budget of {duration(seconds)} is spent in {store.folder}: go on with a larger --budget and"
                " --resume, or search anew without --resume"
            )
        whole = Budget(left - min(_RESERVE_S, _RESERVE * seconds))
        budget = whole.part(_FOR_REAL) if self.real_clock else whole
        machine = Processes(
            self.recipe,
            store,
            budget,
            threads=self.threads,
            processes=self.processes,
            showing=watcher.timing,
            say=watcher.line,
            idle=watcher.idle,
        )
        with machine:
            session = Session(machine, journal, budget, watcher.line)
            try:
                known, arms = self._examined(machine, journal)
                metric = str(known["metric"])
                percent = bool(known["percent"])
                answer = None if self.budgets else self._search(session, arms, metric, percent)
                curve = self._curve(session, arms, metric, percent) if self.budgets else None
                real = self._by_real_clock(machine, answer, whole) if self.real_clock and answer else None
            finally:
                session.save()
        result = Result(self, store, metric, answer, curve, real)
        store.write_answer(result.sentence)
        return result

    def _search(self, session: Session, arms: list[Arm], metric: str, percent: bool) -> Answer:
        question = Question(
            tuple(arms if self.part is None else own_arms(self.part, arms)),
            self.margin,
            metric,
            percent,
            self.steps,
            self.seeds,
            schedules=self.k_by_layer is None,
            variants=not (self.leave or self.k_by_layer),
            level=LEVEL if self.part is None else level_of(self.part),
        )
        search = Search(session, question)
        if self.part is None:
            return search.run()
        session.journal.settled.pop(FOUND, None)  # until this search has come to its end
        session.journal.save()
        answer = search.found()
        if answer.clock is not None or all(each.standing == "failed" for each in answer.findings):
            session.journal.settle(**{FOUND: ShardFindings.of(answer).to_json()})
        return part_of_search(search.timed(answer), self.part)

    def _curve(self, session: Session, arms: list[Arm], metric: str, percent: bool) -> Curve:
        only = () if self.part is None else own_seeds(self.part)
        known: dict[str, Any] = {"seeds": self.curve_seeds, "only": only, "metric": metric, "percent": percent}
        curve = time_to_quality(session, arms, self.budgets, **known)
        return curve if self.part is None else part_of_curve(curve, self.part)

    def _examined(self, machine: Processes, journal: Journal) -> tuple[dict[str, Any], list[Arm]]:
        """Return what is known of the metric, and the arms, as the optimizer allows them."""
        known = journal.settled.get("task")
        if known is None:
            found = machine.examine()
            named = OPTIMIZERS.get(self.recipe.optimizer)
            rows = found["rows"] if named is None else named.rows and any(
                converted and kind == "Linear" for _, _, converted, kind, *_ in found["layers"]
            )  # fmt: skip
            known = {"metric": found["metric"], "percent": found["percent"], "rows": rows, "notes": found["notes"]}
            journal.settle(task=known)
        if "rows" in self.gradients and not known["rows"]:
            raise UserError("the optimizer takes no gradient as rows: leave --gradient out, or take sgd or adagrad")
        return known, self.arms(rows=bool(known["rows"]))

    def _by_real_clock(self, machine: Processes, answer: Answer, budget: Budget) -> str:
        """Train what is to be taken, and dense with the same seconds, by the real clock; return what it says."""
        arm, plan, clock = answer.decision.arm, answer.plan, answer.clock
        if arm is None or plan is None or clock is None:
            return "By the real clock: not run, as there is no arm to take."
        found = next(each for each in answer.findings if each.arm == arm)
        assert found.timing is not None
        assert found.dense_steps is not None
        if found.timing.compiled:
            return "By the real clock: not run, since trainings are eager, and in virtual time dense is compiled."
        needed_s = 2.5 * clock.seconds(plan.steps, found.timing.speedup.estimate) + _ALONE_S
        if not budget.allows(needed_s):
            takes, left = duration(needed_s), duration(budget.left_s)
            return f"By the real clock: not run, as it takes about {takes} and the budget had {left} left."
        jobs = (Job(arm, plan.seeds[0], plan.steps), Job(None, plan.seeds[0], found.dense_steps))
        took, round_s = list[list[float]](), 0.0
        while len(took) < _REAL_RUNS and budget.allows(round_s):  # of seconds, one may be disturbed throughout
            left_s = budget.left_s
            try:
                took.append([machine.alone(job, budget) for job in jobs])
            except UserError as error:
                if took:
                    break
                return f"By the real clock: not run, {error}."
            round_s = left_s - budget.left_s
        sparse_s, dense_s = map(median, zip(*took, strict=True))
        ratios = sorted(sparse / dense for sparse, dense in took)
        runs = f" (median of {len(took)} in turn, {ratios[0]:.2f} to {ratios[-1]:.2f})" if len(took) > 1 else ""
        return (
            f"By the real clock {plan.steps:,} steps of it took {duration(sparse_s)}, {found.dense_steps:,} dense ones "
            f"{duration(dense_s)}: {median(ratios):.2f} of the time{runs}, where virtual time says 1."
        )


@dataclass(frozen=True)
class Result:
    """What came of it: either the answer of a search, or a curve."""

    request: TuneRequest
    store: Store
    metric: str
    answer: Answer | None
    curve: Curve | None
    real: str | None = None  # what a run by the real clock said

    @property
    def sentence(self) -> str:
        """The answer in words."""
        found = self.answer.decision.sentence if self.answer else self.curve.sentence if self.curve else ""
        return f"{found} {self.real}" if self.real else found

    @property
    def code(self) -> ExitCode:
        """The exit code that says it."""
        if self.curve is not None:
            return self.curve.code
        assert self.answer is not None
        return self.answer.decision.code

    @property
    def threads(self) -> int:
        """Of a step that was timed."""
        return self.request.threads or default_threads()

    @property
    def folder(self) -> Path:
        """Where everything is."""
        return self.store.folder

    def __str__(self) -> str:
        return self.sentence


def folder_name(request: TuneRequest) -> str:
    """Return what its results folders are called, besides the date and the machine."""
    task = re.sub(r"[^A-Za-z0-9.]+", "-", Path(request.recipe.task).name).strip("-")
    return f"tune-{'curve-' if request.budgets else ''}{task}"
