"""What a comparison of two revisions takes once for each case: which phases both have, and the figures without noise.

timed phases    those that are compared, and those that one side alone has
exact figures   FLOPs, bytes, operators and peak memory of each phase, which are the same in every process
accuracies      of the sparsified side, trained from the same seeds by both
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from meprop_bench.gate.asking import ask, ask_both
from meprop_bench.gate.case_records import SIDES, Fact, Side
from meprop_bench.gate.turns import Turns
from meprop_bench.measure.replicate import Asked
from meprop_bench.sweep.plan import Plan
from meprop_bench.workloads.case import Case

__all__ = ["Facts", "accuracies", "exact_figures", "timed_phases", "times_alone"]

Facts = dict[Fact, tuple[float | None, float | None]]
"""Figure -> its value for base and head; None for a revision that has no such figure."""

_TIMED = ("forward", "backward", "update", "step")


def timed_phases(setup: Mapping[Side, Mapping[str, Any]]) -> tuple[list[str], dict[Side, list[str]]]:
    """Return the phases that are timed, and those of one side alone; others than `_TIMED` where it has none of them."""
    has = {side: list(setup[side]["phases"]) for side in SIDES}
    named = {side: [phase for phase in has[side] if phase in _TIMED] or has[side] for side in SIDES}
    phases = [phase for phase in named["head"] if phase in has["base"]]
    return phases, {side: [phase for phase in named[side] if phase not in phases] for side in SIDES}


def times_alone(turns: Turns, alone: Mapping[Side, Sequence[str]]) -> Facts:
    """Return the phases that one side alone has, with a time that says what there was and is judged by nobody."""
    found: Facts = {}
    if any(alone.values()):
        (blocks,) = turns.take("method", 1)[0.0]
        for side in SIDES:
            for phase in alone[side]:
                value = blocks[side]["values"][phase]
                found[phase, "time", "s"] = (value, None) if side == "base" else (None, value)
    return found


def exact_figures(case: Case, workers: Mapping[Side, Asked], setup: Mapping[Side, Mapping[str, Any]]) -> Facts:
    """Return the figures without noise."""
    each: dict[Side, dict[Fact, float]] = {}
    for side in SIDES:
        each[side] = found = {}
        for phase, (_, (flops, moved)) in setup[side]["costs"].items():
            found[f"flops {phase}", "count", "1"] = flops
            found[f"bytes {phase}", "count", "B"] = moved
        for phase, count in ask(side, workers[side], {"do": "count"})["operators"].items():
            found[f"operators {phase}", "count", "1"] = count
        weights = ask(side, workers[side], {"do": "memory", "device": case.device})["weights"]
        for phase, (_, weight) in weights.items():
            found[f"peak memory {phase}", "memory", "B"] = weight["tensor_bytes"]
    return {key: (each["base"].get(key), each["head"].get(key)) for key in each["base"] | each["head"]}


def accuracies(case: Case, workers: Mapping[Side, Asked], plan: Plan) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Train the sparsified side of both revisions from the same seeds; nothing is timed meanwhile."""
    seeds = list(range(1, plan.accuracy_seeds + 1))
    message = {
        "do": "accuracy",
        "case": case.told(),
        "sparsified": True,
        "seeds": seeds,
        "steps": plan.accuracy_steps,
    }
    answers = ask_both(workers, message)
    base, head = (tuple(float(dict(answers[side]["accuracies"])[seed]) for seed in seeds) for side in SIDES)
    return base, head
