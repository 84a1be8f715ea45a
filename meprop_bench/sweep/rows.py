"""What the processes of a case answered, put together: the measurement of each phase, and the rows, one for each phase,
or one that says why there is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from meprop_bench.measure.machine import Activity, total
from meprop_bench.measure.notes import Note
from meprop_bench.measure.paired import Measurement
from meprop_bench.measure.peaks import Peaks
from meprop_bench.measure.ranks import HIDDEN_S
from meprop_bench.results.axes import AXES
from meprop_bench.results.consistency import FAR, WATCHED
from meprop_bench.results.schema import PASSED, Parity, Row, Side, Utilization
from meprop_bench.stats import amdahl
from meprop_bench.workloads.case import Case

__all__ = ["Answers", "case_rows", "failed_row", "told_apart"]

_FEW = 0.05
"""Share of differences that may be below what can be told."""
_OFF = 0.05
"""Share by which what is sent may differ from what was predicted, before a note says so."""
_SENDING = ("communication", "step")


class Answers:
    """What processes answered to "measure", visit by visit."""

    def __init__(self) -> None:
        self._runs: dict[int, dict[str, list[tuple[float, float]]]] = {}
        self._marks: dict[int, list[bool]] | None = {}
        self._activities: list[Activity] = []

    def add(self, process: int, answer: Mapping[str, Any]) -> None:
        """Add an answer of a process; what one answered before is in the same run."""
        own = self._runs.setdefault(process, {})
        for phase, pairs in answer["pairs"].items():
            own.setdefault(phase, []).extend((baseline_s, method_s) for baseline_s, method_s in pairs)
        self._activities.append(Activity(**answer["activity"]))
        if answer["disturbed"] is None:  # nobody watched
            self._marks = None
        elif self._marks is not None:
            self._marks.setdefault(process, []).extend(answer["disturbed"])

    def measurement(self, phase: str, loops: int) -> Measurement:
        """Return the pairs of a phase, process by process."""
        processes, marks = sorted(self._runs), self._marks
        disturbed = None if marks is None else tuple(tuple(marks[process]) for process in processes)
        return Measurement(phase, tuple(self._runs[process][phase] for process in processes), loops, disturbed)

    @property
    def notes(self) -> list[Note]:
        """What the machine did meanwhile."""
        return total(self._activities).notes


def told_apart(measurements: Sequence[Measurement]) -> tuple[list[Measurement], list[Note]]:
    """Return the phases that can be told from nothing: what is the difference of two times may be hidden in them."""
    kept, notes = [], []
    for found in measurements:
        every = [*found.baseline_values_s, *found.values_s]
        if found.phase == "communication" and sum(one <= HIDDEN_S for one in every) > _FEW * len(every):
            notes.append(Note.of("hidden"))
        else:
            kept.append(found)
    return kept, notes


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
    notes: Sequence[Note],
    wire: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Return a row for each phase, from what the processes answered.

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
        wire: of several ranks, what a worker answered to "wire".

    """
    rows = []
    notes = [*notes, *(_of_wire(wire) if wire else ())]
    for found in measurements:
        own = [*map(Note, setup["notes"]), *notes, *found.notes]
        converged = found.converged(target)
        if not converged and found.speedup.bounded:
            own.append(Note.of("budget", percent=100 * target))
        weights = memory.get(found.phase) or ({}, {})
        if any(side.get("exact") is False for side in weights):
            own.append(Note.of("sampled-memory"))
        watched, unavailable = _utilization(found.phase, utilization)
        costs = setup["costs"].get(found.phase) or (None, None)
        dense, sparse = (
            _side(median_s, cost, weight, seen, peaks, case.dtype)
            for median_s, cost, weight, seen in zip(
                (found.baseline_median_s, found.median_s), costs, weights, watched, strict=True
            )
        )
        if wire is not None and found.phase in _SENDING:
            dense, sparse = (
                replace(side, wire_bytes=sent["measured"], wire_bytes_predicted=sent["predicted"])
                for side, sent in zip((dense, sparse), wire["sides"], strict=True)
            )
        if found.phase == "step" and (limit := _ceiling(measurements, setup.get("converted"))) is not None:
            own.append(Note.of("amdahl", factor=limit))
        if (sparse.efficiency or 0.0) > FAR:  # such a row would be refused when it is read
            dense, sparse = replace(dense, floor_s=None), replace(sparse, floor_s=None)
            own.append(Note.of("no-floor"))
        rows.append(
            Row(
                **_axes(case, k=setup["k"], kernel=setup["kernel"]),
                phase=found.phase,
                data_published=setup.get("data_published"),
                baseline_chosen=setup.get("baseline"),
                convertible=setup.get("convertible"),
                measurement=found,
                dense=dense,
                sparse=sparse,
                speedup=found.speedup.estimate,
                speedup_low=found.speedup.low,
                speedup_high=found.speedup.high,
                converged=converged,
                unavailable=unavailable,
                check=PASSED,
                parity=parity if found.phase == "step" else None,
                environment_id=environment_id,
                notes=tuple(own),
            )
        )
    return rows


