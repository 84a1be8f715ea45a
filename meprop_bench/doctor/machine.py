"""Can this machine be trusted to measure? Its cores, what others take of them, and the clock.

Nothing is read here: the environment and the state of the machine are collected by `measure`, whose own warnings are
what a finding says, and whose rule says when a machine is not to be trusted (`too_busy`): it is that of the first line
of a result as well. How far the noise really goes, `noise` measures.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from meprop_bench.doctor.check_result import CheckResult
from meprop_bench.measure.allocator import ALLOCATORS, current, unavailable_reason
from meprop_bench.measure.machine import too_busy, warnings

__all__ = ["allocators", "clock", "machine_state"]

_SLOW_CLOCK_S = 1e-6
"""A value lasts a millisecond at least (`measure.paired.calibrate`): from here on the clock is a thousandth of it."""

_SLOWS = ("CUDA_LAUNCH_BLOCKING", "NUMBA_DISABLE_JIT")

_Facts = Mapping[str, Any]

_found = partial(CheckResult, "machine")


def machine_state(environment: _Facts, state: _Facts) -> list[CheckResult]:
    """Judge the machine, by what `measure.environment.collect` and `measure.machine.state` give."""
    return [
        _cores(environment, state),
        _quota(state),
        _taken(state, "others", "others_cores", "other processes", "took"),
        _taken(state, "steal", "stolen_cores", "the hypervisor", "withheld"),
        _frequency(environment, state),
        _heat(state),
        _swap(state),
        _variables(environment),
    ]


def clock(environment: _Facts) -> list[CheckResult]:
    """Judge the clock: what it says of a function that does nothing, and the least difference it can show."""
    costs, source = environment["clock_overhead_s"], environment["clock_source"]
    resolution_s = time.get_clock_info("perf_counter").resolution
    if costs is None:
        reason = environment["unavailable"].get("clock_overhead_s", "it cannot be read")
        call = CheckResult("clock", "empty call", "warning", reason)
    else:
        slow = costs["single"] > _SLOW_CLOCK_S
        text = f"{costs['call'] * 1e6:.3f} µs in a loop, {costs['single'] * 1e6:.3f} µs alone, in every value"
        advice = f"the clock source {source or 'of this system'} is slow: use tsc" if slow else ""
        call = CheckResult("clock", "empty call", "warning" if slow else "ok", text, advice)
    coarse = resolution_s > _SLOW_CLOCK_S
    text = f"{resolution_s * 1e9:.3g} ns" + (f", clock source {source}" if source else "")
    return [call, CheckResult("clock", "resolution", "warning" if coarse else "ok", text)]


def allocators() -> CheckResult:
    """Say which allocator settings a measuring process can be given."""
    missing = {name: reason for name in ALLOCATORS if (reason := unavailable_reason(name))}
    there = ", ".join(name for name in ALLOCATORS if name not in missing)
    text = "; ".join([f"{there} available", *(f"{name} not: {reason}" for name, reason in missing.items())])
    return _found("allocator", "note" if missing else "ok", f"{text}; this shell's own: {current()}")


def _cores(environment: _Facts, state: _Facts) -> CheckResult:
    physical, logical = environment["cpu_physical_cores"] or "?", state["cpu_logical_cores"]
    usable, threads = state["cpu_usable_cores"], state["threads"]
    text = f"{environment['cpu_model'] or 'unknown CPU'}: {physical} physical, {logical} logical, {usable} usable"
    if (said := warnings(state).get("threads")) is not None:
        return _found("cores", "warning", f"{text}; {said[0]}", said[1])
    restricted = logical is not None and usable < logical
    advice = "the CPU affinity of this process leaves the others out" if restricted else ""
    return _found("cores", "note" if restricted else "ok", f"{text}; threads for a case: {threads}", advice)


def _quota(state: _Facts) -> CheckResult:
    limit = state["cpu_limit"]
    if (heavy := too_busy(state).get("quota")) is not None:
        return _found("quota", "problem", heavy, "raise the quota, or measure with fewer --threads")
    text = state["unavailable"].get("cpu_limit", "none") if limit is None else f"{limit:g} cores"
    return _found("quota", "ok", text)


def _taken(state: _Facts, check: str, field: str, start: str, verb: str) -> CheckResult:
    taken, cores = state[field], state["cpu_usable_cores"]
    if taken is None:
        return _found(check, "note", state["unavailable"].get(field, "not counted"))
    text = f"{start} {verb} {taken:.2f} of {cores} cores"
    if (said := warnings(state).get(check)) is None:
        return _found(check, "ok", text)
    if (heavy := too_busy(state).get(check)) is not None:
        advice = "end them, or wait" if check == "others" else "measure on another machine, or at another hour"
        return _found(check, "problem", heavy, advice)
    return _found(check, "warning", text, said[1])


def _frequency(environment: _Facts, state: _Facts) -> CheckResult:
    governor, boost = state["cpu_governor"], environment["cpu_boost"]
    now, highest = state["cpu_frequency_mhz"], state["cpu_highest_frequency_mhz"]
    parts = [
        f"governor {governor or 'not shown'}",
        "boost not shown" if boost is None else f"boost {'on' if boost else 'off'}",
    ]
    if now is not None:
        parts.append(f"{now:.0f} MHz now" + ("" if highest is None else f" of {highest:.0f}"))
    if (said := warnings(state).get("governor")) is not None:
        return _found("frequency", "warning", ", ".join(parts), ": ".join(said))
    advice = "short runs are faster than long ones" if boost else ""
    return _found("frequency", "note" if boost or governor is None else "ok", ", ".join(parts), advice)


def _heat(state: _Facts) -> CheckResult:
    times = state["overheated"]
    if times is None:
        return _found("heat", "note", state["unavailable"].get("overheated", "not counted"))
    slowed = f"cores were slowed by heat {times} times" if times else "no core was slowed by heat"
    return _found("heat", "note" if times else "ok", f"{slowed} since the system's start")


def _swap(state: _Facts) -> CheckResult:
    used = state["swap_used_bytes"]
    text = state["unavailable"].get("swap_used_bytes", "not shown") if used is None else f"{used / 2**20:.0f} MiB used"
    if (said := warnings(state).get("swap")) is not None:
        return _found("swap", "warning", f"{said[0]}; {text}", said[1])
    return _found("swap", "note" if used is None else "ok", text)


def _variables(environment: _Facts) -> CheckResult:
    """Judge the variables that change speed; a measuring process is given its own numbers of threads."""
    found: Mapping[str, str] = environment["variables"]
    if not found:
        return _found("variables", "ok", "none that changes speed is set")
    cores = environment["cpu_usable_cores"]
    many = [name for name, value in found.items() if name.endswith("_NUM_THREADS") and _number(value) > cores]
    slow = [name for name in _SLOWS if found.get(name, "0") not in ("", "0")]
    text = ", ".join(f"{name}={value}" for name, value in found.items())
    advice = f"{', '.join(many)} exceed {cores} usable cores: scripts of your own would wait" if many else ""
    if slow:
        advice = f"unset {', '.join(slow)}, which makes what is measured slow"
    return _found("variables", "warning" if advice else "note", text, advice)


def _number(text: str) -> int:
    return int(text) if text.strip().isdecimal() else 0
