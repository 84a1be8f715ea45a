"""Which speed-ups of a report are told apart from 1, when all of them are judged at once.

Each has its 95% interval, and of twenty identical cases one leaves 1 out by chance. So the intervals stay what they
are, and the *judgement* is corrected: the p-values of "the speed-up is 1" of all rows of a report go through Holm's
step-down (`stats.holm`), and what is above the level then is called not significant, even though its own interval may
miss 1 by a little. The price is power: a small effect among many rows needs more processes to be seen.

All of it is computed again from the raw values, without the pairs that the speed-up leaves out, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from meprop_bench.results.schema import Row
from meprop_bench.stats import LEVEL, Interval, Runs, geometric_mean_ratio, holm, ratio_p_value

__all__ = ["judged_runs", "mean_speedup", "p_value", "significant_rows"]


def judged_runs(row: Row) -> Runs | None:
    """Return the pairs that a row's speed-up is taken over, process by process; None without raw values."""
    return None if row.measurement is None or row.speedup is None else row.measurement.judged_runs


def p_value(row: Row) -> float:
    """Return the p-value of "the speed-up is 1"; NaN where there is nothing to judge by."""
    runs = judged_runs(row)
    return math.nan if runs is None else ratio_p_value(runs)


def significant_rows(rows: Sequence[Row]) -> frozenset[int]:
    """Return the places of the rows whose speed-up differs from 1, after Holm's correction for all that have one.

    A row without raw values is judged by its interval alone.
    """
    places = [place for place, row in enumerate(rows) if row.significant is not None]
    adjusted = holm([p_value(rows[place]) for place in places])
    return frozenset(
        place for place, p in zip(places, adjusted, strict=True) if rows[place].significant and not p > LEVEL
    )


def mean_speedup(rows: Sequence[Row]) -> Interval | None:
    """Return the geometric mean of the rows' speed-ups with its interval; None if one of them has no raw values."""
    cases = [runs for row in rows if (runs := judged_runs(row)) is not None]
    if not cases or len(cases) < len(rows):
        return None
    # With as many processes everywhere the i-th of each case may be the same one. To take it for the same costs a
    # little width where it is not; to take it for another one where it is would make the interval too narrow.
    return geometric_mean_ratio(cases, same_processes=len({len(runs) for runs in cases}) == 1)
