"""The gate's verdicts: pass when a loss of the margin is ruled out, fail when a loss is certain and that is not.

For each figure, on the scale of its evidence (log of head / base; of an accuracy, points lost):

    bound = max(log(1 + margin), log(1 + least / base))      a difference below `least` is none, however sure
    small = the same of an eighth of the margin, where both sides were measured here, in pairs; else the bound itself
    high  = estimate + t(degrees; alpha * weight) * error    low likewise

    pass          high < bound: a loss of the margin is ruled out
    fail          a loss of more than small is certain, and one of the margin is not ruled out: the p-value of "no more
                  than small" is at most 1/200, the looks' shares and all figures that are judged considered (Holm)
    inconclusive  neither a loss of small nor one of the margin is ruled out: the noise is larger than what lies between

Fail and pass are two claims, and each needs evidence of its own: "not significantly slower" passes nothing. A false
alarm is worse the more figures there are, hence Holm for `fail`, at one run in 200; a wrong pass concerns its figure
alone.

Between small and the margin either verdict is right: an indifference zone, as sequential tests have it (A. Wald,
"Sequential Tests of Statistical Hypotheses", Annals of Mathematical Statistics 16, 1945). Were both claims held
against the margin, identical code would need one half of the way to the slowdown that must be seen, and that slowdown
the other half: four times the pairs for the same certainty (docs/gate.md, "How the margin was chosen"). More pairs
shrink the zone by themselves, since whoever has lost less than the margin passes as soon as the interval shows it.
Values of two files were taken at two times, and no interval holds what happened in between: there the zone is empty.

Pairs of processes are looked at as `looks` plans it, and the earliest verdict stays. What has no noise (a count) has a
point for an interval.

What cannot be judged at all says why in its reason (`unsound`). A figure that says once more what another one of its
case says, and less sharply, is shown and does not decide, where that one is judged as well (`Series.repeats`).

All figures are one table, whether they come as series or as blocks, with a column for each look: (figures, looks).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from meprop_bench.gate.evidence import Estimates, detectable, unpaired
from meprop_bench.gate.judgement import ROW, VERDICTS, Judgements, Kind
from meprop_bench.gate.looks import Looks
from meprop_bench.gate.series import Block, Flags, Floats, Integers, Series, Sides
from meprop_bench.gate.settings import Settings, matches
from meprop_bench.gate.unsound import Unsound, unsound, values_of
from meprop_bench.stats import Estimate, holm, median, process_medians

__all__ = ["judge", "small_part", "undecided"]

_REASONS = (
    "",
    "worse alone, not among all that are judged (Holm)",
    "one value on a side: no interval",
    "a file does not tell how well it knows its median: no interval",
    "before its first look",
)
_ALONE, _ONE_VALUE, _NO_SPREAD, _NO_LOOK = range(1, 5)

_SMALL = 0.125
"""What lies nearer to none than that is not told from what two places on a disk, or in memory, do to one code."""
_ROUNDING = 1e-12
"""A loss that is the margin exactly is within it, whatever the logarithm's last digit."""
_LARGEST = 700.0
"""e^700 is near the largest number there is: such an interval says nothing."""

Loss = TypeVar("Loss", float, Floats)


def judge(
    series: Iterable[Series],
    settings: Settings,
    looks: Looks | None = None,
    *,
    last: bool = True,
    blocks: Sequence[Block] = (),
    besides: int = 0,
) -> Judgements:
    """Return the verdicts, in the order of the blocks and then of the series; those outside `settings.cases` are left
    out, unless the head failed or nothing was measured.

    `looks` is the plan by which pairs of processes were added, None where nobody looked before; `last` says that no
    more pairs will come: otherwise only what was planned is looked at. `besides` are figures that are judged at once
    with these and are not known here: they make it harder to fail, as if they said nothing.
    """
    wanted = (block.only(settings.matched(settings.cases, block.cases, block.figure)) for block in blocks)
    tables = [_Table.of_block(block, settings) for block in wanted if len(block)]
    if own := [one for one in series if _wanted(one, settings)]:
        tables.append(_Table.of_series(own, settings, looks, last))
    return (
        _judged(_Table.joined(tables), settings, looks, besides) if tables else Judgements((), np.zeros(0, ROW), (), ())
    )