def _of_wire(wire: Mapping[str, Any]) -> Iterator[Note]:
    """Say what is sent, and where it is not what was predicted."""
    dense, sparse = wire["sides"]
    if wire["unavailable"]:
        yield Note(f"what is sent is not measured: {wire['unavailable']}")
        return
    yield Note.of(
        "wire",
        dense=dense["measured"] / _MB,
        dense_predicted=dense["predicted"] / _MB,
        sparse=sparse["measured"] / _MB,
        sparse_predicted=sparse["predicted"] / _MB,
    )
    for side in (dense, sparse):
        for true in (side["predicted"], side["counted"]):
            if true is not None and abs(side["measured"] - true) > _OFF * true:
                yield Note.of("wire-off", share=abs(side["measured"] / true - 1) if true else 1.0)


_MB = 1e6


def _ceiling(measurements: Sequence[Measurement], converted: float | None) -> float | None:
    """Return the most that a step can gain: without its sparsified layers' backward passes, by their share of the
    backward pass's operations. An estimate, as operations differ in what they take.
    """
    taken = {found.phase: found.baseline_median_s for found in measurements}
    if converted is None or not {"backward", "step"} <= taken.keys():
        return None
    most = amdahl(taken["step"], converted * taken["backward"])
    return most if math.isfinite(most) else None


def _side(
    median_s: float,
    cost: tuple[float, float] | None,
    weight: Mapping[str, Any],
    watched: Utilization | None,
    peaks: Peaks,
    dtype: str,
) -> Side:
    flops, nbytes = cost or (None, None)
    return Side(
        median_s=median_s,
        floor_s=None if flops is None or nbytes is None else peaks.floor_s(flops, nbytes, dtype),
        flops=flops,
        bytes=nbytes,
        peak_memory_bytes=weight.get("tensor_bytes"),
        peak_reserved_bytes=weight.get("reserved_bytes"),
        process_peak_bytes=weight.get("process_bytes"),
        process_growth_bytes=weight.get("growth_bytes"),
        utilization=watched,
    )


def _utilization(
    phase: str, found: Mapping[str, Any] | str
) -> tuple[tuple[Utilization, Utilization] | tuple[None, None], dict[str, str]]:
    """Return what was watched of baseline and method, and a reason for each figure of `WATCHED` that is not there."""
    if isinstance(found, str):
        return (None, None), dict.fromkeys(WATCHED, found)
    if phase != found["phase"]:
        return (None, None), dict.fromkeys(WATCHED, f"only the phase {found['phase']} is run steadily")
    baseline, method = (Utilization.from_json(side) for side in found["sides"])
    missing = [name for name in WATCHED if getattr(method, name) is None]
    return (baseline, method), {name: method.unavailable.get(name, "not read") for name in missing}


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
