from __future__ import annotations

import math
import statistics
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats as scipy_stats

from meprop_bench.stats import (
    CANNOT_TELL,
    Interval,
    holm,
    independent_estimate,
    independent_ratio,
    iqr,
    mean_difference,
    mean_interval,
    mean_of_logs,
    median,
    non_inferiority,
    paired_ratio,
    plus_minus,
    process_interval,
    ratio_p_value,
    spread_percent,
    too_wide,
)
from meprop_bench.stats import process_medians as log_medians


def geometric_mean(cases, *, same_processes=False):
    return mean_of_logs([log_medians(runs) for runs in cases], same_processes=same_processes)


def p_value(first, second):
    return independent_estimate([(first, second)]).p_value()


def test_median_and_iqr():
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median(x for x in (1.0, 2.0, 3.0, 10.0)) == 2.5
    assert iqr([5.0]) == 0.0
    values = [1.0, 2.0, 4.0, 8.0, 16.0, 33.0]
    assert iqr(values) == pytest.approx(np.subtract(*np.percentile(values, [75, 25])))
    for function in (median, iqr):
        with pytest.raises(ValueError, match="values"):
            function([])


def test_paired_ratio_against_a_hand_computation():
    # Medians of log(b/m): log 2, log 4, log 8; their mean is log 4, their deviation log 2; t(2) at 97.5% is 4.30265.
    runs = [[(2.0, 1.0)], [(4.0, 1.0), (1.0, 1.0), (9.0, 1.0)], [(8.0, 1.0), (16.0, 2.0)]]
    interval = paired_ratio(runs)
    half = 4.302652729911275 * math.log(2) / math.sqrt(3)
    assert interval.estimate == pytest.approx(4.0)
    assert interval.low == pytest.approx(4.0 * math.exp(-half))
    assert interval.high == pytest.approx(4.0 * math.exp(half))


def test_confidence_widens_and_one_process_has_no_bounds():
    runs = [[(2.0, 1.0)], [(2.1, 1.0)], [(2.2, 1.0)]]
    assert paired_ratio(runs, 0.99).half_width > paired_ratio(runs, 0.95).half_width
    alone = paired_ratio(runs[:1] * 1)
    assert alone.estimate == pytest.approx(2.0)
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)
    assert math.isnan(alone.half_width)
    assert not alone.bounded


_EXPERIMENTS = 4000
_BINOMIAL = 3 * math.sqrt(0.05 * 0.95 / _EXPERIMENTS)  # three standard errors of a share of 95%


def simulated_runs(rng, experiments, processes, pairs, *, truth=1.0, between=0.033, within=0.0028):
    """Times as the A/A study found them: (experiments, processes, pairs, 2) seconds, baseline first.

    A process draws its own ratio (`between`) and its own level; both sides share a drift of 20% over the run and a
    slow oscillation; each value has noise of its own (`within`), and one in ten is hit by an interrupt that adds up to
    a few times its length, on either side: a heavy right tail.
    """
    shape = (experiments, processes, pairs)
    level = rng.lognormal(-8, 0.05, (experiments, processes, 1))
    trend = rng.uniform(-0.2, 0.2, (experiments, processes, 1)) * np.linspace(0, 1, pairs)
    wave = 0.05 * np.sin(np.arange(pairs) / 7 + rng.uniform(0, 6, (experiments, processes, 1)))
    ratio = np.log(truth) + rng.normal(0, between, (experiments, processes, 1))
    common = np.log(level) + trend + wave
    values = np.stack([common + ratio / 2, common - ratio / 2], axis=-1) + rng.normal(0, within, (*shape, 2))
    hit = (rng.random((*shape, 2)) < 0.1) * rng.pareto(2.5, (*shape, 2)) * 0.3
    return np.exp(values) * (1 + hit)


def process_medians(times):
    """What `paired_ratio` keeps of each process, computed for all experiments at once: one pair with that ratio."""
    medians = np.exp(np.median(np.log(times[..., 0]) - np.log(times[..., 1]), axis=-1))
    return [[[(ratio, 1.0)] for ratio in experiment] for experiment in medians.tolist()]


