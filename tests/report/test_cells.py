from __future__ import annotations

from dataclasses import replace

import pytest

from meprop_bench.measure.machine import Activity
from meprop_bench.measure.notes import Note
from meprop_bench.measure.paired import Measurement
from meprop_bench.report import cells
from meprop_bench.report.document import parity_section
from meprop_bench.report.reliability import MARKS, Footnotes, legend
from meprop_bench.report.sections import sections
from meprop_bench.stats import Interval


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.2345, "1.23 s"),
        (0.99996, "1.00 s"),
        (0.0123, "12.3 ms"),
        (4.56e-5, "45.6 µs"),
        (3e-9, "3.00 ns"),
        (240, "240 s"),
    ],
)
def test_times_have_three_digits_and_a_unit_that_fits(value, text):
    assert cells.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(512, "512 B"), (1536, "1.50 KiB"), (256 << 20, "256 MiB"), (5 << 30, "5.00 GiB")]
)
def test_sizes(value, text):
    assert cells.memory(value) == text


def test_energies_and_shares():
    assert [cells.joules(value) for value in (None, 12.34, 0.05, 2e-6)] == [
        cells.ABSENT,
        "12.3 J",
        "50.0 mJ",
        "2.00 µJ",
    ]
    assert [cells.percent(value) for value in (None, 198.4, 0.0)] == [cells.ABSENT, "198%", "0%"]
    assert cells.pair("1", "2") == "1 → 2"
    assert cells.pair(cells.ABSENT, "2") == f"{cells.ABSENT} → 2"
    assert cells.pair(cells.ABSENT, cells.ABSENT) == cells.ABSENT


def test_what_does_not_apply_is_a_dash():
    assert cells.seconds(None) == cells.memory(None) == cells.ABSENT


@pytest.mark.parametrize(
    ("changes", "text", "tone"),
    [
        ({"speedup": 5.12, "half": 0.0195}, "5.12x [5.02, 5.22]", "good"),
        ({"speedup": 120.0, "half": 0.01}, "120x [119, 121]", "good"),
        ({"speedup": 0.8, "half": 0.01}, "0.80x [0.79, 0.81]", "bad"),
        ({"speedup": 5.0, "half": 0.04}, "5.00x [4.81, 5.20] ~", "good"),
        ({"speedup": 1.01, "half": 0.02}, "1.01x [0.99, 1.03] not significant", "quiet"),
        ({"speedup": 5.0, "processes": 1}, "5.00x no interval", "quiet"),
        ({"speedup_low": 0.02, "speedup_high": 1080.0}, "cannot tell", "quiet"),
        ({"speedup_low": 3.0, "speedup_high": 100.0}, "cannot tell, above 3.00x", "good"),
        ({"baseline_disagreement": 2.9}, "5.00x [4.95, 5.05] do not believe", "bad"),
    ],
)
def test_a_speed_up_says_how_sure_it_is(make_row, changes, text, tone):
    assert cells.speedup(make_row("a", **changes)) == cells.Cell(text, tone)


def test_an_interval_that_misses_1_alone_is_not_enough(make_row):
    row = make_row("a", speedup=1.04, half=0.02)
    assert cells.speedup(row, distinct=False) == cells.Cell("1.04x [1.02, 1.06] not significant", "quiet")


def test_a_method_without_k_has_a_dash(make_row):
    assert [cells.k_of(make_row("a", method=method)) for method in ("unified", "dense", "meact")] == ["8", "–", "–"]


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"check": "dx is off"}, "FAILED"), ({"error": "out of memory"}, "ERROR"), ({"check": None}, "NOT CHECKED")],
)
def test_no_speed_up_without_a_passed_check(failed_row, changes, word):
    row = failed_row("a", **changes, **({} if "error" in changes else {"median_s": 1.0, "efficiency": 0.5}))
    assert cells.speedup(row).text == cells.efficiency(row).text == cells.ABSENT
    assert cells.check(row) == cells.Cell(word, "bad")


def test_a_speed_up_without_its_interval_is_a_figure_or_none(make_row):
    assert cells.plain_speedup(make_row("a", speedup=5.12)) == "5.12x"
    assert cells.plain_speedup(make_row("a", speedup_low=0.01, speedup_high=900.0)) == "cannot tell"
    assert cells.plain_speedup(make_row("a", baseline_disagreement=2.0)) == "do not believe"


def test_a_time_within_its_interval():
    assert cells.seconds_within(Interval(4e-4, 3.9e-4, 4.1e-4)) == "400 µs ±2%"
    assert cells.seconds_within(Interval.of(4e-4, None, None)) == "400 µs"
    assert cells.seconds_within(Interval(-4e-6, -4.4e-6, -3.6e-6)) == "-4.00 µs ±10%"
    assert cells.seconds_within(Interval(4e-6, -4e-6, 12e-6)) == "cannot tell"


