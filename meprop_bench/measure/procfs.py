"""Files of the Linux kernel under /proc and /sys: what this process may use of the machine, with a reason where they
are not.

Some readings need more than one file. A CPU quota is set on any of the control groups above a process, in version 1
of that interface or in version 2, and the least of them counts; within a container the groups' path is often not to
be seen below the mount, whose root then is the group itself.

    cpu_limit()        cores: quota / period, the least on the way up
    cpu_throttled_s()  seconds for which those groups were made to wait since they exist
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

__all__ = [
    "PROC", "SYS", "Family", "Unavailable", "ask", "boost", "caches", "cpu_limit", "cpu_seconds", "cpu_throttled_s",
    "frequency_mhz", "governor", "highest_frequency_mhz", "known", "last_level_cache", "overheated", "read", "search",
    "swap_used_bytes", "swapped_in", "throttle_files", "throttled_s", "usable", "usable_cores",
]  # fmt: skip

_T = TypeVar("_T")

PROC = Path("/proc")
SYS = Path("/sys")


_HIDDEN, _UNCOUNTED = "the kernel does not show it", "the kernel does not count it"
_UNLIMITED = "no control group limits it"


class Unavailable(Exception):
    """A probe found nothing; the message says why, in one line and without a path."""


def known(value: _T | None, reason: str = _HIDDEN) -> _T:
    """Return the value; `Unavailable`, with the reason, when there is none."""
    if value is None:
        raise Unavailable(reason)
    return value


def read(path: Path) -> str:
    """Return a file's text, stripped; `Unavailable` when there is none to read."""
    try:
        return path.read_text().strip()
    except OSError:
        raise Unavailable(_HIDDEN) from None


def search(pattern: str, text: str, reason: str = _HIDDEN) -> str:
    """Return the group of a pattern, whose ^ and $ are those of a line; `Unavailable` when it is not in the text."""
    return str(known(re.search(pattern, text, re.MULTILINE), reason)[1])


