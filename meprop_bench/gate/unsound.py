"""What cannot be judged by an interval, and why: figures of one side only, failures, zeros, and what is no number.

A figure that only the head has is shown and does not decide: there is nothing to lose. One that the head has lost is
inconclusive, as a benchmark that was renamed must not pass for one that did not get slower; a head that failed where
the base has values is a failure. Sizes, counts and numbers that are tracked may be 0, times may not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from meprop_bench.gate.series import Series, Summary
from meprop_bench.gate.settings import Settings
from meprop_bench.stats import Verdict, median

__all__ = ["Unsound", "unsound", "values_of"]


@dataclass(frozen=True, slots=True)
class Unsound:
    """A verdict without an interval, why, and over how many pairs of values; `nothing_left`: head / base is 0."""

    verdict: Verdict
    reason: str
    pairs: int = 0
    report_only: bool = False
    nothing_left: bool = False


def unsound(one: Series, settings: Settings) -> Unsound | None:
    """Return the verdict on a figure that has no sound values on both sides; None if it has."""
    if said := one.failure or one.unjudged:
        return Unsound("fail" if one.failure else "inconclusive", said, report_only=not one.decides)
    if one.pairs is not None and not (one.pairs and all(one.pairs)):
        missing = "a pair of processes has no values" if one.pairs else "no pair of processes was measured"
        return Unsound("inconclusive", missing)
    base, head = values_of(one, 0), values_of(one, 1)
    if not base or not head:
        return _one_sided(one, bool(base), bool(head))
    if one.quantity == "accuracy":
        return _odd_accuracy(one, base, head)
    if not all(map(math.isfinite, (*base, *head))):
        return Unsound("inconclusive", "a value is not a finite number")
    return None if min(*base, *head) > 0 else _with_zeros(one, base, head, settings)


def values_of(one: Series, which: int) -> Sequence[float]:
    """Return all values of base (0) or head (1); of a summary its median, and none of what was measured 0 times."""
    if one.pairs is not None:
        return [pair[which] for run in one.pairs for pair in run]
    side = (one.base, one.head)[which]
    if isinstance(side, Summary):
        return () if side.empty else (side.median,)
    return side


def _one_sided(one: Series, base: bool, head: bool) -> Unsound:
    if isinstance(one.head if base else one.base, Summary):
        return Unsound("inconclusive", "measured 0 times")
    if head:
        return Unsound("inconclusive", "new: the base has none", report_only=True)
    return Unsound("inconclusive", "gone: the head has none" if base else "neither side has a value")


def _odd_accuracy(one: Series, base: Sequence[float], head: Sequence[float]) -> Unsound | None:
    if not all(map(math.isfinite, base)):
        return Unsound("inconclusive", "the base's accuracy is not a number")
    if not all(map(math.isfinite, head)):
        return Unsound("fail", "the head's accuracy is not a number")
    if len(base) != len(head) or isinstance(one.base, Summary) or isinstance(one.head, Summary):
        return Unsound("inconclusive", "base and head have different numbers of seeds")
    if one.unit != "points" and math.fsum(base) == 0:
        return Unsound("inconclusive", "the base's figure is 0, of which nothing is a share")
    return None


def _with_zeros(one: Series, base: Sequence[float], head: Sequence[float], settings: Settings) -> Unsound:
    pairs = min(len(base), len(head))
    if min(*base, *head) < 0:
        return Unsound("inconclusive", "a negative value")
    if one.quantity == "time" or (one.quantity == "ratio" and one.unit == "1"):
        value = "value" if one.quantity == "time" else "ratio of times"
        short = min(median(base), median(head)) == 0  # some zeros among others have another cause
        why = "too short for its clock" if short else "which cannot be"
        return Unsound("inconclusive", f"a {value} of 0{':' if short else ','} {why}")
    if max(head) == 0:
        return Unsound("pass", "the head has 0", pairs, nothing_left=min(base) > 0)
    if max(base) == 0 and max(head) <= settings.least_of(one.quantity):
        return Unsound("pass", "up from 0, by no more than the least difference", pairs)
    if max(base) == 0 and min(head) > 0:
        return Unsound("fail", "up from 0", pairs)
    return Unsound("inconclusive", "some values are 0 and others are not", pairs)
