"""pytest-benchmark's JSON, of any project: `--benchmark-json FILE`, or a file of `--benchmark-save`.

    {"machine_info": {...}, "benchmarks": [{"fullname", "stats": {"median", "q1", "q3", "rounds", "data"?, ...},
                                            "extra_info", ...}, ...], "version": ...}

A benchmark's rounds all come from one process and know nothing of what differs from one process to the next; without
`data` (--benchmark-save leaves it out) all that is known of them is the median and the quartiles. Verdicts
allow for both, and the notes say it.

This project's own suite writes each row of a results folder as `extra_info`: its processes, ratios to dense, sizes and
accuracy are read as those of a results folder are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, TypeAlias

import msgspec

from meprop_bench.errors import UserError
from meprop_bench.gate.files.figures import Figures, Kind, flat
from meprop_bench.gate.files.ours import add_row, comparable
from meprop_bench.gate.files.stream import LARGEST, number, out_of_range
from meprop_bench.gate.names import quoted
from meprop_bench.gate.series import Summary
from meprop_bench.results.incoming import refused
from meprop_bench.results.redact import one_line
from meprop_bench.results.schema import SCHEMA, Row

__all__ = ["LISTED", "Benchmark", "BenchmarkReader"]

LISTED = "benchmarks"

_HOST = ("node", "release")
"""A runner that is new for each job has a name of its own, and its kernel is updated each week."""

_NOT_IDENTITY = {*_HOST, "cpu", "processor", "python_build", "python_compiler", "python_implementation_version"}
"""The processor is empty, or what `machine` says."""
_CPU = ("brand_raw", "brand", "arch", "count")
"""What of `cpu` tells a processor; the rest is its clock at that moment, and details of the brand."""

_TIME = Kind("time", "time", "s")
_Time: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=LARGEST)]


class _Stats(msgspec.Struct, gc=False):
    median: float | None = None
    q1: _Time | None = None
    q3: _Time | None = None
    iqr: _Time | None = None
    mean: _Time | None = None
    stddev: _Time | None = None
    min: _Time | None = None
    max: _Time | None = None
    total: _Time | None = None
    rounds: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] | None = None
    iterations: Annotated[int, msgspec.Meta(ge=1, le=1 << 53)] | None = None
    data: list[float] | None = None


class Benchmark(msgspec.Struct, gc=False):
    """What is wanted of one element of `benchmarks`."""

    name: str | None = None
    fullname: str | None = None
    stats: _Stats | None = None
    extra_info: Any = None


class BenchmarkReader:
    """Takes the benchmarks, then the rest of the file, into `figures`."""

    def __init__(self, name: str) -> None:
        self.figures = Figures(name, name)
        self._summaries = 0

    def take(self, benchmarks: list[Benchmark]) -> None:
        """Add the figures of some benchmarks; raises `UserError` for one that is not pytest-benchmark's."""
        cases: list[str] = []
        values: list[list[float]] = []
        summarised: list[str] = []
        known: list[tuple[float, float, int]] = []
        for found in benchmarks:
            case, stats = found.fullname or found.name, found.stats
            if not case or stats is None:
                missing = "name" if stats else "stats"
                raise UserError(f"{self.figures.name}: a benchmark without {missing!r}: not pytest-benchmark's JSON")
            if stats.median is not None and not 0 <= stats.median <= LARGEST:  # whether or not it is needed
                raise out_of_range(stats.median, f"{self.figures.name}: the time of {quoted(case)}")
            if found.extra_info and (row := self._own_row(case, found.extra_info)) is not None:
                add_row(self.figures, row)
            elif stats.data:
                cases.append(case)
                values.append(stats.data)
            else:
                summarised.append(case)
                known.append(self._known(case, stats))
        if cases:
            self.figures.add_many(cases, _TIME, values)
        if summarised:
            self.figures.add_many_summaries(summarised, _TIME, known)
            self._summaries += sum(count > 0 or not math.isnan(median) for median, _, count in known)

    def finish(self, document: Mapping[str, Any]) -> Figures:
        """Add what the file says of itself and of the machine, once all benchmarks are there."""
        found = self.figures
        version = document.get("version")
        release = f" {one_line(version, 20)}" if isinstance(version, str) else ""
        found.source = f"{found.name} (pytest-benchmark{release})"
        found.when = _seconds(document.get("datetime"))
        machine = document.get("machine_info")
        if isinstance(machine, Mapping):
            found.environments[""] = _identity(machine)
            found.host = {key: machine.get(key) for key in _HOST}
        own = document.get("environments")
        for key, environment in own.items() if isinstance(own, Mapping) else ():
            if isinstance(environment, Mapping):
                found.environments[key] = comparable(environment)
        if self._summaries:
            found.notes.append(
                f"{found.name} kept no values of {self._summaries} of its figures, only a summary, which tells"
                " less: --benchmark-json keeps them, and so does --benchmark-save-data"
            )
        return found

    def _own_row(self, case: str, extra: Any) -> Row | None:
        """Return the row that this project's suite keeps in `extra_info`; None in any other project's."""
        row = extra.get("row") if isinstance(extra, Mapping) else None
        if not isinstance(row, Mapping) or row.get("schema") != SCHEMA:
            return None
        try:
            return Row.from_json(row)
        except ValueError as error:
            raise refused(f"{self.figures.name}: the row of {quoted(case)} is not sound", error) from None

    def _known(self, case: str, stats: _Stats) -> tuple[float, float, int]:
        """Return median, standard error and count: those of a `Summary`."""
        if stats.rounds == 0:
            return math.nan, math.nan, 0
        count = stats.rounds or 0
        median = stats.mean if stats.median is None else stats.median
        if median is None:
            raise UserError(f"{self.figures.name}: {quoted(case)} has neither values nor a median")
        if count == 0:  # nobody knows of how many rounds
            return number(median, f"{self.figures.name}: the time of {quoted(case)}"), math.nan, 0
        quartiles = stats.iqr if stats.q1 is None or stats.q3 is None else stats.q3 - stats.q1
        spread = stats.stddev if quartiles is None else quartiles
        if spread is None:
            return median, math.nan, count
        if not 0 <= spread <= LARGEST:
            raise out_of_range(spread, f"{self.figures.name}: the spread of {quoted(case)}")
        return median, spread * _error(count, quartiles is not None), count


@lru_cache(maxsize=1 << 12)
def _error(count: int, quartiles: bool) -> float:
    """Return the standard error of the median of `count` values whose quartiles, or else deviation, are 1 apart."""
    return (Summary.of_quartiles(0.0, 0.0, 1.0, count) if quartiles else Summary.of_deviation(0.0, 1.0, count)).error


def _seconds(date: object) -> float | None:
    """Return a date as pytest-benchmark writes it (ISO, UTC where it says nothing), in seconds since 1970."""
    try:
        found = datetime.fromisoformat(str(date))
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _identity(machine: Mapping[str, Any]) -> dict[str, Any]:
    cpu = machine.get("cpu")
    known = {key: cpu[key] for key in _CPU if key in cpu} if isinstance(cpu, Mapping) else {}
    rest = {key: value for key, value in machine.items() if key not in _NOT_IDENTITY}
    return flat({**rest, "cpu": known})
