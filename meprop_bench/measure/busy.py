"""Was the machine too busy to be believed? One rule, for the doctor and for the first line of every result.

    others   other processes took more than a quarter of the usable cores
    steal    the hypervisor withheld more than a tenth of them
    quota    a CPU quota was below the threads that were measured with: they were then held back one after the other

Each is five times what the instrument warns of, where it has a bound: interleaved pairs bear much, and below that
intervals get wider and stay right. It is held against what a run records anyhow: the machine's state before it
(`machine.state`), and what happened during each case (`machine.Activity.notes`, which its rows have).

How far off figures may be: a process that is left a share 1 - s of the cores takes 1 / (1 - s) as long. Threads that
wait for each other take longer still, so that this is a least bound, and is said to be one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from meprop_bench.measure.machine import Watch, state
from meprop_bench.measure.notes import Note

__all__ = ["HEAVY", "Observer", "too_busy", "was_busy"]

HEAVY = {"others": 0.25, "steal": 0.10}
"""Shares of the usable cores."""

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
    heavy = [found for found in states if too_busy(found)]
    reasons = list(dict.fromkeys(reason for found in heavy for reason in too_busy(found).values()))
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
    """Looks at the machine before a run, and over it: what neither we nor our children took is others'.

    Args:
        threads: that are measured with.

    """

    def __init__(self, threads: int) -> None:
        self.state = state(threads)
        self._watch = Watch(own_s=_own_and_children_s)

    def line(self) -> str:
        """Return the line of `was_busy` once the children have ended, "" where the machine was calm enough."""
        return was_busy([self.state], {"": self._watch.activity().notes})


def _own_and_children_s() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


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
