"""The gate's verdicts: fail when the interval's low end is beyond the margin, pass when its high end is within.

For each figure, on the scale of its evidence (log of head / base; of an accuracy, points lost):

    bound = max(log(1 + margin), log(1 + least / base))      a difference below `least` is none, however sure
    low, high = estimate ∓ t(degrees; alpha * weight) * error

    fail          low > bound, and still so among all the figures that are judged (Holm, over the looks' p-values)
    pass          high < bound
    inconclusive  neither: the noise is larger than what the margin leaves

Fail and pass are two claims, and each needs evidence of its own: "not significantly slower" passes nothing. A false
alarm is worse the more figures there are, hence Holm for `fail`; a wrong pass concerns its figure alone.

Pairs of processes are looked at as `looks` plans it, and the earliest verdict stays. What has no noise (a count) has a
point for an interval. What cannot be judged at all says why in its reason. A figure that only the head has is shown and
does not decide: there is nothing to lose. A figure that the head has lost is inconclusive, as a benchmark that was
renamed must not pass for one that did not get slower; a head that failed where the base has values is a failure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from meprop_bench.gate.block import Block, Floats, Integers, Sides
from meprop_bench.gate.evidence import Evidence, log_ratios, of_values
from meprop_bench.gate.judgement import Judgement, Judgements
from meprop_bench.gate.looks import Looks
from meprop_bench.gate.series import Series, Side, Summary
from meprop_bench.gate.settings import Settings
from meprop_bench.gate.weighed import BEYOND_ALONE, ROUNDING, Weighed, evidence_of, without_interval
from meprop_bench.stats import Interval, Verdict, holm, median

__all__ = ["judge", "undecided"]


def judge(
    series: Iterable[Series],
    settings: Settings,
    looks: Looks | None = None,
    *,
    last: bool = True,
    blocks: Sequence[Block] = (),
) -> Judgements:
    """Return the verdicts, in the order of the blocks and then of the series; those outside `settings.cases` are left
    out, unless the head failed or nothing was measured.

    Args:
        series: figures with their values.
        settings: margins, confidence and so on.
        looks: the plan by which pairs of processes were added; None: nobody looked before.
        last: no more pairs will come. Otherwise only what was planned is looked at.
        blocks: figures by the thousand.

    """
    wanted = (block.only(np.array(settings.matched(settings.cases, block.cases, block.figure))) for block in blocks)
    weighed = [Weighed.of(block, settings) for block in wanted if len(block)]
    own = [one for one in series if _wanted(one, settings)]
    troubles = {place: trouble for place, one in enumerate(own) if (trouble := _trouble(one, settings)) is not None}
    sound = [(place, one) for place, one in enumerate(own) if place not in troubles]
    verdicts, adjusted = _verdicts([one for _, one in sound], settings, looks, last, weighed)
    judged = dict(zip((place for place, _ in sound), verdicts, strict=True))
    rest = (_judgement(one, troubles.get(place) or judged[place], settings) for place, one in enumerate(own))
    many = [block.judgements(p_values, settings.alpha) for block, p_values in zip(weighed, adjusted, strict=True)]
    return Judgements.joined([*many, Judgements.of(rest)])


def undecided(series: Iterable[Series], settings: Settings, looks: Looks) -> frozenset[str]:
    """Return the cases for which more pairs of processes are to be measured.

    A case is decided when each of its figures that decide has a verdict, or has had its last look. What is wrong with
    a figure for another reason than noise (a time of zero) more pairs do not put right.
    """
    own = [one for one in series if not one.failure and _wanted(one, settings)]
    open_ones = [
        one.pairs is not None and len(one.pairs) < looks.counts[-1] and _trouble(one, settings, early=True) is None
        for one in own
    ]
    judgements = judge(own, settings, looks, last=False)
    return frozenset(
        found.case
        for found, is_open in zip(judgements, open_ones, strict=True)
        if is_open and found.verdict == "inconclusive" and not found.report_only
    )


def _wanted(one: Series, settings: Settings) -> bool:
    """Whether a figure is judged: what stands for all of a case that has none is, whatever its name."""
    return bool(one.failure) or one.pairs == () or settings.judged(one.case, one.figure)


@dataclass(frozen=True, slots=True)
class _Found:
    """A verdict and what it rests on."""

    verdict: Verdict
    reason: str = ""
    change: Interval | None = None
    pairs: int = 0
    report_only: bool = False
    caught: float | None = None


def _judgement(one: Series, found: _Found, settings: Settings) -> Judgement:
    return Judgement(
        case=one.case,
        figure=one.figure,
        quantity=one.quantity,
        unit=one.unit,
        base=_middle(_side(one, 0)),
        head=_middle(_side(one, 1)),
        change=found.change,
        margin=settings.margin_of(one.case, one.figure, one.quantity),
        least=settings.least_of(one.quantity),
        pairs=found.pairs,
        report_only=found.report_only or settings.only_reported(one.case, one.figure),
        verdict=found.verdict,
        reason=found.reason,
        caught=found.caught,
    )


def _side(one: Series, which: int) -> Side:
    """Return base (0) or head (1): of pairs one value for each process, its median."""
    if one.pairs is None:
        return one.head if which else one.base
    return tuple(median(pair[which] for pair in run) for run in one.pairs if run)


def _middle(side: Side) -> float | None:
    value = side.median if isinstance(side, Summary) else side[0] if len(side) == 1 else median(side) if side else None
    return value if value is not None and math.isfinite(value) else None


# What cannot be judged by an interval.


def _trouble(one: Series, settings: Settings, *, early: bool = False) -> _Found | None:
    """Return the verdict on a figure that has no sound values on both sides; None if it has.

    `early`: pairs may still come, so none is no trouble.
    """
    if one.failure:
        return _Found("fail", one.failure)
    if one.pairs is not None and not (one.pairs and all(one.pairs)):
        missing = "a pair of processes has no values" if one.pairs else "no pair of processes was measured"
        return None if early and not one.pairs else _Found("inconclusive", missing)
    base, head = _every(one, 0), _every(one, 1)
    if not base or not head:
        return _one_sided(one, bool(base), bool(head))
    if one.quantity == "accuracy":
        return _odd_accuracy(one, base, head)
    if not (_finite(base) and _finite(head)):
        return _Found("inconclusive", "a value is not a finite number")
    return None if min(base) > 0 and min(head) > 0 else _with_zeros(one, base, head, settings)


def _odd_accuracy(one: Series, base: Sequence[float], head: Sequence[float]) -> _Found | None:
    if not _finite(base):
        return _Found("inconclusive", "the base's accuracy is not a number")
    if not _finite(head):
        return _Found("fail", "the head's accuracy is not a number")
    if len(base) != len(head) or isinstance(one.base, Summary) or isinstance(one.head, Summary):
        return _Found("inconclusive", "base and head have different numbers of seeds")
    return None


def _finite(values: Sequence[float]) -> bool:
    return all(map(math.isfinite, values))


def _every(one: Series, which: int) -> Sequence[float]:
    if one.pairs is not None:
        return [pair[which] for run in one.pairs for pair in run]
    side = one.head if which else one.base
    if isinstance(side, Summary):
        return () if side.empty else (side.median,)
    return side


def _one_sided(one: Series, base: bool, head: bool) -> _Found:
    if isinstance(one.head if base else one.base, Summary):
        return _Found("inconclusive", "measured 0 times")
    if head:
        return _Found("inconclusive", "new: the base has none", report_only=True)
    return _Found("inconclusive", "gone: the head has none" if base else "neither side has a value")


def _with_zeros(one: Series, base: Sequence[float], head: Sequence[float], settings: Settings) -> _Found:
    """Judge values of which some are 0: sizes, counts and numbers that are tracked may be, times may not."""
    pairs = min(len(base), len(head))
    if min(*base, *head) < 0:
        return _Found("inconclusive", "a negative value")
    if one.quantity == "time" or (one.quantity == "ratio" and one.unit == "1"):
        value = "value" if one.quantity == "time" else "ratio of times"
        short = min(median(base), median(head)) == 0  # some zeros among others have another cause
        return _Found(
            "inconclusive", f"a {value} of 0" + (": too short for its clock" if short else ", which cannot be")
        )
    if max(head) == 0:
        change = Interval(0.0, 0.0, 0.0) if min(base) > 0 else None
        return _Found("pass", "the head has 0", change, pairs)
    if max(base) == 0 and (small := max(head) <= settings.least_of(one.quantity)) | (min(head) > 0):
        small_enough = "up from 0, by no more than the least difference"
        return _Found("pass", small_enough, None, pairs) if small else _Found("fail", "up from 0", None, pairs)
    return _Found("inconclusive", "some values are 0 and others are not", None, pairs)


# What an interval judges.


def _verdicts(
    sound: Sequence[Series], settings: Settings, looks: Looks | None, last: bool, weighed: Sequence[Weighed]
) -> tuple[list[_Found], list[Floats]]:
    """Judge figures with sound values, all at once; return the blocks' p-values as well, corrected for all."""
    views = _views(sound, settings, looks, last)
    bounds = np.array([_bound(one, settings) for one in sound])
    half = views.evidence.half_width(settings.alpha * views.weights)
    estimate = views.evidence.estimate
    low, high = estimate - half, estimate + half
    of = bounds[views.owners]
    with np.errstate(invalid="ignore"):
        p_values = np.minimum(views.evidence.above(of) / views.weights, 1.0)
        within = (high < of) | ((views.evidence.error == 0) & (estimate <= of))
    adjusted, of_blocks, family = _adjusted(sound, settings, views, p_values, weighed)
    caught = _caught(sound, settings, looks, views, bounds, family)
    found = []
    starts = np.searchsorted(views.owners, np.arange(len(sound) + 1)).tolist()
    table = list(zip(estimate.tolist(), low.tolist(), high.tolist(), within.tolist(), views.counts, strict=True))
    p_list = p_values.tolist()
    for place, one in enumerate(sound):
        begin, end = starts[place], starts[place + 1]
        if begin == end:
            found.append(_Found("inconclusive", "before its first look", None, len(one.pairs or ())))
            continue
        verdict, shown, reason = _pick(table[begin:end], p_list[begin:end], adjusted[place], bounds[place], settings)
        middle, lowest, highest, _, pairs = table[begin + shown]
        if one.quantity == "accuracy":
            change = Interval(middle, lowest, highest)
        else:
            change = Interval(_exp(middle), _exp(lowest), _exp(highest))
        found.append(_Found(verdict, reason, change, pairs, caught=caught[place]))
    return found, of_blocks


