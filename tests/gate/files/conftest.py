"""Files as other tools write them, made up."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MACHINE = {
    "node": "runner-1",
    "processor": "x86_64",
    "machine": "x86_64",
    "python_compiler": "GCC 12",
    "python_implementation": "CPython",
    "python_implementation_version": "3.11.7",
    "python_version": "3.11.7",
    "python_build": ["main", "Dec 2023"],
    "release": "6.1.0",
    "system": "Linux",
    "cpu": {"brand_raw": "AMD EPYC", "arch": "X86_64", "count": 2, "hz_actual_friendly": "2.9 GHz", "flags": ["avx"]},
}


def benchmark(name: str, *, data: bool = True, factor: float = 1.0, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """One benchmark as pytest-benchmark 5 writes it: 20 values around 1 ms."""
    rng = random.Random(f"{name} {seed}")
    values = [1e-3 * factor * rng.uniform(0.99, 1.03) for _ in range(20)]
    ordered = sorted(values)
    stats = {
        "min": ordered[0],
        "max": ordered[-1],
        "mean": sum(values) / 20,
        "stddev": 1e-5,
        "rounds": 20,
        "median": (ordered[9] + ordered[10]) / 2,
        "iqr": ordered[14] - ordered[5],
        "q1": ordered[5],
        "q3": ordered[14],
        "iqr_outliers": 0,
        "stddev_outliers": 3,
        "outliers": "3;0",
        "ld15iqr": ordered[0],
        "hd15iqr": ordered[-1],
        "ops": 1e3,
        "total": sum(values),
        **({"data": values} if data else {}),
        "iterations": 1,
    }
    return {
        "group": None,
        "name": name,
        "fullname": f"tests/test_it.py::{name}",
        "params": None,
        "param": None,
        "extra_info": {},
        "options": {"disable_gc": False, "timer": "perf_counter", "min_rounds": 5, "max_time": 1.0},
        "stats": stats | changes.pop("stats", {}),
        **changes,
    }


@pytest.fixture
def bench() -> Callable[..., dict[str, Any]]:
    return benchmark


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return what writes a file of pytest-benchmark."""

    def go(name: str, *benchmarks: dict[str, Any], machine: dict[str, Any] | None = None, **more: Any) -> Path:
        record = {
            "machine_info": {**MACHINE, **(machine or {})},
            "commit_info": {"id": "abc", "dirty": False},
            "benchmarks": list(benchmarks),
            "datetime": "2026-01-02T03:04:05",
            "version": "5.3.1",
            **more,
        }
        (path := tmp_path / name).write_text(json.dumps(record, indent=4), "utf-8")
        return path

    return go


@pytest.fixture
def many(tmp_path: Path) -> Callable[..., Path]:
    """Return what writes a file of many benchmarks, all different: about 0.8 kB each, 1.6 kB with their values."""

    def go(name: str, count: int, *, factor: float = 1.0, data: bool = False) -> Path:
        with (path := tmp_path / name).open("w", encoding="utf-8") as file:
            file.write(f'{{"machine_info": {json.dumps(MACHINE)}, "benchmarks": [')
            file.writelines(_rows(count, factor, data))
            file.write('], "datetime": "2026-01-02T03:04:05", "version": "5.3.1"}')
        return path

    return go


def _rows(count: int, factor: float, data: bool) -> Iterator[str]:
    rng = random.Random(factor)
    pattern = json.dumps(benchmark("NAME", data=data), indent=4 if data else None)
    median = json.dumps(benchmark("NAME")["stats"]["median"])
    for number in range(count):
        row = pattern.replace("NAME", f"test_case[{number}]")
        yield (", " if number else "") + row.replace(median, repr(1.015e-3 * factor * rng.uniform(0.999, 1.001)))


@pytest.fixture
def write_asv(tmp_path: Path) -> Write:
    """Return what writes an asv result, and `benchmarks.json` in the folder above it."""
    columns = "result params version started_at duration stats_ci_99_a stats_ci_99_b stats_q_25 stats_q_75"
    columns += " stats_number stats_repeat samples profile"

    def go(
        name: str,
        results: dict[str, dict[str, Any] | None],
        *,
        units: dict[str, str] | None = None,
        params: dict[str, Any] | None = None,
        **more: Any,
    ) -> Path:
        def row(columns_of: dict[str, Any]) -> list[Any]:
            found = [columns_of.get(column) for column in columns.split()]
            while found and found[-1] is None:
                found.pop()
            return found

        machine = {"machine": "box", "os": "Linux", "arch": "x86_64", "cpu": "AMD EPYC", "num_cpu": "2", "ram": "8"}
        record = {
            "commit_hash": "0123456789abcdef",
            "env_name": "virtualenv-py3.11",
            "date": 1_700_000_000_000,
            "params": {**machine, "python": "3.11", **(params or {})},
            "python": "3.11",
            "requirements": {},
            "env_vars": {},
            "result_columns": columns.split(),
            "results": {key: None if value is None else row(value) for key, value in results.items()},
            "durations": {},
            "version": 2,
            **more,
        }
        folder = tmp_path / "results" / "box"
        folder.mkdir(parents=True, exist_ok=True)
        if units is not None:
            about = {key: {"name": key, "unit": unit, "type": "track"} for key, unit in units.items()}
            (folder.parent / "benchmarks.json").write_text(json.dumps({**about, "version": 2}))
        (path := folder / name).write_text(json.dumps(record))
        return path

    return go
