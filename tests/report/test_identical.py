from __future__ import annotations

import statistics
from dataclasses import replace
from math import log

import numpy as np
import pytest

from meprop_bench.report.document import Document
from meprop_bench.report.identical import MARGIN, Resampled, identical_section, identical_summary
from meprop_bench.report.reliability import judged_runs
from meprop_bench.stats import ratio_p_value


@pytest.fixture
def repeats(noisy_row):
    """Ten of identical code, ten slowed by 3%, in which the processes differ by 0.3%."""

    def made(slowdown):
        return [
            noisy_row(f"{slowdown}-{seed}", seed=seed, speedup=1 / (1 + slowdown), spread=0.003, method="dense", k=1,
                      kernel="dense", phase="step", slowdown=slowdown)
            for seed in range(10)
        ]  # fmt: skip

    return [*made(0.0), *made(0.03)]


def test_a_line_for_the_repeats_of_one_case(repeats):
    section = identical_section(repeats)
    assert section.columns == (
        "batch, m → n", "slowdown", "repeats", "expected", "speed-up", "standard deviation", "slower",
        "a run", "resampled standard deviation", "resampled slower",
    )  # fmt: skip
    same, slowed = [[cell.text for cell in line] for line in section.groups[0]]
    spread = statistics.stdev(log(row.speedup) for row in repeats[:10])
    assert same[1:4] == ["none", "10", "1.0000x"]
    assert same[5:8] == [f"{100 * spread:.2f}%", "0 of 10", "–"]
    assert same[-1] == "0.00% [0.00, 0.00]"
    assert slowed[1:4] == ["3%", "10", "0.9709x"]
    assert slowed[6] == "10 of 10"
    assert slowed[-1] == "100.00% [100.00, 100.00]"


def test_the_summary_says_it_in_words(repeats):
    same, slowed = identical_summary(repeats)
    assert same.startswith("linear step A/A: the speed-up's standard deviation over 10 repeats is 0.1")
    assert "%, 0 of 10 repeats were found slower by more than 1%" in same
    assert same.endswith(", and of runs resampled from their 50 processes 0.00% [0.00, 0.00].")
    assert slowed.startswith("linear step slowed by 3%: ")
    assert "10 of 10 repeats were found slower by more than 1%" in slowed


def test_what_more_runs_would_give_is_drawn_once(repeats, monkeypatch):
    from meprop_bench.report import identical

    identical._resampled.cache_clear()
    pools, once = [], identical._drawn
    monkeypatch.setattr(identical, "_drawn", lambda pool, *more: pools.append(len(pool)) or once(pool, *more))
    identical_section(repeats)
    drawn = len(pools)
    identical_summary(repeats)
    assert drawn == len(pools) == 2 * (1 + 200)


def test_a_false_alarm_is_bad(noisy_row):
    section = identical_section([noisy_row("a", seed=0, speedup=0.9, spread=0.001, method="dense", slowdown=0.0)])
    assert section.groups[0][0][6].tone == "bad"
    assert [cell.text for cell in section.groups[0][0]][-5:] == ["–", "1 of 1", "–", "–", "–"]


def test_one_process_proves_nothing(make_row):
    row = make_row("a", processes=1, method="dense", slowdown=0.0)
    assert identical_section([row]).groups[0][0][6].text == "–"


def test_other_rows_have_no_part_in_it(rows, repeats):
    assert identical_section(rows) is None
    assert identical_summary(rows) == []
    document = Document("t", "c", "s", [*rows, *repeats])
    assert "A/A: the same code on both sides" in [section.title for section in document.sections]
    assert not any(line.startswith("linear step: ") for line in document.summary)


def test_the_resampled_rate_is_that_of_many_runs(noisy_row):
    """Where the rule decides either way: ten runs' processes give the rate that 400 real runs of that kind have."""
    made = [
        noisy_row(f"{seed}", seed=seed, speedup=0.983, spread=0.006, method="dense", slowdown=0.02)
        for seed in range(400)
    ]
    true_rate = np.mean([ratio_p_value(judged_runs(row), 1 - MARGIN, "below") <= 0.05 for row in made])
    assert 0.3 < true_rate < 0.9
    found = [Resampled.of(made[start : start + 10]) for start in range(0, 100, 10)]
    assert sum(one.low <= true_rate <= one.high for one in found) >= 8
    assert np.mean([one.slower for one in found]) == pytest.approx(true_rate, abs=0.1)
    spread = statistics.stdev(log(row.speedup) for row in made)
    assert np.mean([one.spread for one in found]) == pytest.approx(spread, rel=0.2)


def test_too_few_repeats_or_uneven_ones_are_not_resampled(noisy_row, make_row):
    rows = [noisy_row(f"{seed}", seed=seed, method="dense", slowdown=0.0) for seed in range(6)]
    assert Resampled.of(rows) is not None
    assert Resampled.of(rows[:4]) is None
    assert Resampled.of([*rows, noisy_row("x", seed=7, processes=3, method="dense", slowdown=0.0)]) is None
    assert Resampled.of([make_row(f"{seed}", processes=1, method="dense") for seed in range(6)]) is None
    assert Resampled.of([replace(row, measurement=None) for row in rows]) is None


def test_the_longest_run_is_told(noisy_row):
    rows = [noisy_row(f"{seed}", seed=seed, method="dense", slowdown=0.0, elapsed_s=10.0 + seed) for seed in range(5)]
    assert [cell.text for cell in identical_section(rows).groups[0][0]][7] == "14.0 s"
