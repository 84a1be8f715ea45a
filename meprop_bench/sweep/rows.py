"""From what the processes answered to rows: one for each phase of a case, or one that says why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from meprop_bench.measure.measurement import Measurement
from meprop_bench.measure.peaks import Peaks
from meprop_bench.results.axes import AXES
from meprop_bench.results.consistency import FAR
from meprop_bench.results.schema import PASSED, Parity, Row, Utilization
from meprop_bench.workloads.case import Case

__all__ = ["case_rows", "failed_row"]


def case_rows(
    case: Case,
    setup: Mapping[str, Any],
    measurements: Sequence[Measurement],
    *,
    peaks: Peaks,
    memory: Mapping[str, Sequence[Mapping[str, Any]]],
    utilization: Mapping[str, Any] | str,
    parity: Parity | None,
    environment_id: str,
    target: float,
    notes: Sequence[str],
) -> list[Row]:
    """Return a row for each phase.

    Args:
        case: what was measured.
        setup: what a worker answered to "setup".
        measurements: one for each phase.
        peaks: of the machine, for the floors.
        memory: what a worker answered to "memory": phase -> weights of [baseline, method].
        utilization: what a worker answered to "utilization", or why none did.
        parity: the accuracy comparison; it goes to the phase "step".
        environment_id: where this was measured.
        target: half-width at which an interval counts as narrow enough.
        notes: for every row.

    """
    rows = []
    for found in measurements:
        costs = setup["costs"].get(found.phase)
        interval = found.speedup
        converged = found.converged(target)
        remarks = [*setup["notes"], *notes, *found.warnings]
        if not converged and interval.bounded:
            remarks.append(f"the budget was spent before ±{100 * target:g}% was reached")
        numbers: dict[str, Any] = {}
        if costs is not None:
            (baseline_flops, baseline_bytes), (flops, nbytes) = costs
            floor = peaks.floor_s(flops, nbytes, case.dtype)
            numbers |= {
                "flops": flops,
                "bytes": nbytes,
                "baseline_flops": baseline_flops,
                "baseline_bytes": baseline_bytes,
                "floor_s": floor,
                "baseline_floor_s": peaks.floor_s(baseline_flops, baseline_bytes, case.dtype),
                "efficiency": floor / found.median_s,
            }
            if floor > FAR * found.median_s:  # such a row would be refused when it is read
                numbers["efficiency"] = numbers["floor_s"] = numbers["baseline_floor_s"] = None
                remarks.append("no floor: the machine has been measured as too slow for this phase")
        numbers |= _weights(memory.get(found.phase, ()), remarks)
        numbers |= _utilization(found.phase, utilization)
        rows.append(
            Row(
                **_axes(case, k=setup["k"], kernel=setup["kernel"]),
                **numbers,
                phase=found.phase,
                data_published=setup.get("data_published"),
                median_s=found.median_s,
                values_s=tuple(found.values_s),
                baseline_median_s=found.baseline_median_s,
                baseline_values_s=tuple(found.baseline_values_s),
                run_lengths=tuple(found.run_lengths),
                disturbed=None if found.disturbed_values is None else tuple(found.disturbed_values),
                loops=found.loops,
                speedup=interval.estimate,
                speedup_low=interval.low,
                speedup_high=interval.high,
                converged=converged,
                processes=found.processes,
                check=PASSED,
                parity=parity if found.phase == "step" else None,
                environment_id=environment_id,
                notes=tuple(remarks),
            )
        )
    return rows


_WEIGHTS = {
    "tensor_bytes": "peak_memory_bytes",
    "reserved_bytes": "peak_reserved_bytes",
    "process_bytes": "process_peak_bytes",
    "growth_bytes": "process_growth_bytes",
}
_WATCHED = ("gpu_utilization", "cpu_utilization", "power_w", "energy_per_step_j")
"""Fields of the method's `Utilization` that a row has, too."""


def _weights(sides: Sequence[Mapping[str, Any]], remarks: list[str]) -> dict[str, Any]:
    """Return the memory fields of a row; `remarks` gets a line when a figure is not what it seems."""
    if any(side.get("exact") is False for side in sides):
        remarks.append("the process's peak was sampled each millisecond: its high-water mark cannot be set back here")
    return {
        f"{prefix}{field}": side.get(key)
        for prefix, side in zip(("baseline_", ""), sides, strict=False)
        for key, field in _WEIGHTS.items()
    }


def _utilization(phase: str, found: Mapping[str, Any] | str) -> dict[str, Any]:
    """Return the utilisation fields of a row, with a reason for each that is null."""
    if isinstance(found, str):
        return {"unavailable": dict.fromkeys(_WATCHED, found)}
    if phase != found["phase"]:
        return {"unavailable": dict.fromkeys(_WATCHED, f"only the phase {found['phase']} is run steadily")}
    baseline, method = (Utilization.from_json(side) for side in found["sides"])
    values = {name: getattr(method, name) for name in _WATCHED}
    reasons = {name: method.unavailable.get(name, "not read") for name, value in values.items() if value is None}
    return {**values, "utilization": method, "baseline_utilization": baseline, "unavailable": reasons}


def failed_row(case: Case, error: str | None, environment_id: str, *, check: str | None = None) -> Row:
    """Return the one row of a case that could not be measured (`error`), or computes something else (`check`)."""
    return Row(
        **_axes(case, k=case.k, kernel=None), phase=None, check=check, error=error, environment_id=environment_id
    )


def _axes(case: Case, *, k: float, kernel: str | None) -> dict[str, Any]:
    axes = {
        axis.stored: None if axis.nullable and not axis.of(case.workload) else getattr(case, axis.field)
        for axis in AXES.values()
    }
    return {**axes, "case_id": case.case_id, "kernel": kernel, "k": k}
