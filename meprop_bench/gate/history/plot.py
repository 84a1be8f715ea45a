"""The last runs of a figure, drawn for a terminal: a line each, beside the level that they have now.

run                     value  beside its level    1.000  1.045          1.3
2026-11-20 1f0c2d9a   4.00 ms             0.998      ●      ┊
2026-11-21 77a0b1e4   4.03 ms             1.006      │●     ┊
this run              5.22 ms             1.304      │      ┊             ●
its spread                                1.304      │      ┊          ├──◆──┤
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.text import Text

from meprop_bench.gate.document import amount
from meprop_bench.gate.judgement import Judgement
from meprop_bench.gate.names import shown
from meprop_bench.gate.past import PastRun
from meprop_bench.gate.scale import PlotScale

__all__ = ["READ", "drawn"]

READ = (
    "A dot is one run, less what its whole run had in common. │ is the level of the last runs, ┊ the most that may be"
    " lost. The line at ◆ is what the figure's own spread leaves open."
)
_MOST_RUNS = 64
_NAME, _VALUE, _RATIO = 22, 9, 8
_WIDE = 72
"""Columns from which on the values stand beside the plot."""


def drawn(found: Judgement, past: Sequence[PastRun], bound: float, width: int) -> list[Text]:
    """Return a line for each run, the newest last; `bound` is the ratio that may not be lost."""
    wide, runs = width >= _WIDE, past[-_MOST_RUNS:]
    interval = found.change if found.change is not None and found.change.bounded else None
    ratios = [1.0, bound, *(one.ratio for one in runs)]
    low, high = _log(min(ratios)), _log(max(ratios))
    padding = max(0.05 * (high - low), 0.002)
    sizes = (_NAME, _VALUE, _RATIO) if wide else (_NAME, _RATIO)
    axis = PlotScale.within(low - padding, high + padding, width - sum(sizes) - 2 * len(sizes))

    def line(name: str, value: str, ratio: str, marks: Sequence[str] | str, style: str = "") -> Text:
        cells = [f"{value:>{_VALUE}}"] if wide else []
        text = "  ".join([f"{name:<{_NAME}}", *cells, f"{ratio:>{_RATIO}}", ""])
        return Text(text, style).append("".join(marks).rstrip())

    def marks(middle: float, ends: tuple[float, float] | None = None) -> list[str]:
        found = [" "] * axis.width
        found[axis.column(0.0)], found[axis.column(_log(bound))] = "│", "┊"
        if ends is not None:
            first, last = (axis.column(_log(end)) for end in ends)
            found[first : last + 1] = ["├", *"─" * (last - first - 1), *"┤" * (last > first)]
        found[axis.column(_log(middle))] = "●" if ends is None else "◆"
        return found

    scale = [(0.0, "1.000"), (_log(bound), f"{bound:.3f}")]
    scale += [(value, f"{math.exp(value):.3g}") for value in (axis.low, axis.high)]
    lines = [line("run", "value", "/ level", axis.labels(scale), "dim")]
    if len(past) > len(runs):
        lines.append(Text(f"{len(past) - len(runs)} older runs are not drawn", "dim"))
    for one in runs:
        name = shown(one.name, _NAME)
        lines.append(line(name, amount(found, one.value), f"{one.ratio:.3f}", marks(one.ratio)))
    if interval is not None:
        ends = marks(interval.estimate, (interval.low, interval.high))
        lines.append(line("its spread", "", f"{interval.estimate:.3f}", ends, "bold"))
    return lines


def _log(ratio: float) -> float:
    return math.log(min(max(ratio, 1e-30), 1e30))
