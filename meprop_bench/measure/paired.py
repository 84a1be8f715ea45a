"""Interleaved pairs: baseline and method back to back, in random order, so that what the machine does hits both alike.

The spread of log(baseline / method) on a busy machine is 0.3% between neighbouring pairs, against 2.3% when one block
of each runs after the other: drift (clock frequency, neighbours, page placement) is slow, so it cancels within a
pair. The order is random because whoever runs second finds other caches, another heap and a warmer core; a fixed
order would turn that into a bias.

A *subject* is anything that runs `loops` iterations and returns the seconds of one iteration for each of its phases:

    subject(loops, clock) -> {"backward": 0.00123}

Each subject is warmed up, the loops are calibrated so that a value lasts at least a millisecond, then pairs are taken
until the seconds are spent. The cyclic garbage collector does not run inside a pair; between pairs it collects what
the last one left (everything older is frozen out of its sight: microseconds instead of tens of milliseconds).

A *probe* may tell that a pair was disturbed (`disturbance`). Such a pair is marked and stays, does not count among the
least number of pairs, and so another one is taken in its place: twice that number at most, as a machine that is always
disturbed must come to an end, too.

A *measurement* holds each pair of each process, in the order taken, and nothing that could be computed from them: what
is stored can be judged again later with another estimator. Its speed-up is taken over the pairs of a process that are
not marked, unless most of them are: then that is how the machine is, and all count. The mark is set without a look at
the times, so neither choice favours a side.

Known bias: with one iteration for a value, the method finds the caches as the baseline left them. In training they are
just as foreign to it (the optimizer has walked over the whole model), so this is nearer to the truth than warm caches.
"""

from __future__ import annotations

import gc
import math
import random
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import compress, islice
from typing import Any, Protocol, Self, cast

from meprop_bench.measure.clock import Clock
from meprop_bench.measure.notes import Note
from meprop_bench.stats.estimates import Estimate, Interval, iqr, median, process_medians

__all__ = [
    "Measurement", "Pair", "PairedRuns", "Pairs", "Probe", "Subject", "calibrate", "collector_at_rest", "measure_pairs",
    "some_marked", "warm_up",
]  # fmt: skip

Subject = Callable[[int, Clock], Mapping[str, float]]

_MOST_LOOPS = 1_000_000
_MOST_AGAIN = 2


@dataclass(frozen=True)
class Pair:
    """One value of each side, taken back to back."""

    phases: Mapping[str, tuple[float, float]]  # phase -> (baseline_s, method_s), seconds for one iteration
    baseline_first: bool
    disturbed: bool = False  # whether the machine did something else meanwhile; False where nobody watched


class Probe(Protocol):
    """Tells whether a pair was disturbed, without a look at its times."""

    def begin(self) -> None:
        """Called right before the pair."""

    def disturbed(self) -> bool:
        """Called right after it."""


def warm_up(subject: Subject, clock: Clock, *, seconds: float = 0.1, least: int = 1) -> int:
    """Run single iterations until `seconds` have passed and at least `least` were made; return how many."""
    started = clock.now()
    iterations = 0
    while iterations < least or clock.now() - started < seconds:
        subject(1, clock)
        iterations += 1
    return iterations


def calibrate(subject: Subject, clock: Clock, *, least_s: float = 1e-3, most_s: float = 0.05) -> int:
    """Return the loops at which the shortest phase lasts at least `least_s`, while a call stays within about `most_s`.

    `most_s` matters where one phase is a thousand times shorter than another: its value is then shorter than
    that. A subject that needs longer than `least_s` for one iteration gets 1. Warm it up first (a cold iteration
    looks long), and take the larger result of both sides of a pair.
    """
    loops = 1
    while True:
        started = clock.now()
        phases = subject(loops, clock)
        clock.synchronize()
        call_s = max((clock.now() - started) / loops, 1e-9)
        shortest_s = max(min(phases.values()), 1e-9)
        wanted = math.ceil(least_s / shortest_s)
        allowed = max(1, int(max(most_s, least_s) / call_s))
        target = max(1, min(wanted, allowed, _MOST_LOOPS))
        # The first calls of a small loop over-estimate: go up by at most 10 until the loop itself confirms it.
        if target <= loops:
            return loops
        loops = min(target, 10 * loops)


