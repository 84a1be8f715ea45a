"""What the machine did while each side ran steadily, as one table: a line for each case that was watched.

A column appears when some case has its figure, so that on a CPU there is none of a GPU, and without a meter none of
energy; why is said below the table, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from meprop_bench.report.cells import ABSENT, Cell, joules, memory, pair, percent
from meprop_bench.report.sections import AXES, WORDS, Section, by_phase, phase_order, varying
from meprop_bench.results.schema import Row, Utilization

__all__ = ["utilization_section"]

_REMARK = (
    "Dense → sparse, each watched for seconds of a steady loop after the timing. CPU: time of the process in percent of"
    " one core (threads that spin while they wait count); others: everything else on the machine. GPU: the time in"
    " which some kernel ran. Page faults and energy are for one iteration of the phase; energy is that of the device,"
    " idle power included."
)


def _a_step(count: int | None, side: Utilization) -> str:
    return ABSENT if count is None else f"{count / side.iterations:.3g}"


def _watts(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.0f} W"


def _throttled(reasons: tuple[str, ...] | None) -> str:
    return ABSENT if reasons is None else " + ".join(reasons) or "no"


_OWN: dict[str, Callable[[Row], str]] = {"workload": lambda row: row.workload, "allocator": lambda row: row.allocator}
_FIGURES: dict[str, Callable[[Utilization], str]] = {
    "CPU": lambda side: percent(side.cpu_utilization),
    "others": lambda side: percent(side.others_cpu_utilization),
    "page faults": lambda side: _a_step(side.page_faults, side),
    "GPU": lambda side: percent(side.gpu_utilization),
    "SMs": lambda side: percent(side.sm_utilization),
    "tensor cores": lambda side: percent(side.tensor_utilization),
    "DRAM": lambda side: percent(side.dram_utilization),
    "SM clock": lambda side: ABSENT if side.sm_clock_mhz is None else f"{side.sm_clock_mhz:.0f} MHz",
    "throttled": lambda side: _throttled(side.throttle_reasons),
    "resident": lambda side: memory(side.rss_bytes),
    "power": lambda side: _watts(side.power_w),
    "energy": lambda side: joules(side.energy_per_step_j),
}
_EXPLAINED = {
    "gpu_utilization": "GPU utilisation",
    "cpu_utilization": "CPU utilisation",
    "power_w": "power",
    "energy_per_step_j": "energy",
}
_OBVIOUS = "the device is the CPU"


def utilization_section(rows: Sequence[Row]) -> Section | None:
    """Return the table of what was watched, one line for each case; None if none was."""
    watched = [row for row in rows if row.sparse.utilization is not None]
    watched.sort(key=lambda row: phase_order(row.phase))  # so that reasons stand in the order of the lines
    if not watched:
        return None
    axes, constants = varying(watched)
    own = [name for name, axis in _OWN.items() if len({axis(row) for row in watched}) > 1]
    figures = [name for name in _FIGURES if any(_figure(row, name) != ABSENT for row in watched)]
    heads = {**{name: _OWN[name] for name in own}, **{name: AXES[name] for name in axes}}

    def line(row: Row) -> tuple[Cell, ...]:
        return tuple(Cell(axis(row)) for axis in heads.values()) + tuple(Cell(_figure(row, name)) for name in figures)

    return Section(
        title="Utilisation and energy",
        constants=constants,
        columns=(*heads, *figures),
        groups=by_phase(watched, line),
        remark=_REMARK,
        footnotes=_reasons(watched),
        left=WORDS | set(_OWN),
    )


def _figure(row: Row, name: str) -> str:
    figure = _FIGURES[name]
    sides = (row.dense.utilization, row.sparse.utilization)
    return pair(*(ABSENT if side is None else figure(side) for side in sides))


def _reasons(rows: Sequence[Row]) -> tuple[str, ...]:
    """Say once why a figure is missing, with all the figures that it is the reason of."""
    missing: dict[str, list[str]] = {}
    for row in rows:
        for name, word in _EXPLAINED.items():
            reason = row.unavailable.get(name, _OBVIOUS)
            if reason != _OBVIOUS and word not in missing.setdefault(reason, []):
                missing[reason].append(word)
    return tuple(f"No {' and '.join(words)}: {reason}." for reason, words in missing.items())
