"""The host as the kernel shows it: what the process takes of it, and what others do meanwhile.

    cpu_utilization         CPU seconds of the process for each second of wall time, in percent of one core: 200 is two
    others_cpu_utilization  the same of everything else on the machine: busy time of all cores minus the process's own
    cpu_steal               what the hypervisor gave to other guests while a core of ours wanted to run, likewise
    cpu_frequency_mhz       mean of the readings; a virtual machine often shows its nominal frequency instead
    rss_bytes               the largest resident set that was seen
    voluntary_switches      a thread of the process waited for something, another thread for example
    involuntary_switches    it was made to wait: more threads want to run than there are cores
    page_faults             pages mapped at first touch: what fresh memory costs
    cpu_throttled_s         for how long a container's CPU quota held the process back

A high utilisation is not yet work: the threads of an OpenMP region that wait for the next one spin for a while, and
spinning counts. A utilisation below 100% times the threads means that they slept, in a lock (voluntary switches) or
since others had the core (involuntary ones). The sampler's own thread is a part of the process and in all of this: 20
voluntary switches a second, and 0.03% of a core (17 µs a reading, 2-core virtual x86 machine).

Switches and faults come from `getrusage`, which counts every thread; psutil reads those of the main thread alone. CPU
time of the machine is counted in ticks of 10 ms, so over 2 s "others" is right to about 1% of a core for each core.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from meprop_bench.measure import procfs
from meprop_bench.measure.procfs import Unavailable
from meprop_bench.measure.sampler import Summary, mean

__all__ = ["Host"]

_FREQUENCY_EVERY = 10
"""Readings for one of the frequency: it takes a file for each core, 5 ms where there are a hundred of them."""

_COUNTERS = {"voluntary_switches": "ru_nvcsw", "involuntary_switches": "ru_nivcsw", "page_faults": "ru_minflt"}
_CPU = {"cpu_utilization": "process", "others_cpu_utilization": "others", "cpu_steal": "steal"}
"""Field -> whose seconds, in percent of one core."""
_IDLE = ("idle", "iowait", "steal", "guest", "guest_nice")  # guests' time is in user and nice already


class Host:
    """This process and its machine; psutil reads what is not in the standard library.

    Args:
        psutil: a test's own.
        process_time: CPU seconds of all threads of the process.
        getrusage: the process's resource usage; None where the system has none (Windows).

    """

    fields = (*_CPU, "cpu_frequency_mhz", "rss_bytes", *_COUNTERS, "cpu_throttled_s")

    def __init__(
        self,
        psutil: Any = None,
        process_time: Callable[[], float] = time.process_time,
        getrusage: Callable[[], Any] | None = None,
    ) -> None:
        self._psutil = psutil or import_module("psutil")
        self._process_time = process_time
        self._getrusage = getrusage or _own_usage()
        self._process: Any = None
        self._first: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._rss: list[int] = []
        self._frequency: list[float] = []
        self._readings = 0
        self._reasons: dict[str, str] = {}

    def unavailable_reason(self) -> str | None:
        """Return None: a part of it is there on every system."""
        return None

    def start(self) -> None:
        """Read the counters."""
        self._process = self._psutil.Process()
        self._first = self._counters()

    def read(self) -> None:
        """Read the resident set and, now and then, the frequency."""
        self._rss.append(int(self._process.memory_info().rss))
        if self._readings % _FREQUENCY_EVERY == 0:
            self._read_frequency()
        self._readings += 1

    def stop(self) -> None:
        """Read the counters again."""
        self._last = self._counters()

    def summary(self, seconds: float) -> Summary:
        """Return what was found."""
        if not seconds > 0:
            raise Unavailable("no time passed")
        # A hypervisor may take stolen time back.
        spent = {name: max(0.0, last - self._first[name]) for name, last in self._last.items()}
        # Ticks of 10 ms against nanoseconds: on an idle machine the difference can fall below nothing.
        spent["others"] = max(0.0, spent["busy"] - spent["process"])
        values: dict[str, Any] = {field: 100 * spent[name] / seconds for field, name in _CPU.items() if name in spent}
        values |= {name: int(spent[name]) for name in _COUNTERS if name in spent}
        values["cpu_throttled_s"] = spent.get("throttled")
        values["cpu_frequency_mhz"] = mean(self._frequency)
        values["rss_bytes"] = max(self._rss, default=None)
        return Summary.of(values, self.fields, self._reasons)

    def close(self) -> None:
        """Nothing is open."""

    def _counters(self) -> dict[str, float]:
        """Read every counter, those of the whole machine first: they enclose the process's own."""
        machine = self._psutil.cpu_times()
        found = {"busy": sum(machine) - sum(getattr(machine, name, 0.0) for name in _IDLE)}
        if hasattr(machine, "steal"):
            found["steal"] = machine.steal
        else:
            self._reasons["cpu_steal"] = "the system does not count it"
        try:
            found["throttled"] = procfs.cpu_throttled_s()
        except Unavailable as reason:
            self._reasons["cpu_throttled_s"] = str(reason)
        found["process"] = self._process_time()
        if self._getrusage is None:
            self._reasons |= dict.fromkeys(_COUNTERS, "the system has no getrusage")
            return found
        usage = self._getrusage()
        return found | {name: float(getattr(usage, key)) for name, key in _COUNTERS.items()}

    def _read_frequency(self) -> None:
        try:
            found = self._psutil.cpu_freq()
        except (AttributeError, NotImplementedError, OSError):
            found = None
        if found is None or not found.current:
            self._reasons["cpu_frequency_mhz"] = "the kernel does not show it"
        else:
            self._frequency.append(float(found.current))


def _own_usage() -> Callable[[], Any] | None:
    if sys.platform == "win32":
        return None
    import resource

    return lambda: resource.getrusage(resource.RUSAGE_SELF)
