"""Figures as columns: judged as the obvious reference judges each of them alone, with `math` and `statistics`."""

import math
import statistics

import numpy as np
import pytest
from scipy import stats as scipy_stats

from meprop_bench.gate.decide import judge
from meprop_bench.gate.looks import Looks
from meprop_bench.gate.series import Block, Series, Sides, Summary
from meprop_bench.gate.settings import Settings, matches

SETTINGS = Settings(
    margin=0.02,
    margins={"*7": 0.5, "case 1*/*": 0.0, "backward": 0.03},
    report_only=("*3", "case 25/backward"),
    least_time=2e-5,
    process_noise=0.004,
    confidence=0.9,
)


def side(rng, level):
    """A side of any shape: values of one size or another, few or many, or what a file without values says."""
    shape = rng.integers(5)
    if shape == 0:
        return (float(level),)
    spread = rng.choice([0.0, 1e-4, 0.01])
    values = tuple((level * np.exp(rng.normal(0, spread, rng.integers(2, 60)))).tolist())
    if shape > 1:
        return values
    return Summary(values[0], float(rng.choice([0.0, 1e-6, math.nan])), len(values))


def drawn(seed, count, *, quantity="time", own=False):
    rng = np.random.default_rng(seed)
    changes = rng.choice([0.7, 1.0, 1.02, 1.06, 1.3], count)
    return [
        Series(
            case=f"case {i}",
            figure="backward",
            quantity=quantity,
            unit="s",
            base=side(rng, 1e-3),
            head=side(rng, 1e-3 * change),
            own_processes=own,
        )
        for i, change in enumerate(changes)
    ]


def paired(seed, count, looks):
    """Figures of pairs of processes, each with as many as some look, or some in between, has."""
    rng = np.random.default_rng(seed)
    return [
        Series(
            case=f"case {i}",
            figure="backward",
            quantity="time",
            unit="s",
            pairs=tuple(
                tuple((1e-3, 1e-3 * change * math.exp(rng.normal(0, 0.01))) for _ in range(rng.integers(1, 4)))
                for _ in range(rng.integers(1, looks.counts[-1] + 1))
            ),
            most=int(rng.integers(0, 30)),
        )
        for i, change in enumerate(rng.choice([0.7, 1.0, 1.02, 1.06, 1.3], count))
    ]


def block(series):
    first = series[0]
    return Block(
        figure=first.figure,
        quantity=first.quantity,
        unit=first.unit,
        cases=[one.case for one in series],
        base=Sides.of([one.base for one in series]),
        head=Sides.of([one.head for one in series]),
        own_processes=first.own_processes,
    )


# The reference: figure by figure, look by look.


def of_side(side, own):
    """Return median, location on the log scale, its variance and the size of one side."""
    if isinstance(side, Summary):
        return side.median, math.log(side.median), (side.error / side.median) ** 2, side.count
    logs, count = sorted(map(math.log, side)), len(side)
    middle = statistics.median(side)
    if count == 1:
        return middle, logs[0], math.nan, 1
    if own:
        return middle, statistics.fmean(logs), statistics.variance(logs) / count, count
    rank = max(1, round((count + 1) / 2 - math.sqrt(count)))
    z = scipy_stats.norm.ppf(1 - scipy_stats.binom.cdf(rank - 1, count, 0.5))
    return middle, statistics.median(logs), ((logs[count - rank] - logs[rank - 1]) / (2 * z)) ** 2, count


def looks_of(one, settings, looks):
    """Return the medians of base and head, and (estimate, error, degrees, share of alpha, size) of each look."""
    if one.pairs is not None:
        sides = [statistics.median(statistics.median(pair[i] for pair in run) for run in one.pairs) for i in (0, 1)]
        logs = [statistics.median(math.log(head / base) for base, head in run) for run in one.pairs]
        found = []
        for count, share in looks.taken(len(logs), last=True):
            own = logs[:count]
            error = statistics.stdev(own) / math.sqrt(count) if count > 1 else math.nan
            found.append((statistics.fmean(own), error, count - 1, share, count))
        return sides, found
    (base, low, v, n), (head, high, w, m) = (of_side(side, one.own_processes) for side in (one.base, one.head))
    variance = v + w + (0 if one.own_processes else settings.process_noise**2)
    degrees = math.inf
    if not math.isnan(variance) and (parts := (v**2 / (n - 1) if v else 0) + (w**2 / (m - 1) if w else 0)):
        degrees = variance**2 / parts
    if math.isnan(variance) and one.quantity == "memory":
        variance, degrees = 0.005**2, math.inf
    return [base, head], [(high - low, math.sqrt(variance), degrees, 1.0, min(n, m))]