def undecided(series: Iterable[Series], settings: Settings, looks: Looks, besides: int = 0) -> frozenset[str]:
    """Return the cases for which more pairs of processes are to be measured.

    A case is decided when each of its figures that decide has a verdict, or has had its last look. What is wrong with
    a figure for another reason than noise (a time of zero) more pairs do not put right. `besides` as in `judge`: what
    fails among so many fails whatever the others come to.
    """
    own = [one for one in series if not one.failure and _wanted(one, settings)]
    return frozenset(
        found.case
        for found, one in zip(judge(own, settings, looks, last=False, besides=besides), own, strict=True)
        if one.pairs is not None
        and len(one.pairs) < looks.counts[-1]
        and found.verdict == "inconclusive"
        and not found.report_only
        and (not one.pairs or unsound(one, settings) is None)
    )


def small_part(margin: Loss) -> Loss:
    """Return the part of a margin up to which a loss that was measured in pairs does not fail."""
    return _SMALL * margin


def _wanted(one: Series, settings: Settings) -> bool:
    """Whether a figure is judged: what stands for all of a case that has none is, whatever its name."""
    return bool(one.failure or one.unjudged) or one.pairs == () or settings.judged(one.case, one.figure)


@dataclass(frozen=True)
class _Table:
    """Figures side by side, each with its looks; arrays are (figures,)."""

    cases: Sequence[str]
    kinds: Sequence[Kind]
    kind: Integers  # which of `kinds` each figure is
    base: Floats  # median, in the figure's unit, and so is `head`; NaN where there is none
    head: Floats
    looks: Floats  # (figures, looks, 5), each as `_look` has it; NaN beyond a figure's looks
    pairs: Integers  # pairs of processes that there are, 0 of what has none
    most: Integers  # those that the budget allows
    shown: Flags  # whether it only repeats another one
    odd: Mapping[int, Unsound] = field(default_factory=dict)

    @classmethod
    def of_block(cls, block: Block, settings: Settings) -> _Table:
        """Return a block's figures, which have one look each."""
        memory, none = block.quantity == "memory", np.zeros(len(block), np.int64)
        looks, base, head = unpaired(block.base, block.head, block.own_processes, memory, settings.process_noise)
        kinds = ((block.figure, block.quantity, block.unit),)
        return cls(block.cases, kinds, none, base, head, looks[:, None], none, none, none.astype(np.bool_))

    @classmethod
    def of_series(cls, series: Sequence[Series], settings: Settings, looks: Looks | None, last: bool) -> _Table:
        """Return some series."""
        kinds: dict[Kind, int] = {}
        kind = [kinds.setdefault((one.figure, one.quantity, one.unit), len(kinds)) for one in series]
        found = np.full((len(series), len(looks.counts) if looks else 1, 5), np.nan)
        odd: dict[int, Unsound] = {}
        apart: dict[bool, list[int]] = {True: [], False: []}  # by whether each value has a process of its own
        for place, one in enumerate(series):
            if (trouble := unsound(one, settings)) is not None:
                odd[place] = trouble
            elif one.quantity == "count":
                found[place, 0] = _count(one)
            elif one.quantity == "accuracy":
                found[place, 0] = _look(_lost(one))
            elif one.pairs is not None:
                logs = [-ratio for ratio in process_medians(one.pairs)]  # of head / base
                taken = looks.taken(len(logs), last=last) if looks else ((len(logs), 1.0),)
                for look, (count, share) in enumerate(taken):
                    found[place, look] = _look(logs[:count], share)
            else:
                apart[one.own_processes].append(place)
        for processes, places in apart.items():
            if places:
                own = [series[place] for place in places]
                first, second = Sides.of([one.base for one in own]), Sides.of([one.head for one in own])
                memory = np.array([one.quantity == "memory" for one in own])
                found[places, 0] = unpaired(first, second, processes, memory, settings.process_noise)[0]
        base, head = (np.array([_middle(one, which) for one in series]) for which in (0, 1))
        pairs = np.array([len(one.pairs or ()) for one in series])
        most = np.array([one.most for one in series])
        reported = settings.report_only
        names = {one.name for one in series if not any(matches(glob, one.case, one.figure) for glob in reported)}
        shown = np.array([bool(one.repeats) and f"{one.case}/{one.repeats}" in names for one in series])
        cases = [one.case for one in series]
        return cls(cases, tuple(kinds), np.array(kind), base, head, found, pairs, most, shown, odd)

    @classmethod
    def joined(cls, parts: Sequence[_Table]) -> _Table:
        """Return the figures of all parts, one after the other; only the last may have unsound ones, or many looks."""
        if len(parts) == 1:
            return parts[0]
        wide = max(part.looks.shape[1] for part in parts)
        looks = [np.pad(p.looks, ((0, 0), (0, wide - p.looks.shape[1]), (0, 0)), constant_values=np.nan) for p in parts]
        columns = ("base", "head", "pairs", "most", "shown")
        base, head, pairs, most, shown = (np.concatenate([getattr(part, name) for part in parts]) for name in columns)
        kinds = np.cumsum([0, *(len(part.kinds) for part in parts)])
        before = sum(len(part.cases) for part in parts[:-1])
        return cls(
            [case for part in parts for case in part.cases],
            [kind for part in parts for kind in part.kinds],
            np.concatenate([part.kind + first for part, first in zip(parts, kinds, strict=False)]),
            base,
            head,
            np.concatenate(looks),
            pairs,
            most,
            shown,
            {before + place: odd for place, odd in parts[-1].odd.items()},
        )

    def rules(self, settings: Settings) -> tuple[Floats, Floats, Flags]:
        """Return the margin of each, the least difference that counts, and which are only reported."""
        margin, least, only = np.empty(len(self.cases)), np.empty(len(self.cases)), self.shown.copy()
        for number, (figure, quantity, _) in enumerate(self.kinds):
            places = np.flatnonzero(self.kind == number)
            cases = self.cases if len(places) == len(self.cases) else [self.cases[place] for place in places.tolist()]
            margin[places] = settings.margins_of(cases, figure, quantity)
            least[places] = settings.least_of(quantity)
            only[places] |= settings.matched(settings.report_only, cases, figure)
        return margin, least, only

    def of_quantity(self, quantity: str) -> Flags:
        """Return which are of a quantity."""
        return np.array([kind[1] == quantity for kind in self.kinds])[self.kind]


