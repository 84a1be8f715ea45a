"""One row: what was measured about one phase of one case, with the raw values kept.

In a program a row is made of structures: the axes of its case, the `Measurement` with its pairs, what each `Side` took
and needs at least, notes. Stored, it is one flat JSON object on one line of `measurements.jsonl`; `Row.to_json` and
`Row.from_json` are the only places that know its keys:

    name, baseline_name   of the fields of a `Side`: the method's and the baseline's
    values_s[i], baseline_values_s[i]    measured next to each other in random order; run_lengths cuts both lists into
                          fresh processes, the replicates that the interval is taken over; disturbed marks the pairs
                          during which the machine did something else (null: unknown)
    processes, efficiency, gpu_utilization, cpu_utilization, power_w, energy_per_step_j
                          follow from the structures, and are there for those who read a row without this package
    notes, note_kinds     what a reader should know, in words; and the same as data, in the same order

The rules that every row obeys, on writing and on reading:

* what does not apply, and what is not finite, is null: JSON has no NaN;
* each field holds what its annotation allows (`results.incoming`), and its figures are those of its raw values
  (`results.consistency`): a row that contradicts itself is refused;
* a case whose check did not pass has no speed-up, and a case that failed (`error`) has no numbers at all;
* keys that this version does not know are ignored, a `schema` that it does not know is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from itertools import chain
from operator import attrgetter
from sys import intern
from typing import Annotated, Any, cast

from msgspec import Meta

from meprop_bench.errors import UserError
from meprop_bench.measure.notes import Note
from meprop_bench.measure.paired import Measurement
from meprop_bench.results.axes import AXES, K, StoredAxes
from meprop_bench.results.consistency import WATCHED, check_row, check_utilization
from meprop_bench.results.incoming import (
    Amount,
    Busy,
    Count,
    Finite,
    Name,
    Number,
    Ratio,
    Seconds,
    checked,
)
from meprop_bench.results.metric import QualityMetric
from meprop_bench.results.redact import one_line
from meprop_bench.stats import Interval, Verdict

__all__ = [
    "FIGURES", "KEYS", "PASSED", "SCHEMA", "TEXTS", "WHOLE", "Flat", "Parity", "Row", "Side", "Utilization",
    "as_object", "check_schema", "readable", "reasons", "select",
]  # fmt: skip

SCHEMA = "meprop-bench/1"
PASSED = "passed"
WHOLE = 100.0
"""What percentages are of."""


def check_schema(record: object) -> None:
    """Refuse a record of another schema (`UserError`), and what is no record (`ValueError`)."""
    if not isinstance(record, Mapping):
        raise ValueError("it is no JSON object")
    if record.get("schema") != SCHEMA:
        found = one_line(repr(record.get("schema")), 60)
        raise UserError(f"results of schema {found} cannot be read: this version reads {SCHEMA!r}")


_AS_THEY_ARE = frozenset({type(None), str, int, bool, tuple, dict})


class _Record:
    """What a row is made of: lists become tuples, and a number that is not finite None, as JSON gives them back."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for name, value in vars(self).items() if hasattr(self, "__dict__") else _slots_of(self):
            if type(value) in _AS_THEY_ARE:
                continue
            if isinstance(value, float):
                if not math.isfinite(value):
                    object.__setattr__(self, name, None)
            elif isinstance(value, list):
                object.__setattr__(self, name, tuple(value))


def _slots_of(record: Any) -> Iterable[tuple[str, Any]]:
    return [(name, getattr(record, name)) for name in record.__slots__]