def test_the_medians_of_the_simulation_are_those_of_the_estimator():
    times = simulated_runs(np.random.default_rng(1), 3, 4, 25, truth=2.0)
    for experiment, medians in zip(times.tolist(), process_medians(times), strict=True):
        ours, short = paired_ratio(experiment), paired_ratio(medians)
        assert (ours.estimate, ours.low, ours.high) == pytest.approx((short.estimate, short.low, short.high))


@pytest.mark.parametrize("processes", [2, 5, 8])
@pytest.mark.parametrize("between", [0.033, 0.003, 0.0])
def test_the_interval_covers_at_its_nominal_rate(processes, between):
    """Clustered, skewed, drifting noise; 4000 experiments, held to three binomial standard errors."""
    rng = np.random.default_rng(20240501 + processes)
    runs = process_medians(simulated_runs(rng, _EXPERIMENTS, processes, 31, truth=3.0, between=between))
    intervals = [paired_ratio(experiment) for experiment in runs]
    assert np.mean([i.low <= 3.0 <= i.high for i in intervals]) == pytest.approx(0.95, abs=_BINOMIAL)
    assert np.mean([math.log(i.estimate / 3.0) for i in intervals]) == pytest.approx(0, abs=3e-3)


def test_stopping_at_the_first_narrow_interval_costs_little_coverage():
    """Look after each of 6 rounds, stop at ±2%, as a sweep does: the worst spread between processes loses 2 points."""
    rng = np.random.default_rng(11)
    times = simulated_runs(rng, 2000, 5, 6 * 10, between=0.016)
    looks = [process_medians(times[:, :, : 10 * rounds]) for rounds in range(2, 7)]
    covered = 0
    for experiment in range(2000):
        intervals = [paired_ratio(look[experiment]) for look in looks]
        stopped = next((i for i in intervals if i.half_width <= 0.02), intervals[-1])
        covered += stopped.low <= 1.0 <= stopped.high
    assert covered / 2000 > 0.93 - 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_the_rule_of_a_gate_sees_three_percent_and_cries_wolf_for_nothing():
    """Five processes of 200 pairs, spread as measured on a shared 2-core machine: 0.55% between, 5% within.

    Slower than a margin of 1%, at the level of 5%: so are at least 95% of 3% slowdowns, and at most 1% of A/A runs.
    """
    rng = np.random.default_rng(17)
    found = {}
    for truth in (0.97, 1.0):
        times = simulated_runs(rng, 600, 5, 200, truth=truth, between=0.0055, within=0.035)
        p = [ratio_p_value(runs, 0.99, "below") for runs in process_medians(times)]
        found[truth] = np.mean(np.array(p) <= 0.05)
    assert found[0.97] >= 0.95
    assert found[1.0] <= 0.01


def test_p_values_are_uniform_where_nothing_differs_and_bounds_are_the_interval_s():
    rng = np.random.default_rng(3)
    runs = process_medians(simulated_runs(rng, _EXPERIMENTS, 8, 31))
    for alternative in ("differs", "below", "above"):
        p = np.array([ratio_p_value(experiment, 1.0, alternative) for experiment in runs])
        assert scipy_stats.kstest(p, "uniform").pvalue > 1e-3
    for experiment in runs[:50]:
        interval = paired_ratio(experiment)
        assert (ratio_p_value(experiment) < 0.05) == interval.significant()
        assert ratio_p_value(experiment, interval.high, "below") == pytest.approx(0.025)
        assert ratio_p_value(experiment, interval.low, "above") == pytest.approx(0.025)


@pytest.mark.parametrize(("alternative", "theirs"), [("differs", "two-sided"), ("below", "less"), ("above", "greater")])
def test_p_values_against_scipy(alternative, theirs):
    runs = [[(1.9, 1.0)], [(2.1, 1.0), (2.0, 1.0), (1.0, 1.0)], [(2.3, 1.0)], [(2.2, 1.0)]]
    logs = np.log([1.9, 2.0, 2.3, 2.2])
    expected = scipy_stats.ttest_1samp(logs, math.log(1.95), alternative=theirs).pvalue
    assert ratio_p_value(runs, 1.95, alternative) == pytest.approx(expected)


