"""What was found about one table: its trainings, its timed rows and its counts, looked up by the published rows."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from meprop_bench.paper.decodings import Decoding
from meprop_bench.paper.experiment import Arm, Experiment
from meprop_bench.paper.published import COLUMNS, Part, PublishedRow
from meprop_bench.paper.subjects import subject
from meprop_bench.paper.trainings import Trained
from meprop_bench.results.schema import Row
from meprop_bench.stats import CANNOT_TELL, too_wide

__all__ = ["Evidence", "Line", "figure", "lines", "values"]

_DECODING = ("decode_before_s", "decode_after_s", "products_before", "products_after")


@dataclass(frozen=True)
class Evidence:
    """Results beside the experiment that they are of.

    Attributes:
        experiment: what was to be run.
        trained: arm id -> its seeds, those without error, in order.
        failed: arm id -> how many trainings failed.
        timed: (case id, phase) -> the row.
        counts: (subject, column) -> how many there are.
        decodings: arm id -> what decoding costs before and after.

    """

    experiment: Experiment
    trained: Mapping[str, Sequence[Trained]] = field(default_factory=dict)
    failed: Mapping[str, int] = field(default_factory=dict)
    timed: Mapping[tuple[str, str], Row] = field(default_factory=dict)
    counts: Mapping[tuple[str, str], int] = field(default_factory=dict)
    decodings: Mapping[str, Decoding] = field(default_factory=dict)

    def seeds(self, part: Part, row: PublishedRow) -> Sequence[Trained]:
        """Return what was trained for a row, to its end: what was cut off is no training."""
        arm = self.experiment.arms.get((part.name, row.name))
        return () if arm is None else self._whole(arm)

    def rows_of(self, part: Part, row: PublishedRow) -> Sequence[PublishedRow]:
        """Return the rows that a row's trainings are of: itself, or those that it sums up."""
        return [row] if row.setting.method else [other for other in part.rows if other.setting.method and other.against]

    def failed_of(self, part: Part, rows: Sequence[PublishedRow]) -> int:
        """Return how many trainings of some rows failed."""
        return sum(self.failed.get(arm.arm_id, 0) for arm in self._arms(part, rows))

    def lacking(self, part: Part | None = None, rows: Sequence[PublishedRow] = ()) -> str:
        """Say how many trainings of some rows, or of all, failed, were cut off or are not run; "" where none did."""
        arms = self.experiment.distinct_arms if part is None else self._arms(part, rows)
        total = len(arms) * len(self.experiment.seeds)
        failed = sum(self.failed.get(arm.arm_id, 0) for arm in arms)
        whole = sum(len(self._whole(arm)) for arm in arms)
        cut_off = sum(len(self.trained.get(arm.arm_id, ())) for arm in arms) - whole
        counts = {"failed": failed, "cut off": cut_off, "not run": total - failed - cut_off - whole}
        words = ", ".join(f"{count} {how}" for how, count in counts.items() if count > 0)
        return f"of {total} trainings {words}" if words else ""

    def mixed_data(self, part: Part, rows: Sequence[PublishedRow]) -> bool:
        """Whether some trainings had the published data, and some not."""
        return len({one.data_published is False for row in rows for one in self.seeds(part, row)}) > 1

    def _arms(self, part: Part, rows: Sequence[PublishedRow]) -> list[Arm]:
        arms = [self.experiment.arms.get((part.name, row.name)) for row in rows]
        return list({arm.arm_id: arm for arm in arms if arm is not None}.values())

    def _whole(self, arm: Arm) -> Sequence[Trained]:
        return [
            one
            for one in self.trained.get(arm.arm_id, ())
            if None not in (one.test, one.best_epoch) and one.evaluations and one.evaluations[-1].epoch >= arm.epochs
        ]

    def pairs(
        self, part: Part, row: PublishedRow, value: Callable[[Trained], float | None]
    ) -> list[tuple[float, float]]:
        """Return (baseline, row) for every seed that both were trained from."""
        baseline = part.baseline(row)
        if baseline is None:
            return []
        theirs = {found.seed: value(found) for found in self.seeds(part, baseline)}
        found = [(theirs.get(each.seed), value(each)) for each in self.seeds(part, row)]
        return [(before, after) for before, after in found if before is not None and after is not None]

    def row(self, part: Part, row: PublishedRow, column: str) -> Row | None:
        """Return the timed row behind a column, if it was measured and passed its check."""
        case = self.experiment.cases.get((part.name, row.name))
        if case is None:
            return None
        found = self.timed.get((case.case_id, _phase(part, column)))
        return found if found is not None and found.passed and found.speedup is not None else None

    def decoding(self, part: Part, row: PublishedRow) -> Decoding | None:
        """Return what decoding costs before and after the row's simplification."""
        arm = self.experiment.arms.get((part.name, row.name))
        return None if arm is None else self.decodings.get(arm.arm_id)

    def failure(self, part: Part, row: PublishedRow) -> str | None:
        """Return why a row's case could not be measured."""
        case = self.experiment.cases.get((part.name, row.name))
        failed = [r for (case_id, _), r in self.timed.items() if case and case_id == case.case_id and not r.passed]
        return next((one.error or one.check for one in failed), None)

    def same_data(self, part: Part) -> bool:
        """Whether the trainings used the paper's own data, and all of them: no level can be compared otherwise."""
        arms = [arm for (name, _), arm in self.experiment.arms.items() if name == part.name]
        published = all(one.data_published is not False for arm in arms for one in self._whole(arm))
        return published and bool(arms) and all(arm.data == "mnist" and arm.examples is None for arm in arms)