@dataclass(frozen=True, kw_only=True)
class Parity(_Record):
    """Quality of the method against dense training from the same seeds and the same batches; higher is better."""

    task: Name  # the data, "digits" or "mnist"
    metric: Name = "accuracy_percent"  # what `baseline` and `method` hold
    percent: bool = (
        True  # whether they are percentages, their differences points; else both are in the metric's own unit
    )
    seeds: tuple[Number, ...]  # one training run of each side per seed
    steps: Count  # optimizer steps of one training run
    baseline: tuple[Finite, ...]  # the dense runs, one figure per seed
    method: tuple[Finite, ...]  # the method's runs, one figure per seed
    difference: Finite  # mean of method minus baseline, with the 95% interval `low`, `high`
    low: Finite | None
    high: Finite | None
    margin: Amount  # the loss that still counts as parity
    verdict: Verdict  # "pass", "fail" or "inconclusive"

    def __post_init__(self) -> None:
        for name in ("task", "metric"):
            object.__setattr__(self, name, one_line(getattr(self, name)) or "?")
        super().__post_init__()

    @property
    def figure(self) -> QualityMetric:
        """What `baseline` and `method` hold, as data."""
        return QualityMetric.read(self.metric)

    @property
    def interval(self) -> Interval:
        """The difference with its bounds."""
        return Interval.of(self.difference, self.low, self.high)

    @property
    def scale(self) -> float:
        """What a difference is seen against: `WHOLE` for percentages, else the size of the dense runs' mean."""
        return WHOLE if self.percent else abs(math.fsum(self.baseline) / len(self.baseline))

    @property
    def relative(self) -> float:
        """The difference in points, or else in percent of the scale; NaN where that is 0."""
        return self.difference if self.percent else WHOLE * self.difference / self.scale if self.scale else math.nan


@dataclass(frozen=True, kw_only=True, slots=True)
class Utilization(_Record):
    """What a steady loop of one side took of the machine; its device is the GPU, or on the CPU all of its packages."""

    seconds: Seconds  # of the loop while it was watched
    iterations: Count  # of the phase in these seconds
    power_w: Amount | None = None  # mean power of the device, idle power included
    energy_per_step_j: Amount | None = None  # energy of the device over the loop / iterations, idle power included
    energy_source: Name | None = None  # "NVML counter", "NVML power readings" or "RAPL"
    cpu_utilization: Amount | None = None  # of the process, in percent of one core: 200 is two cores
    others_cpu_utilization: Amount | None = None  # of everything else on the machine, likewise
    cpu_steal: Amount | None = None  # given to other guests of the hypervisor, likewise
    cpu_frequency_mhz: Amount | None = None  # mean
    cpu_throttled_s: Amount | None = None  # for which a CPU quota held the process back
    cpu_energy_j: Amount | None = None  # of all packages over the loop
    rss_bytes: Number | None = None  # largest resident set of the process
    voluntary_switches: Number | None = None  # of all threads of the process over the loop: they waited for something
    involuntary_switches: Number | None = None  # likewise: something else was scheduled
    page_faults: Number | None = None  # pages mapped at first touch over the loop
    gpu_utilization: Busy | None = None  # percent of the time in which some kernel ran
    gpu_memory_utilization: Busy | None = None  # percent of the time in which device memory was read or written
    gpu_memory_used_bytes: Number | None = None  # the most in use on the device, by anybody
    gpu_power_w: Amount | None = None  # mean of the power readings
    gpu_energy_j: Amount | None = None  # of the board over the loop
    sm_clock_mhz: Amount | None = None  # mean clock of the multiprocessors
    temperature_c: Annotated[float, Meta(ge=-273.15, le=1e4)] | None = None  # the highest of the GPU
    throttle_reasons: tuple[str, ...] | None = None  # what held the GPU's clocks down; empty when nothing did
    sm_utilization: Busy | None = None  # percent of the multiprocessors that were busy (and the next three: Hopper)
    sm_occupancy: Busy | None = None  # percent of the warps that they can hold
    tensor_utilization: Busy | None = None  # percent of the time in which tensor cores worked
    dram_utilization: Busy | None = None  # percent of the memory's bandwidth
    unavailable: Mapping[str, str] = field(default_factory=dict, hash=False)  # field -> why it is null

    def __post_init__(self) -> None:
        object.__setattr__(self, "unavailable", reasons(self.unavailable))
        if self.energy_source is not None:
            object.__setattr__(self, "energy_source", one_line(self.energy_source) or "?")
        if self.throttle_reasons:
            object.__setattr__(self, "throttle_reasons", tuple(map(one_line, self.throttle_reasons)))
        _Record.__post_init__(self)  # `super()` does not find its way through slots

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Utilization:
        """Build from a JSON object; raises ValueError for a missing or wrong field."""
        found = checked(record, cls)
        check_utilization(found)
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Side(_Record):
    """One side of a phase, the baseline or the method: its time, what it needs at least, and what it took."""

    median_s: Seconds | None = None  # of one iteration
    floor_s: Amount | None = None  # the least that this machine's measured peaks allow
    flops: Amount | None = None  # from the definition of the method
    bytes: Amount | None = None  # that must be moved at least, likewise
    peak_memory_bytes: Number | None = None  # of tensors, on top of what the phase starts with; so is the next
    peak_reserved_bytes: Number | None = None  # of CUDA's caching allocator
    process_peak_bytes: Number | None = None  # the largest resident set, everything included
    process_growth_bytes: Number | None = None  # how much of that is new
    wire_bytes: Amount | None = None  # that each of several processes sends in a step, by the sockets' count
    wire_bytes_predicted: Amount | None = None  # the same from the definition of the exchange
    utilization: Utilization | None = None  # where the phase was run steadily

    @property
    def efficiency(self) -> float | None:
        """The floor as a share of the time."""
        return None if self.floor_s is None or self.median_s is None else self.floor_s / self.median_s


