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

from meprop_bench.doctor.check_result import CheckResult, State
from meprop_bench.measure.paired import Measurement
from meprop_bench.measure.pool import Pool
from meprop_bench.measure.worker import WorkerDied, WorkerError, WorkerFailed
from meprop_bench.results.schema import PASSED
from meprop_bench.stats import plus_minus
from meprop_bench.sweep.plan import Plan
from meprop_bench.sweep.rows import Answers
from meprop_bench.workloads.case import Case

__all__ = ["LIMIT_S", "PATIENCE_S", "identical", "judge", "measure", "prepare", "reason"]

LIMIT_S = 6.0
"""Seconds for the process to be ready: a warm one needs 2.6 on the 2-core machine, a cold cache of kernels 32."""

PATIENCE_S = 20.0
"""Seconds for every later answer."""

_PHASE = "step"
_PART_S = 0.3
_GAIN = Plan.budget / Plan.processes / _PART_S


def identical() -> Case:
    """Return the case whose two sides are the same."""
    return Case(method="dense", batch=10, in_features=784, out_features=500)


def prepare(pool: Pool[int], case: Case, limit_s: float = LIMIT_S) -> int:
    """Let the process of a pool import what it needs, set the case up and check it; return the loops for a value."""
    pool.hello(threads=case.threads, device=case.device, timeout=limit_s)
    pool.ask(0, "setup", case=case.to_json())
    found = pool.ask(0, "check", warm_s=0.02)
    if found["check"] != PASSED:
        raise WorkerFailed(f"a dense layer is wrong here: {found['check']}", 0, "check")
    return int(found["loops"])


def measure(pool: Pool[int], loops: int) -> Measurement:
    """Take pairs, in as many parts as a case has processes."""
    wanted = {"seconds": _PART_S, "least_pairs": 2, "loops": loops}
    answers = Answers()
    for part in range(Plan.processes):
        answers.add(part, pool.ask(0, "measure", seed=part, **wanted))
    return answers.measurement(_PHASE, loops)


def reason(error: WorkerError) -> str:
    """Return what the process did not do, as "the measuring process: ..." goes on."""
    return str(error) if isinstance(error, WorkerDied) else f"could not {error.request}: {error}"


def judge(found: Measurement) -> list[CheckResult]:
    """Say what the interval of identical code means for real cases."""
    half, target, within = found.speedup.half_width, Plan.target, f"{Plan.budget:g} s and {Plan.processes} processes"
    text = (
        f"identical code measures {found.speedup.estimate:.4f}x {plus_minus(half, '.2%')}"
        f" ({len(found.values_s)} pairs of a {found.median_s * 1e3:.2f} ms call)"
    )
    graded: tuple[State, str, str] = "problem", "is out of reach of", "end what else runs, or measure elsewhere"
    if half <= target:
        graded = "ok", "is within reach of", ""
    elif half <= target * math.sqrt(_GAIN):
        graded = "warning", "may need more than", "close other programs, or measure with a larger --budget"
    state, reach, advice = graded
    first = CheckResult("noise", "A/A", state, f"{text}: ±{target:.0%} {reach} {within}", advice)
    return [first, _disturbances(found)]


def _disturbances(found: Measurement) -> CheckResult:
    marks = found.disturbed_values
    if marks is None:
        return CheckResult("noise", "disturbed", "note", "this kernel does not say how long a thread waited")
    share = sum(marks) / len(marks)
    text = f"{sum(marks)} of {len(marks)} pairs waited for a core for more than 5% of their time"
    return CheckResult("noise", "disturbed", "warning" if share > 0.5 else "ok", text)
