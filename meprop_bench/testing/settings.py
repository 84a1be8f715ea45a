"""The settings of paired comparisons: options of pytest, keys of its configuration, and options of pytest-benchmark.

    seconds for a claim    --paired-budget, else the claim's own `budget`, `@pytest.mark.benchmark(max_time=...)`,
                           --benchmark-max-time, else `paired_budget` of the configuration
    pairs of a process     `@pytest.mark.benchmark(min_rounds=...)`, else --benchmark-min-rounds

What pytest-benchmark has by default (one second, five rounds) is meant for a single process, and is not taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest

from meprop_bench.errors import UserError, one_of

__all__ = ["BUDGET", "UNDECIDED", "Setting", "budget_of", "rounds_of", "undecided_of"]

_USUAL = {"max_time": 1.0, "min_rounds": 5.0}
"""pytest-benchmark's defaults."""
_OUTCOMES = ("fail", "skip", "xfail")


@dataclass(frozen=True)
class Setting:
    """An option and a key of the configuration."""

    name: str
    default: str
    help: str

    @property
    def option(self) -> str:
        """As it is typed."""
        return "--" + self.name.replace("_", "-")

    def given(self, config: pytest.Config) -> str | None:
        """Return what was typed; None where nothing was, or the plugin came too late to have options."""
        found = config.getoption(self.name, None)
        return None if found is None else str(found)

    def configured(self, config: pytest.Config) -> str:
        """Return what the configuration says, or else the default."""
        return str(config.getini(self.name))


BUDGET = Setting("paired_budget", "30", "seconds for a claim, all included; with it grows the number of processes")
UNDECIDED = Setting("paired_undecided", "fail", f"what a claim does that is undecided: {', '.join(_OUTCOMES)}")


def budget_of(request: pytest.FixtureRequest, own: float | None) -> float:
    """Return the seconds for a claim that asks for `own`; `UserError` for what is no number of seconds."""
    config = request.config
    candidates = (BUDGET.given(config), own, _of_benchmark(request, "max_time"), BUDGET.configured(config))
    found = next(value for value in candidates if value is not None)
    try:
        seconds = float(found)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UserError(f"{BUDGET.option} is a number of seconds, more than 0, not {found!r}")
    return seconds


def rounds_of(request: pytest.FixtureRequest) -> int | None:
    """Return the least pairs of each process; None where nothing was said."""
    found = _of_benchmark(request, "min_rounds")
    return None if found is None else int(found)


def undecided_of(config: pytest.Config) -> str:
    """Return what an undecided claim does."""
    return one_of(UNDECIDED.option, UNDECIDED.given(config) or UNDECIDED.configured(config), _OUTCOMES)


def _of_benchmark(request: pytest.FixtureRequest, name: str) -> float | None:
    """Return what a test's mark, or else an option of pytest-benchmark says, where that is not its default."""
    mark = request.node.get_closest_marker("benchmark")
    if mark is not None and name in mark.kwargs:
        return float(mark.kwargs[name])
    typed: Any = request.config.getoption(f"benchmark_{name}", None)
    return None if typed is None or float(typed) == _USUAL[name] else float(typed)