@dataclass(frozen=True, kw_only=True)
class Row(StoredAxes, _Record):
    """One phase of one case: its axes, and what was measured. Times are seconds per iteration, sizes bytes."""

    kernel: Name | None  # that ran; `kernel_requested` is the axis
    phase: Name | None
    data_published: bool | None = None  # by their SHA-256; null where no published SHA-256 is known
    # how the dense side was run, in words: "eager, fused optimizer"; null of the baseline "same", which says it all
    baseline_chosen: Name | None = None
    # of a model's layers that can be sparsified: name -> class, and k, null where it is left dense
    convertible: Mapping[str, tuple[Name, K | None]] | None = field(default=None, hash=False)
    measurement: Measurement | None = None
    sparse: Side = Side()
    dense: Side = Side()
    # set by a report, null in what is stored: the largest factor between the baseline's median and that of another row
    # whose dense work is the same, where they disagree (`report.reliability`)
    baseline_disagreement: Annotated[float, Meta(ge=1, le=1e30)] | None = None
    speedup: Ratio | None = None  # with its interval as it was stored: those of `measurement`, where it is there
    speedup_low: Ratio | None = None
    speedup_high: Ratio | None = None
    converged: bool | None = None
    unavailable: Mapping[str, str] = field(default_factory=dict, hash=False)  # of `WATCHED`: why they are null
    check: str | None = None
    parity: Parity | None = None
    elapsed_s: Amount | None = None  # wall time of the whole case, with the start of its processes
    # of the code that was measured (else that of the environment): a run may be resumed at another one
    git_revision: Name | None = None
    environment_id: Name
    error: str | None = None
    notes: tuple[Note, ...] = ()

    def __post_init__(self) -> None:
        for name in ("check", "error"):
            if isinstance(text := getattr(self, name), str):
                object.__setattr__(self, name, one_line(text) or "no reason was given")
        if self.convertible is not None:
            layers = {one_line(layer): (one_line(kind), k) for layer, (kind, k) in self.convertible.items()}
            object.__setattr__(self, "convertible", layers)
        object.__setattr__(self, "unavailable", reasons(self.unavailable))
        object.__setattr__(self, "notes", readable(self.notes))
        super().__post_init__()

    @property
    def passed(self) -> bool:
        """Whether the case ran and its correctness check passed: only then may a speed-up be shown."""
        return self.error is None and self.check == PASSED

    def judged(self, disagreement: float | None, notes: tuple[Note, ...]) -> Row:
        """Return the row with another `baseline_disagreement` and these notes, without checking all the rest again."""
        row = copy(self)
        object.__setattr__(row, "baseline_disagreement", disagreement)
        object.__setattr__(row, "notes", notes)
        return row

    def side(self, name: str) -> Side:
        """Return the side "dense", the baseline, or "sparse", the method."""
        return self.dense if name == "dense" else self.sparse

    @cached_property
    def interval(self) -> Interval | None:
        """The speed-up with its bounds, NaN where there are none (a single process); None without a speed-up."""
        return None if self.speedup is None else Interval.of(self.speedup, self.speedup_low, self.speedup_high)

    @property
    def significant(self) -> bool | None:
        """Whether the interval excludes 1; None where there is no interval (a single process)."""
        return None if self.interval is None else self.interval.significant()

    @property
    def half_width(self) -> float | None:
        """Half the interval's width relative to the speed-up: the quantity that the target of a run is about."""
        return None if self.interval is None or not self.interval.bounded else self.interval.half_width

    @classmethod
    def of(cls, **stored: Any) -> Row:
        """Build from the keys of a stored row, whose values are not checked."""
        if unknown := sorted(stored.keys() - set(KEYS)):
            raise TypeError(f"a row has no key {unknown[0]!r}")
        own: dict[str, Any] = {name: stored[name] for name in _PLAIN if name in stored}
        own |= {name: Side(**side) for name, side in _sides(stored).items()}
        flat = Flat(**{spec.name: stored[spec.name] for spec in fields(Flat) if spec.name in stored})
        return flat.completed(cls(**own))

    def figures(self) -> list[Any]:
        """Return the values of `FIGURES`: what `to_json` has, without raw values, lists and nested structures."""
        found, watched = self.measurement, self.sparse.utilization
        return [
            *_plain_figures(self),
            *chain.from_iterable(zip(_side_figures(self.sparse), _side_figures(self.dense), strict=True)),
            *((None, None) if found is None else (found.loops, found.processes)),
            self.sparse.efficiency,
            *((None,) * len(WATCHED) if watched is None else _watched_figures(watched)),
            "; ".join(note.text for note in self.notes),
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, `schema` and `case_id` first (a line torn by a kill still says whose it was)."""
        found, sides = self.measurement, {"": self.sparse, "baseline_": self.dense}
        return _as_json({
            "schema": SCHEMA,
            **{name: getattr(self, name) for name in _PLAIN},
            **{prefix + name: getattr(side, name) for name in _OF_SIDE for prefix, side in sides.items()},
            **{name: getattr(found, own, None) for name, own in _RAW.items()},
            "efficiency": self.sparse.efficiency,
            **{name: getattr(self.sparse.utilization, name, None) for name in WATCHED},
            "notes": [note.text for note in self.notes],
            "note_kinds": [note.to_json() for note in self.notes],
        })  # fmt: skip

    @classmethod
    def from_json(cls, record: object) -> Row:
        """Build from a JSON object; `UserError` for one of another schema, ValueError for a missing or wrong field."""
        row, flat = cls.unchecked(record)
        check_row(row, flat)
        return row

    @classmethod
    def unchecked(cls, record: object) -> tuple[Row, Flat]:
        """Build as `from_json` does, without holding the row against what is stored beside its structures."""
        check_schema(record)
        stored = cast("dict[str, Any]", record)
        flat = checked(stored, Flat)
        # What most rows say is kept once: a hundred thousand of them say "linear".
        own = {name: stored[name] for name in _PLAIN if name in stored}
        own |= {name: intern(text) for name in TEXTS if type(text := own.get(name)) is str}
        try:
            return flat.completed(checked(own | _sides(stored), cls)), flat
        except ValueError as error:
            raise ValueError(re.sub(r"^(sparse|dense)\.", lambda found: _SIDES[found[1]], str(error))) from None


@dataclass(kw_only=True)
class Flat:
    """The keys of a stored row that a `Row` has no fields of: its raw values, what follows from its structures, notes.

    They are checked on reading (`results.consistency`), and made anew on writing.
    """

    values_s: tuple[Seconds, ...] | None = None
    baseline_values_s: tuple[Seconds, ...] | None = None
    run_lengths: tuple[Count, ...] | None = None
    disturbed: tuple[bool, ...] | None = None
    loops: Count | None = None
    processes: Count | None = None
    efficiency: Ratio | None = None
    gpu_utilization: Busy | None = None
    cpu_utilization: Amount | None = None
    power_w: Amount | None = None
    energy_per_step_j: Amount | None = None
    notes: Sequence[str] = ()
    note_kinds: Sequence[Mapping[str, Any]] | None = None

    def completed(self, row: Row) -> Row:
        """Return a row with its measurement and its notes; ValueError where the raw values do not fit."""
        values, baseline, lengths = self.values_s, self.baseline_values_s, self.run_lengths
        measurement = None
        if values is not None and baseline is not None and lengths is not None:
            measurement = Measurement.from_values(
                row.phase or "", baseline, values, lengths, self.loops or 1, self.disturbed
            )
        elif any(part is not None for part in (values, baseline, lengths)):
            raise ValueError("values_s, baseline_values_s and run_lengths come together or not at all")
        if self.note_kinds is not None and len(self.note_kinds) != len(self.notes):
            raise ValueError(f"{len(self.note_kinds)} note_kinds for {len(self.notes)} notes")
        kinds: dict[int, Mapping[str, Any]] = dict(enumerate(self.note_kinds or ()))
        notes = tuple(Note.read(text, kinds.get(place)) for place, text in enumerate(self.notes))
        # The row has just been made, and is nobody else's yet: a copy of it would cost as much as reading it.
        object.__setattr__(row, "measurement", measurement)
        object.__setattr__(row, "notes", readable(notes))
        return row


_RAW = {
    **{name: name for name in ("values_s", "baseline_values_s", "run_lengths")},
    **{"disturbed": "disturbed_values", "loops": "loops", "processes": "processes"},
}
"""Key of a stored row -> what a `Measurement` has of it."""
_SIDES = {"sparse": "", "dense": "baseline_"}
"""Field of a row -> what the keys of that side begin with."""
_OF_SIDE = tuple(spec.name for spec in fields(Side))
_PLAIN = tuple(spec.name for spec in fields(Row) if spec.name not in (*_SIDES, "measurement", "notes"))
TEXTS = (
    *(axis.stored for axis in AXES.values() if str in axis.bases),
    *("kernel", "phase", "check", "baseline_chosen", "git_revision", "environment_id"),
)
"""Fields of a row that hold a text, which many rows have alike."""
KEYS = (
    *_PLAIN,
    *(prefix + name for name in _OF_SIDE for prefix in _SIDES.values()),
    *(spec.name for spec in fields(Flat)),
)
"""All keys of a stored row, besides its schema."""

_NESTED = ("parity", "utilization", "convertible")
_OWN_FIGURES = [name for name in _PLAIN if name not in _NESTED]
_OF_SIDE_FIGURES = [name for name in _OF_SIDE if name not in _NESTED]
FIGURES = (
    *_OWN_FIGURES,
    *(prefix + name for name in _OF_SIDE_FIGURES for prefix in _SIDES.values()),
    *("loops", "processes", "efficiency", *WATCHED, "notes"),
)
"""Keys of a stored row that hold one value each."""
_plain_figures, _side_figures = attrgetter(*_OWN_FIGURES), attrgetter(*_OF_SIDE_FIGURES)
_watched_figures = attrgetter(*WATCHED)


def as_object(command: str, environments: Mapping[str, Any], rows: Iterable[Row] = (), **more: Any) -> dict[str, Any]:
    """Return the object that `--format json` prints; `environments` are what each environment id stands for."""
    environment, records = dict(environments), [row.to_json() for row in rows]
    return {"schema": SCHEMA, "command": command, "environment": environment, "rows": records, **more}


def select(rows: Iterable[Row], **criteria: object) -> list[Row]:
    """Return the rows whose fields equal `criteria`, in order: `select(rows, workload="mlp", phase="step")`."""
    names = {spec.name for spec in fields(Row)}
    if unknown := sorted(set(criteria) - names):
        raise ValueError(f"a row has no field {unknown[0]!r}")
    return [row for row in rows if all(getattr(row, name) == wanted for name, wanted in criteria.items())]


def readable(notes: Iterable[Note]) -> tuple[Note, ...]:
    """Return the notes as one line each, without empty ones."""
    lines = [(note, one_line(note.text)) for note in notes]
    return tuple([note if note.text == line else replace(note, text=line) for note, line in lines if line])


def reasons(found: Mapping[str, str]) -> Mapping[str, str]:
    """Return reasons as one line each; what many rows have is one mapping."""
    items = tuple(found.items())
    return _few_reasons(items) if sum(map(len, found.values())) <= _FEW else _made_reasons(items)


def _made_reasons(items: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    return {one_line(key): one_line(text) or "no reason was given" for key, text in items}


_FEW = 4000
"""Characters of reasons that are kept for the next row."""
_few_reasons = lru_cache(maxsize=256)(_made_reasons)


def _sides(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what a stored row has of each side."""
    return {side: {name: record[key] for key, name in keys if key in record} for side, keys in _KEYS_OF_SIDES.items()}


_KEYS_OF_SIDES = {side: [(prefix + name, name) for name in _OF_SIDE] for side, prefix in _SIDES.items()}


def _as_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """Turn structures into objects and tuples into lists, at any depth."""
    return {key: value if value is None or type(value) in _LEAVES else _value(value) for key, value in record.items()}


_LEAVES = frozenset({bool, int, float, str})


def _value(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, Mapping):
        return _as_json(value)
    if (names := _STRUCTURES.get(type(value))) is not None:
        return _as_json({name: getattr(value, name) for name in names})
    return value


_STRUCTURES: Mapping[type, Sequence[str]] = {
    kind: [spec.name for spec in fields(kind)] for kind in (Parity, Utilization)
}
"""Structure in a row -> its fields; what was read does not hold those that it was not given."""
