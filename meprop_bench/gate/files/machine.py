"""The machine of a comparison in a line, whoever described it: this package, pytest-benchmark or asv."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from meprop_bench.gate.files.figures import flat
from meprop_bench.gate.names import shown

__all__ = ["common_machine", "machine_line"]

_PARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("{}", ("cpu_model", "cpu.brand_raw", "cpu.brand", "cpu", "architecture", "machine")),
    ("{}", ("gpu.name",)),
    ("{} cores", ("cpu_usable_cores", "cpu.count", "num_cpu")),
    ("{}", ("os", "system")),
    ("Python {}", ("python", "python_version")),
    ("torch {}", ("torch",)),
)
"""How a part is said, and the names under which one or the other has it, the best first."""


def machine_line(environment: Mapping[str, Any]) -> str:
    """Return processor, cores, system and versions, as far as an environment has them; '' of one that has none."""
    known = flat(environment)
    found = []
    for form, names in _PARTS:
        if (value := next((known[name] for name in names if name in known), None)) is not None:
            found.append(form.format(shown(str(value), 60).removeprefix("CPython ")))
    return ", ".join(found)


def common_machine(environments: Iterable[Mapping[str, Any]]) -> str:
    """Return the line of the environments of one comparison; where they differ in it, how many there are."""
    lines = list(dict.fromkeys(filter(None, map(machine_line, environments))))
    return lines[0] if len(lines) == 1 else f"{len(lines)} environments" if lines else ""
