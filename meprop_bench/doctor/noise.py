"""How narrow can an interval get here? Identical code against itself, measured as a case is.

A step of a dense layer against itself (method "dense": B = 10, 784 -> 500, 0.3 ms), in one fresh process of a sweep:
interleaved pairs in random order, in as many parts as a case has processes, 0.3 s each. Every part then stands for a
process,

    half-width = that of `stats.paired_ratio` over the parts            with a budget of 20 s: over processes of 4 s

and a process of a case lasts `_GAIN` times as long as a part, so

    half-width <= ±2%                 reachable
    half-width <= ±2% * sqrt(_GAIN)   reachable if what disturbs averages out
    beyond                            not to be reached within the budget: this machine is too noisy to measure

What one process cannot show is how much several differ (page placement, alignment): 0.5% in the study of
docs/log. So the figure is a lower bound for other cases, and it says nothing about shorter calls. The preset "aa"
takes six minutes and tells more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from meprop_bench.doctor.finding import Finding
from meprop_bench.measure.measurement import Measurement
from meprop_bench.measure.replicate import Asked, WorkerDied
from meprop_bench.results.schema import PASSED
from meprop_bench.stats import plus_minus
from meprop_bench.sweep.plan import Plan
from meprop_bench.workloads.case import Case

__all__ = ["LIMIT_S", "identical", "judge", "measure", "prepare"]

LIMIT_S = 6.0
"""Seconds for the process to be ready: a warm one needs 2.6 on the 2-core machine, a cold cache of kernels 32."""

_PHASE = "step"
_PART_S = 0.3
_ANSWER_S = 20.0
_GAIN = Plan.budget / Plan.processes / _PART_S


def identical() -> Case:
    """Return the case whose two sides are the same."""
    return Case(method="dense", batch=10, in_features=784, out_features=500)


def prepare(worker: Asked, case: Case, limit_s: float = LIMIT_S) -> int:
    """Let a worker import what it needs, set the case up and check it; return the loops for a value.

    Raises:
        WorkerDied: it did not get that far; the message is one line.

    """
    hello = {"do": "hello", "threads": case.threads, "device": case.device}
    _ask(worker, hello, limit_s)
    _ask(worker, {"do": "setup", "case": case.to_json()})
    found = _ask(worker, {"do": "check", "warm_s": 0.02})
    if found["check"] != PASSED:
        raise WorkerDied(f"found that a dense layer is wrong here: {found['check']}")
    return int(found["loops"])


def measure(worker: Asked, loops: int) -> Measurement:
    """Take pairs, in as many parts as a case has processes.

    Raises:
        WorkerDied: no answer came.

    """
    ask = {"do": "measure", "seconds": _PART_S, "least_pairs": 2, "loops": loops}
    answers = [_ask(worker, {**ask, "seed": part}) for part in range(Plan.processes)]
    runs = tuple(tuple((float(a), float(b)) for a, b in answer["pairs"][_PHASE]) for answer in answers)
    marks = [answer["disturbed"] for answer in answers]
    return Measurement(_PHASE, runs, loops, None if None in marks else tuple(map(tuple, marks)))


def judge(found: Measurement) -> list[Finding]:
    """Say what the interval of identical code means for real cases."""
    half, target, within = found.speedup.half_width, Plan.target, f"{Plan.budget:g} s and {Plan.processes} processes"
    text = (
        f"identical code measures {found.speedup.estimate:.4f}x {plus_minus(half, '.2%')}"
        f" ({len(found.values_s)} pairs of a {found.median_s * 1e3:.2f} ms call)"
    )
    if half <= target:
        first = Finding("noise", "A/A", "ok", f"{text}: ±{target:.0%} is within reach of {within}")
    elif half <= target * math.sqrt(_GAIN):
        advice = "close other programs, or measure with a larger --budget"
        first = Finding("noise", "A/A", "warning", f"{text}: ±{target:.0%} may need more than {within}", advice)
    else:
        advice = "end what else runs, or measure elsewhere"
        first = Finding("noise", "A/A", "problem", f"{text}: ±{target:.0%} is out of reach of {within}", advice)
    return [first, *_disturbances(found)]


def _disturbances(found: Measurement) -> list[Finding]:
    marks = found.disturbed_values
    if marks is None:
        return [Finding("noise", "disturbed", "note", "this kernel does not tell for how long a thread waited")]
    share = sum(marks) / len(marks)
    text = f"{sum(marks)} of {len(marks)} pairs waited for a core for more than 5% of their time"
    return [Finding("noise", "disturbed", "warning" if share > 0.5 else "ok", text)]


def _ask(worker: Asked, message: Mapping[str, Any], timeout: float = _ANSWER_S) -> dict[str, Any]:
    answer = worker.request(message, timeout)
    if "error" in answer:
        raise WorkerDied(f"could not {message['do']}: {answer['error']}")
    return answer
