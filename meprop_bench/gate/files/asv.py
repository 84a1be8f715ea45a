"""asv's result of one commit (JSON version 2), of any project: `.asv/results/<machine>/<commit>-<environment>.json`.

    {"params": {"machine", "cpu", ...}, "result_columns": ["result", "params", "version", ..., "stats_ci_99_a", ...,
     "samples", ...], "results": {"module.Class.time_x": [[...], [["'a'", "'b'"], ["1", "2"]], ...], ...}, "version": 2}

`params` are the values of each parameter; `result` and the columns of statistics and samples have one entry for each
point of their product. null is a benchmark that failed, NaN one that was skipped. Samples are kept with
--record-samples; otherwise the 99% interval of the median is, or nothing for a tracked number.

asv takes every benchmark for a cost, and so does this reader. What it measures, `benchmarks.json` tells, which asv
keeps beside the results; without it, the beginning of the name does. A number that is tracked without samples is judged
as one without noise, as asv does.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from meprop_bench.errors import UserError
from meprop_bench.gate.files.figures import Figures, Kind, flat
from meprop_bench.gate.judgement import Quantity
from meprop_bench.gate.series import Summary
from meprop_bench.results.costs import COSTS
from meprop_bench.results.redact import one_line

__all__ = ["read"]

_VERSION = 2
_FIGURE = "value"
_OF_POINT = ("result", "samples", "stats_ci_99_a", "stats_ci_99_b", "stats_q_25", "stats_q_75", "stats_repeat")
"""Columns with an entry for each point."""

_BY_NAME: Mapping[str, tuple[Quantity, str]] = {
    "time": ("time", "s"),
    "timeraw": ("time", "s"),
    "mem": ("memory", "B"),
    "peakmem": ("memory", "B"),
}
"""Beginning of a benchmark's own name, up to the underscore -> what it measures."""
_BY_UNIT: Mapping[str, tuple[Quantity, str]] = {
    "seconds": ("time", "s"),
    "bytes": ("memory", "B"),
    COSTS["ratio"].unit: ("ratio", "1"),
    COSTS["accuracy_gap"].unit: ("accuracy", "points"),
}
"""Unit, as the benchmark tells it -> what it measures; any other is a number that is tracked."""


def read(path: Path, document: Mapping[str, Any]) -> Figures:
    """Return the figures of a result, `document`, that was read from `path`; raises `UserError` if it is none."""
    name = path.name
    if document.get("version") != _VERSION:
        version = one_line(repr(document.get("version")), 20)
        raise UserError(f"{name} is an asv result of version {version}, and this reads {_VERSION}: asv update")
    columns, results = document.get("result_columns"), document.get("results")
    if not (_is_names(columns) and "result" in columns and isinstance(results, Mapping)):
        raise UserError(f"{name} is an asv result without usable columns; measure again")
    commit = one_line(str(document.get("commit_hash")), 60)[:8]
    found = Figures(name, f"{name} (asv, commit {commit})")
    found.environments[""] = _identity(document)
    units = _units(path)
    left_out: Counter[str] = Counter()
    for benchmark, row in results.items():
        # asv leaves out columns at the end that are null.
        entry = dict(zip(columns, row, strict=False)) if isinstance(row, list) else {"result": row}
        quantity, unit = _measured(benchmark, units)
        if quantity == "accuracy":
            left_out["accuracy gaps: an asv result has none of their seeds"] += 1
            continue
        basis = str(entry.get("version") or "")
        for case, point in _points(name, benchmark, entry):
            if reason := _add(found, case, point, quantity, unit, basis):
                left_out[reason] += 1
    found.notes.extend(f"{name}: not judged: {count} {what}" for what, count in left_out.items())
    return found


def _measured(benchmark: str, units: Mapping[str, str]) -> tuple[Quantity, str]:
    own_name = benchmark.rpartition(".")[2]
    usual = _BY_NAME.get(own_name.partition("_")[0], ("count", "1"))
    return _BY_UNIT.get(units[benchmark], ("count", "1")) if benchmark in units else usual


