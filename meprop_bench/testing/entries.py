"""What was measured elsewhere, as entries of pytest-benchmark: in its table, its JSON, and what it saves and compares.

pytest-benchmark times a function itself; here it is given one that takes no time and a timer that gives the values. So
all that it does with values (statistics, groups, files, comparisons) is its own work.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["another", "enter"]


class _ReplayTimer:
    """A timer that gives values measured elsewhere, one for each call of `step`."""

    def __init__(self, values_s: Sequence[float]) -> None:
        self._now, self._values = 0.0, iter(values_s)

    def step(self) -> None:
        self._now += next(self._values)

    def now(self) -> float:
        return self._now


def enter(benchmark: Any, values_s: Sequence[float], extra: Mapping[str, Any]) -> None:
    """Have the fixture `benchmark` take values, seconds for one call, as its rounds, and more for `extra_info`."""
    replay = _ReplayTimer(values_s)
    benchmark._timer = replay.now
    benchmark.cprofile = False  # there is nothing to see
    benchmark.extra_info.update(extra)
    benchmark.pedantic(replay.step, rounds=len(values_s))


def another(benchmark: Any, label: str) -> Any:
    """Return a fixture for one more entry of the same test, "test_parse[label]"; those of a test are a group."""
    found = copy.copy(benchmark)
    found.group = benchmark.group or benchmark.name
    found.name, found.fullname = f"{benchmark.name}[{label}]", f"{benchmark.fullname}[{label}]"
    found.extra_info, found.stats, found._mode = {}, None, None
    return found
