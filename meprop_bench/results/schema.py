"""One row: what was measured about one phase of one case, with the raw values kept.

A row is one JSON object on one line of `measurements.jsonl`. Statistics in it (medians, the speed-up and its interval)
can be recomputed from what is beside them: `values_s[i]` and `baseline_values_s[i]` were measured next to each other in
random order, and `run_lengths` cuts both lists into fresh processes, the replicates that the interval is taken over;
`disturbed` marks the pairs during which the machine did something else (null: it could not be told).

The rules that every row obeys, on writing and on reading:

* what does not apply, and what is not finite, is null: JSON has no NaN;
* a case whose check did not pass has no speed-up, and a case that failed (`error`) has no numbers at all;
* keys that this version does not know are ignored, a `schema` that it does not know is refused.
"""

from __future__ import annotations

import math
import sys
from collections import abc
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from meprop_bench.errors import UserError
from meprop_bench.results.redact import one_line

__all__ = ["PASSED", "SCHEMA", "Parity", "Row", "Utilization", "check_schema", "select"]

SCHEMA = "meprop-bench/1"
PASSED = "passed"

Verdict: TypeAlias = Literal["pass", "fail", "inconclusive"]


def check_schema(record: Mapping[str, Any]) -> None:
    """Refuse a record of another schema (`UserError`)."""
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

    task: str
    metric: str = "accuracy_percent"
    seeds: tuple[int, ...]
    steps: int
    baseline: tuple[float, ...]
    method: tuple[float, ...]
    difference: float
    low: float | None
    high: float | None
    margin: float
    verdict: Verdict

    def __post_init__(self) -> None:
        _normalise(self)
        if not len(self.seeds) == len(self.baseline) == len(self.method):
            raise ValueError(
                f"parity: {len(self.seeds)} seeds, {len(self.baseline)} baseline and {len(self.method)} method figures"
            )

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Parity:
        """Build from a JSON object; raises ValueError for a missing or wrong field."""
        return cls(**_known(cls, record))


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

    seconds: float
    iterations: int
    power_w: float | None = None
    energy_per_step_j: float | None = None
    energy_source: str | None = None
    cpu_utilization: float | None = None
    others_cpu_utilization: float | None = None
    cpu_steal: float | None = None
    cpu_frequency_mhz: float | None = None
    cpu_throttled_s: float | None = None
    cpu_energy_j: float | None = None
    rss_bytes: int | None = None
    voluntary_switches: int | None = None
    involuntary_switches: int | None = None
    page_faults: int | None = None
    gpu_utilization: float | None = None
    gpu_memory_utilization: float | None = None
    gpu_memory_used_bytes: int | None = None
    gpu_power_w: float | None = None
    gpu_energy_j: float | None = None
    sm_clock_mhz: float | None = None
    temperature_c: float | None = None
    throttle_reasons: tuple[str, ...] | None = None
    sm_utilization: float | None = None
    sm_occupancy: float | None = None
    tensor_utilization: float | None = None
    dram_utilization: float | None = None
    unavailable: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _normalise(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Utilization:
        """Build from a JSON object; raises ValueError for a missing or wrong field."""
        return cls(**_known(cls, record))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One phase of one case. Times are seconds per iteration, sizes bytes; see the module for the rules.

    `utilization` and `baseline_utilization` belong to the phase that was run steadily, and so do the four fields before
    them, which are the method's, taken out of it. `unavailable` says of a field that is null why it is.

    `data_published` says whether the data were those that were published, by their SHA-256: false where files of their
    names hold something else, null where no published SHA-256 is known.

    `caches` says what a timed call found in them ("cold": emptied before it); rows without it are "warm".
    `launch` says how calls reached a GPU ("graph": recorded once and replayed); rows without it are "eager".

    `baseline_disagreement` is set by a report, and null in what is stored: the largest factor between the baseline's
    median and that of another row whose dense work is the same, where they disagree (`report.baselines`).

    `elapsed_s` is the wall time of the whole case: the start of its processes and all besides the timing, too.

    `git_revision` is that of the code which was measured; of rows without it, that of their environment. A run may be
    resumed at another one, and an environment's id does not tell them apart.

    Memory is what the phase takes on top of what it starts with: `peak_memory_bytes` of tensors, `peak_reserved_bytes`
    of CUDA's caching allocator, `process_growth_bytes` of the process's resident set, which was at most
    `process_peak_bytes`.
    """

    case_id: str
    workload: str
    method: str
    kernel: str | None
    kernel_requested: str
    k: int | float
    batch: int
    in_features: int | None
    out_features: int | None
    device: str
    threads: int | None
    dtype: str
    gradient: str
    allocator: str
    phase: str | None
    data: str | None = None
    data_published: bool | None = None
    layers: int | None = None
    optimizer: str | None = None
    size: int | None = None
    filter: int | None = None
    length: int | None = None
    rate: float | None = None
    share: float | None = None
    slowdown: float | None = None
    caches: str = "warm"
    launch: str = "eager"
    median_s: float | None = None
    values_s: tuple[float, ...] | None = None
    baseline_median_s: float | None = None
    baseline_disagreement: float | None = None
    baseline_values_s: tuple[float, ...] | None = None
    run_lengths: tuple[int, ...] | None = None
    disturbed: tuple[bool, ...] | None = None
    loops: int | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    converged: bool | None = None
    processes: int | None = None
    floor_s: float | None = None
    baseline_floor_s: float | None = None
    efficiency: float | None = None
    flops: float | None = None
    bytes: float | None = None
    baseline_flops: float | None = None
    baseline_bytes: float | None = None
    peak_memory_bytes: int | None = None
    baseline_peak_memory_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    baseline_peak_reserved_bytes: int | None = None
    process_peak_bytes: int | None = None
    baseline_process_peak_bytes: int | None = None
    process_growth_bytes: int | None = None
    baseline_process_growth_bytes: int | None = None
    gpu_utilization: float | None = None
    cpu_utilization: float | None = None
    power_w: float | None = None
    energy_per_step_j: float | None = None
    utilization: Utilization | None = None
    baseline_utilization: Utilization | None = None
    unavailable: Mapping[str, str] = field(default_factory=dict, hash=False)
    check: str | None = None
    parity: Parity | None = None
    seed: int | None = None
    elapsed_s: float | None = None
    git_revision: str | None = None
    environment_id: str
    error: str | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("check", "error"):
            if isinstance(text := getattr(self, name), str):
                object.__setattr__(self, name, one_line(text) or "no reason was given")
        if isinstance(self.notes, list | tuple) and all(isinstance(note, str) for note in self.notes):
            object.__setattr__(self, "notes", tuple(line for note in self.notes if (line := one_line(note))))
        _normalise(self)
        self._check_values()
        self._check_rules()

    def _check_values(self) -> None:
        values, baseline, lengths = self.values_s, self.baseline_values_s, self.run_lengths
        if values is None or baseline is None or lengths is None:
            if any(part is not None for part in (values, baseline, lengths)):
                raise ValueError("values_s, baseline_values_s and run_lengths come together or not at all")
            return
        if not len(values) == len(baseline) == sum(lengths) or min(lengths, default=1) < 1:
            raise ValueError(
                f"{len(values)} values, {len(baseline)} baseline values and run_lengths {list(lengths)} do not pair up"
            )
        if self.disturbed is not None and len(self.disturbed) != len(values):
            raise ValueError(f"{len(self.disturbed)} marks of disturbed pairs for {len(values)} values")
        if min((*values, *baseline), default=0.0) < 0:
            raise ValueError("a negative time in values_s or baseline_values_s")

    def _check_rules(self) -> None:
        if self.speedup is not None and not self.passed:
            raise ValueError(f"a speed-up for a case that failed: check {self.check!r}, error {self.error!r}")
        if self.error is not None and (self.median_s is not None or self.values_s is not None):
            raise ValueError("numbers in a row that holds an error")
        if (self.speedup_low is None) != (self.speedup_high is None):
            raise ValueError("speedup_low and speedup_high come together or not at all")
        if self.speedup_low is not None and self.speedup_high is not None:
            low, high = self.speedup_low, self.speedup_high
            if self.speedup is None or not low <= self.speedup <= high:
                raise ValueError(f"speedup {self.speedup} is not in its interval [{low}, {high}]")

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
    def from_json(cls, record: Mapping[str, Any]) -> Row:
        """Build from a JSON object.

        Raises:
            UserError: the record is of another schema.
            ValueError: a field is missing or wrong.

        """
        check_schema(record)
        known = _known(cls, record)
        for key, kind in _NESTED.items():
            if isinstance(known.get(key), Mapping):
                known[key] = kind.from_json(known[key])
        return cls(**known)


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


_Kind: TypeAlias = "type[Row] | type[Parity] | type[Utilization]"
_NESTED: dict[str, type[Parity] | type[Utilization]] = {
    "parity": Parity,
    "utilization": Utilization,
    "baseline_utilization": Utilization,
}


def _known(cls: _Kind, record: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the keys that `cls` has; raises ValueError if one without a default is missing."""
    known = {spec.name: record[spec.name] for spec in fields(cls) if spec.name in record}
    needed = [spec.name for spec in fields(cls) if spec.default is MISSING and spec.default_factory is MISSING]
    if missing := [name for name in needed if name not in known]:
        raise ValueError(f"{cls.__name__.lower()} without {missing[0]!r}")
    return known


def _normalise(record: Row | Parity | Utilization) -> None:
    """Check each field against its annotation; lists become tuples, and a number that is not finite becomes None."""
    for name, hint in _HINTS[type(record)].items():
        object.__setattr__(record, name, _checked(name, getattr(record, name), hint))


def _checked(name: str, value: Any, hint: Any) -> Any:
    options = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        if NoneType in options:
            return None
    else:
        for option in options:
            if get_origin(option) is abc.Mapping and isinstance(value, Mapping):
                return {_text(name, key): _text(name, item) for key, item in value.items()}
            if get_origin(option) is tuple and isinstance(value, list | tuple):
                return tuple(_checked(f"an item of {name}", item, get_args(option)[0]) for item in value)
            if _is_a(value, option):
                return float(value) if option is float else value
    raise ValueError(f"{name} is {one_line(repr(value), 80)}, expected {getattr(hint, '__name__', hint)}")


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not (line := one_line(value)):
        raise ValueError(f"{name} holds {one_line(repr(value), 80)}, expected text")
    return line


def _is_a(value: Any, option: Any) -> bool:
    if get_origin(option) is Literal:
        return value in get_args(option)
    if option is str:
        return isinstance(value, str) and value.isprintable() and value != ""
    if option in (int, float):
        kinds = (int, float) if option is float else (int,)
        return isinstance(value, kinds) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(option, type) and isinstance(value, option)


_HINTS: dict[_Kind, dict[str, Any]] = {cls: get_type_hints(cls) for cls in (Row, Parity, Utilization)}
