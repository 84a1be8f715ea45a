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
point for an interval. What cannot be judged at all says why in its reason (`unsound`).

All figures are one table, whether they come as series or as blocks, with a column for each look: (figures, looks).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from meprop_bench.gate.columns import Block, Flags, Floats, Integers, Sides
from meprop_bench.gate.evidence import Evidence, detectable, unpaired
from meprop_bench.gate.judgement import ROW, VERDICTS, Judgements, Kind
from meprop_bench.gate.looks import Looks
from meprop_bench.gate.series import Series
from meprop_bench.gate.settings import Settings
from meprop_bench.gate.unsound import Unsound, middle, unsound, values_of
from meprop_bench.stats import Estimate, clear_of, holm, process_medians

__all__ = ["judge", "undecided"]

_REASONS = (
    "",
    "beyond the margin alone, not among all that are judged (Holm)",
    "one value on a side: no interval",
    "a file does not tell how well it knows its median: no interval",
    "before its first look",
)
_ALONE, _ONE_VALUE, _NO_SPREAD, _NO_LOOK = range(1, 5)

_ROUNDING = 1e-12
"""A loss that is the margin exactly is within it, whatever the logarithm's last digit."""
_LARGEST = 700.0
"""e^700 is near the largest number there is: such an interval says nothing."""


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
    wanted = (block.only(settings.matched(settings.cases, block.cases, block.figure)) for block in blocks)
    tables = [_Table.of_block(block, settings) for block in wanted if len(block)]
    if own := [one for one in series if _wanted(one, settings)]:
        tables.append(_Table.of_series(own, settings, looks, last))
    return _judged(_Table.joined(tables), settings, looks) if tables else Judgements.of(())


def undecided(series: Iterable[Series], settings: Settings, looks: Looks) -> frozenset[str]:
    """Return the cases for which more pairs of processes are to be measured.

    A case is decided when each of its figures that decide has a verdict, or has had its last look. What is wrong with
    a figure for another reason than noise (a time of zero) more pairs do not put right.
    """
    own = [one for one in series if not one.failure and _wanted(one, settings)]
    return frozenset(
        found.case
        for found, one in zip(judge(own, settings, looks, last=False), own, strict=True)
        if one.pairs is not None
        and len(one.pairs) < looks.counts[-1]
        and found.verdict == "inconclusive"
        and not found.report_only
        and (not one.pairs or unsound(one, settings) is None)
    )


def _wanted(one: Series, settings: Settings) -> bool:
    """Whether a figure is judged: what stands for all of a case that has none is, whatever its name."""
    return bool(one.failure) or one.pairs == () or settings.judged(one.case, one.figure)


@dataclass(frozen=True)
class _Table:
    """Figures side by side, each with its looks.

    Attributes:
        cases: of each figure.
        kinds: what of a case is judged; `kind`: which of them each figure is. (figures,)
        base: median, in the figure's unit, and so is `head`; NaN where there is none. (figures,)
        looks: estimate, error, degrees of freedom, share of alpha and size of each look; NaN beyond a figure's looks.
            (figures, looks, 5)
        pairs: pairs of processes that there are, 0 of what has none; `most`: that the budget allows. (figures,)
        unsound: place -> verdict on a figure that no interval judges.

    """

    cases: Sequence[str]
    kinds: Sequence[Kind]
    kind: Integers
    base: Floats
    head: Floats
    looks: Floats
    pairs: Integers
    most: Integers
    unsound: Mapping[int, Unsound] = field(default_factory=dict)

    @classmethod
    def of_block(cls, block: Block, settings: Settings) -> _Table:
        """Return a block's figures, which have one look each."""
        found, base, head, size = unpaired(
            block.base,
            block.head,
            processes=block.own_processes,
            memory=block.quantity == "memory",
            noise=settings.process_noise,
        )
        looks = np.stack((found.estimate, found.error, found.degrees, np.ones(len(block)), size), axis=-1)
        none = np.zeros(len(block), np.int64)
        kinds = ((block.figure, block.quantity, block.unit),)
        return cls(block.cases, kinds, none, base, head, looks[:, None], none, none)

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
                found[place, 0] = _seeds(one)
            elif one.pairs is not None:
                logs = [-ratio for ratio in process_medians(one.pairs)]  # of head / base
                taken = looks.taken(len(logs), last=last) if looks else ((len(logs), 1.0),)
                for look, (count, share) in enumerate(taken):
                    estimate = Estimate.of(logs[:count])
                    found[place, look] = (estimate.value, estimate.error, estimate.degrees, share, count)
            else:
                apart[one.own_processes].append(place)
        for processes, places in apart.items():
            if places:
                own = [series[place] for place in places]
                evidence, _, _, size = unpaired(
                    Sides.of([one.base for one in own]),
                    Sides.of([one.head for one in own]),
                    processes=processes,
                    memory=np.array([one.quantity == "memory" for one in own]),
                    noise=settings.process_noise,
                )
                columns = (evidence.estimate, evidence.error, evidence.degrees, np.ones(len(own)), size)
                found[places, 0] = np.stack(columns, axis=-1)
        base, head = (np.array([middle(one, which) for one in series]) for which in (0, 1))
        pairs = np.array([len(one.pairs or ()) for one in series])
        most = np.array([one.most for one in series])
        return cls([one.case for one in series], tuple(kinds), np.array(kind), base, head, found, pairs, most, odd)

    @classmethod
    def joined(cls, parts: Sequence[_Table]) -> _Table:
        """Return the figures of all parts, one after the other; only the last may have unsound ones, or many looks."""
        if len(parts) == 1:
            return parts[0]
        most = max(part.looks.shape[1] for part in parts)
        looks = [np.pad(p.looks, ((0, 0), (0, most - p.looks.shape[1]), (0, 0)), constant_values=np.nan) for p in parts]
        kinds = np.cumsum([0, *(len(part.kinds) for part in parts)])
        before = sum(len(part.cases) for part in parts[:-1])
        return cls(
            [case for part in parts for case in part.cases],
            [kind for part in parts for kind in part.kinds],
            np.concatenate([part.kind + first for part, first in zip(parts, kinds, strict=False)]),
            np.concatenate([part.base for part in parts]),
            np.concatenate([part.head for part in parts]),
            np.concatenate(looks),
            np.concatenate([part.pairs for part in parts]),
            np.concatenate([part.most for part in parts]),
            {before + place: odd for place, odd in parts[-1].unsound.items()},
        )

    def rules(self, settings: Settings) -> tuple[Floats, Floats, Flags]:
        """Return the margin of each, the least difference that counts, and which are only reported."""
        margin, least = np.empty(len(self.cases)), np.empty(len(self.cases))
        only = np.zeros(len(self.cases), np.bool_)
        for number, (figure, quantity, _) in enumerate(self.kinds):
            places = np.flatnonzero(self.kind == number)
            cases = self.cases if len(places) == len(self.cases) else [self.cases[place] for place in places.tolist()]
            margin[places] = settings.margins_of(cases, figure, quantity)
            least[places] = settings.least_of(quantity)
            only[places] = settings.matched(settings.report_only, cases, figure)
        return margin, least, only

    def of_quantity(self, quantity: str) -> Flags:
        """Return which are of a quantity."""
        return np.array([kind[1] == quantity for kind in self.kinds])[self.kind]


