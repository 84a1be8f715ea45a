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
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from meprop_bench.errors import UserError
from meprop_bench.gate.files.figures import SKIPPED, Figures, Kind, flat
from meprop_bench.gate.files.stream import LARGEST, count, number, out_of_range
from meprop_bench.gate.judgement import Quantity
from meprop_bench.gate.names import quoted, shown
from meprop_bench.gate.series import MEDIAN_ERROR, NORMAL_IQR, Floats, Summary
from meprop_bench.results.costs import COSTS
from meprop_bench.results.redact import one_line
from meprop_bench.stats import student

__all__ = ["VERSION", "date", "identity", "medians", "read", "series", "units_of"]

VERSION = 2
_OF_POINT = (
    "result",
    "samples",
    *(f"stats_{end}" for end in ("ci_99_a", "ci_99_b", "q_25", "q_75", "repeat", "number")),
)
"""Columns with an entry for each point."""
_MOST_POINTS = 1 << 20
_LATEST_MS = 1e14
_OPEN, _CLOSE, _QUOTES = "([{<", ")]}>", "'\""

_TRACKED: tuple[Quantity, str] = ("count", "1")
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
    COSTS["accuracy_gap"].otherwise: ("accuracy", "points"),
}
"""Unit, as the benchmark tells it -> what it measures; any other is a number that is tracked."""


def read(path: Path, document: Mapping[str, Any]) -> Figures:
    """Return the figures of a result, `document`, that was read from `path`; raises `UserError` if it is none."""
    name = shown(path.name, 120)
    if document.get("version") != VERSION:
        version = one_line(repr(document.get("version")), 20)
        raise UserError(f"{name} is an asv result of version {version}, and this reads {VERSION}: asv update")
    columns: Any = document.get("result_columns")
    results = document.get("results")
    named = isinstance(columns, list) and all(isinstance(column, str) for column in columns) and "result" in columns
    if not (named and isinstance(results, Mapping)):
        raise UserError(f"{name} is an asv result without usable columns; measure again")
    commit = one_line(str(document.get("commit_hash")), 60)[:8]
    found = Figures(name, f"{name} (asv, commit {commit})")
    found.environments[""] = identity(document)
    found.when, found.series = date(document), series(document)
    units = units_of(path)
    left_out: Counter[str] = Counter()
    summaries = 0
    for benchmark, row in results.items():
        # asv leaves out columns at the end that are null.
        entry = dict(zip(columns, row, strict=False)) if isinstance(row, list) else {"result": row}
        kind = Kind("value", *_measured(benchmark, units), str(entry.get("version") or ""))
        for case, point in _points(name, benchmark, entry):
            if reason := _reason(found, case, point, kind):
                found.left_out[case] = reason
                left_out[reason] += 1
            elif case not in found.failures:
                summaries += _add(found, case, point, kind)
            if case == benchmark or case not in found.failures:
                found.ids[case] = benchmark
    if summaries:
        found.notes.append(
            f"{name} kept no samples of {summaries} of its figures, only a summary, which tells less: asv run"
            " --record-samples keeps them"
        )
    found.notes.extend(f"{name}: not judged: {count} {what}" for what, count in left_out.items())
    return found


def medians(
    document: Mapping[str, Any], units: Mapping[str, str], names: dict[tuple[str, str], list[str]]
) -> Iterator[tuple[Kind, list[str], list[Any], Floats]]:
    """Yield of each benchmark of a result what it measures, its cases, their results as they stand in the file, and
    how far the values behind each disagree (`evidence.disagreement`).

    It is what `read` gives, in columns: a thousand runs take as many times 30 ms instead of 200. `names` keeps the
    cases of each benchmark from one run to the next. None is a failure, NaN what was skipped. Raises ValueError for a
    result that `read` would refuse.
    """
    columns = list(document["result_columns"])
    for benchmark, row in document["results"].items():
        entry = dict(zip(columns, row, strict=False)) if isinstance(row, list) else {}
        if "params" not in entry:
            continue  # it failed before anything was known of it
        params = entry["params"] or []
        size = math.prod(map(len, params))
        values = [None] * size if entry["result"] is None else entry["result"]
        if len(values) != size or size > _MOST_POINTS:
            raise ValueError(f"the result of {benchmark} does not fit its parameters")
        key = (benchmark, repr(params))
        if (cases := names.get(key)) is None:
            cases = names[key] = [benchmark + label for label in _labels(params)]
        kind = Kind("value", *_measured(benchmark, units), str(entry.get("version") or ""))
        if kind.quantity == "count" and any(entry.get("samples") or ()):
            kind = replace(kind, quantity="ratio", unit="value")  # as `_add` has it
        if kind.quantity != "accuracy":
            yield kind, cases, values, _disagreement(entry, values, tracked=kind.quantity == "count")


