"""The JSON file that the pytest-benchmark suite writes, read as a results folder is.

    {"benchmarks": [{"extra_info": {"row": {...}, ...}, ...}, ...], "environments": {...}, "command": ..., ...}

pytest-benchmark has medians and rounds of its own; a row has the pairs, the processes and the check beside them. So the
rows are what a report is made from. A file of another project has none, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meprop_bench.errors import UserError
from meprop_bench.results.incoming import parsed, refused
from meprop_bench.results.redact import one_line
from meprop_bench.results.schema import Row

__all__ = ["SuiteFile", "read_suite_file"]


@dataclass(frozen=True)
class SuiteFile:
    """What the suite left in a file."""

    command: str  # what made it
    started: str  # when it was written, ISO 8601
    rows: tuple[Row, ...]  # in the file's order
    environments: Mapping[str, Any]  # id -> what a measuring process saw


def read_suite_file(path: Path) -> SuiteFile:
    """Read a file of `--benchmark-json` or `--benchmark-save`.

    Raises:
        UserError: it cannot be read, is not pytest-benchmark's, or holds no rows of this project's suite.

    """
    try:
        record = parsed(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path and its permissions") from None
    except ValueError as error:
        raise refused(str(path), error, "run the suite again") from None
    benchmarks = record.get("benchmarks") if isinstance(record, dict) else None
    if not isinstance(benchmarks, list):
        raise UserError(f"{path} is neither a results folder nor a file of pytest-benchmark's --benchmark-json")
    rows = tuple(_row(each, path, number) for number, each in enumerate(benchmarks, 1))
    environments = record.get("environments")
    return SuiteFile(
        command=one_line(str(record.get("command") or "pytest --benchmark-json"), 2000),
        started=one_line(str(record.get("datetime") or "an unknown time"), 40),
        rows=rows,
        environments=environments if isinstance(environments, dict) else {},
    )


def _row(benchmark: Any, path: Path, number: int) -> Row:
    extra = benchmark.get("extra_info") if isinstance(benchmark, dict) else None
    row = extra.get("row") if isinstance(extra, dict) else None
    if not isinstance(row, dict):
        raise UserError(f"benchmark {number} of {path} is not of this project's suite: it has no row in its extra_info")
    where = f"benchmark {number} of {path}"
    try:
        return Row.from_json(row)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except ValueError as error:
        raise refused(f"{where} holds no sound row", error) from None
