"""What the instrument is worth: the cases of the method "dense", whose two sides are one code (A/A), or one slowed by a
known share.

    standard deviation   of log(speed-up) over the repeats: what a run resolves
    slower               repeats in which a speed-up of at least 0.99 is refuted at the 5% level, one-sided: the rule of
                         a gate with a margin of 1%. Of A/A that is the rate of false alarms, of a slowdown of 3% the
                         rate at which one is seen

Repeats are cases that differ in nothing but the seed. Each is judged by itself, as a gate would judge it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from meprop_bench.report.cells import ABSENT, Cell
from meprop_bench.report.sections import AXES, WORDS, Section
from meprop_bench.report.significance import LEVEL, judged_runs, mean_speedup
from meprop_bench.results.schema import Row
from meprop_bench.stats import ratio_p_value

__all__ = ["MARGIN", "identical_section", "identical_summary"]

MARGIN = 0.01
"""Share of the speed that may be lost before a repeat counts as slower."""

_REMARK = (
    "Both sides are the same dense code; where it says so, the second one waits for a share of its own time. Each"
    " repeat is a case of its own, in fresh processes. Slower: repeats that refute a speed-up of at least"
    f" {1 - MARGIN:g} (one-sided, {100 * LEVEL:g}% level), as a gate with a margin of {100 * MARGIN:g}% would."
)
_NOT_SHOWN = ("method", "k", "seed", "kernel", "gradient", "slowdown")
_HEADS = ("slowdown", "repeats", "expected", "speed-up", "standard deviation", "slower")


def identical_section(rows: Sequence[Row]) -> Section | None:
    """Return the table of the dense cases, a line for the repeats of one; None if there are none."""
    groups = _repeats(rows)
    if not groups:
        return None
    firsts = [group[0] for group in groups]
    axes = [name for name in AXES if name not in _NOT_SHOWN and len({AXES[name](row) for row in firsts}) > 1]
    axes = axes or ["batch, m → n"]
    return Section(
        title="A/A: the same code on both sides",
        columns=(*axes, *_HEADS),
        groups=(tuple(_line(axes, group) for group in groups),),
        remark=_REMARK,
        left=WORDS,
    )


def identical_summary(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for the repeats of each dense case."""
    lines = []
    for group in _repeats(rows):
        row = group[0]
        what = f"slowed by {_percent(row.slowdown)}" if row.slowdown else "A/A"
        seen, judged = _slower(group)
        text = f"{row.workload} {row.phase} {what}: "
        if (spread := _spread(group)) is not None:
            text += f"the speed-up's standard deviation over {len(group)} repeats is {100 * spread:.2g}%, "
        lines.append(f"{text}{seen} of {judged} repeats were found slower by more than {100 * MARGIN:g}%.")
    return lines


def _repeats(rows: Sequence[Row]) -> list[list[Row]]:
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        if row.method == "dense" and row.speedup is not None:
            key = (row.workload, row.allocator, *(axis(row) for name, axis in AXES.items() if name != "seed"))
            groups.setdefault(key, []).append(row)
    return list(groups.values())


def _line(axes: Sequence[str], group: Sequence[Row]) -> tuple[Cell, ...]:
    slowdown, spread = group[0].slowdown or 0.0, _spread(group)
    mean = mean_speedup(group)
    (seen, judged), wrong = _slower(group), slowdown == 0
    return (
        *(Cell(AXES[name](group[0])) for name in axes),
        Cell(_percent(slowdown) if slowdown else "none"),
        Cell(str(len(group))),
        Cell(f"{1 / (1 + slowdown):.4f}x"),
        Cell(ABSENT if mean is None else f"{mean.estimate:.4f}x"),
        Cell(ABSENT if spread is None else f"{100 * spread:.2f}%"),
        Cell(f"{seen} of {judged}" if judged else ABSENT, "bad" if seen and wrong else ""),
    )


def _spread(group: Sequence[Row]) -> float | None:
    logs = [math.log(row.speedup) for row in group if row.speedup]
    return statistics.stdev(logs) if len(logs) > 1 else None


def _slower(group: Sequence[Row]) -> tuple[int, int]:
    """Return how many of the repeats are slower, and how many could be judged."""
    found = [ratio_p_value(runs, 1 - MARGIN, "below") for row in group if (runs := judged_runs(row)) is not None]
    judged = [p for p in found if not math.isnan(p)]  # one process gives nothing to judge by
    return sum(p <= LEVEL for p in judged), len(judged)


def _percent(share: float | None) -> str:
    return f"{100 * (share or 0):g}%"
