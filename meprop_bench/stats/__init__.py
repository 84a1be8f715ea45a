"""Statistics that survive a noisy machine: medians, paired ratios, intervals, verdicts.

The problem. Two timings of identical code differ by about 3% from one process to the next (memory layout, which pages
the kernel handed out, what the neighbours do), yet only by about 0.3% between two neighbouring values of one process.
Pooling all values as if they were independent therefore gives intervals that are ten times too narrow, and comparing
two blocks that ran one after the other cries wolf half of the time (reports/METHODOLOGY.md).

The estimator. Process i (a *run*) gives pairs (b_ij, m_ij) of baseline and method seconds, back to back in random
order:

    r_i = median_j log(b_ij / m_ij)         one figure for each process; outliers and slow drift cancel in the pair
    speedup = exp(mean_i r_i)
    interval = exp(mean_i r_i  ±  t(p-1) * sd_i(r_i) / sqrt(p))     p processes, Student's t with p - 1 degrees

The process is the unit of replication: more pairs sharpen r_i, only more processes narrow the interval. Two processes
give honest but very wide intervals (t = 12.7); five to eight are the useful range. One process gives no interval at
all (its bounds are NaN, null in a report) rather than a wrong one.

Two results that were measured apart share no pairs: their r_i are compared as independent samples, with the variance of
each (Welch, `independent_ratio`). What happened to the machine between the two is then in the difference of *times*,
and no interval knows of it; a change of the speed-up, a ratio within each, is nearly free of it.

Judging. Whatever is decided here or elsewhere (speed-ups, comparisons, the gate, parity) rests on three rules: an
interval lies clear of a bound or it does not (`clear_of`), Student's t of an `Estimate` gives intervals and p-values,
none of a single value, and many p-values at once go through Holm's step-down (`holm`), or every twentieth identical
case is a discovery. Over C cases the summary is the geometric mean, exp(mean_c mean_i r_ci), whose interval says how
well these C cases are measured, not how other cases would fare. "Not significant" is a result: that the interval holds
1, not that the two are equal.

Nothing here imports torch; `scipy.special` is loaded when a quantile is asked for (`scipy.stats` would cost seconds).
"""

from __future__ import annotations

from meprop_bench.stats.estimates import (
    Alternative,
    Estimate,
    Interval,
    Runs,
    clear_of,
    iqr,
    mean_difference,
    mean_interval,
    median,
    process_medians,
)
from meprop_bench.stats.judging import LEVEL, Verdict, holm, non_inferiority, values_to_clear
from meprop_bench.stats.ratios import (
    Samples,
    amdahl,
    independent_estimate,
    independent_ratio,
    mean_of_logs,
    paired_ratio,
    process_interval,
    ratio_p_value,
)
from meprop_bench.stats.words import CANNOT_TELL, plus_minus, spread_percent, too_wide

__all__ = [
    "CANNOT_TELL", "LEVEL", "Alternative", "Estimate", "Interval", "Runs", "Samples", "Verdict", "amdahl", "clear_of",
    "holm", "independent_estimate", "independent_ratio", "iqr", "mean_difference", "mean_interval", "mean_of_logs",
    "median", "non_inferiority", "paired_ratio", "plus_minus", "process_interval", "process_medians", "ratio_p_value",
    "spread_percent", "too_wide", "values_to_clear",
]  # fmt: skip