def _look(values: Sequence[float], share: float = 1.0) -> tuple[float, ...]:
    """Return estimate, error, degrees of freedom, share of alpha and size of a look at independent values."""
    found = Estimate.of(values)
    return found.value, found.error, found.degrees, share, len(values)


def _count(one: Series) -> tuple[float, ...]:
    """A count has no noise. Where it differs between processes all the same, the ratio is somewhere between them."""
    base, head = values_of(one, 0), values_of(one, 1)
    low, high = math.log(min(head)) - math.log(max(base)), math.log(max(head)) - math.log(min(base))
    return (low + high) / 2, (high - low) / 2, math.inf, 1.0, min(len(base), len(head))


def _judged(table: _Table, settings: Settings, looks: Looks | None, besides: int) -> Judgements:
    margin, least, only = table.rules(settings)
    points, count = table.of_quantity("accuracy"), len(table.cases)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        share = np.where((least > 0) & (table.base > 0), least / table.base, 0.0)
    bound = np.where(points, margin, np.log1p(np.maximum(margin, share))) + _ROUNDING
    small = np.where(table.pairs > 0, np.log1p(np.maximum(small_part(margin), share)) + _ROUNDING, bound)
    estimate, error, degrees, weight, size = np.moveaxis(table.looks, 2, 0)
    evidence = Estimates(estimate, error, degrees)
    half = evidence.half_width(settings.alpha * weight)
    low, high = estimate - half, estimate + half
    within = (high < bound[:, None]) | ((error == 0) & (estimate <= bound[:, None]))
    rarer = np.where(table.pairs > 0, settings.alpha / settings.alarm, 1.0)
    pvalues_of = np.minimum(evidence.above(small[:, None]) / weight * rarer[:, None], 1.0)
    pvalues_of[np.logical_or.accumulate(within, axis=1)] = 1.0  # what has passed stays so

    decides = ~only & ~table.of_quantity("count")
    decides[list(table.odd)] = False
    adjusted = np.fmin.reduce(pvalues_of, axis=1)
    # Sizes that were measured here are those of the code: they do not differ by chance, and nobody pays for them.
    sizes = decides & table.of_quantity("memory") & bool((table.pairs > 0).any())
    for together in (decides & ~sizes, sizes):
        own = adjusted[together].tolist()
        adjusted[together] = holm([*own, *[math.nan] * besides])[: len(own)]
    fails = adjusted <= settings.alpha

    beyond = (pvalues_of <= settings.alpha) & ~within
    taken = (~np.isnan(weight)).sum(axis=1)
    first = np.where(within.any(axis=1), within.argmax(axis=1), np.maximum(taken - 1, 0))
    look = np.where(fails, np.where(np.isnan(pvalues_of), np.inf, pvalues_of).argmin(axis=1), first)
    shown = (np.arange(count), look)
    passes, alone = ~fails & within[shown], ~fails & ~within[shown] & beyond[shown]

    rows = np.zeros(count, ROW)
    for name, values in (("base", table.base), ("head", table.head)):
        rows[name] = np.where(np.isfinite(values), values, np.nan)
    for name, values in (("estimate", estimate), ("low", low), ("high", high)):
        rows[name] = np.where(points, values[shown], np.exp(np.minimum(values[shown], _LARGEST)))
    rows["margin"], rows["least"], rows["report_only"], rows["kind"] = margin, least, only, table.kind
    rows["pairs"] = np.where(taken > 0, np.nan_to_num(size[shown]), table.pairs)
    fail, inconclusive, passed = range(len(VERDICTS))
    rows["verdict"] = np.select((fails, passes), (fail, passed), inconclusive)
    unknown = np.isnan(low[shown]) & ~(fails | passes)
    no_interval = np.where(rows["pairs"] == 1, _ONE_VALUE, _NO_SPREAD)
    rows["reason"] = np.select((alone, taken == 0, unknown), (_ALONE, _NO_LOOK, no_interval), 0)
    rows["caught"] = _caught(table, (small, bound), taken, settings, looks, int((decides & ~sizes).sum()))

    reasons = {reason: place for place, reason in enumerate(_REASONS)}
    for place, one in table.odd.items():
        row = rows[place]
        row["verdict"], row["pairs"] = VERDICTS.index(one.verdict), one.pairs
        row["reason"] = reasons.setdefault(one.reason, len(reasons))
        row["report_only"] |= one.report_only
        row["estimate"] = row["low"] = row["high"] = 0.0 if one.nothing_left else math.nan
    return Judgements(table.cases, rows, table.kinds, tuple(reasons))


