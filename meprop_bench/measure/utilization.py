"""What a steady loop takes of the machine: utilisation, clocks, power and energy, in a pass of its own.

    lead in    the loop runs unwatched for a second on a GPU, as NVML's utilisation looks back that far
    watch      it runs for `seconds` more, while samplers read every 50 ms
    energy_per_step_j = energy of the device over the loop / iterations

The loop calls one thing again and again, without a pause and without waiting for a GPU in between, as training does.
The device is the GPU on a CUDA device, else the CPU's packages. Idle power is part of its energy: a method that is
twice as fast saves that, too, because the step is over sooner. The two sides are watched one after the other, not in
pairs, so a figure that drifts (temperature, the load of others) may differ between them for no better reason; those
are here to explain a result, not to be one.

Nothing that goes wrong with a sampler reaches the caller: the field is left out and `unavailable` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from meprop_bench.measure.clock import Clock
from meprop_bench.measure.host import Host, Rapl
from meprop_bench.measure.nvml import Nvml
from meprop_bench.measure.sampler import Sampler, SampleSource

__all__ = ["sources_for", "watch"]

_LEAD_S = {"cpu": 0.05, "cuda": 1.0}
"""Seconds of the loop before anybody looks; the CPU needs no more than its caches."""

_AHEAD = 100
"""Calls that may wait in a GPU's queue. Without a bound a thousand would: of 5 ms each, the loop overran by as many
seconds; to wait for the device after a hundred of 25 µs leaves it idle for some 10 µs of 2.5 ms."""


def watch(
    call: Callable[[], object],
    device: str,
    clock: Clock,
    *,
    seconds: float,
    sources: Sequence[SampleSource] | None = None,
) -> dict[str, Any]:
    """Run `call` steadily and return what it took, as JSON values.

    Args:
        call: one iteration; on a CUDA device it may return before the device has finished.
        device: "cpu" or "cuda:N".
        clock: the device's own.
        seconds: how long to watch; at least 2 for figures that mean something.
        sources: what to read; by default all that fit the device.

    Returns:
        `seconds`, `iterations`, the fields that the sources found, `power_w` (W), `energy_per_step_j` (J) and
        `energy_source`, where energy could be read, and `unavailable`: field -> why it is missing.

    """
    if not seconds > 0:
        raise ValueError(f"seconds is more than 0, got {seconds!r}")
    _repeat(call, clock, _LEAD_S[device.partition(":")[0]])
    with Sampler(sources_for(device) if sources is None else sources, now=clock.now) as sampler:
        iterations = _repeat(call, clock, seconds)
    found = dict(sampler.summary.values)
    missing = dict(sampler.summary.unavailable)
    if device == "cpu":
        missing |= dict.fromkeys((name for name in Nvml.fields if name not in found), "the device is the CPU")
    found |= _power(found, missing, device, sampler.seconds, iterations)
    return {"seconds": sampler.seconds, "iterations": iterations, **found, "unavailable": missing}


def sources_for(device: str) -> list[SampleSource]:
    """Return a fresh source of each kind that fits the device."""
    host: list[SampleSource] = [Host(), Rapl()]
    return host if device == "cpu" else [*host, Nvml(device)]


def _repeat(call: Callable[[], object], clock: Clock, seconds: float) -> int:
    """Call until the seconds have passed, at least once, and return how often, when the device has finished."""
    now = clock.now
    iterations = 0
    started = now()
    while True:
        call()
        iterations += 1
        if iterations % _AHEAD == 0:
            clock.synchronize()
        if now() - started >= seconds:
            clock.synchronize()
            return iterations


def _power(
    found: dict[str, Any], missing: dict[str, str], device: str, seconds: float, iterations: int
) -> dict[str, Any]:
    """Return power and energy of the device that computes, from its own meter; or put the reason into `missing`."""
    energy, meter = ("cpu_energy_j", "RAPL") if device == "cpu" else ("gpu_energy_j", "NVML")
    how = found.pop("gpu_energy_source", "")  # `energy_source` alone says it
    missing.pop("gpu_energy_source", None)
    if energy not in found or not seconds > 0:
        reason = missing.get(energy, "no energy was read")
        missing |= dict.fromkeys(("power_w", "energy_per_step_j", "energy_source"), reason)
        return {}
    return {
        "power_w": found[energy] / seconds,
        "energy_per_step_j": found[energy] / iterations,
        "energy_source": f"{meter} {how}".rstrip(),
    }
