"""Fresh processes that find what the test's own process finds."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["alike"]

_COVERAGE = ("COV_CORE_SOURCE", "COV_CORE_CONFIG", "COV_CORE_DATAFILE", "COVERAGE_PROCESS_START",
             "COVERAGE_PROCESS_CONFIG")  # fmt: skip
"""By these coverage follows a process that is started: what is traced cannot be timed."""


@contextmanager
def alike() -> Iterator[None]:
    """Have processes that are started meanwhile import by this one's `sys.path`, which pytest has added to."""
    changes: dict[str, str | None] = {
        "PYTHONPATH": os.pathsep.join(place or os.getcwd() for place in sys.path),
        "PYTHONSAFEPATH": "1",  # or Python would put the working directory in front
        **dict.fromkeys(_COVERAGE),
    }
    before = {name: os.environ.get(name) for name in changes}
    _set(changes)
    try:
        yield
    finally:
        _set(before)


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