def ask(probes: Mapping[str, Callable[[], Any]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Call each probe; return what they found (None where one found nothing), and the reasons of those."""
    found: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for name, probe in probes.items():
        try:
            found[name] = probe()
        except Unavailable as reason:
            found[name], reasons[name] = None, str(reason)
        except Exception as error:  # noqa: BLE001  a probe never costs a measurement
            # Not its text, which may hold a path.
            found[name], reasons[name] = None, f"{type(error).__name__} while reading it"
    return found, reasons


def usable() -> set[int]:
    """Return the numbers of the logical cores that this process may run on."""
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def usable_cores() -> int:
    """Return how many they are."""
    return len(usable())


def governor() -> str:
    """Return the first core's frequency governor: "performance", "powersave", "schedutil", …"""
    return read(SYS / "devices/system/cpu/cpu0/cpufreq/scaling_governor")


def boost() -> bool:
    """Return whether the cores may run above their nominal frequency: then a longer run is a slower one."""
    if (intel := SYS / "devices/system/cpu/intel_pstate/no_turbo").exists():
        return read(intel) == "0"
    return read(SYS / "devices/system/cpu/cpufreq/boost") == "1"


def caches() -> dict[str, str]:
    """Return the first core's caches, such as {"L1d": "32K", "L2": "512K", "L3": "32768K"}."""
    found = {}
    for index in sorted((SYS / "devices/system/cpu/cpu0/cache").glob("index*")):
        kind = {"Data": "d", "Instruction": "i"}.get(read(index / "type"), "")
        found[f"L{read(index / 'level')}{kind}"] = read(index / "size")
    return known(found or None)


def last_level_cache() -> tuple[int, int]:
    """Return the bytes of one last-level cache, and how many of them the usable cores have."""
    largest: dict[int, dict[str, int]] = {}
    for core in usable():
        for index in (SYS / f"devices/system/cpu/cpu{core}/cache").glob("index*"):
            if (size := re.fullmatch(r"(\d+)K", read(index / "size"))) and read(index / "type") != "Instruction":
                shared = largest.setdefault(int(read(index / "level")), {})
                shared[read(index / "shared_cpu_list")] = int(size[1]) * 1024
    sizes = largest[known(max(largest, default=None))]
    return max(sizes.values()), len(sizes)


def cpu_seconds() -> tuple[float, float]:
    """Return the seconds for which the usable cores have been busy, and for which the hypervisor withheld them.

    Since the system's start, in ticks of usually 10 ms. A second with two busy cores counts as two.
    """
    cores = usable()
    busy = stolen = 0
    for line in read(PROC / "stat").splitlines():
        name, *counts = line.split()
        if (core := re.fullmatch(r"cpu(\d+)", name)) and int(core[1]) in cores:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, counts[:8])
            busy += user + nice + system + irq + softirq  # guests' time is in user and nice already
            stolen += steal
    ticks = os.sysconf("SC_CLK_TCK")
    return busy / ticks, stolen / ticks


class Family:
    """CPU seconds of this process and of all that it started, those that have ended among them.

    A process's own time and that of the children that it has waited for are counted alike, so that nothing is lost when
    one ends. A process whose parent is gone is another's child by then; it is known by its number and its start.
    """

    def __init__(self) -> None:
        self._known: set[tuple[int, int]] = set()  # number and start, in ticks
        self._most = 0.0

    def seconds(self) -> float:
        """Return the seconds so far, never less than before; of this process alone where the kernel shows no others."""
        ticks = os.sysconf("SC_CLK_TCK")
        alive = {found[0]: found for found in _processes()}
        own, children = os.getpid(), dict[int, list[int]]()
        for pid, parent, _, _ in alive.values():
            children.setdefault(parent, []).append(pid)
        family = {pid for pid, _, start, _ in alive.values() if (pid, start) in self._known}
        todo = [own, *family]
        while todo:
            new = [pid for pid in children.get(todo.pop(), ()) if pid not in family]
            family.update(new)
            todo += new
        family.discard(own)
        self._known = {(pid, alive[pid][2]) for pid in family}
        self._most = max(self._most, sum(os.times()[:4]) + sum(alive[pid][3] for pid in family) / ticks)
        return self._most


def _processes() -> Iterator[tuple[int, int, int, int]]:
    """Yield of each process its number, its parent's, its start and its CPU time, that of its dead children included,
    both in ticks.
    """
    for folder in PROC.glob("[0-9]*"):
        try:
            text = (folder / "stat").read_text(errors="replace")
        except OSError:  # it has ended meanwhile
            continue
        _, parent, *fields = text.rpartition(")")[2].split()  # its name may hold anything
        yield int(folder.name), int(parent), int(fields[17]), sum(map(int, fields[9:13]))


def frequency_mhz() -> float:
    """Return the mean frequency of the cores now; a virtual machine often shows its nominal one."""
    files = (SYS / "devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
    if not (readings := [int(read(file)) / 1e3 for file in files]):
        readings = [float(mhz) for mhz in re.findall(r"^cpu MHz\s*: ([\d.]+)", read(PROC / "cpuinfo"), re.MULTILINE)]
    return fmean(known(readings or None))


def highest_frequency_mhz() -> float:
    """Return the first core's highest frequency."""
    return int(read(SYS / "devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")) / 1e3


def overheated() -> int:
    """Return how often a core has been slowed since the system's start because it was too hot."""
    counts = (SYS / "devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
    return sum(known([int(read(count)) for count in counts] or None, _UNCOUNTED))


def swapped_in() -> int:
    """Return how many pages have been read back from swap since the system's start."""
    return int(search(r"^pswpin (\d+)$", read(PROC / "vmstat"), _UNCOUNTED))


def swap_used_bytes() -> int:
    """Return how much of the swap space is in use."""
    memory = read(PROC / "meminfo")
    total, free = (int(search(rf"^{key}: +(\d+) kB$", memory)) for key in ("SwapTotal", "SwapFree"))
    return (total - free) * 1024


def cpu_limit() -> float:
    """Return the least CPU quota of this process's control groups, in cores."""
    limits = (limit for group in _cpu_groups() if (limit := _quota(group)) is not None)
    return known(min(limits, default=None), _UNLIMITED)


def cpu_throttled_s() -> float:
    """Return for how long, in seconds, this process's control groups with a quota have been held back in all."""
    return sum(throttled_s(read(file)) for file in throttle_files())


def throttle_files() -> list[Path]:
    """Return the files in which the control groups with a quota count how long they were held back."""
    files = [group / "cpu.stat" for group in _cpu_groups() if _quota(group) is not None]
    return known(files or None, _UNLIMITED)


def throttled_s(text: str) -> float:
    """Read the seconds out of what is in such a file."""
    if match := re.search(r"^throttled_usec (\d+)$", text, re.MULTILINE):  # version 2
        return int(match[1]) / 1e6
    return int(search(r"^throttled_time (\d+)$", text, _UNCOUNTED)) / 1e9  # version 1: nanoseconds


def _cpu_groups() -> Iterator[Path]:
    """Yield the folders of the control groups, in each hierarchy that rules the CPU, from the process's own upwards."""
    root = SYS / "fs/cgroup"
    for line in read(PROC / "self/cgroup").splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy != "0" and "cpu" not in controllers.split(","):
            continue
        mount = root if hierarchy == "0" else root / controllers
        group = mount / path.strip("/")
        yield from (place for place in (group, *group.parents) if place == mount or mount in place.parents)


def _quota(group: Path) -> float | None:
    try:
        if (file := group / "cpu.max").exists():  # version 2: "quota period", or "max period"
            quota, period = file.read_text().split()
        else:  # version 1: -1 is no quota
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
    except OSError:
        return None
    return None if quota in ("max", "-1") else round(int(quota) / int(period), 3)