def measure_pairs(
    baseline: Subject,
    method: Subject,
    *,
    seconds: float,
    least_pairs: int,
    loops: int,
    rng: random.Random,
    clock: Clock,
    probe: Probe | None = None,
) -> list[Pair]:
    """Take pairs for about `seconds`, and at least `least_pairs` of them however long that takes.

    Args:
        baseline: the subject that is divided by.
        method: the subject under test; it has the same phases.
        seconds: no pair is begun that would, at the mean duration so far, end after them.
        least_pairs: undisturbed ones, at least 1; no more than twice as many are taken for their sake.
        loops: iterations for each value, the same for both sides.
        rng: decides each pair's order; pass a seeded one.
        clock: the device's clock.
        probe: marks disturbed pairs.

    Raises:
        ValueError: an argument out of range, or two subjects with different phases.

    """
    if least_pairs < 1:
        raise ValueError(f"least_pairs is at least 1, got {least_pairs!r}")
    if not seconds >= 0:
        raise ValueError(f"seconds is at least 0, got {seconds!r}")
    pairs: list[Pair] = []
    wanting = least_pairs
    with collector_at_rest() as collect:
        started = clock.now()
        while (wanting > 0 and len(pairs) < _MOST_AGAIN * least_pairs) or (
            (clock.now() - started) * (1 + 1 / len(pairs)) <= seconds
        ):
            collect()
            baseline_first = rng.random() < 0.5
            if probe is not None:
                probe.begin()
            if baseline_first:
                baseline_s, method_s = baseline(loops, clock), method(loops, clock)
            else:
                method_s, baseline_s = method(loops, clock), baseline(loops, clock)
            disturbed = probe is not None and probe.disturbed()
            if baseline_s.keys() != method_s.keys():
                raise ValueError(f"the phases differ: baseline {list(baseline_s)}, method {list(method_s)}")
            phases = {phase: (float(value), float(method_s[phase])) for phase, value in baseline_s.items()}
            pairs.append(Pair(phases, baseline_first, disturbed))
            wanting -= not disturbed
    return pairs


@contextmanager
def collector_at_rest() -> Iterator[Callable[[], object]]:
    """Switch the cyclic collector off, freeze what exists, and give a function that collects only what is new."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield gc.collect
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


class Pairs(Sequence[tuple[float, float]]):
    """The pairs `(baseline_s, method_s)` of one process: a part of two arrays, in a sixth of the memory of tuples."""

    __slots__ = ("_dense", "_part", "_sparse")

    def __init__(self, baseline_s: array[float], method_s: array[float], part: slice | None = None) -> None:
        self._dense, self._sparse = baseline_s, method_s
        self._part = slice(0, len(method_s)) if part is None else part

    @property
    def baseline_s(self) -> array[float]:
        """The baseline's values, seconds for one iteration."""
        return self._dense[self._part]

    @property
    def method_s(self) -> array[float]:
        """The method's, likewise."""
        return self._sparse[self._part]

    def kept(self, marks: Sequence[bool]) -> Pairs:
        """Return the pairs that are not marked."""
        keep = [not mark for mark in marks]
        return Pairs(array("d", compress(self.baseline_s, keep)), array("d", compress(self.method_s, keep)))

    def __len__(self) -> int:
        return int(self._part.stop - self._part.start)

    def __iter__(self) -> Iterator[tuple[float, float]]:
        return zip(self.baseline_s, self.method_s, strict=True)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return Pairs(self.baseline_s[place], self.method_s[place])
        return self.baseline_s[place], self.method_s[place]

    def __eq__(self, other: object) -> bool:
        if type(other) is Pairs:
            return self.baseline_s == other.baseline_s and self.method_s == other.method_s
        return tuple(self) == other

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


