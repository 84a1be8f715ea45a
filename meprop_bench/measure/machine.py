"""The state of the machine, before and during a run: what else it does, and what holds it back.

An identity (`environment`) says which results may be compared; a state says how far to trust them. Two views of it:

    state(threads)          before a run: all that can be read, why the rest cannot, and warnings in words
    Watch().activity()      over a stretch of time, for each case: CPU seconds of other processes on the cores that
                            this one may use, and of the hypervisor's other guests; waits under a CPU quota; cores
                            slowed by heat; pages that came back from swap

Others' CPU time is the cores' busy time minus this process's own, so a watch belongs into the process that measures
while its siblings sleep. The kernel counts in ticks of 10 ms: a watch over a second is right to 1% of a core, and a
single pair is too short for it (`disturbance` is about pairs). Nothing here costs a measurement: a counter that does
not exist is None, and a state says why.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from meprop_bench.measure import procfs
from meprop_bench.measure.notes import Note
from meprop_bench.measure.procfs import Unavailable

__all__ = ["Activity", "Watch", "state", "total", "warnings"]

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
    """Counters, read when it is made.

    Args:
        now: wall seconds.
        own_s: CPU seconds of this process, all its threads.

    """

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
    """Describe what the machine does now, as JSON values, with `warnings` in words.

    Args:
        threads: that will be measured with.
        seconds: for which the others are watched; this process sleeps meanwhile.
        sleep: a test's own.

    """
    watch = Watch()
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
