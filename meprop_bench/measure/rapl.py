"""Energy of the CPU from RAPL, the processor's own meter, where the kernel lets us read it.

Linux shows the meter as a tree of zones with a counter each, in microjoules:

    /sys/class/powercap/intel-rapl:0/           name "package-0"       (AMD's processors use the same names)
                       /intel-rapl:0/intel-rapl:0:0/   name "core": a part of the package
                       /intel-rapl:0/intel-rapl:0:1/   name "dram": not a part of it, on servers

    cpu_energy_j = sum over packages and their dram of (last - first)

A counter starts again from 0 after `max_energy_range_uj` (a quarter of an hour at full load, on some machines a
minute), so it is read every time, and each decrease adds one range.

It is the energy of whole packages, idle power and other processes included. Since 2020 only root may read it (a
counter this fine leaks secrets: CVE-2020-8694); a virtual machine has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from meprop_bench.measure.procfs import Unavailable
from meprop_bench.measure.sampler import Summary

__all__ = ["Rapl"]

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
    """The energy meters of all packages.

    Args:
        root: the kernel's folder; a test gives its own.

    """

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

    def summary(self, seconds: float) -> Summary:
        """Return the energy of all packages and their memory."""
        return Summary({"cpu_energy_j": sum(meter.spent_uj for meter in self._meters) / 1e6})

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