def tail(t, degrees):
    return scipy_stats.norm.sf(t) if math.isinf(degrees) else scipy_stats.t.sf(t, degrees)


def quantile(level, degrees):
    return scipy_stats.norm.isf(level) if math.isinf(degrees) else scipy_stats.t.isf(level, degrees)


def reference(series, settings, looks=None):
    """Yield (verdict, reason, base, head, change, low, high, margin) of each, judged together."""
    alpha, found = (1 - settings.confidence) / 2, []
    for one in series:
        (base, head), own = looks_of(one, settings, looks)
        margin = settings.margin
        for glob, value in settings.margins.items():
            margin = value if matches(glob, one.case, one.figure) else margin
        least = settings.least_time if one.quantity == "time" else 0
        bound = math.log1p(max(margin, least / base)) + 1e-12
        small, rarer = bound, 1
        if one.pairs is not None:
            small, rarer = math.log1p(max(margin / 8, least / base)) + 1e-12, 5
        views, passed = [], False
        for estimate, error, degrees, share, size in own:
            if error == 0:
                half, p = 0.0, 0.0 if estimate > small else 1.0
                passed |= estimate <= bound
            else:
                half = quantile(alpha * share, degrees) * error
                p = rarer * tail((estimate - small) / error, degrees) / share
                passed |= estimate + half < bound
            p = 1.0 if passed else p if math.isnan(p) else min(1.0, p)
            views.append((estimate, estimate - half, estimate + half, p, size))
        known = [p for *_, p, _ in views if not math.isnan(p)]
        only = any(matches(glob, one.case, one.figure) for glob in settings.report_only)
        found.append((base, head, margin, bound, views, min(known, default=math.nan), only))
    family = [p for *_, p, only in found if not only]
    ranked = sorted(p for p in family if not math.isnan(p))
    steps = {p: max((len(family) - i) * q for i, q in enumerate(ranked[: ranked.index(p) + 1])) for p in ranked}
    for base, head, margin, bound, views, p, only in found:
        verdict, reason, shown = "inconclusive", "", views[-1]
        settled = next((view for view in views if view[2] < bound or view[1] == view[2] <= bound), None)
        if (p if only else steps.get(p, math.nan)) <= alpha:
            verdict, shown = "fail", next(view for view in views if view[3] == p)
        elif settled is not None:
            verdict, shown = "pass", settled
        elif shown[3] <= alpha:
            reason = "worse alone, not among all that are judged (Holm)"
        elif math.isnan(shown[1]):
            reason = "a file does not tell how well it knows its median: no interval"
            reason = "one value on a side: no interval" if shown[4] == 1 else reason
        yield verdict, reason, only, shown[4], base, head, *map(math.exp, shown[:3]), margin


def rows(judgements):
    for one in judgements:
        change = (one.change.estimate, one.change.low, one.change.high)
        yield one.verdict, one.reason, one.report_only, one.pairs, one.base, one.head, *change, one.margin


def alike(found, expected):
    for one, other in zip(rows(found), expected, strict=True):
        assert one[:4] == other[:4]
        assert one[4:] == pytest.approx(other[4:], rel=1e-9, nan_ok=True)


