"""Why a figure got its verdict, drawn for a terminal: its pairs of processes, its last runs (`history.plot`), or
the values of two files.

    linear meprop k=30/backward: fail
    30% slower [29%, 31%], margin 5%: the low end of the interval, 1.290, is above 1.050
    pair     base     head  head / base    1.000      1.050                1.300
       1  1.00 ms  1.31 ms        1.306      │          ┊                ──●──
       2  1.01 ms  1.29 ms        1.291      │          ┊              ──●──
     all                          1.300      │          ┊                ├◆┤

A dot is the median of a pair of processes, which the verdict is made of, and the line at it the half of its neighbours
that lies in the middle; `all` has the interval. The axis is logarithmic: halving and doubling are equally far from 1.
Files have no pairs: there the values of either side are drawn as a histogram, on one axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.text import Text

from meprop_bench.gate.document import amount, caught, change, in_words, margin
from meprop_bench.gate.history import plot
from meprop_bench.gate.judgement import Judgement
from meprop_bench.gate.names import quoted, shown
from meprop_bench.gate.pairs import ProcessPair, spread
from meprop_bench.gate.scale import PlotScale
from meprop_bench.gate.series import Floats, Side, Summary
from meprop_bench.gate.stored import Explained
from meprop_bench.report.terminal import new_page, printed, say
from meprop_bench.stats import Verdict, spread_percent, too_wide

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["as_text", "because"]

_MOST = 3
"""Figures that are explained at once."""
_MOST_PAIRS = 64
_LEAST = 1e-30
"""Ratio that is drawn."""
_WIDE = 72
"""Columns from which on the times of both sides stand beside the plot."""
_BINS = "▁▂▃▄▅▆▇█"
_STYLES: Mapping[Verdict, str] = {"fail": "bold red", "inconclusive": "bold", "pass": "bold green"}
_READ_PAIRS = (
    "A dot is what one pair of processes says, its median; the line is the middle half of what it measured. The"
    " interval is that of all pairs. │ is no change, ┊ the most that may be lost."
)
_READ_SIDES = "A bar is how many of a side's values lie there; both sides have one axis, on which less is better."
_ASCII = str.maketrans("│┊─●◆├┤◂▸▁▂▃▄▅▆▇█µ→±", "|:-o*[]<>..:-=+*#u>~")


def as_text(figures: Sequence[Explained], *, terminal: bool, width: int, encoding: str = "utf-8") -> str:
    """Return an explanation of each figure, three at most, as text of so many columns; the rest is named."""
    page = new_page(terminal=terminal, width=width)
    for one in figures[:_MOST]:
        _explain(page, one, width)
    if rest := figures[_MOST:]:
        names = ", ".join(quoted(one.judgement.name) for one in rest[:5])
        say(page, "", f"{len(rest)} more match: {names}{' ...' if len(rest) > 5 else ''}. Name one to see it.")
    text = printed(page)
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        text = text.translate(_ASCII)
    return text


def because(one: Judgement) -> str:
    """Return why a figure has its verdict, as a sentence."""
    if one.reason:
        return f"Why: {shown(one.reason)}."
    if one.change is None or not one.change.bounded:
        return "There is no interval."
    bound, change = _bound(one), one.change
    held, low, high = (_number(one, value) for value in (bound, change.low, change.high))
    if change.low > bound:
        return f"The interval begins at {low}, above {held}."
    if change.high <= bound:
        return f"The interval ends at {high}, below {held}."
    if one.verdict == "fail":
        return f"The interval begins at {low}, so that a loss is certain, and holds {held}: that much is not ruled out."
    more = ": more pairs would decide, or a quieter machine" if one.verdict == "inconclusive" else ""
    return f"The interval, {low} to {high}, holds {held}{more}."


def _of_history(one: Judgement) -> str:
    """Return why a figure that was judged by a history has its verdict, as a sentence."""
    if one.reason:
        return f"Why: {shown(one.reason)}."
    return "It stands out from its last runs." if one.verdict == "fail" else "It lies within its margin."


def _bound(one: Judgement) -> float:
    """Return what the interval is held against: points, or a ratio."""
    if one.quantity == "accuracy":
        return one.margin
    return 1 + max(one.margin, one.least / one.base if one.base else 0.0)


def _number(one: Judgement, value: float) -> str:
    return f"{value:+.2f}" if one.quantity == "accuracy" else f"{value:.3f}" if value < 1000 else f"{value:.3g}"


def _explain(page: Console, one: Explained, width: int) -> None:
    found = one.judgement
    only = " (only reported)" if found.report_only else ""
    say(page, _STYLES[found.verdict], f"{shown(found.name)}: {found.verdict}{only}")
    why = _of_history(found) if one.of_history else because(found)
    say(page, "", f"{in_words(found)}, margin {margin(found)}. {why}")
    if one.pairs:
        drawn, how = _of_pairs(one, width), (_READ_PAIRS, _spread(one.pairs), *caught(found.caught, ""))
    elif one.past:
        drawn, how = plot.drawn(found, one.past, _bound(found), width), (plot.READ,)
    elif one.base or one.head:
        drawn, how = _of_sides(one, width), (_READ_SIDES,)
    else:
        values = f"base {amount(found, found.base)}, head {amount(found, found.head)}"
        drawn, how = [Text(f"{values}; head / base {change(found)}. Nothing else is stored of it.")], ()
    for line in drawn:
        page.print(line, soft_wrap=True)
    say(page, "dim", *how)
    page.print()


def _of_pairs(one: Explained, width: int) -> list[Text]:
    """Return a line for each pair of processes, and one for all of them."""
    found, wide = one.judgement, width >= _WIDE
    heads = ("pair", "base", "head", "head / base") if wide else ("pair", "head / base")
    columns = (4, 9, 9, 11) if wide else (4, 11)
    interval = found.change if found.change is not None and found.change.bounded else None
    known = [pair.ratio for pair in one.pairs] + [1.0, bound := _bound(found)]
    if interval is not None and not too_wide(found.noise):
        known += [interval.low, interval.high]
    known = [ratio for ratio in known if _LEAST < ratio < 1 / _LEAST]
    low, high = math.log(min(known)), math.log(max(known))
    padding = max(0.05 * (high - low), 0.002)
    axis = PlotScale.within(low - padding, high + padding, width - sum(columns) - 2 * len(columns))
    plot = axis.width

    def line(texts: Sequence[str], marks: str, style: str = "") -> Text:
        cells = "  ".join(f"{text:>{columns[place]}}" for place, text in enumerate(texts))
        return Text(f"{cells}  ", style).append(marks.rstrip())

    def drawn(ends: tuple[float, float], middle: float, glyphs: str) -> str:
        low, high, center, one, most = (math.log(max(value, _LEAST)) for value in (*ends, middle, 1.0, bound))
        marks = [" "] * plot
        marks[axis.column(one)], marks[axis.column(most)] = "│", "┊"
        first, last = axis.column(low), axis.column(high)
        marks[first : last + 1] = "─" * (last + 1 - first)
        marks[first] = glyphs[0] if low >= axis.low else "◂"
        marks[last] = glyphs[2] if high <= axis.high else "▸"
        marks[axis.column(center)] = glyphs[1]
        return "".join(marks)

    values = [math.exp(end) for end in (axis.low, axis.high)]
    ends = ((math.log(value), f"{value:.3g}") for value in values)
    scale = [(0.0, "1.000"), (math.log(max(bound, _LEAST)), f"{bound:.3f}"), *ends]
    lines = [line(heads, axis.labels(scale), "dim")]
    for number, pair in enumerate(one.pairs[:_MOST_PAIRS], 1):
        sides = (amount(found, pair.base), amount(found, pair.head)) if wide else ()
        lines.append(line((str(number), *sides, f"{pair.ratio:.3f}"), drawn((pair.low, pair.high), pair.ratio, "─●─")))
    if (rest := len(one.pairs) - _MOST_PAIRS) > 0:
        lines.append(Text(f"{rest} more pairs are not drawn", "dim"))
    if interval is not None:
        sides = (amount(found, found.base), amount(found, found.head)) if wide else ()
        marks = drawn((interval.low, interval.high), interval.estimate, "├◆┤")
        lines.append(line(("all", *sides, f"{interval.estimate:.3f}"), marks, _STYLES[found.verdict]))
    return lines


def _spread(pairs: Sequence[ProcessPair]) -> str:
    found = spread(pairs)
    if found is None:
        return ""
    text = f"{found:.1%}" if found < 1 else spread_percent(found)
    return f"The pairs of processes spread by {text} (standard deviation)."


def _of_sides(one: Explained, width: int) -> list[Text]:
    """Return a histogram of each side on one axis; of a summary, its median and two standard errors."""
    found, sides = one.judgement, {"base": one.base, "head": one.head}
    values = {name: np.array(side) for name, side in sides.items() if not isinstance(side, Summary) and side}
    ends = [end for name, side in sides.items() for end in _ends(side, values.get(name))]
    padding = 0.02 * (max(ends) - min(ends)) or 0.05 * abs(ends[0]) or 1.0
    axis = PlotScale.within(min(ends) - padding, max(ends) + padding, width - 8)
    lines = []
    for name, side in sides.items():
        if isinstance(side, Summary):
            error = "" if math.isnan(side.error) else f", standard error {amount(found, side.error)}"
            lines.append(Text(f"{name:<8}no values, only a median of {amount(found, side.median)}{error}"))
            marks = [" "] * axis.width
            if error:
                first, last = (axis.column(side.median + sign * 2 * side.error) for sign in (-1, 1))
                marks[first : last + 1] = "├" + "─" * (last - first - 1) + "┤" * (last > first)
            marks[axis.column(side.median)] = "◆"
            lines.append(Text(" " * 8 + "".join(marks).rstrip()))
        elif name in values:
            own = values[name]
            beyond = int((own > axis.high).sum())
            more = f", {beyond} of them beyond the axis" if beyond else ""
            lines.append(Text(f"{name:<8}{len(own)} values, median {amount(found, float(np.median(own)))}{more}"))
            counts = np.bincount([axis.column(float(v)) for v in own if v <= axis.high], minlength=axis.width)
            tall = np.ceil(counts / counts.max() * len(_BINS)).astype(int)
            lines.append(Text(" " * 8 + "".join(_BINS[high - 1] if high else " " for high in tall.tolist()).rstrip()))
        else:
            lines.append(Text(f"{name:<8}no values"))
    scale = axis.labels((value, amount(found, value)) for value in (max(axis.low, 0.0), axis.high))
    return [*lines, Text(" " * 8 + scale, "dim")]


def _ends(side: Side, values: Floats | None) -> list[float]:
    """Return from where to where a side is drawn: the tail of slow values, at most a tenth, is beyond the axis."""
    if isinstance(side, Summary):
        error = 0.0 if math.isnan(side.error) else 2 * side.error
        return [side.median - error, side.median + error]
    return [] if values is None else [float(values.min()), float(np.quantile(values, 0.9))]
