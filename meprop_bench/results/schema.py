"""One row: what was measured about one phase of one case, with the raw values kept.

A row is one JSON object on one line of `measurements.jsonl`. Statistics in it (medians, the speed-up and its interval)
can be recomputed from what is beside them: `values_s[i]` and `baseline_values_s[i]` were measured next to each other in
random order, and `run_lengths` cuts both lists into fresh processes, the replicates that the interval is taken over;
`disturbed` marks the pairs during which the machine did something else (null: it could not be told).

The rules that every row obeys, on writing and on reading:

* what does not apply, and what is not finite, is null: JSON has no NaN;
* each field holds what its annotation allows (`results.incoming`), and its figures are those of its raw values
  (`results.consistency`): a row that contradicts itself is refused;
* a case whose check did not pass has no speed-up, and a case that failed (`error`) has no numbers at all;
* keys that this version does not know are ignored, a `schema` that it does not know is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta

from meprop_bench.errors import UserError
from meprop_bench.measure.measurement import Measurement
from meprop_bench.results.axes import StoredAxes
from meprop_bench.results.consistency import check_row, check_utilization
from meprop_bench.results.incoming import (
    Amount,
    Busy,
    Count,
    Finite,
    Name,
    Number,
    Percent,
    Ratio,
    Seconds,
    checked,
)
from meprop_bench.results.redact import one_line

__all__ = ["PASSED", "SCHEMA", "Parity", "Row", "Utilization", "check_schema", "select"]

SCHEMA = "meprop-bench/1"
PASSED = "passed"

Verdict: TypeAlias = Literal["pass", "fail", "inconclusive"]


def check_schema(record: object) -> None:
    """Refuse a record of another schema (`UserError`), and what is no record (`ValueError`)."""
    if not isinstance(record, Mapping):
        raise ValueError("it is no JSON object")
    if record.get("schema") != SCHEMA:
        found = one_line(repr(record.get("schema")), 60)
        raise UserError(f"results of schema {found} cannot be read: this version reads {SCHEMA!r}")


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Accuracy of the method against dense training from the same seeds and the same batches.

    Attributes:
        task: the data, "digits" or "mnist".
        metric: what `baseline` and `method` hold, in percent.
        seeds: one training run of each side per seed.
        steps: optimizer steps of one training run.
        baseline: the dense runs, one figure per seed.
        method: the method's runs, one figure per seed.
        difference: mean of method minus baseline, in points, with the 95% interval `low`, `high`.
        margin: the loss in points that still counts as parity.
        verdict: "pass", "fail" or "inconclusive".

    """

    task: Name
    metric: Name = "accuracy_percent"
    seeds: tuple[Number, ...]
    steps: Count
    baseline: tuple[Percent, ...]
    method: tuple[Percent, ...]
    difference: Annotated[float, Meta(ge=-101, le=101)]
    low: Finite | None
    high: Finite | None
    margin: Percent
    verdict: Verdict

    def __post_init__(self) -> None:
        _normalise(self)


