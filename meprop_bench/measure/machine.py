"""The state of the machine, before and during a run: what else it does, what holds it back, and when it is too busy.

An identity (`environment`) says which results may be compared; a state says how far to trust them.

    state(threads)          before a run: all that can be read, why the rest cannot, and warnings in words
    Watch().activity()      over a stretch of time, for each case: CPU seconds of other processes on the cores that
                            this one may use, and of the hypervisor's other guests; waits under a CPU quota; cores
                            slowed by heat; pages that came back from swap
    was_busy(states, ...)   the one rule, for the doctor and for the first line of every result, by which figures are
                            not to be believed: too much taken by others, or a CPU quota below the threads measured with

Others' CPU time is the cores' busy time minus this process's own, so a watch belongs into the process that measures
while its siblings sleep. The kernel counts in ticks of 10 ms: a watch over a second is right to 1% of a core, and a
single pair is too short for it (`disturbance` is about pairs). Nothing here costs a measurement: a counter that does
not exist is None, and a state says why.

How far off figures may be: a process that is left a share 1 - s of the cores takes 1 / (1 - s) as long. Threads that
wait for each other take longer still, so that this is a least bound, and is said to be one.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from meprop_bench.measure import procfs
from meprop_bench.measure.notes import Note
from meprop_bench.measure.procfs import Unavailable

__all__ = ["HEAVY", "Activity", "Observer", "Watch", "state", "too_busy", "total", "warnings", "was_busy"]

# Shares of the usable cores. Below them the A/A spread on a shared 2-core machine did not change visibly.
_OTHERS = 0.05
_STOLEN = 0.02
_CHANGING = ("powersave", "ondemand", "conservative", "schedutil", "userspace")


@dataclass(frozen=True, kw_only=True)
class Activity:
    """What happened on the machine over a stretch of time; None for what cannot be counted here."""

    wall_s: float  # how long the stretch was
    cores: int  # that this process may use
    others_s: float | None  # CPU seconds that other processes took on them
    stolen_s: float | None  # CPU seconds that the hypervisor withheld from them
    throttled_s: float | None  # seconds for which this process's control groups waited, their CPU quota being used up
    overheated: int | None  # times that a core was slowed because it was too hot
    swapped_in: int | None  # pages read back from swap, by any process

    @property
    def notes(self) -> list[Note]:
        """What a reader of the figures should know."""
        available = self.wall_s * self.cores
        found = [
            Note.of(kind, share=taken_s / available)
            for kind, taken_s, most in (("others", self.others_s, _OTHERS), ("steal", self.stolen_s, _STOLEN))
            if taken_s is not None and taken_s > most * available
        ]
        if self.throttled_s:
            found.append(Note.of("quota", seconds=self.throttled_s))
        if self.overheated:
            found.append(Note.of("heat", times=self.overheated))
        if self.swapped_in:
            found.append(Note.of("swap", pages=self.swapped_in))
        return found


class Watch:
    """Counters, read when it is made; `own_s` gives the CPU seconds of this process, all its threads."""

    def __init__(
        self, now: Callable[[], float] = time.perf_counter, own_s: Callable[[], float] = time.process_time
    ) -> None:
        self._now, self._own_s = now, own_s
        self._before, self.unavailable = self._read()

    def activity(self) -> Activity:
        """Return what happened since."""
        after, _ = self._read()
        passed: dict[str, Any] = {
            name: None if before is None or after[name] is None else after[name] - before
            for name, before in self._before.items()
        }
        if passed["others_s"] is not None:  # ticks against nanoseconds: a little below zero is zero
            passed["others_s"] = max(0.0, passed["others_s"])
        return Activity(cores=procfs.usable_cores(), **passed)

    def _read(self) -> tuple[dict[str, Any], dict[str, str]]:
        found, reasons = procfs.ask(
            {
                "wall_s": self._now,
                "others_s": lambda: procfs.cpu_seconds()[0] - self._own_s(),
                "stolen_s": lambda: procfs.cpu_seconds()[1],
                "throttled_s": procfs.cpu_throttled_s,
                "overheated": procfs.overheated,
                "swapped_in": procfs.swapped_in,
            }
        )
        return found, reasons


def total(activities: Iterable[Activity]) -> Activity:
    """Add up what happened over several stretches; ValueError when there is none."""
    activities = list(activities)
    if not activities:
        raise ValueError("a total of no activities")

    def summed(name: str) -> Any:
        parts = [getattr(activity, name) for activity in activities]
        return None if None in parts else sum(parts)

    names = [spec.name for spec in fields(Activity) if spec.name != "cores"]
    return Activity(cores=max(activity.cores for activity in activities), **{name: summed(name) for name in names})


def state(threads: int, *, seconds: float = 0.25, sleep: Callable[[float], object] = time.sleep) -> dict[str, Any]:
    """Describe what the machine does now, as JSON values, with `warnings` in words for so many threads.

    The others are watched for some seconds, for which this process sleeps; what it has started is no other.
    """
    watch = Watch(own_s=procfs.Family().seconds)
    sleep(seconds)
    activity = watch.activity()

    def cores_of(name: str) -> float:
        spent: float | None = getattr(activity, name)
        if spent is None:
            raise Unavailable(watch.unavailable.get(name, "the kernel does not show it"))
        return round(spent / activity.wall_s, 3)

    probes: dict[str, Callable[[], Any]] = {
        "load_average": lambda: [round(load, 2) for load in os.getloadavg()],
        "others_cores": lambda: cores_of("others_s"),
        "stolen_cores": lambda: cores_of("stolen_s"),
        "cpu_logical_cores": os.cpu_count,
        "cpu_usable_cores": procfs.usable_cores,
        "cpu_limit": procfs.cpu_limit,
        "throttled_s": procfs.cpu_throttled_s,
        "cpu_governor": procfs.governor,
        "cpu_frequency_mhz": procfs.frequency_mhz,
        "cpu_highest_frequency_mhz": procfs.highest_frequency_mhz,
        "overheated": procfs.overheated,
        "swap_used_bytes": procfs.swap_used_bytes,
        "swapped_in": procfs.swapped_in,
    }
    found, reasons = procfs.ask(probes)
    found |= {"threads": threads, "swapping": bool(activity.swapped_in)}
    lines = [f"{what}: {advice}" for what, advice in warnings(found).values()]
    return {**found, "warnings": lines, "unavailable": reasons}


def warnings(found: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return what in a state will spoil figures: "threads", "quota", "others", ... -> what it is, and what to do."""
    warned = {}
    threads, cores, limit = found["threads"], found["cpu_usable_cores"], found["cpu_limit"]
    if threads > cores:
        what = f"{threads} threads on {cores} usable cores wait for each other"
        warned["threads"] = what, f"use --threads {cores}, or less"
    if limit is not None and threads > limit:
        warned["quota"] = (f"{threads} threads under a CPU quota of {limit:g} cores", "they will be held back in turns")
    if (taken := found["others_cores"] or 0) > _OTHERS * cores:
        warned["others"] = f"other processes keep {taken:.1f} of {cores} cores busy", "expect wide intervals"
    if (stolen := found["stolen_cores"] or 0) > _STOLEN * cores:
        warned["steal"] = f"the hypervisor withholds {stolen:.1f} of {cores} cores", "expect wide intervals"
    if (governor := found["cpu_governor"]) in _CHANGING:
        what = f"the governor {governor} changes the cores' frequency with the load"
        warned["governor"] = what, "use performance"
    if found["swapping"]:
        what = "the machine reads pages back from swap"
        warned["swap"] = what, "close other programs, or measure smaller cases"
    return warned