def _caught(
    sound: Sequence[Series], settings: Settings, looks: Looks | None, views: _Views, bounds: Floats, family: int
) -> list[float | None]:
    """Return the slowdown of each figure with pairs that the whole design would have caught, by Holm's first step."""
    last = np.searchsorted(views.owners, np.arange(len(sound)), side="right") - 1
    looked_at = set(views.owners.tolist())
    noisy = [place for place, one in enumerate(sound) if one.pairs is not None and place in looked_at]
    chosen = last[noisy]
    counts = np.array(views.counts, np.int64)[chosen]
    most = np.array([sound[place].most for place in noisy], np.int64)
    if looks is not None:
        most = np.minimum(most, looks.counts[-1])
    planned = np.maximum(most, counts)
    # What was decided early would have been measured on, had it been slower.
    error = views.evidence.error[chosen] * np.sqrt(counts / planned)
    whole = Evidence(views.evidence.estimate[chosen], error, planned - 1.0)
    weight = 1.0 if looks is None else looks.weights[-1]
    found = np.expm1(whole.caught(bounds[noisy], settings.alpha * weight / max(family, 1)))
    result: list[float | None] = [None] * len(sound)
    for place, value in zip(noisy, found.tolist(), strict=True):
        result[place] = value if math.isfinite(value) else None
    return result