def test_p_values_without_doubt_or_without_evidence():
    same = [[(2.0, 1.0)]] * 3
    assert [ratio_p_value(same, 1.0, a) for a in ("differs", "below", "above")] == [0.0, 1.0, 0.0]
    assert [ratio_p_value(same, 2.0, a) for a in ("differs", "below", "above")] == [1.0, 0.5, 0.5]
    assert math.isnan(ratio_p_value(same[:1]))
    with pytest.raises(ValueError, match="bound"):
        ratio_p_value(same, 0.0)


def test_holm_by_hand():
    # Sorted 0.01 * 4, 0.02 * 3, 0.03 * 2, 0.9 * 1; a later one is never below an earlier one.
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []
    adjusted = holm([0.01, math.nan])
    assert adjusted[0] == pytest.approx(0.02)  # what could not be judged counts among those judged at once
    assert math.isnan(adjusted[1])
    for wrong in (-0.1, 1.1, math.inf):
        with pytest.raises(ValueError, match="p-value"):
            holm([wrong])


def test_holm_keeps_the_chance_of_any_false_alarm():
    """30 cases, 27 of them identical code: some false alarm in 5% of sweeps at most, where no correction gives 75%."""
    rng = np.random.default_rng(5)
    sweeps, alarms, naive, found = 400, 0, 0, 0
    for _ in range(sweeps):
        ratios = np.exp(rng.normal(0, 0.02, (30, 8)))
        ratios[27:] *= 0.85
        p = [ratio_p_value([[(ratio, 1.0)] for ratio in case], 1.0, "below") for case in ratios.tolist()]
        adjusted = holm(p)
        alarms += min(adjusted[:27]) <= 0.05
        naive += min(p[:27]) <= 0.05
        found += max(adjusted[27:]) <= 0.05
    assert alarms / sweeps <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / sweeps)
    assert naive / sweeps > 0.6
    assert found / sweeps > 0.95


@pytest.mark.parametrize("same_processes", [False, True])
def test_the_geometric_mean_s_interval_covers(same_processes):
    """Six cases of different spread; with kept processes their errors have a part in common."""
    rng = np.random.default_rng(13)
    truths, spread = np.array([0.8, 1.0, 1.5, 2.0, 4.0, 9.0]), np.array([0.01, 0.02, 0.03, 0.01, 0.05, 0.02])
    wanted, covered = statistics.geometric_mean(truths), 0
    errors = rng.normal(0, 1, (2000, 6, 5)) * spread[:, None]
    if same_processes:
        errors += rng.normal(0, 0.03, (2000, 1, 5))
    for experiment in (truths[:, None] * np.exp(errors)).tolist():
        cases = [[[(ratio, 1.0)] for ratio in case] for case in experiment]
        interval = geometric_mean(cases, same_processes=same_processes)
        covered += interval.low <= wanted <= interval.high
    assert covered / 2000 == pytest.approx(0.95, abs=0.02)  # Welch's degrees of freedom are an approximation


def test_the_geometric_mean_of_ratios():
    two, half = [[(2.0, 1.0)], [(2.2, 1.0)]], [[(0.5, 1.0)], [(0.4, 1.0)]]
    assert geometric_mean([two, half]).estimate == pytest.approx(math.sqrt(math.sqrt(4.4 * 0.2)))
    alone, single = geometric_mean([two]), paired_ratio(two)
    assert (alone.estimate, alone.low, alone.high) == pytest.approx((single.estimate, single.low, single.high))
    assert not geometric_mean([two, half[:1]]).bounded
    exact = geometric_mean([[[(2.0, 1.0)]] * 2] * 3)
    assert (exact.low, exact.high) == pytest.approx((2.0, 2.0))
    with pytest.raises(ValueError, match="differ in their processes"):
        geometric_mean([two, half[:1]], same_processes=True)
    with pytest.raises(ValueError, match="at least one case"):
        geometric_mean([])