def _seeds(one: Series) -> tuple[float, ...]:
    lost = [before - after for before, after in zip(values_of(one, 0), values_of(one, 1), strict=True)]
    found = Estimate.of(lost)
    return found.value, found.error, found.degrees, 1.0, len(lost)


def _count(one: Series) -> tuple[float, ...]:
    """A count has no noise. Where it differs between processes all the same, the ratio is somewhere between them."""
    base, head = values_of(one, 0), values_of(one, 1)
    low, high = math.log(min(head)) - math.log(max(base)), math.log(max(head)) - math.log(min(base))
    return (low + high) / 2, (high - low) / 2, math.inf, 1.0, min(len(base), len(head))


def _judged(table: _Table, settings: Settings, looks: Looks | None) -> Judgements:
    margin, least, only = table.rules(settings)
    points, count = table.of_quantity("accuracy"), len(table.cases)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        share = np.where((least > 0) & (table.base > 0), least / table.base, 0.0)
    bound = np.where(points, margin, np.log1p(np.maximum(margin, share))) + _ROUNDING
    estimate, error, degrees, weight, size = np.moveaxis(table.looks, 2, 0)
    evidence = Evidence(estimate, error, degrees)
    half = evidence.half_width(settings.alpha * weight)
    low, high = estimate - half, estimate + half
    p_values = np.minimum(evidence.above(bound[:, None]) / weight, 1.0)

    decides = ~only & ~table.of_quantity("count")
    decides[list(table.unsound)] = False
    adjusted = np.fmin.reduce(p_values, axis=1)
    adjusted[decides] = holm(adjusted[decides].tolist())
    fails = adjusted <= settings.alpha

    beyond, within = clear_of(low, high, bound[:, None])
    within |= (error == 0) & (estimate <= bound[:, None])
    taken = (~np.isnan(weight)).sum(axis=1)
    first = np.where((within | beyond).any(axis=1), (within | beyond).argmax(axis=1), np.maximum(taken - 1, 0))
    look = np.where(fails, np.where(np.isnan(p_values), np.inf, p_values).argmin(axis=1), first)
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
    rows["caught"] = _caught(table, bound, taken, settings, looks, int(decides.sum()))
    return _with_unsound(Judgements(table.cases, rows, table.kinds, _REASONS), table.unsound)


def _caught(
    table: _Table, bound: Floats, taken: Integers, settings: Settings, looks: Looks | None, family: int
) -> Floats:
    """Return the slowdown of each figure with pairs that the whole design would have caught, by Holm's first step.

    What has no pairs has none: a million of them would take longer to reckon than all the rest.
    """
    found = np.full(len(table.cases), np.nan)
    places = np.flatnonzero((table.pairs > 0) & (taken > 0))
    if not len(places):
        return found
    _, error, _, _, counts = table.looks[places, taken[places] - 1].T
    most = table.most[places] if looks is None else np.minimum(table.most[places], looks.counts[-1])
    planned = np.maximum(most, counts)
    weight = 1.0 if looks is None else looks.weights[-1]
    # What was decided early would have been measured on, had it been slower.
    error = error * np.sqrt(counts / planned)
    slowdown = detectable(error, planned, bound[places], settings.alpha * weight / max(family, 1))
    found[places] = np.where(np.isfinite(slowdown), slowdown, np.nan)
    return found


def _with_unsound(found: Judgements, unsound: Mapping[int, Unsound]) -> Judgements:
    """Put the verdicts of what no interval judges in their places."""
    reasons = {reason: place for place, reason in enumerate(found.reasons)}
    for place, one in unsound.items():
        row = found.rows[place]
        row["verdict"], row["pairs"] = VERDICTS.index(one.verdict), one.pairs
        row["reason"] = reasons.setdefault(one.reason, len(reasons))
        row["report_only"] |= one.report_only
        row["estimate"] = row["low"] = row["high"] = 0.0 if one.nothing_left else math.nan
    return Judgements(found.cases, found.rows, found.kinds, tuple(reasons))
