from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest

from meprop_bench.measure import procfs
from meprop_bench.measure.clock import Clock, WallClock


class FakeClock(WallClock):
    """Time passes only when a test says so."""

    def __init__(self) -> None:
        super().__init__("cpu", timer=lambda: self.seconds)
        self.seconds = 0.0

    def advance(self, seconds: float) -> None:
        self.seconds += seconds

    def subject(self, **phases: float) -> Callable[[int, Clock], Mapping[str, float]]:
        """A subject whose phases take the given seconds each."""

        def run(loops: int, clock: Clock) -> Mapping[str, float]:
            assert clock is self
            costs = {name: partial(self.advance, seconds) for name, seconds in phases.items()}
            return clock.time_phases(costs, loops)

        return run


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str], None]:
    """A kernel's files, which a test writes: those below proc/ and sys/."""
    monkeypatch.setattr(procfs, "PROC", tmp_path / "proc")
    monkeypatch.setattr(procfs, "SYS", tmp_path / "sys")

    def write(path: str, text: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    return write