def test_significant_is_whether_the_interval_leaves_the_null_out():
    assert Interval(1.1, 1.05, 1.2).significant() is True
    assert Interval(1.1, 1.0, 1.2).significant() is False
    assert Interval(0.4, 0.1, 0.5).significant(0.0) is True
    assert Interval(1.1, math.nan, math.nan).significant() is None


def test_pooling_the_pairs_would_have_failed():
    """Why the process is the unit: the same noise, every pair taken as independent, covers about a quarter."""
    rng = np.random.default_rng(7)
    ratios = np.exp(rng.normal(0, 0.03, (500, 5, 1)) + rng.normal(0, 0.003, (500, 5, 30)))
    covered = 0
    for experiment in ratios.reshape(500, -1).tolist():
        interval = paired_ratio([[(ratio, 1.0)] for ratio in experiment])
        covered += interval.low <= 1.0 <= interval.high
    assert covered / 500 < 0.6


@pytest.mark.parametrize("runs", [[], [[]], [[(1.0, 1.0)], []]])
def test_a_ratio_needs_pairs(runs):
    with pytest.raises(ValueError, match="at least one"):
        paired_ratio(runs)


@pytest.mark.parametrize("pair", [(0.0, 1.0), (1.0, -1.0), (math.nan, 1.0), (1.0, math.inf)])
def test_a_ratio_needs_positive_times(pair):
    with pytest.raises(ValueError, match="positive"):
        paired_ratio([[pair]])


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95, math.nan])
def test_confidence_is_checked(confidence):
    with pytest.raises(ValueError, match="confidence"):
        paired_ratio([[(1.0, 1.0)], [(1.0, 1.0)]], confidence)


def test_mean_difference():
    interval = mean_difference([(97.0, 97.5), (98.0, 98.0), (96.0, 97.0)])
    half = 4.302652729911275 * 0.5 / math.sqrt(3)
    assert interval.estimate == pytest.approx(0.5)
    assert interval.high - interval.estimate == pytest.approx(half)
    assert math.isnan(mean_difference([(1.0, 2.0)]).low)
    with pytest.raises(ValueError, match="at least one pair"):
        mean_difference([])


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.4, 0.3, "pass"),
        (-0.6, 0.3, "inconclusive"),
        (-0.9, -0.6, "fail"),
        (-0.5, 0.1, "inconclusive"),
        (math.nan, math.nan, "inconclusive"),
    ],
)
def test_non_inferiority(low, high, verdict):
    assert non_inferiority(Interval((low + high) / 2, low, high), margin=0.5) == verdict


def test_the_margin_is_checked():
    with pytest.raises(ValueError, match="margin"):
        non_inferiority(Interval(0.0, -1.0, 1.0), -0.5)


def test_half_width_is_relative():
    assert Interval(4.0, 3.0, 5.0).half_width == pytest.approx(0.25)
    assert Interval(-4.0, -5.0, -3.0).half_width == pytest.approx(0.25)
    assert Interval(0.0, -1.0, 1.0).half_width == math.inf
    assert Interval(0.0, 0.0, 0.0).half_width == 0.0


