from __future__ import annotations

import math

import pytest

from meprop_bench.measure.paired import Measurement
from meprop_bench.report.significance import judged_runs, mean_speedup, p_value, significant_rows
from meprop_bench.stats import holm, ratio_p_value


def test_disturbed_pairs_are_left_out_here_too(make_row):
    marks = [False, False, True, False] * 5
    row = make_row("a", disturbed=marks)
    runs = judged_runs(row)
    assert [len(run) for run in runs] == [3] * 5
    whole = Measurement.from_values(
        "backward",
        row.measurement.baseline_values_s,
        row.measurement.values_s,
        row.measurement.run_lengths,
        1,
        marks,
    )
    assert runs == whole.judged_runs


def test_without_values_or_with_one_process_there_is_nothing_to_judge_by(make_row, failed_row):
    bare = make_row("a", values_s=None, baseline_values_s=None, run_lengths=None)
    assert judged_runs(bare) is None
    assert judged_runs(failed_row("b", error="out of memory")) is None
    assert math.isnan(p_value(bare))
    assert math.isnan(p_value(make_row("c", processes=1)))
    assert significant_rows([bare, make_row("c", processes=1)]) == {0}  # its interval is all there is
    assert significant_rows([]) == frozenset()


def test_the_rows_that_remain_are_those_of_the_definition(noisy_row):
    rows = [noisy_row(str(seed), seed=seed, speedup=1 + seed / 400) for seed in range(20)]
    adjusted = holm([ratio_p_value(judged_runs(row)) for row in rows])
    assert significant_rows(rows) == {place for place, p in enumerate(adjusted) if p <= 0.05}
    uncorrected = {place for place, row in enumerate(rows) if row.significant}
    assert significant_rows(rows) < uncorrected


def test_an_interval_that_holds_1_is_never_significant(make_row):
    assert significant_rows([make_row("a", speedup=1.01, half=0.05)]) == frozenset()


def test_the_mean_of_several_speed_ups_is_geometric(make_row, noisy_row):
    mean = mean_speedup([make_row("a", speedup=2.0), make_row("b", speedup=8.0)])
    assert mean.estimate == pytest.approx(4.0)
    noisy = mean_speedup([noisy_row(str(seed), seed=seed, speedup=4.0) for seed in range(3)])
    assert noisy.low < noisy.estimate < noisy.high
    others = mean_speedup([noisy_row("a", seed=1), noisy_row("b", seed=2, processes=4)])
    assert others.bounded
    assert mean_speedup([make_row("a", values_s=None, baseline_values_s=None, run_lengths=None)]) is None
    assert mean_speedup([]) is None
