"""A run judged against the runs before it: each figure by its own level and spread, all of them at once.

For each figure, on the log scale, with what its last runs say of it (`noise.Expected`):

    change = log c - shift - level             shift: what the candidate's figures have in common
    excess = disagreement - the usual one      of the candidate's own values, at least 0
    sure   = change - excess
    bound  = max(log(1 + margin), log(1 + least / level))
    p      = P(T > (sure - bound) / (error * sqrt(unrest)))    Student's t; 1 where one of its last runs lay as far

    fail          p says so among all figures (Holm), and its own values agree; with a second run, see below
    inconclusive  its own values disagree, or the two runs do, or it awaits a second run
    pass          none of these: it lies within its own spread, or its margin

A change of the code moves all values of a run alike. Where they disagree more than they use to, by a part of the
change (`_DISTURBED`), it is rather the run that was disturbed, for a half of it.

What its history does not allow to judge (too few runs, a spread that hides twice the figure) is shown without deciding,
unless it stands out all the same.

Where a second run is asked for, each of the two needs only the square root of the chance that one alone would, as what
stands out of a quiet suite in one run is mostly the run's (a process that was disturbed, another layout of its memory),
and is not there in the next. A run that was disturbed does not count: then the other has to stand out by itself. And
both have to say the same, as a change of the code does: p is 1 where they are farther apart than noise and `_APART_BY`
of the change allow.

A disturbance may last for two runs, but seldom for three; and one of three may be disturbed where the change is real.
With a third run a figure fails where it would by the first and one of the others, and where the one that is left lies
nearer to these than to the level: above half of the smaller change, midway between a change that lasts and none.

Many benchmarks that stand out in one run are not so many changes of the code: the machine moved, or something that all
of them use. No figure fails then, and the run says so, as it does when its common shift exceeds the margin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from meprop_bench.gate.history.noise import Expected, common_shift, unrest
from meprop_bench.gate.series import Flags, Floats, Integers
from meprop_bench.stats import holm, student

__all__ = ["REASONS", "Candidate", "Found", "judge"]

REASONS = (
    "",
    "within its own spread",
    "slower, but its own values disagree",
    "stands out in this run: a second one has to confirm it",
    "stood out in two runs: a third one has to confirm it",
    "stood out in the first run, not in the second",
    "stood out in two runs, not in the third",
    "slower in both runs, but not by the same",
    "many figures moved together",
    "its own spread would hide even twice the figure",
    "too few runs have it as yet",
    "new: no run has it",
)
(_WITHIN, _DISAGREES, _AWAITS, _AWAITS_THIRD, _NOT_AGAIN, _NOT_LASTING, _APART, _TOGETHER, _HIDES, _YOUNG, _NEW) = (
    range(1, len(REASONS))
)

_HIDDEN = math.log(2)
"""A slowdown that has to stand out, or the figure is not judged."""
_MANY = 0.1
_MANY_AT_LEAST = 5
"""Benchmarks that move together: so many of all, and no fewer than so many."""
_DISTURBED = 0.15
"""Of a change: values that disagree by more of it, beyond their usual disagreement, were not all changed alike."""
_APART_BY, _APART_ERRORS = 0.25, 4.0
"""Share of a change, or errors, by which two runs of it may differ."""
_NEAR, _NEARLY = 1.5, 0.1
"""Spreads, or share of the way, within which a run lies where another lay: a second mode that is seldom met."""
_CAUGHT = 1.2815516
"""Quantile of the normal distribution at 90%: the probability at which a slowdown counts as caught."""


@dataclass(frozen=True)
class Candidate:
    """One run of what is judged, as columns: logs of the medians, NaN where there is none, and how far the values
    behind each disagree.
    """

    logs: Floats
    disagreement: Floats


@dataclass(frozen=True)
class Found:
    """The verdicts; arrays are (figures,), on the log scale."""

    verdict: npt.NDArray[np.int8]  # places in `judgement.VERDICTS`
    reason: Integers  # places in `REASONS`
    change: Floats
    low: Floats
    high: Floats
    reach: Floats  # from where a change stands out
    caught: Floats  # what would have stood out with 90% probability
    shift: float  # of the candidate
    second_shift: float | None  # of its second run; None where there is none, or too little of it to tell
    third_shift: float | None
    unrest: float
    moved: int  # benchmarks that stand out, where they are so many that none fails; else 0

    @property
    def common_shift(self) -> float:
        """What the candidate has in common, as far as the runs that confirm it have it, too."""
        return min(shift for shift in (self.shift, self.second_shift, self.third_shift) if shift is not None)

    @property
    def firm(self) -> Flags:
        """What is inconclusive and has to be looked at, however much may be inconclusive."""
        return np.isin(self.reason, (_AWAITS, _AWAITS_THIRD, _TOGETHER))

    @property
    def idle(self) -> Flags:
        """What its history does not allow to judge, whatever the candidate: it is shown and does not decide."""
        return np.isin(self.reason, (_YOUNG, _NEW, _HIDES))

    @property
    def noisy(self) -> Flags:
        """What of these has runs enough and is too noisy."""
        return np.isin(self.reason, (_HIDES,))


@dataclass(frozen=True)
class _Evidence:
    """What one run says; arrays are (figures,)."""

    change: Floats
    sure: Floats
    error: Floats
    p: Floats
    agrees: Flags  # its own values do, so that p can be believed
    near: Flags  # it lies just where one of its last runs lay
    shift: float | None
    unrest: float
    wider: float  # by what it makes the errors wider

    @classmethod
    def of(
        cls, run: Candidate, known: Expected, bound: Floats, benchmarks: Integers, alike: Flags | None = None
    ) -> _Evidence:
        """Say what a run says; what all its figures share is taken from those that are `alike`, by default all."""
        distance = run.logs - known.level
        shared = distance if alike is None else np.where(alike, distance, np.nan)
        shift = common_shift(shared, benchmarks)
        change, shared = distance - (shift or 0.0), shared - (shift or 0.0)
        restless = unrest(shared, known.error)
        more = math.sqrt(restless)
        excess = np.maximum(run.disagreement - known.usual, 0.0)
        sure, error = change - excess, known.error * more
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(error > 0, (sure - bound) / error, np.where(sure > bound, np.inf, -np.inf))
        p = student.below(known.degrees.astype(np.float64), -t)
        within = np.maximum(_NEAR * known.spread * more, _NEARLY * known.farthest)
        near = np.abs(change - known.farthest) <= within
        seen = near | (sure <= known.beyond + known.spread * more)
        p = np.where(np.isnan(change), np.nan, np.where(seen, 1.0, p))
        agrees = excess <= _DISTURBED * np.maximum(change, 0.0)
        return cls(change, sure, error, p, agrees, near, shift, restless, more)

    @property
    def alone(self) -> Floats:
        """p, 1 where its own values disagree."""
        return np.where(self.agrees | np.isnan(self.p), self.p, 1.0)


def _of_two(one: _Evidence, other: _Evidence) -> tuple[Floats, Flags]:
    """Return the p-values of two runs, and where these do not say the same; NaN without a second one."""
    both = np.maximum(one.alone, other.alone) ** 2
    either = np.minimum(np.maximum(one.alone, other.p**2), np.maximum(one.p**2, other.alone))
    larger = np.maximum(one.change, other.change)
    allowed = np.maximum(_APART_BY * larger, _APART_ERRORS * np.maximum(one.error, other.error))
    apart = np.abs(one.change - other.change) > allowed
    return np.where(apart, 1.0, np.minimum(both, either)), apart


def judge(
    first: Candidate,
    known: Expected,
    bound: Floats,
    decides: Flags,
    benchmarks: Integers,
    alpha: float,
    window: int,
    *,
    confirm: bool = False,
    second: Candidate | None = None,
    third: Candidate | None = None,
) -> Found:
    """Return the verdicts on a run; with `confirm` what stands out awaits a `second` one, or is judged by both.

    What fails in both a `third` one may take back.

    `bound` is what each may lose (log scale), `decides` which are judged at once, `alpha` the chance, one-sided, at
    which any of them may fail by noise alone.
    """
    found = _Evidence.of(first, known, bound, benchmarks)
    judged = decides & np.isfinite(found.p)
    family, power = max(int(judged.sum()), 1), 2 if confirm else 1
    stands = _rejected(found.p**2 if confirm else found.alone, judged, alpha)
    never = np.zeros_like(stands)
    fails, again, both, apart, gone, lacking = stands & (not confirm), never, never, never, never, never
    # These runs may hold little but what stood out: that all of it is slower is not the machine.
    other, last = (
        None if run is None else _Evidence.of(run, known, bound, benchmarks, ~stands) for run in (second, third)
    )
    if other is not None and last is not None:
        other, last = _exchanged(other, last, np.isnan(other.change) & np.isfinite(last.change))
    if other is not None:
        again = stands & np.isfinite(other.p)
        fails, apart = _agreeing(found, other, stands, judged, alpha)
        both = again & _rejected(np.where(again, np.fmax(found.p, other.p) ** 2, 1.0), judged, alpha)
        if last is not None:
            two, (others, _) = fails, _agreeing(found, last, stands, judged, alpha)
            lasts = _nearer(last, found, other)
            fails = (two & lasts) | (others & _nearer(other, found, last))
            lacking = two & np.isnan(last.change)
            gone = (two | both) & np.isfinite(last.change) & ~lasts & ~fails
    refuted = again & ~fails & ~lacking
    families = len(np.unique(benchmarks[judged]))
    moved = len(np.unique(benchmarks[stands & ~refuted]))
    together = moved >= max(_MANY_AT_LEAST, _MANY * families)

    degrees = known.degrees.astype(np.float64)
    with np.errstate(invalid="ignore"):
        tail = -student.quantile(degrees, (alpha / family) ** (1 / power)) * found.error
        half = -student.quantile(degrees, alpha) * found.error
    reach = np.fmax(bound + tail, known.beyond + known.spread * found.wider)
    hides = reach > _HIDDEN
    # Of few values no spread is known well; more of them may do.
    slower = (found.change > reach) & ~found.near
    calm = np.zeros_like(stands) if other is None else other.change <= reach
    none = ~np.isfinite(known.level) | (hides & (known.runs < window))
    cases: tuple[tuple[Flags, int, int], ...] = (
        (stands & together & ~refuted, 1, _TOGETHER),
        (fails, 0, 0),
        (gone, 2, _NOT_LASTING),
        (lacking, 1, _AWAITS_THIRD),
        (both & apart, 1, _APART),
        (both, 1, _DISAGREES),
        (again, 2, _NOT_AGAIN),
        (stands, 1, _AWAITS),
        (known.runs == 0, 1, _NEW),
        (none, 1, _YOUNG),
        (hides, 1, _HIDES),
        (slower & calm, 2, _NOT_AGAIN),
        (slower, 1, _DISAGREES),
        (found.change > bound, 2, _WITHIN),
    )
    which = [one for one, _, _ in cases]
    return Found(
        np.select(which, [verdict for _, verdict, _ in cases], 2).astype(np.int8),
        np.select(which, [reason for _, _, reason in cases], 0),
        found.change,
        found.sure - half,
        2 * found.change - found.sure + half,
        reach,
        reach + _CAUGHT * found.error,
        found.shift or 0.0,
        None if other is None else other.shift,
        None if last is None else last.shift,
        found.unrest,
        moved if together else 0,
    )


def _agreeing(one: _Evidence, other: _Evidence, stands: Flags, judged: Flags, alpha: float) -> tuple[Flags, Flags]:
    """Return what fails by two runs, and where these do not say the same."""
    p, apart = _of_two(one, other)
    both = stands & np.isfinite(other.p)
    return both & _rejected(np.where(both, p, 1.0), judged, alpha), apart


def _exchanged(one: _Evidence, other: _Evidence, where: Flags) -> tuple[_Evidence, _Evidence]:
    """Return two runs, of some figures the other way round: what the second one lacks the third may confirm."""
    fields = ("change", "sure", "error", "p", "agrees", "near")

    def of(run: _Evidence, instead: _Evidence) -> _Evidence:
        return replace(run, **{name: np.where(where, getattr(instead, name), getattr(run, name)) for name in fields})

    return of(one, other), of(other, one)


def _nearer(run: _Evidence, one: _Evidence, other: _Evidence) -> Flags:
    """Whether a run is nearer to two others than to the level."""
    found: Flags = run.change > np.minimum(one.change, other.change) / 2
    return found


def _rejected(p: Floats, judged: Flags, alpha: float) -> Flags:
    found = np.zeros(len(p), np.bool_)
    found[judged] = np.array(holm(p[judged].tolist())) <= alpha
    return found
