"""What a figure looks like to a reader: made once, for the terminal, Markdown and HTML alike.

A figure has three significant digits, a unit that fits, and a dash for what does not apply. Its `Cell` is text, and a
tone that a terminal and a page show as a colour. The text alone says everything: a mark or a word always goes with the
tone, so nothing is lost in black and white.

A forward pass that the method leaves as it is has its time, and no verdict: it is no news that it is as fast as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

from meprop_bench.report.quality import Quality
from meprop_bench.results.axes import WITHOUT_K
from meprop_bench.results.schema import PASSED, Row
from meprop_bench.stats import CANNOT_TELL, Interval, plus_minus, too_wide

__all__ = [
    "ABSENT", "IN_SHAPE", "SHAPE", "Cell", "between", "beyond", "capital", "check", "counted", "efficiency", "failure",
    "joules", "k_of", "left_alone", "memory", "pair", "parity", "percent", "plain_speedup", "quantity", "ratio",
    "ratio_within", "seconds", "seconds_within", "shape", "span", "speedup",
]  # fmt: skip

ABSENT = "–"
SHAPE, IN_SHAPE = "batch, m → n", ("batch", "in_features", "out_features")
"""Heading of `shape`, and the axes that it says together."""
Tone: TypeAlias = Literal["", "good", "bad", "quiet"]


@dataclass(slots=True, unsafe_hash=True)  # nobody changes one, but a frozen one takes four times as long to make
class Cell:
    """Text of a table's cell and how it is meant."""

    text: str
    tone: Tone = ""
    link: str = ""  # where it leads, a relative address; a terminal shows the text alone


def digits(value: float) -> str:
    """Three significant digits without an exponent; more before the point where the number needs them."""
    size = abs(value)
    return f"{value:.2f}" if size < 9.995 else f"{value:.1f}" if size < 99.95 else f"{value:.0f}"


def seconds(value: float | None) -> str:
    """A time in s, ms, µs or ns."""
    return _small(value, "s")


def seconds_within(found: Interval) -> str:
    """A time with its interval, as in `400 µs ±2%`, or `cannot tell`; negative, as a difference of two may be."""
    if too_wide(found.half_width):
        return CANNOT_TELL
    text = seconds(found.estimate) if found.estimate >= 0 else f"-{seconds(-found.estimate)}"
    return f"{text} {plus_minus(found.half_width, '.0%')}" if found.bounded else text


def joules(value: float | None) -> str:
    """An energy in J, mJ, µJ or nJ."""
    return _small(value, "J")


def percent(value: float | None) -> str:
    """A share that is given in percent, or a sum of such: `198%`."""
    return ABSENT if value is None else f"{value:.0f}%"


def pair(baseline: str, method: str) -> str:
    """What dense and sparse have, in one cell; a dash when neither has it."""
    return ABSENT if baseline == method == ABSENT else f"{baseline} → {method}"


def _small(value: float | None, unit: str) -> str:
    if value is None:
        return ABSENT
    for prefix, scale in (("", 1.0), ("m", 1e-3), ("µ", 1e-6)):
        if value >= 0.9995 * scale:
            return f"{digits(value / scale)} {prefix}{unit}"
    return f"{digits(value / 1e-9)} n{unit}"


@lru_cache(maxsize=1 << 12)  # of a shape it is the same in all its rows
def memory(value: float | None) -> str:
    """A size in binary units."""
    if value is None:
        return ABSENT
    for unit, scale in (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10)):
        if value >= scale:
            return f"{digits(value / scale)} {unit}"
    return f"{value:.0f} B"


def quantity(value: float) -> str:
    """A number of any size with a decimal prefix, as in `35.1 G`."""
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if abs(value) >= scale:
            return f"{digits(value / scale)} {unit}"
    return f"{value:g}"


def ratio(value: float) -> str:
    """A speed-up as in `5.12x`."""
    return f"{digits(value)}x"


def ratio_within(found: Interval, form: Callable[[float], str] = ratio) -> str:
    """A ratio with its interval, `5.12x [5.02, 5.22]`; where that is too wide, what it still says: `cannot tell`."""
    if too_wide(found.half_width):
        return CANNOT_TELL + beyond(found, form)
    return form(found.estimate) + (f" [{digits(found.low)}, {digits(found.high)}]" if found.bounded else "")


def beyond(found: Interval, form: Callable[[float], str] = ratio) -> str:
    """What an interval too wide for a figure says all the same: `, above 2.10x`, `, below 0.50x`, or nothing."""
    return f", above {form(found.low)}" if found.low > 1 else f", below {form(found.high)}" if found.high < 1 else ""