class PairedRuns(Sequence[Pairs]):
    """The pairs of each process: two arrays, cut when somebody looks at a process, which of most rows nobody does."""

    __slots__ = ("baseline_s", "lengths", "method_s")

    def __init__(self, baseline_s: array[float], method_s: array[float], lengths: Sequence[int]) -> None:
        self.baseline_s, self.method_s, self.lengths = baseline_s, method_s, lengths

    @classmethod
    def of(cls, runs: Sequence[Sequence[tuple[float, float]]]) -> PairedRuns:
        """Return processes as such."""
        if type(runs) is PairedRuns:
            return runs
        pairs = [pair for run in runs for pair in run]
        dense, sparse = (array("d", [pair[side] for pair in pairs]) for side in (0, 1))
        return cls(dense, sparse, tuple(map(len, runs)))

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[Pairs]:
        begin = 0
        for length in self.lengths:
            yield Pairs(self.baseline_s, self.method_s, slice(begin, begin + length))
            begin += length

    def __getitem__(self, place: Any) -> Any:
        return tuple(self)[place]

    def __eq__(self, other: object) -> bool:
        return tuple(self) == (tuple(other) if type(other) is PairedRuns else other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


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
    runs: Sequence[Sequence[tuple[float, float]]]  # kept as `PairedRuns`
    loops: int
    disturbed: tuple[tuple[bool, ...], ...] | None = None

    def __post_init__(self) -> None:
        given, runs = self.runs, PairedRuns.of(self.runs)
        object.__setattr__(self, "runs", runs)
        if not runs.lengths or not all(runs.lengths):
            raise ValueError(f"the measurement of {self.phase!r} needs a run, and a pair in each run")
        if self.loops < 1:
            raise ValueError(f"loops is at least 1, got {self.loops!r}")
        if given is not runs:
            _check_times(self.phase, runs.baseline_s, runs.method_s)
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
        *,
        sound: bool = False,
    ) -> Self:
        """Cut flat lists, as a stored row holds them, into processes again; ValueError when the lengths do not fit.

        `sound`: all times are known to be positive and finite, and lengths and loops to be at least 1.
        """
        if not len(baseline) == len(method) == sum(run_lengths) or not method:
            counts = f"{len(method)} values, {len(baseline)} baseline values and run_lengths {list(run_lengths)[:8]}"
            raise ValueError(f"{counts} do not pair up")
        if disturbed is not None and len(disturbed) != len(method):
            raise ValueError(f"{len(disturbed)} marks of disturbed pairs for {len(method)} values")
        runs = PairedRuns(array("d", baseline), array("d", method), tuple(run_lengths))
        marks = None if disturbed is None else _cut(disturbed, runs.lengths)
        if sound:  # a hundred thousand are read one after another
            found = object.__new__(cls)
            vars(found).update(phase=phase, runs=runs, loops=loops, disturbed=marks)
            return found
        _check_times(phase, runs.baseline_s, runs.method_s)
        return cls(phase, runs, loops, marks)

    @property
    def pairs(self) -> PairedRuns:
        """The runs, as they are kept."""
        return cast("PairedRuns", self.runs)

    @property
    def baseline_values_s(self) -> list[float]:
        """The baseline's values, flat, seconds for one iteration; the i-th pairs with the i-th of `values_s`."""
        return self.pairs.baseline_s.tolist()

    @property
    def values_s(self) -> list[float]:
        """The method's values, flat, seconds for one iteration."""
        return self.pairs.method_s.tolist()

    @property
    def run_lengths(self) -> list[int]:
        """Pairs of each process."""
        return list(self.pairs.lengths)

    @property
    def disturbed_values(self) -> list[bool] | None:
        """Whether each pair was disturbed, flat, as `values_s`; None where nobody watched."""
        return None if self.disturbed is None else [mark for run in self.disturbed for mark in run]

    @property
    def judged_runs(self) -> Sequence[Pairs]:
        """The pairs that the speed-up is taken over."""
        if self.disturbed is None:
            return self.pairs
        return tuple(_judged(run, marks) for run, marks in zip(self.pairs, self.disturbed, strict=True))

    @property
    def judged_pairs(self) -> int:
        """How many pairs that are."""
        left_out = sum(sum(marks) for marks in self.disturbed or () if some_marked(marks))
        return sum(self.pairs.lengths) - left_out

    @property
    def processes(self) -> int:
        """How many fresh processes took part."""
        return len(self.runs)

    @cached_property
    def baseline_median_s(self) -> float:
        """Median over all the baseline's values, seconds for one iteration."""
        return median(self.baseline_values_s)

    @cached_property
    def median_s(self) -> float:
        """Median over all the method's values, seconds for one iteration."""
        return median(self.values_s)

    @cached_property
    def log_medians(self) -> Sequence[float]:
        """The median of log(baseline / method) of each process, over the judged runs (`stats.process_medians`)."""
        return process_medians(self.judged_runs)

    @cached_property
    def estimate(self) -> Estimate:
        """Their mean, of which intervals and p-values are made."""
        return Estimate.of(self.log_medians)

    @cached_property
    def speedup(self) -> Interval:
        """Baseline / method with its 95% interval over the processes (`stats.paired_ratio` of the judged runs)."""
        return self.estimate.ratio()

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


def some_marked(marks: Sequence[bool]) -> bool:
    """Whether some pairs of a process are marked, but not most: then they do not count."""
    return 0 < 2 * sum(marks) <= len(marks)


def _judged(run: Pairs, marks: tuple[bool, ...]) -> Pairs:
    return run.kept(marks) if some_marked(marks) else run


def _check_times(phase: str, baseline_s: array[float], method_s: array[float]) -> None:
    """Raise ValueError for a time that is not positive and finite; a sum holds NaN and infinity, if there is one."""
    if len(method_s) and min(baseline_s) > 0 < min(method_s) and sum(baseline_s) + sum(method_s) < math.inf:
        return
    for pair in zip(baseline_s, method_s, strict=True):
        if not (0 < pair[0] < math.inf and 0 < pair[1] < math.inf):
            raise ValueError(f"times of {phase!r} are positive and finite seconds, got the pair {pair!r}")


def _cut(disturbed: Sequence[bool], lengths: Sequence[int]) -> tuple[tuple[bool, ...], ...]:
    """Return the marks of each process; those of all that were not disturbed are kept once."""
    if not any(disturbed):
        return _calm(tuple(lengths))
    marks = iter(disturbed)
    return tuple(tuple(islice(marks, length)) for length in lengths)


@lru_cache(maxsize=256)
def _calm(lengths: tuple[int, ...]) -> tuple[tuple[bool, ...], ...]:
    return tuple((False,) * length for length in lengths)
