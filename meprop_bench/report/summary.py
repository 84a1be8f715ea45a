"""The result of a report in a few sentences, and the table of its accuracies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean as mean

from meprop_bench.report.cells import (
    SHAPE,
    WORDS,
    Cell,
    Section,
    distinct_rows,
    k_of,
    parity,
    points,
    ratio,
    ratio_within,
    shape,
)
from meprop_bench.report.reliability import mean_speedup
from meprop_bench.results.schema import Row, select
from meprop_bench.stats import too_wide

__all__ = ["parity_section", "summary"]

_METRICS = {"accuracy_percent": "development-set accuracy"}
"""`Parity.metric` in words, where it is not words already."""


def parity_section(rows: Iterable[Row]) -> Section | None:
    """Return the accuracy against dense, one line per case that was trained on both sides; None if none was."""
    trained = [(row, row.parity) for row in rows if row.parity is not None]
    if not trained:
        return None
    lines = [
        {
            "method": Cell(row.method),
            "k": Cell(k_of(row)),
            SHAPE: Cell(shape(row)),
            "task": Cell(found.task),
            "seeds": Cell(str(len(found.seeds))),
            "steps": Cell(str(found.steps)),
            "dense": Cell(f"{mean(found.baseline):.2f}%"),
            "sparse": Cell(f"{mean(found.method):.2f}%"),
            "difference": Cell(points(found.interval)),
            "margin": Cell(f"{found.margin:g}"),
            "verdict": Cell(found.verdict, parity(row).tone),
        }
        for row, found in trained
    ]
    metrics = dict.fromkeys(_METRICS.get(found.metric, found.metric) for _, found in trained)
    remark = (
        "Dense and sparse were trained from the same seeds on the same batches; the difference is sparse minus dense in"
        f" points of {' or '.join(metrics)}, with its 95% interval over the seeds. Trainings of a sweep are short ones,"
        " not a paper's table. Pass: the interval lies above minus the margin; fail: below it; inconclusive: it holds"
        " it."
    )
    groups = (tuple(tuple(line.values()) for line in lines),)
    return Section("Accuracy against dense", tuple(lines[0]), groups, remark=remark, left=WORDS)


def summary(rows: Sequence[Row]) -> list[str]:
    """Return the result in a few sentences."""
    cases = {row.case_id: row for row in rows}
    failed = {row.case_id for row in rows if row.error is not None}
    wrong = {row.case_id for row in rows if row.error is None and not row.passed}
    count = len(cases)
    first = f"{count} case{'s' * (count != 1)}: {count - len(failed | wrong)} ran and passed the correctness check"
    if wrong:
        first += f", {len(wrong)} failed it"
    if failed:
        first += f", {len(failed)} could not be run"
    lines = [first + "."]
    distinct = distinct_rows(rows)
    lines += [_range_of(found, name, distinct) for name, found in _headline_rows(rows)]
    verdicts = Counter(row.parity.verdict for row in rows if row.parity is not None)
    if verdicts:
        words = {"pass": "kept", "inconclusive": "inconclusive", "fail": "broken"}
        counts = ", ".join(f"{words[verdict]} in {count}" for verdict, count in sorted(verdicts.items()))
        lines.append(f"Accuracy parity with dense: {counts}.")
    return lines


def _headline_rows(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    rows = [row for row in rows if row.method != "dense"]  # `identical` reports those
    tuned = [row for row in rows if row.allocator != "default"] or rows
    kinds = dict.fromkeys((row.workload, row.phase) for row in tuned if row.phase in ("backward", "step"))
    timed = [row for row in tuned if row.speedup is not None]
    return [(f"{workload} {phase}", select(timed, workload=workload, phase=phase)) for workload, phase in kinds]


def _range_of(rows: list[Row], name: str, distinct: frozenset[int]) -> str:
    if not rows:
        return f"{name}: no speed-up could be measured."
    doubted = sum(row.baseline_disagreement is not None for row in rows)
    vague = sum(row.baseline_disagreement is None and too_wide(row.half_width) for row in rows)
    reasons = {"whose dense times disagree": doubted, "that cannot be told": vague}
    left_out = [f"{count} {reason}" for reason, count in reasons.items() if count]
    rows = [row for row in rows if row.baseline_disagreement is None and not too_wide(row.half_width)]
    without = f", without {' and '.join(left_out)}" if left_out else ""
    if not rows:
        return f"{name}: no speed-up to be believed{without}."
    values = sorted(row.speedup for row in rows if row.speedup is not None)
    span = " to ".join(dict.fromkeys((ratio(values[0]), ratio(values[-1]))))
    text = f"{name}: {span} the speed of dense in {len(values)} case{'s' * (len(values) != 1)}{without}"
    if len(rows) > 1 and (mean := mean_speedup(rows)) is not None:
        text += f", geometric mean {ratio_within(mean)}"
    if unclear := sum(row.significant is not None and id(row) not in distinct for row in rows):
        text += f", {unclear} of them not significant"
    if slower := sum(id(row) in distinct and (row.speedup or 0) < 1 for row in rows):
        text += f", {slower} of them slower"
    return text + "."
