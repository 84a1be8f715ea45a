import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from meprop_bench.gate import settings as gate_settings
from meprop_bench.gate.decide import judge, undecided
from meprop_bench.gate.looks import Looks
from meprop_bench.gate.series import Series, Summary

Settings = partial(gate_settings.Settings, margin=0.01)
"""The values below are made for a margin of 1%."""
_NARROW = Settings()
LOOKS = Looks.within(16)


def times(*, case="a", figure="backward", quantity="time", unit="s", **values):
    return Series(case=case, figure=figure, quantity=quantity, unit=unit, **values)


def pairs(ratio, spread=0.002, count=8, base=1e-3):
    signs = [1 if i % 2 else -1 for i in range(count)]
    return tuple(((base, base * ratio * math.exp(spread * sign)),) * 3 for sign in signs)


def one(series, settings=None, **options):
    (found,) = judge([series], settings or Settings(), **options)
    return found


def shown(found):
    return (found.verdict, found.reason)


@pytest.mark.parametrize(
    ("ratio", "spread", "verdict"),
    [
        (1.0, 0.002, "pass"),
        (0.8, 0.002, "pass"),
        (1.005, 0.002, "pass"),  # a loss, and less than the margin
        (1.01, 0.002, "fail"),
        (1.05, 0.002, "fail"),
        (2.0, 0.002, "fail"),
        (1.01, 0.004, "fail"),  # a loss, and perhaps the margin
        (1.009, 0.003, "fail"),
        (1.002, 0.02, "inconclusive"),
        (1.012, 0.02, "inconclusive"),
    ],
)
def test_the_verdict_follows_the_interval(ratio, spread, verdict):
    found = one(times(pairs=pairs(ratio, spread)))
    assert shown(found) == (verdict, "")
    assert found.change.low < ratio < found.change.high
    assert found.change.estimate == pytest.approx(ratio, rel=1e-3)
    assert (found.base, found.pairs) == (1e-3, 8)
    assert (found.change.high < 1.01) == (verdict == "pass")
    assert verdict != "fail" or found.change.low > 1.00125


def test_between_files_both_claims_are_held_against_the_margin():
    """What the machine did between them is in no interval."""
    values = [(pair[0], pair[1]) for (pair, *_) in pairs(1.012, 0.003)]
    base, head = (tuple(side) for side in zip(*values, strict=True))
    assert one(times(pairs=pairs(1.012, 0.003))).verdict == "fail"
    assert one(times(base=base, head=head, own_processes=True)).verdict == "inconclusive"


def test_what_has_passed_at_a_look_stays_so_whatever_comes():
    later = times(pairs=pairs(1.0, spread=0.001, count=4) + pairs(1.1, spread=0.001, count=12))
    found = one(later, looks=LOOKS)
    assert (found.verdict, found.pairs) == ("pass", 4)


def test_a_difference_below_the_least_is_none_and_needs_the_interval_below_it_too():
    slow = times(pairs=pairs(1.05))
    assert one(slow, Settings(least_time=1e-4)).verdict == "pass"
    assert one(slow, Settings(least_time=5e-5)).verdict == "inconclusive"
    assert one(slow, Settings(least_time=1e-5)).verdict == "fail"
    assert one(slow, Settings(least_memory=1e9)).verdict == "fail"  # that is for bytes


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_pairs_decide_nothing_unless_they_are_equal(count):
    assert one(times(pairs=pairs(1.05, spread=0.01, count=count))).verdict == "inconclusive"
    assert one(times(pairs=pairs(1.0, spread=0, count=2))).verdict == "pass"
    assert one(times(pairs=pairs(1.5, spread=0, count=2))).verdict == "fail"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"pairs": ()}, ("inconclusive", "no pair of processes was measured")),
        ({"pairs": ((),)}, ("inconclusive", "a pair of processes has no values")),
        ({"pairs": (((1.0, math.nan),),) * 4}, ("inconclusive", "a value is not a finite number")),
        ({"pairs": (((1.0, 0.0),),) * 4}, ("inconclusive", "a value of 0: too short for its clock")),
        ({"base": (1.0, math.inf), "head": (1.0, 1.0)}, ("inconclusive", "a value is not a finite number")),
        ({"base": (1.0, -1.0), "head": (1.0, 1.0)}, ("inconclusive", "a negative value")),
        ({"base": (1.0,), "head": (1.0,)}, ("inconclusive", "one value on a side: no interval")),
        ({"base": (1.0, 1.0)}, ("inconclusive", "gone: the head has none")),
        ({"base": (1.0,), "failure": "its gradients are wrong"}, ("fail", "its gradients are wrong")),
        ({}, ("inconclusive", "neither side has a value")),
    ],
)
def test_what_cannot_be_judged_says_why(values, expected):
    assert shown(one(times(**values))) == expected