def test_neither_torch_nor_scipy_stats_is_loaded():
    code = (
        "import sys, meprop_bench.stats as s; s.paired_ratio([[(2., 1.)], [(2.1, 1.)]]);"
        "print([m for m in ('torch', 'scipy.stats') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_an_independent_ratio_is_welch_s():
    first, second = [[2.0], [2.2, 2.2, 9.0], [2.1]], [[1.0], [1.1], [0.95], [1.02]]
    logs = np.log([2.0, 2.2, 2.1]), np.log([1.0, 1.1, 0.95, 1.02])
    theirs = scipy_stats.ttest_ind(*logs, equal_var=False)
    ours, bounds = independent_ratio([(first, second)]), theirs.confidence_interval(0.95)
    assert math.log(ours.estimate) == pytest.approx(logs[0].mean() - logs[1].mean())
    assert (math.log(ours.low), math.log(ours.high)) == pytest.approx((bounds.low, bounds.high))
    assert p_value(first, second) == pytest.approx(theirs.pvalue)


@pytest.mark.parametrize("same_processes", [False, True])
def test_independent_ratios_cover(same_processes):
    """Four cases, each side in processes of its own, five against eight; kept processes have an error in common."""
    rng = np.random.default_rng(23)
    truths, covered = np.array([0.9, 1.0, 1.1, 2.0]), 0
    sides = [rng.normal(0, 0.02, (1500, 4, count)) for count in (5, 8)]
    if same_processes:
        sides = [side + rng.normal(0, 0.03, (1500, 1, side.shape[2])) for side in sides]
    first, second = np.exp(sides[0] + np.log(truths)[:, None]), np.exp(sides[1])
    wanted = statistics.geometric_mean(truths)
    for experiment in range(1500):
        cases = [
            ([[value] for value in one], [[value] for value in other])
            for one, other in zip(first[experiment].tolist(), second[experiment].tolist(), strict=True)
        ]
        interval = independent_ratio(cases, same_processes=same_processes)
        covered += interval.low <= wanted <= interval.high
    assert covered / 1500 == pytest.approx(0.95, abs=0.02)


def test_independent_ratios_without_doubt_or_without_evidence():
    same = [[1.0], [1.0]]
    assert independent_ratio([(same, same)]) == Interval(1.0, 1.0, 1.0)
    assert (p_value(same, same), p_value([[2.0]] * 2, same)) == (1.0, 0.0)
    assert not independent_ratio([([[2.0]], same)]).bounded
    assert math.isnan(p_value([[2.0]], same))
    for cases, words in (
        ([], "at least one case"),
        ([([], same)], "at least one process"),
        ([([[]], same)], "at least one process"),
        ([([[0.0]], same)], "positive"),
    ):
        with pytest.raises(ValueError, match=words):
            independent_ratio(cases)
    with pytest.raises(ValueError, match="differ in their processes"):
        independent_ratio([(same, same), (same * 2, same)], same_processes=True)


@pytest.mark.parametrize(
    ("interval", "wide"),
    [
        (Interval(1.0, 0.5, 2.0), False),  # half to twice, just
        (Interval(1.0, 0.49, 2.05), True),
        (Interval(26.2, 22.2, 31.0), False),
        (Interval(0.2, 0.001, 43.0), True),
        (Interval(17.0, 3.0, 100.0), True),
        (Interval(1.0, math.nan, math.nan), False),  # there is none, which is said otherwise
    ],
)
def test_an_interval_beyond_half_or_twice_the_figure_is_too_wide(interval, wide):
    assert too_wide(interval.half_width) == wide
    if interval.bounded:
        assert (plus_minus(interval.half_width) == CANNOT_TELL) == wide


def test_relative_errors_are_written_in_one_way():
    assert [plus_minus(half) for half in (0.02, 0.667, 215.26, math.inf)] == [
        "±2.0%",
        "±66.7%",
        CANNOT_TELL,
        CANNOT_TELL,
    ]
    assert plus_minus(0.0213, ".2%") == "±2.13%"
    assert [spread_percent(share) for share in (0.12, 1.1, 215.26)] == ["12%", "110%", "more than 300%"]


def test_times_of_several_processes_have_an_interval_over_the_processes():
    found = process_interval([[1.0, 1.0, 9.0], [1.1, 1.1, 1.1], [0.9, 0.9, 0.9]])
    logs = [math.log(value) for value in (1.0, 1.1, 0.9)]
    low, high = scipy_stats.t.interval(0.95, 2, np.mean(logs), scipy_stats.sem(logs))
    assert (found.low, found.high) == (pytest.approx(math.exp(low)), pytest.approx(math.exp(high)))
    assert not process_interval([[1.0, 2.0]]).bounded
    low, high = scipy_stats.t.interval(0.95, 2, 2.0, scipy_stats.sem([1.0, 2.0, 3.0]))
    assert mean_interval([1.0, 2.0, 3.0]) == Interval(2.0, pytest.approx(low), pytest.approx(high))
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])
