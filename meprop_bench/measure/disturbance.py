"""Was this pair disturbed? Asked of the scheduler, never of the stopwatch.

A value during which the process had to wait for a core says something about the neighbours and nothing about the code.
To leave out pairs *because they look slow* would bias every result towards what one hopes to see. So the decision
is made without their times, from what the kernel says about the process:

    lost = seconds that its threads were ready and waited for a core   /proc/self/task/*/schedstat, in nanoseconds
         + seconds that the hypervisor withheld the cores              /proc/stat, ticks of 10 ms
         + seconds of waiting under a CPU quota                        cpu.stat of its control groups
    disturbed  when  lost > 5% of the wall time of both sides together, or a page had to come from the disk

It hits the pair as a whole, and whoever ran first is drawn by chance, so leaving such pairs out favours neither side.

Measured on a shared 2-core virtual machine with a layer of 784 x 500, B = 50, two threads, pairs of 3.4 ms, dense
against dense, ratios further than five robust deviations from their median being "outliers":

    criterion                  pairs marked   outliers found   marked that are outliers
    any involuntary switch     18 to 30%      90 to 95%         4 to 10%
    lost > 1% of the wall time  8 to 14%      90%               8 to 22%
    lost > 5%                   1.6 to 2.6%   90%              72 to 74%
    lost > 10%                  1.3 to 1.8%   81 to 91%        91%

Without the marked pairs, the mean log ratio of 25 processes (216 pairs each, a step of 0.3 ms) spread by 0.49% instead
of 1.24%; the median, which the instrument takes, by 0.53% with them and without. So marks cost nothing where the median
bears it, say what happened, and have a pair taken again where a process has but a few.

Reading costs 1 microsecond for each thread, and 10 where a hypervisor has ever withheld a core, outside what is timed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from meprop_bench.measure import procfs
from meprop_bench.measure.procfs import Unavailable

__all__ = ["Contention", "contention"]

_SHARE = 0.05


class Contention:
    """Tells whether the process lost time between `begin` and `disturbed`: more than a share of the wall time, by
    counters of lost seconds, which only grow; or whether pages had to come from the disk.
    """

    def __init__(
        self,
        lost_s: Sequence[Callable[[], float]],
        disk_reads: Callable[[], int] = lambda: 0,
        *,
        share: float = _SHARE,
        now: Callable[[], float] = time.perf_counter,
        close: Callable[[], object] = lambda: None,
    ) -> None:
        self._lost_s, self._disk_reads, self._share, self._now, self._close = lost_s, disk_reads, share, now, close
        self._before = (0.0, 0.0, 0)

    def begin(self) -> None:
        """Call right before the pair."""
        self._before = self._read()

    def disturbed(self) -> bool:
        """Call right after it."""
        before, after = self._before, self._read()
        lost, wall, reads = (late - early for early, late in zip(before, after, strict=True))
        return lost > self._share * wall or reads > 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._close()

    def _read(self) -> tuple[float, float, int]:
        return sum(read() for read in self._lost_s), self._now(), self._disk_reads()


def contention() -> Contention:
    """Watch the threads that this process has now.

    Raises:
        Unavailable: the kernel does not tell how long a thread waited; the message is a line.

    """
    sources: list[_Waits | _Stolen | _Throttled] = [_Waits()]
    with suppress(Unavailable, OSError, ValueError):
        if procfs.cpu_seconds()[1] > 0:  # a machine without a hypervisor need not be asked a thousand times
            sources.append(_Stolen())
    with suppress(Unavailable, OSError, ValueError):
        sources.append(_Throttled())
    import resource

    return Contention(
        [source.seconds for source in sources],
        lambda: resource.getrusage(resource.RUSAGE_SELF).ru_majflt,
        close=lambda: [source.close() for source in sources],
    )


class _Waits:
    """For how long the threads of this process have been ready to run without a core, in all."""

    def __init__(self) -> None:
        self._waited: dict[int, int] = {}  # file descriptor -> nanoseconds when it was last read
        try:
            for task in (procfs.PROC / "self/task").iterdir():
                with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                    self._waited[os.open(task / "schedstat", os.O_RDONLY)] = 0
        except OSError:
            self.close()
        if not self._waited:
            raise Unavailable("the kernel does not tell how long a thread waited for a core")

    def seconds(self) -> float:
        for file in self._waited:
            with suppress(ProcessLookupError):  # a thread that has ended waits no more
                self._waited[file] = int(os.pread(file, 64, 0).split()[1])
        return sum(self._waited.values()) / 1e9

    def close(self) -> None:
        while self._waited:
            os.close(self._waited.popitem()[0])


class _Stolen:
    """What the hypervisor withheld from the usable cores: `procfs.cpu_seconds` for one column, ten times as fast."""

    def __init__(self) -> None:
        self._file = os.open(procfs.PROC / "stat", os.O_RDONLY)
        self._names = frozenset(b"cpu%d" % core for core in procfs.usable())
        self._most = 256 * ((os.cpu_count() or 1) + 2)

    def seconds(self) -> float:
        ticks = 0
        for line in os.pread(self._file, self._most, 0).splitlines():
            if not line.startswith(b"cpu"):
                break
            name, *counts = line.split(None, 9)
            if name in self._names:
                ticks += int(counts[7])
        return ticks / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        os.close(self._file)


class _Throttled:
    """For how long the process's control groups have waited under a CPU quota."""

    def __init__(self) -> None:
        self._files = [os.open(file, os.O_RDONLY) for file in procfs.throttle_files()]

    def seconds(self) -> float:
        return sum(procfs.throttled_s(os.pread(file, 4096, 0).decode()) for file in self._files)

    def close(self) -> None:
        while self._files:
            os.close(self._files.pop())