def test_a_case_of_which_nothing_was_measured_is_told_whatever_is_judged():
    nothing = times(figure="times", pairs=())
    (found,) = judge([nothing], Settings(cases=("*/forward",)))
    assert shown(found) == ("inconclusive", "no pair of processes was measured")
    assert undecided([nothing], Settings(cases=("*/forward",)), LOOKS) == {"a"}


def test_numbers_are_only_said_to_be_infinite_if_they_are():
    large = (1.7e308, 1.7e308)
    assert one(times(base=large, head=large)).reason != "a value is not a finite number"


def test_a_figure_that_only_the_head_has_is_shown_and_does_not_decide():
    found = one(times(head=(1.0, 1.0)))
    assert (found.reason, found.report_only, found.base, found.head) == ("new: the base has none", True, None, 1.0)


@pytest.mark.parametrize(
    ("base", "head", "verdict"),
    [
        ((100.0,), (100.0,), "pass"),
        ((100.0,), (101.0,), "pass"),  # the margin exactly
        ((100.0,), (102.0,), "fail"),
        ((100.0,), (50.0,), "pass"),
        ((0.0,), (0.0,), "pass"),
        ((0.0,), (1.0,), "fail"),
        ((5.0,), (0.0,), "pass"),
        ((100.0, 110.0), (100.0, 110.0), "inconclusive"),  # it has noise after all
    ],
)
def test_counts_have_no_noise(base, head, verdict):
    assert one(times(quantity="count", unit="1", base=base, head=head)).verdict == verdict


def test_a_count_without_margin_may_not_grow_at_all():
    settings = Settings(margins={"flops": 0.0})
    for head, verdict in ((1e12, "pass"), (1e12 + 1e3, "fail")):
        assert one(times(figure="flops", quantity="count", base=(1e12,), head=(head,)), settings).verdict == verdict


@pytest.mark.parametrize(
    ("head", "verdict"), [(1000.0, "pass"), (1015.0, "inconclusive"), (1100.0, "fail"), (500.0, "pass")]
)
def test_a_single_size_has_a_little_noise(head, verdict):
    assert one(times(quantity="memory", unit="B", base=(1000.0,), head=(head,))).verdict == verdict


@pytest.mark.parametrize(("base", "head"), [(5e-324, 1.7e308), (1.7e308, 5e-324)])
def test_counts_at_the_ends_of_their_range_are_judged(base, head):
    found = one(times(quantity="count", unit="1", base=(base,), head=(head,)))
    assert found.verdict == ("fail" if head > base else "pass")


def test_memory_up_from_nothing():
    found = times(quantity="memory", unit="B", base=(0.0,), head=(4096.0,))
    assert shown(one(found)) == ("fail", "up from 0")
    assert one(found, Settings(least_memory=4096)).verdict == "pass"


@pytest.mark.parametrize(
    ("head", "verdict"),
    [
        ((97.0, 97.1, 96.9), "pass"),
        ((97.6, 97.3, 97.1), "pass"),
        ((95.0, 95.2, 94.9), "fail"),
        ((96.5, 96.4, 96.5), "inconclusive"),
        ((97.0, 97.1, math.nan), "fail"),
        ((97.0, 97.1), "inconclusive"),
    ],
)
def test_accuracy_is_judged_by_the_points_lost_over_seeds(head, verdict):
    found = one(times(quantity="accuracy", unit="points", base=(97.0, 97.1, 96.9), head=head, own_processes=True))
    assert found.verdict == verdict
    if found.change:
        assert found.change.estimate == pytest.approx(97.0 - np.mean(head))
    assert found.margin == 0.5


