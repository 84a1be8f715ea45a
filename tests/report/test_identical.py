from __future__ import annotations

import statistics
from math import log

import pytest

from meprop_bench.report.document import Document
from meprop_bench.report.identical import identical_section, identical_summary


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
        "batch, m → n", "slowdown", "repeats", "expected", "speed-up", "standard deviation", "slower"
    )  # fmt: skip
    same, slowed = [[cell.text for cell in line] for line in section.groups[0]]
    spread = statistics.stdev(log(row.speedup) for row in repeats[:10])
    assert same[1:4] == ["none", "10", "1.0000x"]
    assert same[5:] == [f"{100 * spread:.2f}%", "0 of 10"]
    assert slowed[1:4] == ["3%", "10", "0.9709x"]
    assert slowed[-1] == "10 of 10"


def test_the_summary_says_it_in_words(repeats):
    same, slowed = identical_summary(repeats)
    assert same.startswith("linear step A/A: the speed-up's standard deviation over 10 repeats is 0.1")
    assert same.endswith("%, 0 of 10 repeats were found slower by more than 1%.")
    assert slowed.startswith("linear step slowed by 3%: ")
    assert slowed.endswith("10 of 10 repeats were found slower by more than 1%.")


def test_a_false_alarm_is_bad(noisy_row):
    section = identical_section([noisy_row("a", seed=0, speedup=0.9, spread=0.001, method="dense", slowdown=0.0)])
    assert section.groups[0][0][-1].tone == "bad"
    assert [cell.text for cell in section.groups[0][0]][-2:] == ["–", "1 of 1"]


def test_one_process_proves_nothing(make_row):
    row = make_row("a", processes=1, method="dense", slowdown=0.0)
    assert identical_section([row]).groups[0][0][-1].text == "–"


def test_other_rows_have_no_part_in_it(rows, repeats):
    assert identical_section(rows) is None
    assert identical_summary(rows) == []
    document = Document("t", "c", "s", [*rows, *repeats])
    assert "A/A: the same code on both sides" in [section.title for section in document.sections]
    assert not any(line.startswith("linear step: ") for line in document.summary)
