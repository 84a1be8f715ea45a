"""What was found about one table: its trainings, its timed rows and its counts, looked up by the published rows."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from meprop_bench.paper.arm import PaperArm
from meprop_bench.paper.experiment import Experiment
from meprop_bench.paper.published import COLUMNS, PublishedPart, PublishedRow
from meprop_bench.paper.records import Decoding, TrainedArm
from meprop_bench.paper.subjects import subject
from meprop_bench.results.schema import Row
from meprop_bench.stats import CANNOT_TELL, too_wide
from meprop_bench.workloads.case import Case

__all__ = ["ComparedFigure", "Place", "TableEvidence", "figure", "lines", "mixed_data"]

_DECODING = ("decode_before_s", "decode_after_s", "products_before", "products_after")


@dataclass(frozen=True)
class TableEvidence:
    """Results beside the experiment that they are of."""

    experiment: Experiment
    trained: Mapping[str, Sequence[TrainedArm]] = field(default_factory=dict)  # arm id -> seeds without error, in order
    failed: Mapping[str, int] = field(default_factory=dict)  # arm id -> how many trainings failed
    timed: Mapping[tuple[str, str], Row] = field(default_factory=dict)  # (case id, phase) -> the row
    counts: Mapping[tuple[str, str], int] = field(default_factory=dict)  # (subject, column) -> how many there are
    decodings: Mapping[str, Decoding] = field(default_factory=dict)  # arm id -> the cost of decoding

    @property
    def places(self) -> Iterator[Place]:
        """Every row of the table, in order."""
        for part in self.experiment.table.parts:
            for row in part.rows:
                yield Place(self, part, row)

    def whole(self, arm: PaperArm) -> Sequence[TrainedArm]:
        """Return what was trained of an arm to its end: what was cut off is no training."""
        return [
            one
            for one in self.trained.get(arm.arm_id, ())
            if None not in (one.test, one.best_epoch) and one.evaluations and one.evaluations[-1].epoch >= arm.epochs
        ]

    def lacking(self, places: Iterable[Place] | None = None) -> str:
        """Say how many trainings of some rows, or of all, failed, were cut off or are not run; "" where none did."""
        arms = self.experiment.distinct_arms if places is None else _arms(places)
        total = len(arms) * len(self.experiment.seeds)
        failed = sum(self.failed.get(arm.arm_id, 0) for arm in arms)
        whole = sum(len(self.whole(arm)) for arm in arms)
        cut_off = sum(len(self.trained.get(arm.arm_id, ())) for arm in arms) - whole
        counts = {"failed": failed, "cut off": cut_off, "not run": total - failed - cut_off - whole}
        words = ", ".join(f"{count} {how}" for how, count in counts.items() if count > 0)
        return f"of {total} trainings {words}" if words else ""


@dataclass(frozen=True)
class Place:
    """One row of the table, with what was found about it."""

    evidence: TableEvidence
    part: PublishedPart
    row: PublishedRow

    @property
    def arm(self) -> PaperArm | None:
        """What is trained for it."""
        return self.evidence.experiment.arms.get((self.part.name, self.row.name))

    @property
    def seeds(self) -> Sequence[TrainedArm]:
        """What was trained for it, to its end."""
        return () if self.arm is None else self.evidence.whole(self.arm)

    @property
    def baseline(self) -> Place | None:
        """What it is compared with."""
        found = self.part.baseline(self.row)
        return None if found is None else replace(self, row=found)

    @property
    def summed_up(self) -> Sequence[Place]:
        """The rows that its trainings are of: itself, or those that it sums up."""
        if self.row.setting.method:
            return [self]
        return [replace(self, row=row) for row in self.part.rows if row.setting.method and row.against]

    @property
    def decoding(self) -> Decoding | None:
        """What decoding costs before and after its simplification."""
        return None if self.arm is None else self.evidence.decodings.get(self.arm.arm_id)

    @property
    def failed(self) -> int:
        """How many of its trainings, or of those that it sums up, failed."""
        return sum(self.evidence.failed.get(arm.arm_id, 0) for arm in _arms(self.summed_up))

    @property
    def case(self) -> Case | None:
        """What is timed for it."""
        return self.evidence.experiment.cases.get((self.part.name, self.row.name))

    @property
    def failure(self) -> str | None:
        """Why its case could not be measured."""
        timed, case = self.evidence.timed.items(), self.case
        failed = [row for (case_id, _), row in timed if case and case_id == case.case_id and not row.passed]
        return next((one.error or one.check for one in failed), None)

    @property
    def same_data(self) -> bool:
        """Whether its part's trainings used the paper's own data, all of them: else no level can be compared."""
        arms = [arm for (name, _), arm in self.evidence.experiment.arms.items() if name == self.part.name]
        published = all(one.data_published is not False for arm in arms for one in self.evidence.whole(arm))
        return published and bool(arms) and all(arm.data == "mnist" and arm.examples is None for arm in arms)

    def pairs(self, value: Callable[[TrainedArm], float | None]) -> list[tuple[float, float]]:
        """Return (baseline, row) for every seed that both were trained from."""
        if self.baseline is None:
            return []
        theirs = {found.seed: value(found) for found in self.baseline.seeds}
        found = [(theirs.get(each.seed), value(each)) for each in self.seeds]
        return [(before, after) for before, after in found if before is not None and after is not None]

    def timed(self, column: str) -> Row | None:
        """Return the timed row behind a column, if it was measured and passed its check."""
        if (case := self.case) is None:
            return None
        phase = "forward" if column == "forward_s" else "backward"
        if column == "linear_backward_s" and subject(self.part.task).timing["workload"] == "mlp":
            phase = "linear-backward"
        found = self.evidence.timed.get((case.case_id, phase))
        return found if found is not None and found.passed and found.speedup is not None else None

    def counted(self, column: str) -> int | None:
        """Return what was counted of the part's data."""
        known = self.part.name in self.evidence.experiment.counted
        return self.evidence.counts.get((self.part.task, column)) if known else None

    def values(self, column: str) -> list[float]:
        """Return a trained column's figures, one for each seed."""
        if column == "best_test":
            others = (replace(self, row=row).seeds for row in self.part.rows[1:])
            every = [[one.test for one in seeds if one.test is not None] for seeds in others]
            return [max(found) for found in every if found]
        return [value for each in self.seeds if (value := figure(each, column)) is not None]