HEAVY = {"others": 0.25, "steal": 0.10}
"""Shares of the usable cores, five times what `warnings` warns of: interleaved pairs bear much, and below these
intervals get wider and stay right."""

_TAKERS = {
    "others": ("other processes", "took", "others_cores"),
    "steal": ("the hypervisor", "withheld", "stolen_cores"),
}
_CONSEQUENCE = "the times and ratios below may be off by a factor of {factor} or more"
_MOST = 0.95
"""Share from which a factor says no more."""


def too_busy(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return what speaks against measuring in a state of `machine.state`: "others", "steal" or "quota" -> why.

    A state of an older version that lacks a fact is judged by the others.
    """
    found = {}
    cores = _number(facts, "cpu_usable_cores")
    for check, (who, verb, field) in _TAKERS.items():
        taken = _number(facts, field)
        if taken is not None and cores and taken > HEAVY[check] * cores:
            found[check] = f"{who} {verb} {taken:.2f} of {cores:g} cores, more than {HEAVY[check]:.0%}"
    limit, threads = _number(facts, "cpu_limit"), _number(facts, "threads")
    if limit is not None and threads is not None and threads > limit:
        found["quota"] = f"{threads:g} threads under a CPU quota of {limit:g} cores"
    return found


def was_busy(
    states: Iterable[Mapping[str, Any]], cases: Mapping[str, Iterable[Note]], consequence: str = _CONSEQUENCE
) -> str:
    """Return one line that says how busy the machine was, for the top of a result; "" where it was not too busy.

    Args:
        states: the machine's, as they were recorded before (and after) the run.
        cases: case -> the notes on what happened during it.
        consequence: what that means, with `{factor}` where the factor belongs.

    """
    heavy = sorted((found for found in states if too_busy(found)), key=_factor)
    by_check: dict[str, str] = {}
    for found in heavy:  # the worst one last: of a run that was resumed there are many
        by_check |= too_busy(found)
    reasons = list(by_check.values())
    loads = [load for found in heavy if (load := _load(found)) is not None]
    cores = [cores for found in heavy if (cores := _number(found, "cpu_usable_cores")) is not None]
    if loads and cores:
        reasons.insert(0, f"load {max(loads):.1f} on {cores[0]:g} cores")
    meanwhile = {case: _meanwhile(notes) for case, notes in cases.items()}
    for check, (who, verb, _) in _TAKERS.items():
        if shares := [found[check] for found in meanwhile.values() if found.get(check, 0.0) > HEAVY[check]]:
            of = f"{len(shares)} of {len(meanwhile)} cases" if len(meanwhile) > 1 else "the measurement"
            reasons.append(f"{who} {verb} up to {max(shares):.0%} of the cores during {of}")
    if not reasons:
        return ""
    factor = max([*map(_factor, heavy), *(1 / (1 - min(_MOST, sum(found.values()))) for found in meanwhile.values())])
    return f"This machine was busy ({'; '.join(reasons)}): {consequence.format(factor=f'{factor:.2g}')}."


class Observer:
    """Looks at the machine before a run with so many threads, and over it: what neither we nor our children took is
    others'.
    """

    def __init__(self, threads: int) -> None:
        self.state = state(threads)
        self._watch = Watch(own_s=procfs.Family().seconds)

    def line(self) -> str:
        """Return the line of `was_busy` once the children have ended, "" where the machine was calm enough."""
        return was_busy([self.state], {"": self._watch.activity().notes})


def _meanwhile(notes: Iterable[Note]) -> dict[str, float]:
    """Return the shares of the cores that notes tell of: the largest of each."""
    found: dict[str, float] = {}
    for note in notes:
        if note.kind in _TAKERS:
            found[note.kind] = max(found.get(note.kind, 0.0), note.values["share"])
    return found


def _factor(facts: Mapping[str, Any]) -> float:
    cores = _number(facts, "cpu_usable_cores") or 1.0
    taken = sum(_number(facts, field) or 0.0 for _, _, field in _TAKERS.values()) / cores
    limit, threads = _number(facts, "cpu_limit"), _number(facts, "threads")
    held = threads / limit if limit and threads else 1.0
    return max(held, 1 / (1 - min(_MOST, taken)))


def _number(facts: Mapping[str, Any], field: str) -> float | None:
    """Return a fact if it is a number that can be: what is stored may have been changed by hand."""
    value = facts.get(field)
    sound = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max
    return float(value) if value is not None and sound else None


def _load(facts: Mapping[str, Any]) -> float | None:
    found = facts.get("load_average")
    return _number({"load": found[0]}, "load") if isinstance(found, list | tuple) and found else None