@pytest.mark.parametrize(("lost", "verdict"), [(0.002, "pass"), (0.1, "fail")])
def test_a_quality_in_another_unit_is_judged_by_the_share_of_the_base_that_is_lost(lost, verdict):
    base = (-2.0, -2.02, -1.98)
    found = one(times(quantity="accuracy", unit="%", base=base, head=tuple(x - lost for x in base), own_processes=True))
    assert found.verdict == verdict
    assert found.change.estimate == pytest.approx(100 * lost / 2)
    nothing = one(times(quantity="accuracy", unit="%", base=(0.0, 0.0), head=(0.1, 0.1), own_processes=True))
    assert shown(nothing) == ("inconclusive", "the base's figure is 0, of which nothing is a share")


def test_an_accuracy_of_the_base_that_is_not_a_number_fails_nobody():
    found = one(times(quantity="accuracy", base=(math.nan,), head=(90.0,)))
    assert shown(found) == ("inconclusive", "the base's accuracy is not a number")


def test_the_globs_choose_what_is_judged_but_a_failed_head_is_always_told():
    series = [times(), times(figure="forward", pairs=pairs(1.0)), times(figure="correctness check", failure="wrong")]
    assert [f.figure for f in judge(series, Settings(cases=("*/forward",)))] == ["forward", "correctness check"]


def test_holm_counts_what_decides_and_leaves_out_what_is_only_reported():
    slow = times(case="slow", pairs=pairs(1.018, spread=0.01))
    others = [times(case=f"same {i}", pairs=pairs(1.0)) for i in range(60)]
    assert one(slow).verdict == "fail"
    found = judge([slow, *others], Settings())[0]
    assert found.verdict == "inconclusive"
    assert "Holm" in found.reason
    found = judge([slow, *others], Settings(report_only=("same*",)))
    assert found[0].verdict == "fail"
    assert [f.report_only for f in found[:2]] == [False, True]


def test_sizes_of_the_same_run_are_not_counted_among_the_times():
    slow = times(case="slow", pairs=pairs(1.018, spread=0.01))
    sizes = [times(case=str(i), quantity="memory", base=(1000.0,), head=(1000.0,)) for i in range(60)]
    assert [found.verdict for found in judge([slow, *sizes], Settings())] == ["fail", *["pass"] * 60]
    grown = times(case="grown", quantity="memory", base=(1000.0,), head=(1050.0,))
    assert judge([slow, *sizes, grown], Settings())[-1].verdict == "fail"


# Values that were not taken together.


def lognormal(rng, count, median=1e-3, spread=0.02):
    return tuple(median * np.exp(rng.normal(0, spread, count)))


def test_the_values_of_one_process_understate_the_noise_which_is_added():
    rng = np.random.default_rng(0)
    base, head = lognormal(rng, 2000), lognormal(rng, 2000, 1.03e-3)
    assert one(times(base=base, head=head)).verdict == "inconclusive"  # two processes of one code differ by as much
    assert one(times(base=base, head=head), Settings(process_noise=0)).verdict == "fail"
    assert one(times(base=base, head=lognormal(rng, 2000, 1.12e-3))).verdict == "fail"
    assert one(times(base=base, head=base), Settings(margin=0.1)).verdict == "pass"


def test_values_of_own_processes_are_judged_as_they_are():
    rng = np.random.default_rng(1)
    base, head = lognormal(rng, 5, spread=0.01), lognormal(rng, 5, 1.1e-3, spread=0.01)
    assert one(times(base=base, head=head, own_processes=True)).verdict == "fail"
    assert one(times(base=base, head=base, own_processes=True), Settings(margin=0.05)).verdict == "pass"


def test_summaries_are_judged_by_what_they_know():
    settings = Settings(process_noise=0)
    base = Summary.of_quartiles(1.0, 0.99, 1.01, 100)
    assert one(times(base=base, head=Summary.of_quartiles(1.05, 1.04, 1.06, 100)), settings).verdict == "fail"
    assert one(times(base=base, head=base), settings).verdict == "pass"
    assert one(times(base=base, head=(1.2,)), settings).verdict == "inconclusive"
    assert one(times(base=base, head=Summary.of_interval(1.05, 1.03, 1.07, 0.99, 10)), settings).verdict == "fail"
    unknown = Summary.of_interval(1.05, math.nan, math.nan, 0.99, 10)
    assert one(times(base=base, head=unknown), settings).verdict == "inconclusive"
    assert math.isnan(Summary.of_deviation(1.0, 0.0, 1).error)


def coverage(own, draw, runs=400, count=12, noise=0.0):
    rng = np.random.default_rng(2)
    series = [
        times(case=str(i), base=tuple(draw(rng, count)), head=tuple(draw(rng, count)), own_processes=own)
        for i in range(runs)
    ]
    found = judge(series, Settings(process_noise=noise))
    return np.mean([f.change.low <= 1 <= f.change.high for f in found])


