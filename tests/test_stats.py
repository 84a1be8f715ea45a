from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from meprop_bench.stats import (
    Interval,
    geometric_mean,
    iqr,
    mean_difference,
    median,
    non_inferiority,
    paired_ratio,
)


def test_median_iqr_and_geometric_mean():
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median(x for x in (1.0, 2.0, 3.0, 10.0)) == 2.5
    assert iqr([5.0]) == 0.0
    values = [1.0, 2.0, 4.0, 8.0, 16.0, 33.0]
    assert iqr(values) == pytest.approx(np.subtract(*np.percentile(values, [75, 25])))
    assert geometric_mean([2.0, 0.5]) == pytest.approx(1.0)
    for function in (median, iqr, geometric_mean):
        with pytest.raises(ValueError, match="values"):
            function([])
    with pytest.raises(ValueError, match="positive"):
        geometric_mean([1.0, 0.0])


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


def test_coverage_with_clustered_noise():
    """2000 experiments of 5 processes: 3% between processes, 0.3% within, now and then a pair hit ten times harder."""
    rng = np.random.default_rng(20240501)
    experiments, processes, pairs, truth = 2000, 5, 11, math.log(3.0)
    between = rng.normal(0, 0.03, (experiments, processes, 1))
    within = rng.standard_t(2, (experiments, processes, pairs)) * 0.003
    baseline_s = np.exp(truth + between + within)
    covered = 0
    for experiment in baseline_s:
        interval = paired_ratio([[(value, 1.0) for value in run] for run in experiment.tolist()])
        covered += interval.low <= 3.0 <= interval.high
    assert 0.93 <= covered / experiments <= 0.97


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
