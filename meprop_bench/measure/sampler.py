"""A thread that reads sources while something else runs: utilisation, clocks, power, memory.

What a machine does *during* a loop cannot be told from the loop's duration. Somebody has to look, again and again, and
looking costs: a reading takes from the very CPU that is measured, holds Python's lock and may wait for a driver. So
samplers never run in a timed pass; they have a pass of their own, over a steady loop of seconds
(`measure.utilization`).

All sources have one shape (`SampleSource`), and each has a small file of its own (`host`, `rapl`, `nvml`). A *gauge* is
a level (utilisation, clock, temperature), of which the mean or the highest counts; a *counter* only grows (energy,
context switches), so its last value minus its first is exact however seldom it is read. Counters are read on both sides
of the loop itself and thus enclose nothing else.

A source that fails, or does not answer, costs its own fields and nothing more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from meprop_bench.measure.procfs import Unavailable

__all__ = ["INTERVAL_S", "SampleSource", "SampleSummary", "Sampler", "mean"]

_T = TypeVar("_T")

INTERVAL_S = 0.05
"""Between two readings: NVML's own figures change every 1/6 to 1 s, and 20 readings a second cost next to nothing."""

_PATIENCE_S = 5.0
"""Seconds to wait for a reading that does not return, as those of a broken GPU sometimes do not."""


@dataclass(frozen=True)
class SampleSummary:
    """What was found."""

    values: Mapping[str, Any] = field(default_factory=dict)  # field -> value; a field without one is not in it
    unavailable: Mapping[str, str] = field(default_factory=dict)  # field -> why it has no value, in one line

    @classmethod
    def of(cls, values: Mapping[str, Any], fields: Sequence[str], reasons: Mapping[str, str]) -> Self:
        """Return the values but those that are None, and for each other field why it has none, as far as is known."""
        found = {name: value for name, value in values.items() if value is not None}
        return cls(found, {name: reasons.get(name, "not read") for name in fields if name not in found})


class SampleSource(Protocol):
    """Something that can be read; any of its methods may raise. But for `read` the loop's own thread calls them."""

    @property
    def fields(self) -> Sequence[str]:
        """All that it tells when everything is there."""

    def unavailable_reason(self) -> str | None:
        """Say in one line why nothing can be read here, or None."""

    def start(self) -> None:
        """Read the counters for the first time."""

    def read(self) -> None:
        """Read the gauges once, in the sampler's thread; `Unavailable` says that there is nothing to read any more."""

    def stop(self) -> None:
        """Read the counters for the last time."""

    def summary(self, seconds: float) -> SampleSummary:
        """Return what was found between `start` and `stop`, which were `seconds` apart."""

    def close(self) -> None:
        """Let go of what was opened; nothing is asked afterwards."""


def mean(readings: Sequence[float]) -> float | None:
    """Return the mean, None without readings."""
    return sum(readings) / len(readings) if readings else None


class Sampler:
    """Reads sources from the beginning to the end of a `with` block; `summary` then holds what they found.

    Each source is opened, read and closed here, and serves one block. `pause` waits so many seconds between readings
    and tells whether the block has ended; its end waits `patience_s` seconds for a reading in progress.
    """

    def __init__(
        self,
        sources: Sequence[SampleSource],
        *,
        interval_s: float = INTERVAL_S,
        now: Callable[[], float] = time.monotonic,
        pause: Callable[[float], bool] | None = None,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        if not interval_s > 0:
            raise ValueError(f"interval_s is more than 0 seconds, got {interval_s!r}")
        self._sources = [_Guarded(source) for source in sources]
        self._interval_s, self._now, self._patience_s = interval_s, now, patience_s
        self._ended = threading.Event()
        self._pause = pause or self._ended.wait
        self._in_hand: _Guarded | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="sampler")
        self._started = 0.0
        self.seconds = 0.0
        self.summary = SampleSummary()

    def __enter__(self) -> Self:
        for source in self._sources:
            source.open()
        self._thread.start()
        self._started = self._now()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.seconds = self._now() - self._started
        self._ended.set()
        self._thread.join(self._patience_s)
        stuck = self._in_hand if self._thread.is_alive() else None
        if stuck is not None:
            stuck.lost = f"a reading did not return within {self._patience_s:g} s"
        found = [source.finish(self.seconds) for source in self._sources]
        for source in self._sources:
            if source is not stuck:  # its thread may still use what would be closed
                source.close()
        self.summary = SampleSummary(
            {name: value for each in found for name, value in each.values.items()},
            {name: reason for each in found for name, reason in each.unavailable.items()},
        )

    def _run(self) -> None:
        while True:
            for source in self._sources:
                self._in_hand = source
                source.read()
            self._in_hand = None
            if self._pause(self._interval_s):
                return


class _Guarded:
    """A source that may fail: from then on it is left alone, and `lost` says why."""

    def __init__(self, source: SampleSource) -> None:
        self._source = source
        self.lost: str | None = None

    def open(self) -> None:
        self._guard(self._ask_reason)
        self._guard(self._source.start)

    def read(self) -> None:
        self._guard(self._source.read)

    def finish(self, seconds: float) -> SampleSummary:
        self._guard(self._source.stop)
        found = self._guard(lambda: self._source.summary(seconds))
        if self.lost is not None or found is None:
            return SampleSummary(unavailable=dict.fromkeys(self._source.fields, self.lost or "no answer"))
        return found

    def close(self) -> None:
        self.lost = None  # what was opened is closed even so
        self._guard(self._source.close)

    def _ask_reason(self) -> None:
        if (reason := self._source.unavailable_reason()) is not None:
            raise Unavailable(reason)

    def _guard(self, ask: Callable[[], _T]) -> _T | None:
        if self.lost is not None:
            return None
        try:
            return ask()
        except Unavailable as reason:
            self.lost = str(reason)
        except Exception as error:  # noqa: BLE001  looking never costs what is looked at
            self.lost = f"{type(error).__name__} while reading it"  # not its text, which may hold a path
        return None