def column(section, name):
    place = section.columns.index(name)
    return [line[place].text for group in section.groups for line in group]


def test_sections_are_workload_then_allocator_and_the_default_comes_last_with_a_reason(rows):
    made = sections(rows)
    assert [one.title for one in made] == ["linear, kept allocator", "mlp, kept allocator", "linear, default allocator"]
    assert [bool(one.remark) for one in made] == [False, False, True]
    assert "default allocator" in made[2].remark


def test_the_default_allocator_alone_needs_no_apology(make_row):
    (only,) = sections([make_row("a", allocator="default")])
    assert only.remark == ""


def test_groups_are_phases_in_the_order_of_a_step(rows):
    mlp = sections(rows)[1]
    assert [group[0][0].text for group in mlp.groups] == ["linear-backward", "forward", "backward", "update", "step"]
    assert all(len({line[0].text for line in group}) == 1 for group in mlp.groups)


def test_what_is_constant_is_said_once(rows):
    linear = sections(rows)[0]
    assert "dtype float32" in linear.constants
    assert "dtype" not in linear.columns
    assert {"method", "k", "gradient", "kernel"} <= set(linear.columns)
    assert "parity" not in linear.columns  # no row has one


def test_failures_and_notes_are_footnotes(rows):
    linear = sections(rows)[0]
    assert linear.footnotes == (
        "(1) budget spent",
        "(2) dw differs from the oracle by 0.31",
        "(3) killed by signal 9, probably out of memory",
    )
    assert column(linear, "check")[-2:] == ["FAILED (2)", "ERROR (3)"]
    assert [text for text in column(linear, "speed-up") if "(1)" in text] == [
        "1.01x [0.95, 1.07] ~ not significant (1)"
    ]
    assert column(linear, "sparse")[-2:] == ["–", "–"]


def test_accuracy_has_a_section_of_its_own(rows):
    section = parity_section(rows)
    assert column(section, "verdict") == ["pass", "inconclusive", "fail"]
    assert column(section, "difference")[0] == "+0.04 [-0.26, +0.34]"
    assert parity_section([row for row in rows if row.workload == "linear"]) is None


def test_accuracies_are_of_what_their_metric_says(rows):
    section = parity_section(rows)
    assert "in points of development-set accuracy, with" in section.remark
    other = [replace(row, parity=replace(row.parity, metric="test UAS")) for row in rows if row.parity]
    assert "in points of test UAS, with" in parity_section(other).remark
    assert "in points of development-set accuracy or test UAS, with" in parity_section([*rows, *other]).remark


def test_nothing_measured_is_told_without_a_fault():
    assert sections([]) == []


def test_a_forward_pass_that_is_left_alone_is_neither_news_nor_bad(make_row):
    same = {"phase": "forward", "flops": 10, "baseline_flops": 10, "bytes": 5, "baseline_bytes": 5}
    for speedup in (0.97, 1.0, 1.03):
        row = make_row("a", speedup=speedup, **same)
        assert cells.left_alone(row)
        assert cells.speedup(row) == cells.Cell(f"{speedup:.2f}x [{speedup - 0.01:.2f}, {speedup + 0.01:.2f}]", "quiet")
    assert cells.speedup(make_row("a", speedup=0.8, **same)).tone == "bad"  # what goes along with the method costs that
    assert not cells.left_alone(make_row("a", speedup=1.0, **{**same, "flops": 4}))  # meSimp's smaller layers
    assert not cells.left_alone(make_row("a", speedup=1.0, **same, fused_step="method"))
    assert not cells.left_alone(make_row("a", speedup=1.0, phase="backward"))


def test_the_k_of_a_convolution_is_of_the_positions_of_a_map(make_row):
    conv = {"workload": "conv", "size": 12, "filter": 5}
    assert [cells.k_of(make_row("a", k=k, **conv)) for k in (3, 0.05)] == ["3 of 64", "0.05"]


def test_what_passed_everywhere_needs_no_column(make_row):
    (section,) = sections([make_row("a"), make_row("b", k=9)])
    assert "check" not in section.columns
    assert section.constants.endswith("; check passed")


def test_cold_caches_are_named_and_warm_ones_are_not(make_row):
    (warm,) = sections([make_row("a")])
    (cold,) = sections([make_row("a", caches="cold")])
    (both,) = sections([make_row("a"), make_row("b", caches="cold")])
    assert "caches" not in warm.constants
    assert "caches cold" in cold.constants
    assert column(both, "caches") == ["warm", "cold"]


def test_many_speed_ups_are_judged_together(make_row, noisy_row):
    """Alone its interval misses 1; among twenty such, one would by chance."""
    rows = [noisy_row(str(seed), seed=seed) for seed in range(20)]
    weak = min((row for row in rows if row.significant), key=lambda row: abs(row.speedup - 1))
    (alone,), (among,) = sections([weak]), sections(rows)
    assert "not significant" not in column(alone, "speed-up")[0]
    assert "not significant" in column(among, "speed-up")[rows.index(weak)]
    strong = make_row("strong", speedup=5.0)
    assert "not significant" not in column(sections([*rows, strong])[0], "speed-up")[-1]


