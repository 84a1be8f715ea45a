"""Ratios of two sides' times: from interleaved pairs, or from samples that were taken apart; with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from meprop_bench.stats.estimates import Alternative, Estimate, Interval, Runs, median, process_medians, variance

__all__ = [
    "Samples", "amdahl", "independent_estimate", "independent_ratio", "mean_of_logs", "paired_ratio",
    "process_interval", "ratio_p_value",
]  # fmt: skip

Samples = Sequence[Sequence[float]]
"""For each process its values, without pairs."""


def _ratio_estimate(runs: Runs) -> Estimate:
    """Return the log of the speed-up baseline / method; runs are as in `process_medians`."""
    return Estimate.of(process_medians(runs))


def paired_ratio(runs: Runs, confidence: float = 0.95) -> Interval:
    """Return the speed-up baseline / method with its two-sided interval; runs are as in `process_medians`."""
    return _ratio_estimate(runs).ratio(confidence)


def ratio_p_value(runs: Runs, bound: float = 1.0, alternative: Alternative = "differs") -> float:
    """Return the p-value of "the speed-up is `bound`", NaN for a single process; runs as in `paired_ratio`.

    A small one speaks for the alternative: the speed-up "differs" from the bound, or lies "below" it (1 - margin, to
    prove a slowdown beyond a margin) or "above" it.
    """
    if not 0 < bound < math.inf:
        raise ValueError(f"the bound of a ratio is positive and finite, got {bound!r}")
    return _ratio_estimate(runs).p_value(math.log(bound), alternative)


def mean_of_logs(
    logs: Sequence[Sequence[float]], confidence: float = 0.95, *, same_processes: bool = False
) -> Interval:
    """Return the geometric mean of the cases' speed-ups, with its two-sided interval over the processes.

    A case has its `process_medians`. With `same_processes` the i-th of every case came from the same process, so that
    their errors are not independent. Without it the cases' variances add up, with Welch's and Satterthwaite's degrees
    of freedom.
    """
    if not logs:
        raise ValueError("a geometric mean needs at least one case")
    if same_processes:
        return Estimate.of(_joint(logs)).ratio(confidence)
    mean = math.fsum(math.fsum(case) / len(case) for case in logs) / len(logs)
    return _welch(mean, logs, len(logs)).ratio(confidence)


def independent_ratio(
    cases: Sequence[tuple[Samples, Samples]], confidence: float = 0.95, *, same_processes: bool = False
) -> Interval:
    """Return the geometric mean over the cases of first / second, two samples without pairs, with its interval.

    A case has the values of both sides, process by process, all positive; with `same_processes` the i-th process of
    every case, within a side, is the same one.

    Raises:
        ValueError: no case, no process, a process without values, a value that is not positive and finite, or
            `same_processes` and cases that differ in their number.

    Source: B. L. Welch, "The generalization of Student's problem when several different population variances are
    involved", Biometrika 34 (1947).

    """
    return independent_estimate(cases, same_processes=same_processes).ratio(confidence)


def process_interval(samples: Samples, confidence: float = 0.95) -> Interval:
    """Return a typical value, exp of the mean of the processes' median logs, with its interval over the processes.

    Raises `ValueError` for no process, a process without values, or a value that is not positive and finite.
    """
    return Estimate.of(_log_medians(samples)).ratio(confidence)


def independent_estimate(cases: Sequence[tuple[Samples, Samples]], *, same_processes: bool = False) -> Estimate:
    """Return the mean log ratio over the cases; they are as in `independent_ratio`."""
    if not cases:
        raise ValueError("a ratio needs at least one case")
    sides = [[_log_medians(case[side]) for case in cases] for side in (0, 1)]
    mean = math.fsum(
        sign * math.fsum(logs) / len(logs) for sign, side in zip((1, -1), sides, strict=True) for logs in side
    ) / len(cases)
    if same_processes:
        return _welch(mean, [_joint(side) for side in sides], 1)
    return _welch(mean, [logs for side in sides for logs in side], len(cases))


def _joint(cases: Sequence[Sequence[float]]) -> list[float]:
    """Return one figure for each process, its mean over the cases, whose errors are not independent."""
    if len({len(case) for case in cases}) > 1:
        raise ValueError(f"the cases differ in their processes: {[len(case) for case in cases]}")
    return [math.fsum(of) / len(of) for of in zip(*cases, strict=True)]


def _welch(mean: float, samples: Sequence[Sequence[float]], parts: int) -> Estimate:
    """Return an estimate to which the mean of each of independent samples, divided by `parts`, adds its variance."""
    if min(map(len, samples)) == 1:
        return Estimate(mean, math.nan, 0)
    means = [math.fsum(values) / len(values) for values in samples]
    shares = [
        (variance(values, own) / len(values) / parts**2, len(values) - 1)
        for values, own in zip(samples, means, strict=True)
    ]
    total = math.fsum(share for share, _ in shares)
    if total == 0:
        return Estimate(mean, 0.0, 1)
    return Estimate(mean, math.sqrt(total), total**2 / math.fsum(share**2 / own for share, own in shares))


def _log_medians(values: Samples) -> list[float]:
    if not values or not all(values):
        raise ValueError("a ratio needs at least one process on each side, and one value in each process")
    if wrong := [value for own in values for value in own if not 0 < value < math.inf]:
        raise ValueError(f"values are positive and finite, got {wrong[0]!r}")
    return [median(map(math.log, own)) for own in values]


def amdahl(whole: float, part: float) -> float:
    """Return how many times as fast a whole is at most, however little this part of it takes (Amdahl's law)."""
    return whole / (whole - part) if part < whole else math.inf
