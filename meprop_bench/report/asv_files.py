"""The files of asv's results folder, written and read again.

    RESULTS/MACHINE/COMMIT-ENVIRONMENT.json    one for each commit and environment: benchmark -> columns
    RESULTS/MACHINE/machine.json               made if it is not there
    RESULTS/benchmarks.json                    ours are added, those of the suite stay

That is asv's format 2. A result's `params` are the values of each parameter, and its other columns go through their
product, the last one fastest: NaN is a combination that was skipped, null one that failed.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from meprop_bench.errors import UserError
from meprop_bench.results.costs import COSTS
from meprop_bench.results.incoming import checked, refused
from meprop_bench.results.store import replace_file

__all__ = ["PARAMETERS", "USUAL", "Benchmarks", "ResultFile", "joined", "write_benchmarks"]

PARAMETERS = ("method", "k", "shape", "device", "variant")
USUAL = "usual"
"""The variant of a case in which all is."""

_FORMAT, _VERSION = 2, "1"
_COLUMNS = (
    *("result", "params", "version", "started_at", "duration"),
    *("stats_ci_99_a", "stats_ci_99_b", "stats_q_25", "stats_q_75", "stats_number", "stats_repeat", "samples"),
)
_OF_POINT = ("result", *_COLUMNS[5:])
_SKIPPED = {"result": math.nan}

Point: TypeAlias = tuple[str, ...]
Values: TypeAlias = dict[str, Any]
Benchmarks: TypeAlias = dict[str, dict[Point, Values]]
"""Name -> point (a value for each parameter) -> column -> what it has there."""


@dataclass
class ResultFile:
    """One result file in the making."""

    commit: str  # whole hash
    date_ms: int  # of the commit
    machine: str  # as asv calls it
    name: str  # of the environment, in asv
    environment: Mapping[str, Any]
    started_ms: int  # when the results were measured
    found: Benchmarks = field(default_factory=dict)

    def write(self, results: Path, replaced: list[str]) -> Path:
        """Write it, with what a file of its name has of others; `replaced` gets what these took the place of."""
        environment = self.environment
        machine = self._machine(results / self.machine / "machine.json")
        python = re.sub(r"^\D*(\d+\.\d+).*", r"\1", str(environment.get("python")))
        path = results / self.machine / f"{self.commit[:8]}-stored-{self.name}.json"
        found = joined(_results_of(path), self.found, replaced)
        record = {
            "commit_hash": self.commit,
            "env_name": f"stored-{self.name}",
            "date": self.date_ms,
            "params": {
                **{key: value for key, value in machine.items() if key != "version"},
                "python": python,
                "torch": str(environment.get("torch")),
                "environment": self.name,
            },
            "python": python,
            "requirements": {"torch": str(environment.get("torch"))},
            "env_vars": {},
            "result_columns": list(_COLUMNS),
            "results": {benchmark: _columns(points, self.started_ms) for benchmark, points in sorted(found.items())},
            "durations": {},
            "version": _FORMAT,
        }
        _save(path, record)
        return path

    def _machine(self, path: Path) -> dict[str, Any]:
        """Return asv's record of the machine, made from the environment if there is none."""
        if (known := _read(path)) is not None:
            return known
        environment = self.environment
        made = {
            "arch": str(environment.get("architecture")),
            "cpu": str(environment.get("cpu_model")),
            "machine": self.machine,
            "num_cpu": str(environment.get("cpu_usable_cores")),
            "os": str(environment.get("os")),
            "ram": f"{environment.get('memory_gib')} GiB",
            "version": 1,
        }
        _save(path, made)
        return made


def joined(old: Benchmarks, new: Benchmarks, replaced: list[str]) -> Benchmarks:
    """Return both, the new ones in place of the old; `replaced` gets a line for each of these that was another."""
    for name, points in new.items():
        for point, values in points.items():
            before = old.get(name, {}).get(point)
            if before is not None and before["result"] != values["result"]:
                replaced.append(f"{name}({', '.join(point)}): {before['result']:.6g} by {values['result']:.6g}")
    return {name: {**old.get(name, {}), **new.get(name, {})} for name in (*old, *new)}