def _disagreement(entry: Mapping[str, Any], values: list[Any], *, tracked: bool) -> Floats:
    """Return `evidence.disagreement` of each point, of what `_add` makes of it; 0 where nothing tells."""
    found = np.zeros(len(values))
    samples = entry.get("samples") or ()
    repeats = entry.get("stats_repeat")
    if repeats and not tracked:
        count = np.array(repeats, np.float64)
        median = np.array(values, np.float64)
        half = np.full(len(values), np.nan)
        for low, high in (("ci_99_a", "ci_99_b"), ("q_25", "q_75")):
            ends = entry.get(f"stats_{low}"), entry.get(f"stats_{high}")
            if not (ends[0] and ends[1]):
                continue
            width = np.array(ends[1], np.float64) - np.array(ends[0], np.float64)
            if low == "ci_99_a":
                t = student.quantile(np.maximum(count - 1, 1), 0.995)
                width *= np.sqrt(count) * NORMAL_IQR / MEDIAN_ERROR / 2 / t
                width[~(count > 1)] = np.nan
            half = np.where(np.isfinite(half), half, width / 2 / median)
        found = np.where(np.isfinite(half) & (half > 0), half, 0.0)
    for place, own in enumerate(samples):
        if isinstance(own, list) and own:
            low_, high_ = np.quantile(np.array(own, np.float64), (0.25, 0.75))
            found[place] = math.log(high_ / low_) / 2 if low_ > 0 else 0.0
    return found


def _measured(benchmark: str, units: Mapping[str, str]) -> tuple[Quantity, str]:
    if benchmark in units:
        return _BY_UNIT.get(units[benchmark], _TRACKED)
    return _BY_NAME.get(benchmark.rpartition(".")[2].partition("_")[0], _TRACKED)