def _points(name: str, benchmark: str, entry: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each point of the parameters' product, as case and its part of each column."""
    wrong = UserError(f"{name}: the result of {one_line(benchmark, 80)!r} does not fit its parameters; measure again")
    params = entry.get("params") or []
    if not (isinstance(params, list) and all(isinstance(values, list) for values in params)):
        raise wrong
    count = math.prod(len(values) for values in params)
    columns = {key: value for key, value in entry.items() if key in _OF_POINT and value is not None}
    if any(not isinstance(column, list) or len(column) != count for column in columns.values()):
        raise wrong
    for index, point in enumerate(itertools.product(*params)):
        label = f"({', '.join(map(str, point))})" if point else ""
        yield benchmark + label, {"result": None, **{key: column[index] for key, column in columns.items()}}


def _add(found: Figures, case: str, point: Mapping[str, Any], quantity: Quantity, unit: str, basis: str) -> str | None:
    """Add a point's figure; return why it cannot be judged, if it cannot."""
    value = point["result"]
    if value is None:
        found.failures[case] = "asv has it as failed"
        return None
    if not _is_number(value):
        raise UserError(f"{found.name}: the result of {case!r} is {one_line(repr(value), 40)}, not a number")
    if math.isnan(value):
        return "skipped"
    if quantity == "count" and (value < 0 or math.isinf(value)):
        return "tracked numbers that are negative or infinite: their ratio says nothing"
    samples = point.get("samples")
    if isinstance(samples, list) and samples:
        if not all(map(_is_number, samples)):
            raise UserError(f"{found.name}: the samples of {case!r} are not all numbers; measure again")
        # A number that was tracked several times has noise: it is judged by its ratio, in its own unit.
        kind = Kind(_FIGURE, "ratio", "value", basis) if quantity == "count" else None
        found.add(case, kind or Kind(_FIGURE, quantity, unit, basis), tuple(map(float, samples)))
        return None
    if _is_number(repeat := point.get("stats_repeat")) and quantity != "count":
        kind = Kind(_FIGURE, quantity, unit, basis)
        found.add(case, kind, _summary(float(value), point, int(repeat)))
        return None
    # asv keeps one value of a peak of memory, too, and of a number that was tracked.
    found.add(case, Kind(_FIGURE, quantity, unit, basis), (float(value),))
    return None


def _summary(value: float, point: Mapping[str, Any], count: int) -> Summary:
    interval = (point.get("stats_ci_99_a"), point.get("stats_ci_99_b"))
    quartiles = (point.get("stats_q_25"), point.get("stats_q_75"))
    for (low, high), is_interval in ((interval, True), (quartiles, False)):
        if _is_number(low) and _is_number(high) and math.isfinite(low) and math.isfinite(high):
            if is_interval:
                return Summary.of_interval(value, low, high, 0.99, count)
            return Summary.of_quartiles(value, low, high, count)
    return Summary(value, math.nan, count)


def _is_names(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _identity(document: Mapping[str, Any]) -> dict[str, Any]:
    """Machine, as asv was told, with Python, what was installed for the benchmarks, and variables that were set."""
    parts = {key: document.get(key) for key in ("params", "requirements", "env_vars")}
    found = flat({key: value for key, value in parts.items() if isinstance(value, Mapping)})
    python = document.get("python")
    identity = {key.removeprefix("params."): value for key, value in found.items()}
    return identity | ({"python": python} if isinstance(python, str) else {})


def _units(path: Path) -> dict[str, str]:
    """Return the unit of each benchmark, from `benchmarks.json` beside the result or in the folder above."""
    for folder in (path.parent, path.parent.parent):
        try:
            record = json.loads((folder / "benchmarks.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(record, Mapping):
            return {
                name: benchmark["unit"]
                for name, benchmark in record.items()
                if isinstance(benchmark, Mapping) and isinstance(benchmark.get("unit"), str)
            }
    return {}