@pytest.mark.parametrize("cases", ["*", "case ?", "*2*/backward"])
@pytest.mark.parametrize(("quantity", "own"), [("time", False), ("time", True), ("memory", False), ("ratio", True)])
def test_columns_are_judged_as_each_figure_is_by_hand(quantity, own, cases):
    series = drawn(0, 200, quantity=quantity, own=own)
    settings = Settings(**{**vars(SETTINGS), "cases": (cases,)})
    wanted = [one for one in series if matches(cases, one.case, one.figure)]
    apart, together = judge(series, settings), judge([], settings, blocks=[block(series)])
    assert len(apart) == len(together) == len(wanted) == {"*": 200, "case ?": 10, "*2*/backward": 38}[cases]
    assert [one.case for one in together] == [one.case for one in wanted]
    expected = list(reference(wanted, settings))
    alike(together, expected)
    alike(apart, expected)
    if cases == "*":
        assert len({one.verdict for one in together}) == 3


@pytest.mark.parametrize("most", [1, 2, 4, 16, 32])
def test_pairs_are_judged_look_by_look_as_by_hand(most):
    looks = Looks.within(most)
    series = paired(most, 100, looks)
    found = judge(series, SETTINGS, looks)
    alike(found, reference(series, SETTINGS, looks))
    assert (len({one.verdict for one in found}) > 1) == (most > 1)  # one pair gives no interval


def test_holm_counts_blocks_and_series_together():
    series = [*drawn(1, 60), *drawn(2, 60, own=True), *drawn(3, 60, quantity="memory")]
    expected = list(reference(series, SETTINGS))
    alike(judge(series, SETTINGS), expected)
    alike(judge(series[120:], SETTINGS, blocks=[block(series[:60]), block(series[60:120])]), expected)
    slow = tuple(((1.0, 1.018 * math.exp(0.01 * (-1) ** i)),) * 3 for i in range(8))
    alone = Series(case="slow", figure="backward", quantity="time", unit="s", pairs=slow)
    narrow = Settings(margin=0.01)
    assert [one.verdict for one in judge([alone], narrow)] == ["fail"]
    *_, found = judge([alone], narrow, blocks=[block(series[:60])])
    assert (found.verdict, "Holm" in found.reason) == ("inconclusive", True)


def test_large_blocks_are_judged_in_parts(monkeypatch):
    series = drawn(4, 50)
    whole = judge([], SETTINGS, blocks=[block(series)])
    monkeypatch.setattr("meprop_bench.gate.series._AT_ONCE", 64)
    assert list(map(str, judge([], SETTINGS, blocks=[block(series)]))) == list(map(str, whole))


def test_numbers_at_the_ends_of_their_range_are_judged():
    large, small = (1.7e308, 1.6e308), (5e-324, 1e-323)
    found = judge(
        [],
        Settings(),
        blocks=[
            block(
                [
                    Series(case="a", figure="f", quantity="time", unit="s", base=b, head=h)
                    for b, h in ((large, small), (small, large), (large, large))
                ]
            )
        ],
    )
    assert [one.verdict for one in found] == ["pass", "fail", "inconclusive"]
    assert found[0].base is None  # the mean of the two is beyond what a float holds
    assert found[0].head == 1e-323
    assert math.isfinite(found[1].change.high)


def test_judgements_are_the_same_as_columns_and_as_objects():
    found = judge(drawn(5, 40), SETTINGS)
    assert list(map(str, found)) == [*map(str, found[:7]), *map(str, found[7:])]
    assert list(found.names) == [(one.case, one.figure) for one in found]
    assert found.noise == pytest.approx([math.nan if one.noise is None else one.noise for one in found], nan_ok=True)
    own = [one for one in found if not one.report_only]
    assert found.counts() == {
        **{verdict: sum(one.verdict == verdict for one in own) for verdict in ("fail", "inconclusive", "pass")},
        "report_only": len(found) - len(own),
    }


def test_a_block_is_of_what_a_ratio_judges():
    series = drawn(6, 3)
    with pytest.raises(ValueError, match="not of count"):
        block([Series(case="a", figure="flops", quantity="count", unit="1", base=(1.0,), head=(1.0,))])
    with pytest.raises(ValueError, match="3 cases, 3 of base and 2 of head"):
        Block(figure="f", quantity="time", unit="s", cases="abc", base=block(series).base, head=block(series[:2]).head)