def _points(name: str, benchmark: str, entry: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each point of the parameters' product, as case and its part of each column."""
    wrong = UserError(f"{name}: the result of {quoted(benchmark, 80)} does not fit its parameters; measure again")
    params = entry.get("params") or []
    if not (isinstance(params, list) and all(isinstance(values, list) for values in params)):
        raise wrong
    size = math.prod(len(values) for values in params)
    columns = {key: value for key, value in entry.items() if key in _OF_POINT and value is not None}
    if size > _MOST_POINTS or any(not isinstance(each, list) or len(each) != size for each in columns.values()):
        raise wrong
    for index, label in enumerate(_labels(params)):
        yield benchmark + label, {"result": None, **{key: column[index] for key, column in columns.items()}}


def _labels(params: list[list[Any]]) -> Iterator[str]:
    """Yield what is added to a benchmark's name at each point: `(a, 1)`; nothing where it has no parameters."""
    texts = [[_parameter(str(value)) for value in values] for values in params]
    for point in itertools.product(*texts):
        yield f"({', '.join(point)})" if point else ""


def _parameter(text: str) -> str:
    """Return a parameter as it is, or in quotes where it could be taken for two, or for a part of one."""
    inside: list[str] = []
    for before, character in zip(" " + text, text, strict=False):
        if inside and inside[-1] in _QUOTES:
            if character == inside[-1] and before != "\\":
                inside.pop()
        elif character in _QUOTES:
            inside.append(character)
        elif character in _OPEN:
            inside.append(_CLOSE[_OPEN.index(character)])
        elif inside and character == inside[-1]:
            inside.pop()
        elif character in ",)" and not inside:
            return json.dumps(text, ensure_ascii=False)
    return json.dumps(text, ensure_ascii=False) if inside else text


def _reason(found: Figures, case: str, point: Mapping[str, Any], kind: Kind) -> str | None:
    """Return why a point has nothing to judge, if it has not; one that failed is among the failures then."""
    value = point["result"]
    if value is None:
        found.failures[case] = "asv has it as failed"
        return None
    if isinstance(value, float) and math.isnan(value):
        return SKIPPED
    if kind.quantity == "accuracy":
        return "accuracy gaps: an asv result has none of their seeds"
    value = number(value, f"{found.name}: the result of {quoted(case)}", signed=kind.quantity == "count")
    return "tracked numbers that are negative: their ratio says nothing" if value < 0 else None


def _add(found: Figures, case: str, point: Mapping[str, Any], kind: Kind) -> bool:
    """Add a point's figure; return whether it is of a summary."""
    what, tracked = f"{found.name}: a sample of {quoted(case)}", kind.quantity == "count"
    value, samples, repeat = float(point["result"]), point.get("samples"), point.get("stats_repeat")
    if point.get("stats_number") is not None:
        count(point["stats_number"], f"{found.name}: the loops of {quoted(case)}")
    if isinstance(samples, list) and samples:
        # A number that was tracked several times has noise: it is judged by its ratio, in its own unit.
        kind = Kind("value", "ratio", "value", kind.basis) if tracked else kind
        found.add(case, kind, tuple(number(sample, what) for sample in samples))
        return False
    if repeat is not None and not tracked:
        repeats = count(repeat, f"{found.name}: the repeats of {quoted(case)}")
        found.add(case, kind, _summary(value, point, repeats, f"{found.name}: the interval of {quoted(case)}"))
        return repeats > 0
    # asv keeps one value of a peak of memory, too, and of a number that was tracked.
    found.add(case, kind, (value,))
    return False


def _summary(value: float, point: Mapping[str, Any], repeats: int, what: str) -> Summary:
    if repeats == 0:
        return Summary(math.nan, math.nan, 0)
    for kind in ("ci_99_a", "ci_99_b"), ("q_25", "q_75"):
        ends = [point.get(f"stats_{end}") for end in kind]
        # Of few samples asv has no interval, which it writes as null, NaN or from -Infinity to Infinity.
        if any(end is None or (isinstance(end, float) and not math.isfinite(end)) for end in ends):
            continue
        low, high = (number(end, what, signed=True) for end in ends)
        if not 0 <= high - low <= LARGEST:
            raise out_of_range(high - low, f"the width of {what}")
        if kind[0] == "ci_99_a":
            return Summary.of_interval(value, low, high, 0.99, repeats)
        return Summary.of_quartiles(value, low, high, repeats)
    return Summary(value, math.nan, repeats)


def identity(document: Mapping[str, Any]) -> dict[str, Any]:
    """Machine, as asv was set up, with Python, what was installed for the benchmarks, and variables that were set."""
    parts = {key: document.get(key) for key in ("params", "requirements", "env_vars")}
    found = flat({key: value for key, value in parts.items() if isinstance(value, Mapping)})
    python = document.get("python")
    own = {key.removeprefix("params."): value for key, value in found.items()}
    return own | ({"python": python} if isinstance(python, str) else {})


def date(document: Mapping[str, Any]) -> float | None:
    """Return the date of a result's commit, in seconds since 1970, where it has one."""
    found = document.get("date")
    return found / 1000 if isinstance(found, int | float) and 0 < found < _LATEST_MS else None


def series(document: Mapping[str, Any]) -> str:
    """Return what asv calls the environment of a result; two that differ in it may be described alike."""
    return str(document.get("env_name") or "")


def units_of(path: Path) -> dict[str, str]:
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
