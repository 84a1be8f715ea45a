from __future__ import annotations

import math

import numpy as np
import pytest

from meprop_bench.measure.notes import Note
from meprop_bench.measure.paired import Measurement

RUNS = (((0.4, 0.1), (0.5, 0.1), (0.6, 0.2)), ((0.4, 0.1), (0.42, 0.1)))


def test_values_pair_up_and_can_be_cut_again():
    measurement = Measurement("backward", RUNS, loops=10)

    assert measurement.baseline_values_s == [0.4, 0.5, 0.6, 0.4, 0.42]
    assert measurement.values_s == [0.1, 0.1, 0.2, 0.1, 0.1]
    assert measurement.run_lengths == [3, 2]
    assert (measurement.baseline_median_s, measurement.median_s) == (0.42, 0.1)
    assert measurement.processes == 2
    again = Measurement.from_values(
        "backward", measurement.baseline_values_s, measurement.values_s, measurement.run_lengths, 10
    )
    assert again == measurement


def test_the_speedup_is_the_mean_of_the_processes_medians():
    measurement = Measurement("backward", RUNS, loops=1)
    expected = math.exp((math.log(4.0) + (math.log(4.0) + math.log(4.2)) / 2) / 2)
    assert measurement.speedup.estimate == pytest.approx(expected)
    assert measurement.speedup.low < expected < measurement.speedup.high


def test_one_process_gives_no_interval_and_never_converges():
    measurement = Measurement("step", RUNS[:1], loops=1)
    assert math.isnan(measurement.speedup.low)
    assert not measurement.converged(1e9)
    assert Note.of("one-process") in measurement.notes


def test_converged_looks_at_the_half_width():
    measurement = Measurement("step", ((((1.0, 0.5),),) * 3), loops=1)
    assert measurement.converged(0.0)
    assert measurement.notes == []
    noisy = Measurement("step", (((1.0, 0.5),), ((1.0, 0.4),), ((1.0, 0.6),)), loops=1)
    assert not noisy.converged(0.02)
    assert noisy.converged(noisy.speedup.half_width)
    assert any("differ by up to 50%" in note.text for note in noisy.notes)


def test_notes_name_short_values_and_noisy_pairs():
    short = Measurement("forward", (((2e-6, 1e-6),),) * 2, loops=3)
    assert any("3 µs" in note.text for note in short.notes)
    noisy = Measurement("forward", (((1.0, 1.0), (1.0, 2.0), (1.0, 3.0)),) * 2, loops=1)
    assert any("noisy pairs" in note.text for note in noisy.notes)


@pytest.mark.parametrize("runs", [(), ((),), (((0.0, 1.0),),), (((1.0, math.nan),),), (((1.0, math.inf),),)])
def test_nonsense_is_refused(runs):
    with pytest.raises(ValueError, match="step"):
        Measurement("step", runs, loops=1)


def test_disturbed_pairs_are_kept_but_do_not_count():
    marks = ((False, True, False), (True, True))
    measurement = Measurement("backward", RUNS, loops=10, disturbed=marks)
    # One of three is left out; where most are disturbed all count.
    assert measurement.judged_runs == (((0.4, 0.1), (0.6, 0.2)), RUNS[1])
    assert measurement.values_s == [0.1, 0.1, 0.2, 0.1, 0.1]
    assert measurement.disturbed_values == [False, True, False, True, True]
    assert measurement.speedup == Measurement("backward", measurement.judged_runs, loops=10).speedup
    assert [note.text for note in measurement.notes[-2:]] == [
        "3 of 5 pairs were disturbed by the machine",
        "most pairs of 1 of 2 processes were disturbed: all of theirs count",
    ]
    again = Measurement.from_values(
        "backward",
        measurement.baseline_values_s,
        measurement.values_s,
        measurement.run_lengths,
        10,
        measurement.disturbed_values,
    )
    assert again == measurement


def test_without_marks_all_pairs_count():
    measurement = Measurement("backward", RUNS, loops=10)
    assert measurement.judged_runs == RUNS
    assert measurement.disturbed_values is None
    calm = Measurement("backward", RUNS, loops=10, disturbed=((False,) * 3, (False,) * 2))
    assert (calm.judged_runs, calm.notes) == (RUNS, measurement.notes)


def test_leaving_disturbed_pairs_out_favours_nobody():
    """A disturbance adds time to one side, more often to the longer one; leaving its pair out must not move the ratio.

    The truth is 4; 15% of the pairs are hit, on the longer side four times as often.
    """
    rng = np.random.default_rng(8)
    found, naive = [], []
    for _ in range(300):
        times = np.array([4.0, 1.0]) * np.exp(rng.normal(0, 0.02, (5, 40, 2)))
        hit = rng.random((5, 40, 2)) < (0.12, 0.03)
        times += hit * rng.exponential(3.0, hit.shape)
        runs = tuple(tuple(map(tuple, run)) for run in times.tolist())
        marks = tuple(map(tuple, hit.any(axis=-1).tolist()))
        found.append(Measurement("step", runs, 1, marks).speedup.estimate)
        naive.append(Measurement("step", runs, 1).speedup.estimate)
    assert np.mean(found) == pytest.approx(4.0, rel=5e-4)
    assert abs(np.mean(naive) / 4 - 1) > abs(np.mean(found) / 4 - 1)
    assert np.std(found) < np.std(naive) * 1.05


def test_marks_must_fit():
    with pytest.raises(ValueError, match="marks"):
        Measurement("step", RUNS, 1, ((False,), (False,)))
    with pytest.raises(ValueError, match="marks"):
        Measurement.from_values("step", [1.0], [1.0], [1], 1, [])


def test_lengths_must_fit():
    with pytest.raises(ValueError, match="do not pair up"):
        Measurement.from_values("step", [1.0, 2.0], [1.0, 2.0], [1], 1)