ODD = Note("odd")


def _pairs(share):
    return Note.of("noisy-pairs", share=share)


@pytest.fixture
def noted(make_row):
    """Rows with these notes, each a case of its own unless it says which."""

    def rows(*notes, phases=None):
        phases = phases or [(str(place), "backward") for place in range(len(notes))]
        return [
            replace(make_row(case, phase=phase), notes=tuple(own))
            for (case, phase), own in zip(phases, notes, strict=True)
        ]

    return rows


def test_a_kind_has_one_letter_and_the_range_of_its_figures(noted):
    rows = noted([_pairs(0.12), ODD], [_pairs(0.09)], [_pairs(0.28), ODD], [])
    notes = Footnotes(rows)
    assert [notes.marks(row) for row in rows] == [" (n, 1)", " (n)", " (n, 1)", ""]
    assert notes.lines == ("(1) odd",)
    assert legend(rows) == ["(n) noisy pairs: within a process the middle half of the ratios spans 9 to 28%"]


def test_what_all_rows_have_is_said_once_without_a_mark(noted):
    rows = noted([Note("kept"), ODD], [Note("kept")])
    notes = Footnotes(rows)
    assert notes.marks(rows[0]) == " (1)"
    assert notes.lines == ("All rows: kept", "(1) odd")
    assert Footnotes(rows, everywhere=["kept"]).lines == ("(1) odd",)
    assert Footnotes(noted([Note("kept")])).lines == ("(1) kept",)


def test_what_every_row_of_a_case_has_is_marked_once(noted):
    """Else a note about a case stands in each of its phases."""
    phases = [("a", "forward"), ("a", "backward"), ("a", "step"), ("b", "backward")]
    rows = noted([ODD], [ODD, _pairs(0.1)], [ODD], [Note("other")], phases=phases)
    notes = Footnotes(rows)
    assert [notes.marks(row) for row in rows] == ["", " (n)", " (1)", " (2)"]


def test_the_largest_stands_for_all_that_go_up_to_it(noted):
    rows = noted(*([Note.of("noisy-processes", share=share)] for share in (0.24, 0.09, 1.1)))
    assert legend(rows) == ["(p) the processes' speed-ups differ by up to 110%"]


def test_a_spread_that_says_nothing_any_more_is_not_told_to_the_percent(noted):
    texts = [f"the processes' speed-ups differ by up to {share}%" for share in (24, 21526)]  # of an older version
    assert legend(noted(*([Note.read(text)] for text in texts))) == [
        "(p) the processes' speed-ups differ by more than 300%"
    ]
    runs = tuple(((ratio, 1.0),) * 3 for ratio in (1.0, 216.0))
    note = Measurement("step", runs, 1).notes[-1]
    assert (note.text, MARKS[note.kind]) == ("the processes' speed-ups differ by more than 300%", "p")


def test_a_spent_budget_has_its_tilde_already(noted):
    spent = Note.of("budget", percent=2)
    rows = noted([spent], [ODD])
    assert Footnotes(rows).marks(rows[0]) == ""
    assert legend(rows) == ["~ the budget was spent before ±2% was reached"]


def test_failures_are_numbered_behind_the_notes(noted):
    notes = Footnotes(noted([ODD], []), ["dw is off", "dw is off", "odd"])
    assert notes.number("dw is off") == " (2)"
    assert notes.number(None) == ""
    assert notes.lines == ("(1) odd", "(2) dw is off")


def test_notes_that_read_alike_have_one_number(noted):
    notes = Footnotes(noted([Note.of("quota", seconds=0.1201)], [Note.of("quota", seconds=0.1202)], []))
    assert notes.lines == ("(1) a CPU quota held the process back for 0.12 s",)


def test_every_note_of_a_measurement_has_a_letter():
    runs = (((1e-6, 1e-6), (4e-6, 1e-6), (2e-6, 1e-6), (9e-6, 1e-6)), ((1e-5, 1e-6),) * 4)
    marks = ((True, True, True, False), (False,) * 4)
    found = Measurement("step", runs, 1, marks).notes
    assert [MARKS[note.kind] for note in found] == ["s", "n", "p", "d", "D"]


@pytest.mark.parametrize(("changes", "mark"), [({"others_s": 1.0}, "o"), ({"stolen_s": 1.0}, "h")])
def test_what_others_took_has_a_letter(changes, mark):
    quiet = {"wall_s": 2.0, "cores": 2, "others_s": 0.0, "stolen_s": 0.0, "throttled_s": 0.0, "overheated": 0}
    (note,) = Activity(**{**quiet, "swapped_in": 0, **changes}).notes
    assert MARKS[note.kind] == mark
