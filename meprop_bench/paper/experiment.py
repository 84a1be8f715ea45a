"""An experiment: what has to be trained and timed to check one table at one scale.

    published row   method, k, h, p under its part's setting
      -> arm        one recipe to train, from as many seeds as the scale has; equal arms are trained once
      -> case       one case of the speed-up sweeps, timed in interleaved pairs; never a stopwatch around a training
    scale           smoke (embedded digits, a minute), short (real data, 8 minutes on two cores), full (as printed)

A part whose task does not exist here yet, or whose data are not on this machine, is left out with the reason. Whatever
a scale shrinks is said in words, beside the result. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from msgspec import Meta

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.optimizers import OPTIMIZERS
from meprop_bench.paper.arm import PaperArm
from meprop_bench.paper.published import COLUMNS, PublishedPart, PublishedRow, PublishedSetting, PublishedTable, table
from meprop_bench.paper.subjects import Scale, Subject, reading_of, scale_of, subject
from meprop_bench.results.incoming import Count, Name, Number, Ratio, checked, refused
from meprop_bench.sweep.plan import plan_axes
from meprop_bench.workloads.case import Case

__all__ = ["Experiment", "PaperArm", "check_runnable", "experiment", "experiment_of", "reasons"]


@dataclass(frozen=True)
class Experiment:
    """What one table takes at one scale."""

    table: PublishedTable
    scale: str
    seeds: tuple[int, ...]  # of each arm
    arms: Mapping[tuple[str, str], PaperArm]  # (part, row) -> what is trained for it
    cases: Mapping[tuple[str, str], Case]  # (part, row) -> what is timed for it
    counted: tuple[str, ...]  # parts whose data are counted
    skipped: tuple[tuple[str, str], ...]  # (part, reason): what is not run of it
    changes: tuple[tuple[str, str], ...]  # (part, words): what differs from the paper
    budget: float  # seconds of timing for a case
    processes: int  # fresh ones for a timed case
    training_s: float  # estimated seconds of all trainings on one thread
    set_up_s: float  # estimated seconds of a timed case besides its budget

    @property
    def runnable(self) -> bool:
        """Whether there is anything to run."""
        return bool(self.arms or self.cases or self.counted)

    @property
    def distinct_arms(self) -> tuple[PaperArm, ...]:
        """The arms, each once, in order."""
        return tuple({arm.arm_id: arm for arm in self.arms.values()}.values())

    @property
    def distinct_cases(self) -> tuple[Case, ...]:
        """The cases, each once, in order."""
        return tuple(dict.fromkeys(self.cases.values()))

    def estimate_s(self, workers: int) -> float:
        """Return the seconds that it will take with so many trainings at a time."""
        decodings = sum(arm.setting.method == "mesimp" for arm in self.distinct_arms)
        timing = (len(self.distinct_cases) + decodings) * (self.budget + self.set_up_s)
        return self.training_s / max(1, workers) + timing

    def to_json(self) -> dict[str, Any]:
        """Return what makes two runs the same run."""
        return {
            "table": self.table.table_id,
            "scale": self.scale,
            "seeds": list(self.seeds),
            "arms": [arm.to_json() for arm in self.distinct_arms],
            "cases": [case.to_json() for case in self.distinct_cases],
            "counted": list(self.counted),
            "skipped": [list(each) for each in self.skipped],
            "budget": self.budget,
            "processes": self.processes,
        }


def experiment(
    about: PublishedTable,
    scale: str = "short",
    *,
    seeds: int | None = None,
    device: str = "cpu",
) -> Experiment:
    """Return what has to be run of a table; `UserError` for an unknown scale, or fewer than one seed.

    `seeds` are in place of the scale's.
    """
    if seeds is not None and seeds < 1:
        raise UserError(f"--seeds must be at least 1, not {seeds}")
    return _drafted(_Draft(about, scale, {"device": device}), seeds)


@dataclass
class _Timed:
    """What is read of a timed case besides the case itself."""

    device: Name
    threads: Count
    allocator: Name
    k: Count | Ratio


@dataclass
class _StoredPlan:
    """What a results folder says of a table that was run."""

    table: str
    scale: str
    seeds: Annotated[tuple[Number, ...], Meta(min_length=1, max_length=10_000)]
    arms: tuple[PaperArm, ...]
    cases: tuple[_Timed, ...]
    counted: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]


def experiment_of(plan: Mapping[str, Any]) -> Experiment:
    """Return the experiment of a results folder from its plan, wherever it was run and whatever is here.

    What this version would train or time otherwise counts as not run; `UserError` if the plan is none of a table.
    """
    try:
        checked(plan, _StoredPlan)
    except ValueError as error:
        raise refused("the plan in environment.json is of no table", error, "restore it or run again") from None
    machine = {name: plan["cases"][0][name] for name in ("device", "threads", "allocator")} if plan["cases"] else {}
    timed = [Case.from_json(record) for record in plan["cases"]]
    draft = _Draft(table(plan["table"]), plan["scale"], machine, left_out=dict(plan["skipped"]), timed=timed)
    found = _drafted(draft, len(plan["seeds"]))
    arms = {PaperArm.from_json(record).arm_id for record in plan["arms"]}
    cases = {case.case_id for case in timed}
    return replace(
        found,
        seeds=tuple(dict.fromkeys(plan["seeds"])),
        arms={place: arm for place, arm in found.arms.items() if arm.arm_id in arms},
        cases={place: case for place, case in found.cases.items() if case.case_id in cases},
        counted=tuple(plan["counted"]),
        skipped=tuple((part, reason) for part, reason in plan["skipped"]),
    )


def _drafted(draft: _Draft, seeds: int | None) -> Experiment:
    for part in draft.table.parts:
        draft.add(part)
    # As far as the machine goes, the widest of the parts' scales serves all of them.
    widest = {
        name: max((getattr(found, name) for found in draft.scales), default=getattr(Scale(), name))
        for name in ("budget", "processes")
    }
    count = seeds or max((found.seeds for found in draft.scales), default=1)
    return Experiment(
        table=draft.table,
        scale=draft.scale,
        seeds=tuple(range(1, count + 1)),
        arms=draft.arms,
        cases=draft.cases,
        counted=tuple(draft.counted),
        skipped=tuple(draft.skipped),
        changes=tuple(dict.fromkeys(draft.changes)),
        **widest,
        training_s=count * sum(draft.arm_s.values()),
        set_up_s=max((found.set_up_s for found in draft.scales), default=0.0),
    )


@dataclass
class _Draft:
    """An experiment in the making; of a run that was made: what was left out, and why, and what was timed."""

    table: PublishedTable
    scale: str
    machine: Mapping[str, Any]
    left_out: Mapping[str, str] | None = None
    timed: Sequence[Case] | None = None
    arms: dict[tuple[str, str], PaperArm] = field(default_factory=dict)
    cases: dict[tuple[str, str], Case] = field(default_factory=dict)
    counted: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    changes: list[tuple[str, str]] = field(default_factory=list)
    scales: list[Scale] = field(default_factory=list)
    arm_s: dict[str, float] = field(default_factory=dict)
    """Seconds that one seed of an arm takes."""

    def add(self, part: PublishedPart) -> None:
        """Add what can be run of a part."""
        about, scale = subject(part.task), scale_of(self.table.table_id, part.task, self.scale)
        sources = {COLUMNS[column].source for row in part.rows for column in row.figures}
        # Curves have no printed figures: what is claimed of them says that they must be trained.
        claimed = {claim for row in part.rows for claim in row.claims}
        trains = "training" in sources or bool(claimed & {"at-least", "better", "smaller-update"})
        added = False
        if "timing" in sources:
            added |= self._time(part, about, scale)
        if trains and about.task is not None:
            if reason := self._reason_not_trained(part, about, scale):
                self.skipped.append((part.name, reason))
            else:
                added |= self._train(part, about, scale)
        if "data" in sources:
            reason = about.reason_not_counted(self.scale) if self.left_out is None else self.left_out.get(part.name)
            if reason:
                self.skipped.append((part.name, reason))
            else:
                self.counted.append(part.name)
                added = True
        if added:
            self.scales.append(scale)

    def _reason_not_trained(self, part: PublishedPart, about: Subject, scale: Scale) -> str | None:
        if self.left_out is not None:
            return self.left_out.get(part.name)
        if reason := about.reason_not_trained(self.scale):
            return reason
        if scale.epochs is None:
            return f"experiments.toml has no {self.scale} scale for trainings of {part.task} yet"
        settings = [row.setting for row in part.rows]
        if not about.dropout and any(setting.dropout for setting in settings):
            return f"the task {part.task} has no dropout yet"
        if any(setting.learning_rate not in (None, about.rate(setting.optimizer)) for setting in settings):
            return f"the learning rate of the task {part.task} is not the paper's"
        return None

    def _differs(self, part: PublishedPart, words: str) -> None:
        self.changes.append((part.name, words))

    def _train(self, part: PublishedPart, about: Subject, scale: Scale) -> bool:
        watched = any("smaller-update" in row.claims for each in self.table.parts for row in each.rows)
        data, epochs = about.data(self.scale), scale.epochs
        if epochs is None:
            return False
        for row in part.rows:
            if row.setting.method is None:
                continue
            task, setting = about.task_name(self.scale), self._shrunk(part, row, scale, epochs)
            arm = PaperArm(task, data, setting, epochs, scale.examples, watched)
            self.arms[part.name, row.name] = arm
            self.arm_s[arm.arm_id] = epochs * scale.epoch_s
        self._differs(part, f"{epochs} epochs, {data}; the paper does not say how many epochs were run")
        if scale.examples is not None:
            self._differs(part, f"{scale.examples} training examples in place of all")
        if self.table.best_of != scale.seeds:
            paper = f"{self.table.best_of} runs" if self.table.best_of else "the paper's runs"
            self._differs(part, f"{scale.seeds} seeds in place of {paper}")
        return True

    def _shrunk(self, part: PublishedPart, row: PublishedRow, scale: Scale, epochs: int) -> PublishedSetting:
        reading = reading_of(self.table.table_id, part.task)
        for name, value in reading.items():
            self._differs(part, f"{name} {value}, which the paper that first printed these figures does not say")
        setting, shrunk = replace(row.setting, **reading), dict[str, Any]()

        def shrink(name: str, value: int, words: str) -> None:
            shrunk[name] = value
            self._differs(part, words)

        if scale.batch is not None and scale.batch != setting.batch:
            shrink("batch", scale.batch, f"trained with batches of {scale.batch} in place of {setting.batch}")
        if scale.hidden is not None and setting.hidden is None:
            words = f"trained with hidden = {scale.hidden}; the paper does not say how many it has"
            shrink("hidden", scale.hidden, words)
        for name, ours, theirs in (("hidden", scale.hidden, setting.hidden), ("layers", scale.layers, setting.layers)):
            if ours is not None and theirs is not None and ours < theirs:
                more = ", k as it is" if name == "hidden" else ""
                shrink(name, ours, f"trained with {name} = {ours} in place of {theirs}{more}")
        if setting.masked_after is not None and epochs < _FULL_EPOCHS:
            fixed = min(max(1, round(setting.masked_after * epochs / _FULL_EPOCHS)), epochs - 1)
            words = f"meAct's masks are fixed after {fixed} epochs in place of {setting.masked_after}"
            shrink("masked_after", fixed, words)
        return replace(setting, **shrunk)

    def _time(self, part: PublishedPart, about: Subject, scale: Scale) -> bool:
        ks: Container[Any] | None = scale.timed_ks
        if ks is not None and self.timed is not None:
            ks = {case.k for case in self.timed}  # a run that was made keeps what it timed, whatever this version would
        compared = [row for row in part.rows if row.against is not None]
        rows = [row for row in compared if any(COLUMNS[column].source == "timing" for column in row.figures)]
        timed = [row for row in rows if ks is None or row.setting.k in ks]
        for row in timed:
            self.cases[part.name, row.name] = self._case(part, row, about, scale)
        if len(timed) < len(rows):
            self._differs(part, f"timed for k = {', '.join(f'{row.setting.k:g}' for row in timed)} alone")
        if about.timing_note:
            self._differs(part, about.timing_note)
        return bool(self.cases)

    def _case(self, part: PublishedPart, row: PublishedRow, about: Subject, scale: Scale) -> Case:
        axes: dict[str, list[Any]] = {name: [value] for name, value in about.timing.items()}
        axes |= {"method": [row.setting.method], "k": [row.setting.k]}
        axes |= {name: [value] for name, value in self.machine.items()}
        axes["batch"] = [scale.timed_batch or row.setting.batch]
        axes["hidden"] = [scale.timed_hidden or row.setting.hidden]
        if inputs := scale.timed_inputs or row.setting.inputs:
            axes["in-features"] = [inputs]
        if about.timing["workload"] == "mlp":
            axes |= {"layers": [row.setting.layers], "data": [about.data(self.scale)]}
            axes |= {name: [value] for name, value in self._update(part, row.setting.optimizer).items()}
        for name in ("hidden", "batch"):
            if (ours := axes[name][0]) != (theirs := getattr(row.setting, name)):
                self._differs(part, f"timed with {name} = {ours} in place of {theirs}")
        return plan_axes(axes).cases[0]

    def _update(self, part: PublishedPart, optimizer: str | None) -> dict[str, Any]:
        """Return how both sides of a timed step update their weights.

        AdaGrad by rows computes what it does by dense gradients, and is what a user of it would take; its dense side
        has torch's fused step. Otherwise both have the unfused optimizer that the papers had.
        """
        for case in self.timed or ():
            if case.workload == "mlp" and case.optimizer == optimizer:
                return {name: getattr(case, name) for name in ("optimizer", "gradient", "baseline")}
        known = OPTIMIZERS.get(optimizer or "")
        if known is not None and known.rows and known.exact:
            self._differs(part, f"steps are timed with {optimizer} by rows, against torch's fused step")
            return {"optimizer": optimizer, "gradient": "rows", "baseline": "fused"}
        return {"optimizer": optimizer, "baseline": "same"}


_FULL_EPOCHS = 20
"""Epochs that the tables' iterations lie within, which meAct's e is a part of."""


def check_runnable(found: Experiment) -> Experiment:
    """Return the experiment, or raise a `UserError` that says why there is nothing to run."""
    if not found.runnable:
        reasons = "; ".join(dict.fromkeys(reason for _, reason in found.skipped)) or "it holds no figure to check"
        raise UserError(f"{found.table.table_id} cannot be run here: {reasons}", ExitCode.NOTHING_MEASURED)
    return found


def reasons(found: Iterable[tuple[str, str]]) -> list[str]:
    """Return what is skipped, or changed, a line each: the parts of one reason together."""
    by_reason: dict[str, dict[str, None]] = {}
    for part, reason in found:
        by_reason.setdefault(reason, {})[part] = None
    return [f"{', '.join(parts)}: {reason}" for reason, parts in by_reason.items()]