@dataclass(frozen=True, kw_only=True)
class Utilization:
    """What a steady loop of one side took of the machine; its device is the GPU, or on the CPU all of its packages.

    Attributes:
        seconds: of the loop while it was watched.
        iterations: of the phase in these seconds.
        power_w: mean power of the device, idle power included.
        energy_per_step_j: energy of the device over the loop / iterations, idle power included.
        energy_source: "NVML counter", "NVML power readings" or "RAPL".
        cpu_utilization: of the process, in percent of one core: 200 is two cores.
        others_cpu_utilization: of everything else on the machine, likewise.
        cpu_steal: given to other guests of the hypervisor, likewise.
        cpu_frequency_mhz: mean.
        cpu_throttled_s: for which a CPU quota held the process back.
        cpu_energy_j: of all packages over the loop.
        rss_bytes: largest resident set of the process.
        voluntary_switches: of all threads of the process over the loop: they waited for something.
        involuntary_switches: likewise: they had to make room.
        page_faults: pages mapped at first touch over the loop.
        gpu_utilization: percent of the time in which some kernel ran.
        gpu_memory_utilization: percent of the time in which device memory was read or written.
        gpu_memory_used_bytes: the most in use on the device, by anybody.
        gpu_power_w: mean of the power readings.
        gpu_energy_j: of the board over the loop.
        sm_clock_mhz: mean clock of the multiprocessors.
        temperature_c: the highest of the GPU.
        throttle_reasons: what held the GPU's clocks down; empty when nothing did.
        sm_utilization: percent of the multiprocessors that were busy (this and the next three: Hopper and later).
        sm_occupancy: percent of the warps that they can hold.
        tensor_utilization: percent of the time in which tensor cores worked.
        dram_utilization: percent of the memory's bandwidth.
        unavailable: field -> why it is null.

    """

    seconds: Seconds
    iterations: Count
    power_w: Amount | None = None
    energy_per_step_j: Amount | None = None
    energy_source: Name | None = None
    cpu_utilization: Amount | None = None
    others_cpu_utilization: Amount | None = None
    cpu_steal: Amount | None = None
    cpu_frequency_mhz: Amount | None = None
    cpu_throttled_s: Amount | None = None
    cpu_energy_j: Amount | None = None
    rss_bytes: Number | None = None
    voluntary_switches: Number | None = None
    involuntary_switches: Number | None = None
    page_faults: Number | None = None
    gpu_utilization: Busy | None = None
    gpu_memory_utilization: Busy | None = None
    gpu_memory_used_bytes: Number | None = None
    gpu_power_w: Amount | None = None
    gpu_energy_j: Amount | None = None
    sm_clock_mhz: Amount | None = None
    temperature_c: Annotated[float, Meta(ge=-273.15, le=1e4)] | None = None
    throttle_reasons: tuple[str, ...] | None = None
    sm_utilization: Busy | None = None
    sm_occupancy: Busy | None = None
    tensor_utilization: Busy | None = None
    dram_utilization: Busy | None = None
    unavailable: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _normalise(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Utilization:
        """Build from a JSON object; raises ValueError for a missing or wrong field."""
        found = checked(record, cls)
        check_utilization(found)
        return found


@dataclass(frozen=True, kw_only=True)
class Row(StoredAxes):
    """One phase of one case: its axes, and what was measured. Times are seconds per iteration, sizes bytes.

    `utilization` and `baseline_utilization` belong to the phase that was run steadily, and so do the four fields before
    them, which are the method's, taken out of it. `unavailable` says of a field that is null why it is.

    `data_published` says whether the data were those that were published, by their SHA-256: false where files of their
    names hold something else, null where no published SHA-256 is known.

    `kernel` is the one that ran, `kernel_requested` the axis.

    `baseline_disagreement` is set by a report, and null in what is stored: the largest factor between the baseline's
    median and that of another row whose dense work is the same, where they disagree (`report.baselines`).

    `elapsed_s` is the wall time of the whole case: the start of its processes and all besides the timing, too.

    `git_revision` is that of the code which was measured; of rows without it, that of their environment. A run may be
    resumed at another one, and an environment's id does not tell them apart.

    Memory is what the phase takes on top of what it starts with: `peak_memory_bytes` of tensors, `peak_reserved_bytes`
    of CUDA's caching allocator, `process_growth_bytes` of the process's resident set, which was at most
    `process_peak_bytes`.
    """

    kernel: Name | None
    phase: Name | None
    data_published: bool | None = None
    median_s: Seconds | None = None
    values_s: tuple[Seconds, ...] | None = None
    baseline_median_s: Seconds | None = None
    baseline_disagreement: Annotated[float, Meta(ge=1, le=1e30)] | None = None
    baseline_values_s: tuple[Seconds, ...] | None = None
    run_lengths: tuple[Count, ...] | None = None
    disturbed: tuple[bool, ...] | None = None
    loops: Count | None = None
    speedup: Ratio | None = None
    speedup_low: Ratio | None = None
    speedup_high: Ratio | None = None
    converged: bool | None = None
    processes: Count | None = None
    floor_s: Amount | None = None
    baseline_floor_s: Amount | None = None
    efficiency: Ratio | None = None
    flops: Amount | None = None
    bytes: Amount | None = None
    baseline_flops: Amount | None = None
    baseline_bytes: Amount | None = None
    peak_memory_bytes: Number | None = None
    baseline_peak_memory_bytes: Number | None = None
    peak_reserved_bytes: Number | None = None
    baseline_peak_reserved_bytes: Number | None = None
    process_peak_bytes: Number | None = None
    baseline_process_peak_bytes: Number | None = None
    process_growth_bytes: Number | None = None
    baseline_process_growth_bytes: Number | None = None
    gpu_utilization: Busy | None = None
    cpu_utilization: Amount | None = None
    power_w: Amount | None = None
    energy_per_step_j: Amount | None = None
    utilization: Utilization | None = None
    baseline_utilization: Utilization | None = None
    unavailable: Mapping[str, str] = field(default_factory=dict, hash=False)
    check: str | None = None
    parity: Parity | None = None
    elapsed_s: Amount | None = None
    git_revision: Name | None = None
    environment_id: Name
    error: str | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("check", "error"):
            if isinstance(text := getattr(self, name), str):
                object.__setattr__(self, name, one_line(text) or "no reason was given")
        if isinstance(self.notes, list | tuple) and all(isinstance(note, str) for note in self.notes):
            object.__setattr__(self, "notes", tuple(line for note in self.notes if (line := one_line(note))))
        _normalise(self)

    @cached_property
    def measurement(self) -> Measurement | None:
        """The raw values as what was measured; None where there are none."""
        if self.values_s is None or self.baseline_values_s is None or self.run_lengths is None:
            return None
        phase, loops = self.phase or "", self.loops or 1
        return Measurement.from_values(
            phase, self.baseline_values_s, self.values_s, self.run_lengths, loops, self.disturbed
        )

    @property
    def passed(self) -> bool:
        """Whether the case ran and its correctness check passed: only then may a speed-up be shown."""
        return self.error is None and self.check == PASSED

    @property
    def significant(self) -> bool | None:
        """Whether the interval excludes 1; None where there is no interval (a single process)."""
        if self.speedup_low is None or self.speedup_high is None:
            return None
        return not self.speedup_low <= 1.0 <= self.speedup_high

    @property
    def half_width(self) -> float | None:
        """Half the interval's width relative to the speed-up: the quantity that the target of a run is about."""
        if not self.speedup or self.speedup_low is None or self.speedup_high is None:
            return None
        return (self.speedup_high - self.speedup_low) / (2 * self.speedup)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, `schema` and `case_id` first (a line torn by a kill still says whose it was)."""
        return {"schema": SCHEMA, **_as_json(asdict(self))}

    @classmethod
    def from_json(cls, record: object) -> Row:
        """Build from a JSON object.

        Raises:
            UserError: the record is of another schema.
            ValueError: a field is missing or wrong.

        """
        check_schema(record)
        row = checked(record, cls)
        check_row(row)
        return row


def select(rows: Iterable[Row], **criteria: object) -> list[Row]:
    """Return the rows whose fields equal `criteria`, in order: `select(rows, workload="mlp", phase="step")`."""
    names = {spec.name for spec in fields(Row)}
    if unknown := sorted(set(criteria) - names):
        raise ValueError(f"a row has no field {unknown[0]!r}")
    return [row for row in rows if all(getattr(row, name) == wanted for name, wanted in criteria.items())]


def _as_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """Turn tuples into lists, at any depth."""
    return {
        key: list(value) if isinstance(value, tuple) else _as_json(value) if isinstance(value, Mapping) else value
        for key, value in record.items()
    }


def _normalise(record: Row | Parity | Utilization) -> None:
    """Turn lists into tuples, and a number that is not finite into None, as JSON gives them back."""
    for name, value in vars(record).items():
        if isinstance(value, float) and not math.isfinite(value):
            object.__setattr__(record, name, None)
        elif isinstance(value, list):
            object.__setattr__(record, name, tuple(value))
        elif name == "unavailable":
            reasons = {one_line(key): one_line(text) or "no reason was given" for key, text in value.items()}
            object.__setattr__(record, name, reasons)