def _pick(
    views: Sequence[tuple[float, float, float, bool, int]],
    p_values: Sequence[float],
    adjusted: float,
    bound: float,
    settings: Settings,
) -> tuple[Verdict, int, str]:
    """Return the verdict of one figure, which of its looks shows it, and why where the interval does not say it."""
    if adjusted <= settings.alpha:
        return "fail", min(range(len(views)), key=p_values.__getitem__), ""
    for place, (_, low, _, within, _) in enumerate(views):
        if within:
            return "pass", place, ""
        if low > bound:
            return "inconclusive", place, BEYOND_ALONE
    *_, (_, low, _, _, size) = views
    return "inconclusive", len(views) - 1, without_interval(size) if math.isnan(low) else ""


@dataclass(frozen=True)
class _Views:
    """All looks at all figures, those of one figure together: evidence, share of alpha, whose it is, pairs."""

    evidence: Evidence
    weights: Floats
    owners: Integers
    counts: list[int]


def _views(sound: Sequence[Series], settings: Settings, looks: Looks | None, last: bool) -> _Views:
    rows: dict[int, list[tuple[float, float, float, float, int]]] = {}
    apart: dict[bool, list[int]] = {True: [], False: []}  # by whether each value has a process of its own
    for place, one in enumerate(sound):
        if one.quantity == "count":
            rows[place] = [_exact(one)]
        elif one.quantity == "accuracy":
            rows[place] = [_seeds(one)]
        elif one.pairs is not None:
            rows[place] = _looked(one, looks or Looks((len(one.pairs),), (1.0,)), last)
        else:
            apart[one.own_processes].append(place)
    for own, places in apart.items():
        if places:
            rows |= _unpaired([sound[place] for place in places], places, own, settings)
    owners = [place for place in range(len(sound)) for _ in rows[place]]
    flat = np.array(list(chain.from_iterable(rows[place] for place in range(len(sound)))), dtype=np.float64)
    flat = flat.reshape(-1, 5)
    evidence = Evidence(flat[:, 0], flat[:, 1], flat[:, 2])
    return _Views(evidence, flat[:, 3], np.array(owners, dtype=np.int64), flat[:, 4].astype(int).tolist())