def _results_of(path: Path) -> Benchmarks:
    """Return what a result file of ours holds; nothing where there is none."""
    record = _read(path)
    if record is None:
        return {}
    try:
        stored = checked(record, _StoredResults)
        found: Benchmarks = {}
        for benchmark, row in stored.results.items():
            columns = dict(zip(stored.result_columns, row, strict=False))
            params = _checked_params(columns.get("params"))
            for index, point in enumerate(itertools.product(*params)):
                values = {name: columns[name][index] for name in _OF_POINT if columns.get(name) is not None}
                if values.get("result") is not None and math.isfinite(values["result"]):
                    found.setdefault(benchmark, {})[point] = values
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise refused(str(path), error, "it is no export of this package: remove it") from None
    return found


@dataclass
class _StoredResults:
    """What is read again of a result file."""

    result_columns: list[str]
    results: dict[str, list[Any]]


def _columns(points: Mapping[Point, Values], started_ms: int) -> list[Any]:
    params = _params(points)
    grid = list(itertools.product(*params))
    columns = {name: [points.get(point, {}).get(name) for point in grid] for name in _OF_POINT}
    columns["result"] = [points.get(point, _SKIPPED)["result"] for point in grid]
    once = {"params": params, "version": _VERSION, "started_at": started_ms}
    return [once.get(name, columns.get(name)) for name in _COLUMNS]


def _params(points: Iterable[Point]) -> list[list[str]]:
    """Return the values of each parameter, what is usual first (asv's page shows the first), numbers by size."""
    return [sorted(dict.fromkeys(column), key=_rank) for column in zip(*points, strict=True)]


def _rank(text: str) -> tuple[int, float, str]:
    if text == repr(USUAL):
        return (0, 0.0, text)
    try:
        return (1, float(text), text)
    except ValueError:
        return (2, 0.0, text)


def write_benchmarks(results: Path, found: Sequence[Benchmarks]) -> None:
    """Add the benchmarks to asv's list; a parameter keeps the values that it has there."""
    path = results / "benchmarks.json"
    record = _read(path) or {}
    for name in sorted({name for file in found for name in file}):
        cost = COSTS[name.rpartition("track_")[2]]
        points = [point for file in found for point in file.get(name, {})]
        old = _params_of(record.get(name), path)
        record[name] = {
            "name": name,
            "code": cost.meaning,
            "type": cost.kind,
            "unit": cost.unit_in(name.split(".")[1]),
            "param_names": list(PARAMETERS),
            "params": [
                sorted({*before, *column}, key=_rank) for before, column in zip(old, _params(points), strict=True)
            ],
            "version": _VERSION,
        }
    _save(path, {**record, "version": _FORMAT})


def _params_of(benchmark: object, path: Path) -> list[list[str]]:
    """Return the values of each parameter that asv's list has of a benchmark of ours, if it has it."""
    try:
        params = checked({} if benchmark is None else benchmark, dict[str, Any]).get("params")
        return _checked_params(params) if params else [[] for _ in PARAMETERS]
    except ValueError as error:
        raise refused(str(path), error, "repair or remove it") from None


def _checked_params(params: object) -> list[list[str]]:
    found = checked(params, list[list[str]])
    if len(found) != len(PARAMETERS):
        raise ValueError(f"params are of {len(found)} parameters, and ours are {', '.join(PARAMETERS)}")
    return found


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "not JSON"
        raise UserError(f"cannot read {path}: {reason}; repair or remove it") from None
    if not isinstance(record, dict):
        raise UserError(f"{path} is not a file of asv's: repair or remove it")
    return record


def _save(path: Path, record: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror}; choose another folder with --to") from None
    replace_file(path, json.dumps(record, indent=1) + "\n")
