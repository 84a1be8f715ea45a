"""A block is judged as its figures are one by one."""

import math

import numpy as np
import pytest

from meprop_bench.gate.block import Block, Sides
from meprop_bench.gate.decide import judge
from meprop_bench.gate.judgement import Judgements
from meprop_bench.gate.series import Series, Summary
from meprop_bench.gate.settings import Settings

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


def numbers(found):
    change = found.change and (found.change.estimate, found.change.low, found.change.high)
    return (found.base, found.head, *(change or ()), found.margin, found.least, found.noise or -1.0)


@pytest.mark.parametrize("cases", ["*", "case ?", "*2*/backward"])
@pytest.mark.parametrize(("quantity", "own"), [("time", False), ("time", True), ("memory", False), ("ratio", True)])
def test_a_block_is_judged_as_its_series_are(quantity, own, cases):
    series = drawn(0, 200, quantity=quantity, own=own)
    settings = Settings(**{**vars(SETTINGS), "cases": (cases,)})
    apart, together = judge(series, settings), judge([], settings, blocks=[block(series)])
    assert len(apart) == len(together) == {"*": 200, "case ?": 10, "*2*/backward": 38}[cases]
    for one, other in zip(apart, together, strict=True):
        assert (one.case, one.figure, one.quantity, one.unit) == (other.case, other.figure, other.quantity, other.unit)
        assert (one.verdict, one.reason, one.report_only) == (other.verdict, other.reason, other.report_only)
        assert one.pairs == other.pairs
        assert numbers(one) == pytest.approx(numbers(other), rel=1e-9, nan_ok=True)
    if cases == "*":
        assert len({one.verdict for one in together}) == 3


def test_holm_counts_blocks_and_series_together():
    series = [*drawn(1, 60), *drawn(2, 60, own=True), *drawn(3, 60, quantity="memory")]
    whole = list(judge(series, SETTINGS))
    mixed = judge(series[120:], SETTINGS, blocks=[block(series[:60]), block(series[60:120])])
    for one, other in zip(whole, mixed, strict=True):  # exp of an array may differ in the last digit
        assert (one.case, one.verdict, one.reason) == (other.case, other.verdict, other.reason)
        assert numbers(one) == pytest.approx(numbers(other), rel=1e-12, nan_ok=True)
    slow = tuple(((1.0, 1.013 * math.exp(0.0021 * (-1) ** i)),) * 3 for i in range(8))
    alone = Series(case="slow", figure="backward", quantity="time", unit="s", pairs=slow)
    narrow = Settings(margin=0.01)
    assert [one.verdict for one in judge([alone], narrow)] == ["fail"]
    *_, found = judge([alone], narrow, blocks=[block(series[:60])])
    assert (found.verdict, "Holm" in found.reason) == ("inconclusive", True)


def test_large_blocks_are_judged_in_parts(monkeypatch):
    series = drawn(4, 50)
    whole = judge([], SETTINGS, blocks=[block(series)])
    monkeypatch.setattr("meprop_bench.gate.block._AT_ONCE", 64)
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
    again = Judgements.of(found)
    assert list(map(str, again)) == list(map(str, found)) == list(map(str, Judgements.joined([found[:7], found[7:]])))
    assert list(again.names) == [(one.case, one.figure) for one in found]
    assert again.noise == pytest.approx([math.nan if one.noise is None else one.noise for one in found], nan_ok=True)
    own = [one for one in found if not one.report_only]
    assert again.counts() == {
        **{verdict: sum(one.verdict == verdict for one in own) for verdict in ("fail", "inconclusive", "pass")},
        "report_only": len(found) - len(own),
    }


def test_a_block_is_of_what_a_ratio_judges():
    series = drawn(6, 3)
    with pytest.raises(ValueError, match="not of count"):
        block([Series(case="a", figure="flops", quantity="count", unit="1", base=(1.0,), head=(1.0,))])
    with pytest.raises(ValueError, match="3 cases, 3 of base and 2 of head"):
        Block(figure="f", quantity="time", unit="s", cases="abc", base=block(series).base, head=block(series[:2]).head)