def _looked(one: Series, looks: Looks, last: bool) -> list[tuple[float, float, float, float, int]]:
    logs = log_ratios(one.pairs or ())
    return [(*of_values(logs[:count]), weight, count) for count, weight in looks.taken(len(logs), last=last)]


def _seeds(one: Series) -> tuple[float, float, float, float, int]:
    base, head = _every(one, 0), _every(one, 1)
    lost = [before - after for before, after in zip(base, head, strict=True)]
    return (*of_values(lost), 1.0, len(lost))


def _exact(one: Series) -> tuple[float, float, float, float, int]:
    """A count has no noise. Where it differs between processes all the same, the ratio is somewhere between them."""
    base, head = _every(one, 0), _every(one, 1)
    low, high = math.log(min(head)) - math.log(max(base)), math.log(max(head)) - math.log(min(base))
    return (low + high) / 2, (high - low) / 2, math.inf, 1.0, min(len(base), len(head))


def _unpaired(
    own: Sequence[Series], places: Sequence[int], processes: bool, settings: Settings
) -> dict[int, list[tuple[float, float, float, float, int]]]:
    base, head = Sides.of([one.base for one in own]), Sides.of([one.head for one in own])
    memory = np.array([one.quantity == "memory" for one in own])
    found, first, second = evidence_of(base, head, processes=processes, memory=memory, settings=settings)
    sizes = np.minimum(first.size, second.size).tolist()
    columns = (found.estimate.tolist(), found.error.tolist(), found.degrees.tolist(), sizes)
    return {
        place: [(estimate, err, free, 1.0, size)]
        for place, estimate, err, free, size in zip(places, *columns, strict=True)
    }


def _bound(one: Series, settings: Settings) -> float:
    """Return how far the estimate may go, on its scale."""
    margin = settings.margin_of(one.case, one.figure, one.quantity)
    if one.quantity == "accuracy":
        return margin + ROUNDING
    least = settings.least_of(one.quantity)
    return math.log1p(max(margin, least / (_middle(_side(one, 0)) or math.inf) if least else 0.0)) + ROUNDING


def _adjusted(
    sound: Sequence[Series], settings: Settings, views: _Views, p_values: Floats, weighed: Sequence[Weighed]
) -> tuple[list[float], list[Floats], int]:
    """Return the p-value of each figure's slowdown over all its looks, those that decide corrected for each other:
    of the series, and of each block; and how many those are.
    """
    least = np.full(len(sound), np.nan)
    np.fmin.at(least, views.owners, p_values)
    decides = [one.quantity != "count" and not settings.only_reported(one.case, one.figure) for one in sound]
    parts = [(least, np.array(decides, np.bool_)), *((one.p_values.copy(), ~one.report_only) for one in weighed)]
    family = np.array(holm(np.concatenate([values[mask] for values, mask in parts]).tolist()))
    begin = 0
    for values, mask in parts:
        end = begin + int(mask.sum())
        values[mask] = family[begin:end]
        begin = end
    return parts[0][0].tolist(), [values for values, _ in parts[1:]], len(family)


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))  # e^700 is near the largest number there is: such an interval says nothing
