"""The same cases over commits and machines."""

from __future__ import annotations

import random

import pytest

from meprop_bench.report import trends as module
from meprop_bench.report.document import Document
from meprop_bench.report.page import as_html
from meprop_bench.report.terminal import as_table
from meprop_bench.report.trends import Trends, machine_name

MACHINE = {"cpu_model": "AMD EPYC", "cpu_usable_cores": 2, "cpu_capability": "AVX2", "torch": "2.13"}


@pytest.fixture
def followed(make_row):
    """A function that makes trends of one case whose speed-up, and time, went so from run to run."""

    def made(speedups, environments=None, cases=("a",), median=1e-3):
        source, found = random.Random(3), Trends("meprop-bench report --index .")
        for run, speedup in enumerate(speedups):
            key, record = (environments or [("e0", MACHINE)] * len(speedups))[run]
            rows = [
                make_row(
                    case,
                    median=median * source.uniform(0.995, 1.005),
                    speedup=speedup * source.uniform(0.995, 1.005),
                    environment_id=key,
                    git_revision=f"rev{run}",
                )
                for case in cases
            ]
            started = f"2026-03-{run + 1:02}T00:00:00+00:00"
            found.add(f"run-{run}", Document(f"run-{run}", "c", started, rows, {key: record}))
        return found

    return made


def test_a_step_is_found_with_its_run_and_both_levels(followed):
    found = followed([3.0] * 6 + [4.0] * 5)
    (move,) = found.moves
    assert (move.figure, move.place) == ("speed-up", 6)
    assert "speed-up 3.0" in move.text or "speed-up 2.9" in move.text
    assert "33" in move.text
    assert "better) from 2026-03-07 at rev6 on" in move.text
    assert any(line.startswith("Moved: ") and "rev6" in line for line in found.summary)
    assert "rev6" in as_table(found)


def test_other_software_at_a_step_is_said(followed):
    other = ("e1", {**MACHINE, "torch": "2.14", "load_average": [9.0]})
    found = followed([3.0] * 5 + [4.0] * 5, [("e0", MACHINE)] * 5 + [other] * 5)
    (move,) = found.moves
    assert move.also == "other torch"  # the load is no environment


def test_noise_has_no_step_and_few_runs_say_so(followed):
    assert followed([3.0] * 12).moves == []
    few = followed([3.0, 4.0, 4.0])
    assert few.moves == []
    assert "too few runs" in as_table(few)
    assert any(line.startswith("All of them have fewer than 6 runs") for line in few.summary)


def test_machines_stand_side_by_side_and_are_no_step(followed):
    other = ("e1", {**MACHINE, "cpu_model": "Xeon"})
    found = followed([3.0] * 4 + [9.0] * 4, [("e0", MACHINE)] * 4 + [other] * 4)
    assert len(found.series) == 2
    assert found.moves == []
    assert {one.machine for one in found.series} == {"AMD EPYC, 2 cores, AVX2", "Xeon, 2 cores, AVX2"}


def test_a_case_that_was_measured_once_is_left_out(followed):
    found = followed([3.0])
    assert found.series == []
    assert found.summary == ["No case was measured more than once."]
    assert found.sections == []


def test_what_was_taken_over_from_another_result_counts_once(make_row):
    row, new = make_row("a"), make_row("a", median=1.1e-3)

    def places(*rows):
        found = Trends("c")
        for day, one in zip((2, 1, 3, 4), rows, strict=False):
            found.add(f"of day {day}", Document("x", "c", f"2026-03-0{day}", [one], {"aabbccddeeff": MACHINE}))
        return [point.place for one in found.series for point in one.points]

    assert places(row, row, row) == []
    assert places(row, row, row, new) == ["of day 1", "of day 4"]


def test_what_cannot_be_believed_is_no_point(make_row, failed_row):
    rows = [
        make_row("vague", half=0.9, speedup=1.4), failed_row("failed", error="killed"),
        make_row("dense", method="dense", k=1), make_row("one", median=1e-3, speedup=5.0),
        make_row("other", k=9, median=1e-3, speedup=15.0),
    ]  # fmt: skip
    found = Trends("c")
    for run in range(3):
        found.add(str(run), Document(str(run), "c", f"2026-03-0{run + 1}", rows, {"aabbccddeeff": MACHINE}))
    assert found.series == []  # the last two are of the same dense work, and disagree about its time


def test_many_times_that_move_together_are_the_machine_s(followed, make_row):
    found = Trends("c")
    for run in range(10):
        factor = (1.0 if run < 5 else 1.4) * (1 + 1e-4 * run)
        rows = [make_row(f"case-{n}", k=8 + n, median=1e-3 * factor, speedup=5.0) for n in range(4)]
        found.add(str(run), Document(str(run), "c", f"2026-03-{run + 1:02}", rows, {"aabbccddeeff": MACHINE}))
    assert len(found.moves) == 4
    assert found.doubts == [
        "On 2026-03-06 the times of 4 of 4 cases on AMD EPYC, 2 cores, AVX2 moved together: look for what changed"
        " there, not in the code."
    ]


def test_named_baselines_stand_beside_the_runs_and_are_none(followed, make_row):
    found = followed([3.0] * 3)
    row = make_row("a", speedup=2.5, environment_id="e0")
    found.add_baseline("main", Document("main", "c", "2026-01-01", [row], {"e0": MACHINE}))
    (section,) = found.sections
    assert section.groups[0][0][section.columns.index("baseline main")].text.startswith("2.50x")
    assert len(found.series[0].points) == 3


def test_pages_are_bounded(followed, monkeypatch):
    monkeypatch.setattr(module, "RUNS", 5)
    monkeypatch.setattr(module, "_SHOWN", 2)
    found = followed([3.0] * 8, cases=tuple("abcd"))
    assert [len(one.points) for one in found.series] == [5] * 4
    (section,) = found.sections
    assert len(section.groups[0]) == 2
    assert section.footnotes == ("2 more are not shown.",)
    monkeypatch.setattr(module, "_SERIES", 3)
    assert len(followed([3.0] * 3, cases=tuple("abcd")).series) == 3


def test_the_page_has_pictures_and_escapes_what_is_in_it(followed):
    pytest.importorskip("matplotlib")
    evil = {**MACHINE, "cpu_model": "<script>alert(1)</script>" + "x" * 9_000}
    found = followed([3.0] * 6 + [4.0] * 6, [("e0", evil)] * 12)
    page = as_html(found, found.drawn())
    assert page.count('<svg class="plot"') == 1
    assert "<script>alert" not in page
    assert len(page) < 200_000


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        (MACHINE, "AMD EPYC, 2 cores, AVX2"),
        ({"gpu": {"name": "NVIDIA H100"}, "cpu_model": "x"}, "NVIDIA H100"),
        ({"cpu": "Some CPU"}, "Some CPU"),
        ({}, "an unknown machine"),
        (None, "an unknown machine"),
    ],
)
def test_machines_have_names(environment, name):
    assert machine_name(environment) == name
