from __future__ import annotations

import pytest

from meprop_bench.measure.machine import Activity
from meprop_bench.measure.notes import Note
from meprop_bench.measure.paired import Measurement
from meprop_bench.report.footnotes import MARKS, Footnotes

ODD = Note("odd")


def _pairs(share):
    return Note.of("noisy-pairs", share=share)


def test_a_kind_has_one_letter_and_the_range_of_its_figures():
    notes = Footnotes([[_pairs(0.12), ODD], [_pairs(0.09)], [_pairs(0.28), ODD]])
    assert notes.marks([_pairs(0.12), ODD]) == " (n, 1)"
    assert notes.marks([_pairs(0.09)]) == " (n)"
    assert notes.marks([]) == ""
    spread = "noisy pairs: within a process the middle half of the ratios spans 9 to 28%"
    assert notes.lines == (f"(n) {spread}", "(1) odd")


def test_what_all_rows_have_is_said_once_without_a_mark():
    notes = Footnotes([[Note("kept"), ODD], [Note("kept")]])
    assert notes.marks([Note("kept"), ODD]) == " (1)"
    assert notes.lines == ("All rows: kept", "(1) odd")
    assert Footnotes([[Note("kept")]]).lines == ("(1) kept",)


def test_the_largest_stands_for_all_that_go_up_to_it():
    notes = Footnotes([[Note.of("noisy-processes", share=share)] for share in (0.24, 0.09, 1.1)])
    assert notes.lines == ("(p) the processes' speed-ups differ by up to 110%",)


def test_a_spread_that_says_nothing_any_more_is_not_told_to_the_percent():
    texts = [f"the processes' speed-ups differ by up to {share}%" for share in (24, 21526)]  # of an older version
    notes = Footnotes([[Note.read(text)] for text in texts])
    assert notes.lines == ("(p) the processes' speed-ups differ by more than 300%",)
    runs = tuple(((ratio, 1.0),) * 3 for ratio in (1.0, 216.0))
    note = Measurement("step", runs, 1).notes[-1]
    assert (note.text, MARKS[note.kind]) == ("the processes' speed-ups differ by more than 300%", "p")


def test_a_spent_budget_has_its_tilde_already():
    spent = Note.of("budget", percent=2)
    notes = Footnotes([[spent], [ODD]])
    assert notes.marks([spent]) == ""
    assert notes.lines == ("~ the budget was spent before ±2% was reached", "(1) odd")


def test_failures_are_numbered_behind_the_notes():
    notes = Footnotes([[ODD], []], ["dw is off", "dw is off", "odd"])
    assert notes.marks([Note("dw is off")]) == " (2)"
    assert notes.lines == ("(1) odd", "(2) dw is off")


def test_notes_that_read_alike_have_one_number():
    notes = Footnotes([[Note.of("quota", seconds=0.1201)], [Note.of("quota", seconds=0.1202)], []])
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
