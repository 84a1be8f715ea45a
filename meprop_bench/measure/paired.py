"""Interleaved pairs: baseline and method back to back, in random order, so that what the machine does hits both alike.

The spread of log(baseline / method) on a busy machine is 0.3% between neighbouring pairs, against 2.3% when one block
of each runs after the other: drift (clock frequency, neighbours, page placement) is slow, so it cancels within a
pair. The order is random because whoever runs second finds other caches, another heap and a warmer core; a fixed
order would turn that into a bias.

A *subject* is anything that runs `loops` iterations and returns the seconds of one iteration for each of its phases:

    subject(loops, clock) -> {"backward": 0.00123}

How it is done: warm up each subject, calibrate the loops so that a value lasts at least a millisecond, then take
pairs until the seconds are spent. The cyclic garbage collector does not run inside a pair; between pairs it collects
what the last one left (everything older is frozen out of its sight, which makes a collection cost microseconds
instead of tens of milliseconds).

A *probe* may tell that a pair was disturbed (`disturbance`). Such a pair is marked and kept, does not count among the
least number of pairs that were asked for, and so another one is taken in its place: twice that number at most, as a
machine that is always disturbed must come to an end, too.

Known bias: with one iteration for a value, the method finds the caches as the baseline left them. In training they are
just as foreign to it (the optimizer has walked over the whole model), so this is nearer to the truth than warm caches.
"""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from meprop_bench.measure.clock import Clock

__all__ = ["Pair", "Probe", "Subject", "calibrate", "collector_at_rest", "measure_pairs", "warm_up"]

Subject = Callable[[int, Clock], Mapping[str, float]]

_MOST_LOOPS = 1_000_000
_MOST_AGAIN = 2


@dataclass(frozen=True)
class Pair:
    """One value of each side, taken back to back.

    Attributes:
        phases: phase -> (baseline_s, method_s), seconds for one iteration.
        baseline_first: which side ran first.
        disturbed: whether the machine did something else meanwhile; False where nobody watched.

    """

    phases: Mapping[str, tuple[float, float]]
    baseline_first: bool
    disturbed: bool = False


class Probe(Protocol):
    """Tells whether a pair was disturbed, without a look at its times."""

    def begin(self) -> None:
        """Told right before the pair."""

    def disturbed(self) -> bool:
        """Asked right after it."""


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

    `most_s` matters where one phase is a thousand times shorter than another: its value is then shorter than asked
    for. A subject that needs longer than `least_s` for one iteration gets 1. Warm it up first (a cold iteration
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