@pytest.mark.parametrize("own", [True, False])
def test_the_intervals_of_files_cover_the_true_ratio(own):
    assert coverage(own, lambda rng, count: np.exp(rng.normal(0, 0.02, count))) >= 0.93
    assert coverage(own, lambda rng, count: 1 + rng.exponential(0.05, count)) >= 0.92


def test_the_medians_interval_is_not_moved_by_outliers():
    rng = np.random.default_rng(3)
    base, head = (np.array(lognormal(rng, 200, spread=0.005)) for _ in range(2))
    head[::10] *= 20
    assert one(times(base=tuple(base), head=tuple(head)), Settings(process_noise=0)).verdict == "pass"


def test_many_figures_are_judged_at_once():
    series = [times(case=str(i), base=(1.0, 1.01, 1.02), head=(1.0, 1.01, 1.02)) for i in range(5000)]
    found = judge(iter(series), Settings(margin=0.5))
    assert {f.verdict for f in found} == {"pass"}
    assert [f.case for f in found] == [s.case for s in series]
    assert list(judge([], Settings())) == []


# The measuring loop, on simulated noise.


def normal(rng, spread, index):
    return rng.normal(0, spread)


def skewed(rng, spread, index):
    return rng.exponential(spread) - spread


def heavy(rng, spread, index):
    return rng.standard_t(4) * spread / math.sqrt(2)


def drifting(rng, spread, index):
    return rng.normal(0, 0.7 * spread) + 0.7 * spread * math.sin(index / 3)


def measured(rng, noise, *, ratio, spread, cases=5, settings=_NARROW, looks=LOOKS):
    """Add pairs until all is decided, as the gate does; return the judgements."""
    runs = {case: [] for case in range(cases)}
    start = {case: int(rng.integers(100)) for case in runs}  # a drift of identical code favours neither side
    waiting = set(runs)
    for count in looks.counts:
        for case in waiting:
            while len(runs[case]) < count:
                runs[case].append(((1.0, ratio * math.exp(noise(rng, spread, start[case] + len(runs[case])))),))
        series = [times(case=str(case), pairs=tuple(found), most=looks.counts[-1]) for case, found in runs.items()]
        waiting = {int(case) for case in undecided(series, settings, looks)}
        if not waiting:
            break
    return judge(series, settings, looks)


@pytest.mark.parametrize("noise", [normal, skewed, heavy, drifting])
@pytest.mark.parametrize("spread", [0.005, 0.015])
def test_identical_code_raises_at_most_one_false_alarm_in_200(noise, spread):
    rng = np.random.default_rng(4)
    verdicts = [found.verdict for _ in range(40) for found in measured(rng, noise, ratio=1.0, spread=spread)]
    assert len(verdicts) == 200
    assert verdicts.count("fail") <= 1


@pytest.mark.parametrize("noise", [normal, skewed, heavy, drifting])
def test_slowdowns_are_caught_at_the_worst_noise(noise):
    rng = np.random.default_rng(5)
    for slowdown, least in ((1.03, 0.9), (1.05, 0.99)):
        verdicts = [found.verdict for _ in range(16) for found in measured(rng, noise, ratio=slowdown, spread=0.015)]
        assert verdicts.count("fail") >= least * len(verdicts)
        assert "pass" not in verdicts


def test_the_default_settings_pass_identical_code_and_catch_five_percent():
    """With the pairs of processes that a minute a case has time for, and the spread that most figures had."""
    rng = np.random.default_rng(7)
    ways = {"spread": 0.025, "settings": gate_settings.Settings(), "looks": Looks.within(18)}
    same = [found for _ in range(40) for found in measured(rng, normal, ratio=1.0, **ways)]
    assert [found.verdict for found in same].count("pass") >= 199
    assert not [found for found in same if found.verdict == "fail"]
    slow = [found.verdict for _ in range(40) for found in measured(rng, normal, ratio=1.05, **ways)]
    assert slow.count("fail") >= 197
    assert 0.03 < np.median([found.caught for found in same]) < 0.05