@dataclass(frozen=True)
class Line:
    """One figure side by side: the paper's, and ours over seeds (or the median of a time).

    `doubt` is what is said of ours where it is not to be believed.
    """

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


def lines(evidence: Evidence) -> Iterator[Line]:
    """Yield every figure of the table, and the accuracies of rows that print none, with ours where there is one."""
    for part in evidence.experiment.table.parts:
        for row in part.rows:
            columns = list(row.figures)
            if evidence.seeds(part, row) and not set(columns) & {"test", "test_bleu", "size", "first_size"}:
                columns.append("test")
            if evidence.decoding(part, row) is not None:
                columns += _DECODING
            for column in columns:
                if COLUMNS[column].source != "printed":
                    yield _line(evidence, part, row, column)


def _line(evidence: Evidence, part: Part, row: PublishedRow, column: str) -> Line:
    bare = Line(part.name, row.name, column, COLUMNS[column].unit, row.figures.get(column))
    source = COLUMNS[column].source
    if source == "training":
        return _trained_line(bare, values(evidence, part, row, column))
    if source == "data":
        count = evidence.counts.get((part.task, column)) if part.name in evidence.experiment.counted else None
        return replace(bare, mean=None if count is None else float(count))
    if source == "decoding":
        return _decoded_line(bare, evidence.decoding(part, row))
    return _timed_line(evidence, part, row, bare)


def _decoded_line(bare: Line, found: Decoding | None) -> Line:
    if found is None:
        return bare
    side = _DECODING.index(bare.column) % 2
    return replace(bare, mean=found.seconds(side) if bare.unit == "s" else float(found.multiplications[side]))


def _trained_line(bare: Line, found: Sequence[float]) -> Line:
    if not found:
        return bare
    spread = statistics.stdev(found) if len(found) > 1 else None
    best = max(found) if bare.unit in ("%", "BLEU") else None
    return replace(bare, mean=statistics.fmean(found), deviation=spread, best=best, seeds=len(found))


def _timed_line(evidence: Evidence, part: Part, row: PublishedRow, bare: Line) -> Line:
    """Put our median beside the printed time, in its unit: of one iteration of ours, which the paper's is not."""
    is_baseline = row.against is None
    measured = next((r for r in part.rows if r.against == row.name), row) if is_baseline else row
    column = row.time_column or "backward_s" if bare.column == "speedup" else bare.column
    if column == "overall_s":
        return bare
    found = evidence.row(part, measured, column)
    if found is None:
        return bare
    if bare.column == "speedup":
        disagrees = found.baseline_disagreement is not None
        doubt = "do not believe" if disagrees else CANNOT_TELL if too_wide(found.half_width) else ""
        return replace(bare, mean=found.speedup, doubt=doubt)
    seconds = found.baseline_median_s if is_baseline else found.median_s
    if seconds is None:
        return bare
    return replace(bare, mean=seconds * (1e3 if bare.unit == "ms" else 1.0))


def values(evidence: Evidence, part: Part, row: PublishedRow, column: str) -> list[float]:
    """Return a trained column's figures, one for each seed."""
    if column == "best_test":
        every = [[t.test for t in evidence.seeds(part, other) if t.test is not None] for other in part.rows[1:]]
        return [max(found) for found in every if found]
    return [value for each in evidence.seeds(part, row) if (value := figure(each, column)) is not None]


def figure(trained: Trained, column: str) -> float | None:
    """Return one training's figure in a column."""
    layers = [size for name, size in trained.sizes.items() if name.startswith("size ")]
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


def _phase(part: Part, column: str) -> str:
    if column == "linear_backward_s":
        return "linear-backward" if subject(part.task).timing["workload"] == "mlp" else "backward"
    return "forward" if column == "forward_s" else "backward"
