"""What the instrument is worth: the cases of the method "dense", whose two sides are one code (A/A), or one slowed by a
known share.

    standard deviation   of log(speed-up) over the repeats: what a run resolves
    slower               repeats in which a speed-up of at least 0.99 is refuted at the 5% level, one-sided: the rule of
                         a gate with a margin of 1%. Of A/A that is the rate of false alarms, of a slowdown of 3% the
                         rate at which one is seen

Repeats are cases that differ in nothing but the seed. Each is judged by itself, as a gate would judge it.

Ten repeats cannot show a rate of 1% or of 95%, so the table says beside them what more runs of the same kind would
give, if a run is no more than its processes:

    pool        all processes of the repeats, each with the median log ratio of its own pairs: 50 of ten runs of five
    resampled   10,000 runs of as many processes as a real one has, drawn from the pool without replacement, each judged
                by the very rule above
    brackets    the same rate from pools of as many repeats drawn with replacement, whole runs: its 2.5% and 97.5%
                quantiles, which is how far another ten repeats might have led

Nothing within a process is drawn again, and no distribution is assumed. What is assumed is that the processes of one
run have no more in common than those of two; if they had, the standard deviation over the real runs would be larger
than that over the resampled ones, which stands beside it. A rate of 0 means less than could be seen with these
processes, not never.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from meprop_bench.report.cells import ABSENT, SHAPE, Cell, seconds
from meprop_bench.report.reliability import judged_runs, mean_speedup
from meprop_bench.report.sections import AXES, WORDS, Section
from meprop_bench.results.axes import AXES as TABLE
from meprop_bench.results.schema import Row
from meprop_bench.stats import LEVEL, process_medians, ratio_p_value, student

if TYPE_CHECKING:
    import numpy as np

__all__ = ["MARGIN", "Resampled", "identical_section", "identical_summary"]

MARGIN = 0.01
"""Share of the speed that may be lost before a repeat counts as slower."""

_REMARK = (
    "Both sides are the same dense code; where it says so, the second one waits for a share of its own time. Each"
    " repeat is a case of its own, in fresh processes. Slower: repeats that refute a speed-up of at least"
    f" {1 - MARGIN:g} (one-sided, {100 * LEVEL:g}% level), as a gate with a margin of {100 * MARGIN:g}% would."
    " A run: its longest wall time, from the start of its processes. Resampled: 10,000 runs drawn from all measured"
    " processes, each judged alike; brackets: how far the rate might have come out otherwise with other repeats (95%,"
    " whole runs drawn with replacement)."
)
_NOT_SHOWN = frozenset(axis.heading for axis in TABLE.values() if not axis.dense)
_RUNS, _POOLS, _RUNS_OF_A_POOL = 10_000, 200, 1_000
_LEAST_REPEATS = 5
"""Fewer say nothing of how much they differ."""


@dataclass(frozen=True)
class Resampled:
    """What more runs like these would give."""

    processes: int  # in the pool
    spread: float  # standard deviation of log(speed-up) over the resampled runs
    slower: float  # share of them that are slower
    low: float  # 2.5% quantile of that share over the pools
    high: float  # 97.5% quantile

    @staticmethod
    def of(group: Sequence[Row]) -> Resampled | None:
        """Resample runs from the repeats of a case; None where they are too few, or differ in their processes."""
        runs = [tuple(process_medians(found)) for row in group if (found := judged_runs(row)) is not None]
        if len(runs) < max(_LEAST_REPEATS, len(group)) or len({len(run) for run in runs}) > 1 or len(runs[0]) < 2:
            return None
        return _resampled(tuple(runs))


@lru_cache(maxsize=64)  # the table says it, and the sentence
def _resampled(runs: tuple[tuple[float, ...], ...]) -> Resampled:
    import numpy as np

    rng = np.random.default_rng(0)
    logs = np.array(runs)
    means, slower = _drawn(logs.ravel(), logs.shape[1], _RUNS, rng)
    pools = [logs[rng.integers(len(logs), size=len(logs))].ravel() for _ in range(_POOLS)]
    rates = [_drawn(pool, logs.shape[1], _RUNS_OF_A_POOL, rng)[1].mean() for pool in pools]
    low, high = np.quantile(rates, (0.025, 0.975))
    return Resampled(logs.size, float(means.std(ddof=1)), float(slower.mean()), float(low), float(high))


def _drawn(pool: np.ndarray, count: int, runs: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the log speed-ups of `runs` runs of `count` processes each, and which of them are slower."""
    import numpy as np

    drawn = pool[rng.random((runs, pool.size)).argpartition(count, axis=1)[:, :count]]
    means, errors = drawn.mean(axis=1), drawn.std(axis=1, ddof=1) / math.sqrt(count)
    with np.errstate(divide="ignore", invalid="ignore"):  # the same process several times in a pool leaves no doubt
        p = student.below(count - 1, (means - math.log(1 - MARGIN)) / errors)
    return means, p <= LEVEL


def identical_section(rows: Sequence[Row]) -> Section | None:
    """Return the table of the dense cases, a line for the repeats of one; None if there are none."""
    groups = _repeats(rows)
    if not groups:
        return None
    firsts = [group[0] for group in groups]
    axes = [name for name in AXES if name not in _NOT_SHOWN and len({AXES[name](row) for row in firsts}) > 1]
    lines = [_line(axes or [SHAPE], group) for group in groups]
    return Section(
        title="A/A: the same code on both sides",
        columns=tuple(lines[0]),
        groups=(tuple(tuple(line.values()) for line in lines),),
        remark=_REMARK,
        left=WORDS,
        keys=frozenset(axes) | {"slowdown"},
        drop=("resampled standard deviation", "a run", "expected"),
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
        text += f"{seen} of {judged} repeats were found slower by more than {100 * MARGIN:g}%"
        if (found := Resampled.of(group)) is not None:
            text += f", and of runs resampled from their {found.processes} processes {_rate(found)}"
        lines.append(f"{text}.")
    return lines


def _repeats(rows: Sequence[Row]) -> list[list[Row]]:
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        if row.method == "dense" and row.speedup is not None:
            key = (row.workload, row.allocator, *(axis(row) for name, axis in AXES.items() if name != "seed"))
            groups.setdefault(key, []).append(row)
    return list(groups.values())


def _line(axes: Sequence[str], group: Sequence[Row]) -> dict[str, Cell]:
    slowdown, spread = group[0].slowdown or 0.0, _spread(group)
    mean = mean_speedup(group)
    (seen, judged), wrong = _slower(group), slowdown == 0
    found, taken = Resampled.of(group), [row.elapsed_s for row in group if row.elapsed_s is not None]
    return {
        **{name: Cell(AXES[name](group[0])) for name in axes},
        "slowdown": Cell(_percent(slowdown) if slowdown else "none"),
        "repeats": Cell(str(len(group))),
        "expected": Cell(f"{1 / (1 + slowdown):.4f}x"),
        "speed-up": Cell(ABSENT if mean is None else f"{mean.estimate:.4f}x"),
        "standard deviation": Cell(ABSENT if spread is None else f"{100 * spread:.2f}%"),
        "slower": Cell(f"{seen} of {judged}" if judged else ABSENT, "bad" if seen and wrong else ""),
        "a run": Cell(seconds(max(taken, default=None))),
        "resampled standard deviation": Cell(ABSENT if found is None else f"{100 * found.spread:.2f}%"),
        "resampled slower": Cell(ABSENT if found is None else _rate(found)),
    }


def _rate(found: Resampled) -> str:
    return f"{100 * found.slower:.2f}% [{100 * found.low:.2f}, {100 * found.high:.2f}]"


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
