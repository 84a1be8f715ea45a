"""A measurement keeps its raw values; the statistics and the notes are properties of it.

What is stored can be judged again later with another estimator; what was thrown away cannot. So the record holds each
pair of each process, in the order taken, and nothing that could be computed from them.

A pair during which the machine did something else is kept and marked (`disturbance`). The speed-up is taken over the
pairs of a process that are not marked, unless most of them are: then that is how the machine is, and all count. The
mark is set without a look at the times, so neither choice favours a side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self, TypeVar

from meprop_bench.measure.notes import Note
from meprop_bench.stats import Interval, iqr, median, paired_ratio

__all__ = ["Measurement"]

_T = TypeVar("_T")

# Below this the two readings of the clock and the loop around the calls (50 to 100 ns each) are no longer negligible.
_SHORT_VALUE_S = 1e-4
# The A/A study on a busy 2-core machine: 0.3% spread within a process, 3% between processes (reports/METHODOLOGY.md).
_NOISY_PAIRS = 0.1
_NOISY_PROCESSES = 0.1
_MANY_DISTURBED = 0.05


@dataclass(frozen=True)
class Measurement:
    """The pairs of one phase, process by process.

    Attributes:
        phase: "forward", "backward", "update", "step" or "linear-backward".
        runs: for each process its pairs `(baseline_s, method_s)`, seconds for one iteration.
        loops: iterations behind each value.
        disturbed: for each process which of its pairs were disturbed; None where nobody watched.

    """

    phase: str
    runs: tuple[tuple[tuple[float, float], ...], ...]
    loops: int
    disturbed: tuple[tuple[bool, ...], ...] | None = None

    def __post_init__(self) -> None:
        if not self.runs or not all(self.runs):
            raise ValueError(f"the measurement of {self.phase!r} needs a run, and a pair in each run")
        if self.loops < 1:
            raise ValueError(f"loops is at least 1, got {self.loops!r}")
        for pair in (pair for run in self.runs for pair in run):
            if not all(0 < value < math.inf for value in pair):
                raise ValueError(f"times of {self.phase!r} are positive and finite seconds, got the pair {pair!r}")
        if self.disturbed is not None and list(map(len, self.disturbed)) != self.run_lengths:
            raise ValueError(f"{list(map(len, self.disturbed))} marks do not fit {self.run_lengths} pairs")

    @classmethod
    def from_values(
        cls,
        phase: str,
        baseline: Sequence[float],
        method: Sequence[float],
        run_lengths: Sequence[int],
        loops: int,
        disturbed: Sequence[bool] | None = None,
    ) -> Self:
        """Cut flat lists, as a stored row holds them, into processes again; ValueError when the lengths do not fit."""
        if not len(baseline) == len(method) == sum(run_lengths) or not method:
            counts = f"{len(method)} values, {len(baseline)} baseline values and run_lengths {list(run_lengths)[:8]}"
            raise ValueError(f"{counts} do not pair up")
        if disturbed is not None and len(disturbed) != len(method):
            raise ValueError(f"{len(disturbed)} marks of disturbed pairs for {len(method)} values")
        pairs = _cut(list(zip(baseline, method, strict=True)), run_lengths)
        return cls(phase, pairs, loops, None if disturbed is None else _cut(list(disturbed), run_lengths))

    @property
    def baseline_values_s(self) -> list[float]:
        """The baseline's values, flat, seconds for one iteration; the i-th pairs with the i-th of `values_s`."""
        return [baseline_s for run in self.runs for baseline_s, _ in run]

    @property
    def values_s(self) -> list[float]:
        """The method's values, flat, seconds for one iteration."""
        return [method_s for run in self.runs for _, method_s in run]

    @property
    def run_lengths(self) -> list[int]:
        """Pairs of each process."""
        return [len(run) for run in self.runs]

    @property
    def disturbed_values(self) -> list[bool] | None:
        """Whether each pair was disturbed, flat, as `values_s`; None where nobody watched."""
        return None if self.disturbed is None else [mark for run in self.disturbed for mark in run]

    @cached_property
    def judged_runs(self) -> tuple[tuple[tuple[float, float], ...], ...]:
        """The pairs that the speed-up is taken over."""
        if self.disturbed is None:
            return self.runs
        return tuple(_judged(run, marks) for run, marks in zip(self.runs, self.disturbed, strict=True))

    @property
    def processes(self) -> int:
        """How many fresh processes took part."""
        return len(self.runs)

    @property
    def baseline_median_s(self) -> float:
        """Median over all the baseline's values, seconds for one iteration."""
        return median(self.baseline_values_s)

    @property
    def median_s(self) -> float:
        """Median over all the method's values, seconds for one iteration."""
        return median(self.values_s)

    @cached_property
    def speedup(self) -> Interval:
        """Baseline / method with its 95% interval over the processes (`stats.paired_ratio` of the judged runs)."""
        return paired_ratio(self.judged_runs)

    def converged(self, target: float) -> bool:
        """Whether the interval's half-width, relative to the speed-up, reached `target` (0.02 is ±2%)."""
        return self.speedup.half_width <= target  # NaN (one process) compares false

    @property
    def notes(self) -> list[Note]:
        """What a reader should know before trusting the figures."""
        found = []
        shortest_s = min(self.median_s, self.baseline_median_s) * self.loops
        if shortest_s < _SHORT_VALUE_S:
            found.append(Note.of("short-values", microseconds=shortest_s * 1e6))
        if self.processes == 1:
            found.append(Note.of("one-process"))
        ratios = [[baseline_s / method_s for baseline_s, method_s in run] for run in self.runs]
        if (spread := max(map(iqr, ratios)) / self.speedup.estimate) > _NOISY_PAIRS:
            found.append(Note.of("noisy-pairs", share=spread))
        medians = [median(run) for run in ratios]
        if (disagreement := max(medians) / min(medians) - 1) > _NOISY_PROCESSES:
            found.append(Note.of("noisy-processes", share=disagreement))
        marks = self.disturbed_values or []
        if sum(marks) > _MANY_DISTURBED * len(marks):
            found.append(Note.of("disturbed-pairs", disturbed=sum(marks), pairs=len(marks)))
        if hopeless := sum(2 * sum(run) > len(run) for run in self.disturbed or ()):
            found.append(Note.of("disturbed-processes", disturbed=hopeless, processes=self.processes))
        return found


def _judged(run: tuple[tuple[float, float], ...], marks: tuple[bool, ...]) -> tuple[tuple[float, float], ...]:
    clean = tuple(pair for pair, disturbed in zip(run, marks, strict=True) if not disturbed)
    return clean if 2 * len(clean) >= len(run) else run


def _cut(items: Sequence[_T], lengths: Sequence[int]) -> tuple[tuple[_T, ...], ...]:
    rest = iter(items)
    return tuple(tuple(next(rest) for _ in range(length)) for length in lengths)