@pytest.mark.parametrize("spread", [0.01, 0.02, 0.03])
def test_what_would_have_been_caught_fails_in_95_percent(spread):
    rng = np.random.default_rng(8)
    usual = gate_settings.Settings()
    ways = {"spread": spread, "settings": usual, "looks": Looks.within(20), "cases": 3}
    said = np.median([one.caught for _ in range(60) for one in measured(rng, normal, ratio=1.06, **ways)])
    failed = [one.verdict for _ in range(60) for one in measured(rng, normal, ratio=1 + said, **ways)]
    assert failed.count("fail") >= 0.92 * len(failed)


def test_what_was_decided_early_would_have_been_measured_on():
    early = times(pairs=pairs(1.0, spread=0.01, count=5))
    twenty = times(pairs=pairs(1.0, spread=0.01, count=5), most=20)
    looks = Looks.within(20)
    assert one(twenty, looks=looks, last=False).caught < one(early, looks=looks, last=False).caught
    assert one(times(quantity="count", base=(1.0,), head=(1.0,))).caught is None


def test_sizes_and_counts_have_a_margin_of_their_own_unless_one_is_given():
    def up(quantity, by, **settings):
        figure = times(quantity=quantity, base=(100.0,), head=(100.0 * (1 + by),))
        return judge([figure], gate_settings.Settings(**settings))[0]

    assert up("count", 0.03).verdict == "fail"
    assert (up("count", 0.005).verdict, up("count", 0.03, margin=0.05).verdict) == ("pass", "pass")
    assert (up("memory", 0.05).margin, up("time", 0.0).margin) == (0.01, 0.045)


@pytest.mark.parametrize(("ratio", "wrong", "level"), [(1.01, "pass", 0.025), (1.00125, "fail", 0.005)])
@pytest.mark.parametrize("spread", [0.005, 0.01, 0.02])
def test_a_loss_of_the_margin_passes_and_a_small_one_fails_as_rarely_as_is_said(ratio, wrong, level, spread):
    rng = np.random.default_rng(6)
    found = [one for _ in range(400) for one in measured(rng, normal, ratio=ratio, spread=spread, cases=1)]
    assert [f.verdict for f in found].count(wrong) / 400 <= level + 2 * math.sqrt(level * (1 - level) / 400)


def test_clear_cases_end_early_and_the_first_verdict_stays():
    early = times(pairs=pairs(1.3, spread=0.005, count=4))
    assert undecided([early], Settings(), LOOKS) == frozenset()
    later = times(pairs=pairs(1.3, spread=0.005, count=4) + pairs(1.0, spread=0.005, count=12))
    found = one(later, looks=LOOKS)
    assert (found.verdict, found.pairs) == ("fail", 4)
    assert one(later).verdict == "inconclusive"  # as a single look would have it


def test_what_repeats_another_figure_is_only_shown_where_that_one_is_judged():
    noisy = [pairs(1.0, spread=0.3, count=16), pairs(1.0, spread=0.001, count=16)]
    ratio = times(figure="sparse/dense backward", quantity="ratio", unit="1", repeats="backward", pairs=noisy[0])
    both = [times(pairs=noisy[1]), ratio]
    assert [(one.verdict, one.report_only) for one in judge(both, Settings())] == [
        ("pass", False),
        ("inconclusive", True),
    ]
    for settings in (Settings(cases=("*sparse/dense*",)), Settings(report_only=("backward",))):
        (found,) = [one for one in judge(both, settings) if one.quantity == "ratio"]
        assert (found.verdict, found.report_only) == ("inconclusive", False)
    assert undecided([times(pairs=noisy[1][:4]), replace(ratio, pairs=noisy[0][:4])], Settings(), LOOKS) == frozenset()


def test_what_more_pairs_cannot_put_right_is_not_asked_for():
    open_one = times(case="open", pairs=pairs(1.01, count=4))
    cases = [
        open_one,
        times(case="none yet", pairs=()),
        times(case="too few", pairs=pairs(1.0, count=1)),
        times(case="nan", pairs=(((1.0, math.nan),),) * 4),
        times(case="failed", failure="it crashed"),
        times(case="shown", pairs=pairs(1.01, count=4)),
        times(case="all", pairs=pairs(1.01, count=16)),
        times(case="file", base=(1.0,), head=(1.0,)),
    ]
    settings = Settings(report_only=("shown",))
    assert undecided(cases, settings, LOOKS) == {"open", "none yet", "too few"}


def test_a_series_has_one_shape():
    with pytest.raises(ValueError, match="values besides"):
        times(pairs=pairs(1.0), base=(1.0,))