def _caught(
    table: _Table, bounds: tuple[Floats, Floats], taken: Integers, settings: Settings, looks: Looks | None, family: int
) -> Floats:
    """Return the slowdown of each figure with pairs that the whole design would have caught, by Holm's first step.

    What has no pairs has none: a million of them would take longer to reckon than all the rest. `bounds` are what is
    small and the margin.
    """
    found = np.full(len(table.cases), np.nan)
    places = np.flatnonzero((table.pairs > 0) & (taken > 0))
    if not len(places):
        return found
    _, error, _, _, counts = table.looks[places, taken[places] - 1].T
    most = table.most[places] if looks is None else np.minimum(table.most[places], looks.counts[-1])
    planned = np.maximum(most, counts)
    weight = np.array([1.0 if looks is None else looks.taken(int(n), last=True)[-1][1] for n in planned])
    # What was decided early would have been measured on, had it been slower.
    error = error * np.sqrt(counts / planned)
    small, bound = (one[places] for one in bounds)
    levels = settings.alarm * weight / max(family, 1), settings.alpha * weight
    slowdown = detectable(error, planned, small, bound, levels)
    found[places] = np.where(np.isfinite(slowdown), slowdown, np.nan)
    return found


def _lost(one: Series) -> list[float]:
    """Return what each seed lost of an accuracy, in the figure's unit."""
    base, head = values_of(one, 0), values_of(one, 1)
    scale = 1.0 if one.unit == "points" else 100 / abs(math.fsum(base) / len(base))
    return [scale * (before - after) for before, after in zip(base, head, strict=True)]


def _middle(one: Series, which: int) -> float:
    """Return the median of base (0) or head (1), of pairs that of the processes' own; NaN without one."""
    runs = None if one.pairs is None else [median(pair[which] for pair in run) for run in one.pairs if run]
    values = values_of(one, which) if runs is None else runs
    return median(values) if values else math.nan