def speedup(row: Row, *, distinct: bool = True) -> Cell:
    """The speed-up with its interval, `~` if that is wider than the target; a dash for a case that failed its check.

    One over a dense time that disagrees with another's is marked whatever its interval says (`reliability`).
    `distinct` is whether it still differs from 1 when it is judged together with all others (`reliability`).
    """
    if not row.passed or row.interval is None:
        return Cell(ABSENT, "quiet")
    doubt = " do not believe" * (row.baseline_disagreement is not None)
    if row.significant is None:
        return Cell(f"{ratio(row.interval.estimate)} no interval{doubt}", "bad" if doubt else "quiet")
    text = ratio_within(row.interval) + " ~" * (row.converged is False)
    if doubt:
        return Cell(text + doubt, "bad")
    if left_alone(row):
        return Cell(text, "quiet")
    if not (row.significant and distinct):
        return Cell(text if too_wide(row.half_width) else f"{text} not significant", "quiet")
    return Cell(text, "good" if row.interval.estimate > 1 else "bad")


_UNCHANGED = 0.95
"""Speed-up down to which a forward pass counts as what it was: below, something that the method adds costs time."""


def left_alone(row: Row) -> bool:
    """Whether a row is of a forward pass that the method does not change: the same operations, in about the same time.

    Where both sides have a fused step, or neither, what runs is the same code.
    """
    if row.phase != "forward" or row.fused_step == "method" or row.interval is None:
        return False
    same = (row.sparse.flops, row.sparse.bytes) == (row.dense.flops, row.dense.bytes)
    found = row.interval
    slower, faster = found.high < _UNCHANGED, found.low > 1 / _UNCHANGED
    return same and not slower and not faster


def span(rows: Iterable[Row]) -> str:
    """Return the least and the greatest speed-up of rows, `3.31x to 31.0x`."""
    return between(row.speedup for row in rows if row.speedup is not None)


def counted(number: int, noun: str) -> str:
    """Return `1 seed`, `5 seeds`, `100,000 rows`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def between(values: Iterable[float], form: Callable[[float], str] = ratio) -> str:
    """Return the least and the greatest of some values, `3.31x to 31.0x`, or the one that all are."""
    found = list(values)
    return " to ".join(dict.fromkeys(map(form, (min(found), max(found)))))


def capital(text: str) -> str:
    """Return a clause as the beginning of a sentence."""
    return text[:1].upper() + text[1:]


def plain_speedup(row: Row) -> str:
    """The speed-up alone, where its interval stands elsewhere: `5.12x`, or why that is no figure."""
    if row.speedup is None:
        return ABSENT
    if row.baseline_disagreement is not None:
        return "do not believe"
    return CANNOT_TELL if too_wide(row.half_width) else ratio(row.speedup)


def efficiency(row: Row) -> Cell:
    """The floor as a share of the measured time, in percent."""
    share = row.sparse.efficiency if row.passed else None
    return Cell(ABSENT, "quiet") if share is None else Cell(f"{100 * share:.0f}%")


def check(row: Row) -> Cell:
    """Whether the case ran and computed the right thing; `failure` says why not."""
    if row.error is not None:
        return Cell("ERROR", "bad")
    if row.check is None:
        return Cell("NOT CHECKED", "bad")
    return Cell(PASSED, "good") if row.check == PASSED else Cell("FAILED", "bad")


def failure(row: Row) -> str | None:
    """Why a case has no figures, in one line."""
    return row.error or (None if row.check in (None, PASSED) else row.check)


def parity(row: Row) -> Cell:
    """The verdict on the quality, with the difference to dense."""
    if row.parity is None:
        return Cell(ABSENT, "quiet")
    found = row.parity
    tones: dict[str, Tone] = {"pass": "good", "fail": "bad", "inconclusive": "quiet"}
    return Cell(f"{found.verdict} {Quality.of(found).within(found.interval)}", tones[found.verdict])


def shape(row: Row) -> str:
    """Batch and sizes as the papers write them: `1024, 8192 → 8192`."""
    if row.out_features is None:
        return ABSENT if row.batch is None else str(row.batch)
    if row.in_features is None:
        return f"{row.batch}, h = {row.out_features}"
    return f"{row.batch}, {row.in_features} → {row.out_features}"


def k_of(row: Row) -> str:
    """The k of a row, of a convolution with the positions of a map that it is of; a dash for a method without one."""
    if row.method in WITHOUT_K:
        return ABSENT
    if row.size is None or row.filter is None or row.k < 1:
        return f"{row.k:g}"
    return f"{row.k:g} of {(row.size - row.filter + 1) ** 2}"
