"""The host as the kernel shows it: what the process takes of it, what others do meanwhile, and the CPU's energy.

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

The energy is that of RAPL, the processor's own meter. Linux shows it as a tree of zones with a counter each, in
microjoules (AMD's processors use the same names):

    /sys/class/powercap/intel-rapl:0/                  name "package-0"
                       /intel-rapl:0/intel-rapl:0:0/   name "core": a part of the package
                       /intel-rapl:0/intel-rapl:0:1/   name "dram": not a part of it, on servers

    cpu_energy_j = sum over packages and their dram of (last - first)

A counter starts again from 0 after `max_energy_range_uj` (a quarter of an hour at full load, on some machines a
minute), so it is read every time, and each decrease adds one range. It is the energy of whole packages, idle power and
other processes included. Since 2020 only root may read it (a counter this fine leaks secrets: CVE-2020-8694); a virtual
machine has none.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from meprop_bench.measure import procfs
from meprop_bench.measure.procfs import Unavailable
from meprop_bench.measure.sampler import SampleSummary, mean

__all__ = ["Host", "Rapl"]

_FREQUENCY_EVERY = 10
"""Readings for one of the frequency: it takes a file for each core, 5 ms where there are a hundred of them."""

_COUNTERS = {"voluntary_switches": "ru_nvcsw", "involuntary_switches": "ru_nivcsw", "page_faults": "ru_minflt"}
_CPU = {"cpu_utilization": "process", "others_cpu_utilization": "others", "cpu_steal": "steal"}
"""Field -> whose seconds, in percent of one core."""
_IDLE = ("idle", "iowait", "steal", "guest", "guest_nice")  # guests' time is in user and nice already


class Host:
    """This process and its machine; psutil reads what is not in the standard library."""

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

    def summary(self, seconds: float) -> SampleSummary:
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
        return SampleSummary.of(values, self.fields, self._reasons)

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


_POWERCAP = Path("/sys/class/powercap")


@dataclass
class _Meter:
    """One zone's counter: what it showed last, and what has been spent since the first reading."""

    file: Path
    range_uj: int
    shown_uj: int
    spent_uj: int = 0

    def read(self) -> None:
        shown = int(self.file.read_text())
        step = shown - self.shown_uj
        if step < 0:
            if self.range_uj <= 0:
                raise Unavailable("an energy counter went backwards, and the kernel does not tell its range")
            step += self.range_uj
        self.spent_uj += step
        self.shown_uj = shown


class Rapl:
    """The energy meters of all packages."""

    fields = ("cpu_energy_j",)

    def __init__(self, root: Path = _POWERCAP) -> None:
        self._root = root
        self._meters: list[_Meter] = []

    def unavailable_reason(self) -> str | None:
        """Say in one line why there is no energy to read, or None."""
        if not (zones := self._zones()):
            return "the kernel shows no RAPL energy counter (not Linux, a virtual machine, or no driver)"
        for zone in zones:
            try:
                int((zone / "energy_uj").read_text())
            except PermissionError:
                return "only root may read the RAPL energy counters (energy_uj in /sys/class/powercap)"
            except (OSError, ValueError):
                return "the RAPL energy counters cannot be read"
        return None

    def start(self) -> None:
        """Read every meter for the first time."""
        for zone in self._zones():
            file, wrap = zone / "energy_uj", _text(zone / "max_energy_range_uj")
            self._meters.append(_Meter(file, int(wrap) if wrap.isdecimal() else 0, int(file.read_text())))

    def read(self) -> None:
        """Read every meter: none may go round twice in between."""
        for meter in self._meters:
            meter.read()

    def stop(self) -> None:
        """Read every meter for the last time."""
        self.read()

    def summary(self, seconds: float) -> SampleSummary:
        """Return the energy of all packages and their memory."""
        return SampleSummary({"cpu_energy_j": sum(meter.spent_uj for meter in self._meters) / 1e6})

    def close(self) -> None:
        """Nothing is open."""

    def _zones(self) -> list[Path]:
        """Return the packages and their dram; "psys" holds packages, and "core" and "uncore" are parts of one."""
        packages = [zone for zone in self._root.glob("intel-rapl:*") if _text(zone / "name").startswith("package")]
        # The class folder links to every zone, parts too (intel-rapl:0:1): those are found below their package.
        packages = sorted(zone for zone in packages if zone.name.count(":") == 1)
        parts = (part for zone in packages for part in sorted(zone.glob(f"{zone.name}:*")))
        return [*packages, *(part for part in parts if _text(part / "name") == "dram")]


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