def mixed_data(places: Iterable[Place]) -> bool:
    """Whether some trainings had the published data, and some not."""
    return len({one.data_published is False for place in places for one in place.seeds}) > 1


def _arms(places: Iterable[Place]) -> Sequence[PaperArm]:
    return list({place.arm.arm_id: place.arm for place in places if place.arm is not None}.values())


@dataclass(frozen=True)
class ComparedFigure:
    """One figure side by side: the paper's, and ours over seeds (or the median of a time), with what is doubtful."""

    part: str
    row: str
    column: str
    unit: str
    paper: float | None
    mean: float | None = None
    deviation: float | None = None
    best: float | None = None
    seeds: int = 0
    doubt: str = ""


def lines(evidence: TableEvidence) -> Iterator[ComparedFigure]:
    """Yield every figure of the table, and the accuracies of rows that print none, with ours where there is one."""
    for place in evidence.places:
        columns = list(place.row.figures)
        if place.seeds and not set(columns) & {"test", "test_bleu", "size", "first_size"}:
            columns.append("test")
        if place.decoding is not None:
            columns += _DECODING
        yield from (_line(place, column) for column in columns if COLUMNS[column].source != "printed")


def _line(place: Place, column: str) -> ComparedFigure:
    about = COLUMNS[column]
    bare = ComparedFigure(place.part.name, place.row.name, column, about.unit, place.row.figures.get(column))
    if about.source == "training" and (found := place.values(column)):
        spread = statistics.stdev(found) if len(found) > 1 else None
        best = max(found) if bare.unit in ("%", "BLEU") else None
        return replace(bare, mean=statistics.fmean(found), deviation=spread, best=best, seeds=len(found))
    if about.source == "data" and (count := place.counted(column)) is not None:
        return replace(bare, mean=float(count))
    if about.source == "decoding" and (cost := place.decoding) is not None:
        side = _DECODING.index(column) % 2
        return replace(bare, mean=cost.seconds(side) if bare.unit == "s" else float(cost.multiplications[side]))
    return _timed_line(bare, place) if about.source == "timing" else bare


def _timed_line(bare: ComparedFigure, place: Place) -> ComparedFigure:
    """Put our median beside the printed time, in its unit: of one iteration of ours, which the paper's is not."""
    row, is_baseline = place.row, place.row.against is None
    measured = next((r for r in place.part.rows if r.against == row.name), row) if is_baseline else row
    column = row.time_column or "backward_s" if bare.column == "speedup" else bare.column
    found = None if column == "overall_s" else replace(place, row=measured).timed(column)
    if found is None:
        return bare
    if bare.column == "speedup":
        disagrees = found.baseline_disagreement is not None
        doubt = "do not believe" if disagrees else CANNOT_TELL if too_wide(found.half_width) else ""
        return replace(bare, mean=found.speedup, doubt=doubt)
    seconds = found.dense.median_s if is_baseline else found.sparse.median_s
    return bare if seconds is None else replace(bare, mean=seconds * (1e3 if bare.unit == "ms" else 1.0))


def figure(trained: TrainedArm, column: str) -> float | None:
    """Return one training's figure in a column."""
    layers = list(trained.layers.values())
    named: dict[str, float | None] = {
        "iterations": trained.best_epoch,
        "dev": trained.best_dev,
        "dev_bleu": trained.best_dev,
        "test": trained.test,
        "test_bleu": trained.test,
        "size": trained.sizes.get("size"),
        "first_size": layers[0] if layers else None,
        "second_size": layers[1] if len(layers) > 1 else None,
    }
    return named.get(column)
