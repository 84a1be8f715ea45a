from __future__ import annotations

import pytest

from meprop_bench.measure.machine import Activity
from meprop_bench.measure.measurement import Measurement
from meprop_bench.report.footnotes import Footnotes, _kind


def _pairs(share):
    return f"noisy pairs: within a process the middle half of the ratios spans {share}%"


def test_a_kind_has_one_letter_and_the_range_of_its_figures():
    notes = Footnotes([[_pairs(12), "odd"], [_pairs(9)], [_pairs(28), "odd"]])
    assert notes.marks([_pairs(12), "odd"]) == " (n, 1)"
    assert notes.marks([_pairs(9)]) == " (n)"
    assert notes.marks([]) == ""
    assert notes.lines == (f"(n) {_pairs('9 to 28')}", "(1) odd")


def test_what_all_rows_have_is_said_once_without_a_mark():
    notes = Footnotes([["kept", "odd"], ["kept"]])
    assert notes.marks(["kept", "odd"]) == " (1)"
    assert notes.lines == ("All rows: kept", "(1) odd")
    assert Footnotes([["kept"]]).lines == ("(1) kept",)


def test_the_largest_stands_for_all_that_go_up_to_it():
    notes = Footnotes([[f"the processes' speed-ups differ by up to {share}%"] for share in (24, 9, 110)])
    assert notes.lines == ("(p) the processes' speed-ups differ by up to 110%",)


def test_a_spread_that_says_nothing_any_more_is_not_told_to_the_percent():
    notes = Footnotes([[f"the processes' speed-ups differ by up to {share}%"] for share in (24, 21526)])
    assert notes.lines == ("(p) the processes' speed-ups differ by more than 300%",)
    runs = tuple(((ratio, 1.0),) * 3 for ratio in (1.0, 216.0))
    told = Measurement("step", runs, 1).warnings[-1]
    assert told == "the processes' speed-ups differ by more than 300%"
    assert _kind(told) == "p"


def test_a_spent_budget_has_its_tilde_already():
    text = "the budget was spent before ±2% was reached"
    notes = Footnotes([[text], ["odd"]])
    assert notes.marks([text]) == ""
    assert notes.lines == (f"~ {text}", "(1) odd")


def test_failures_are_numbered_behind_the_notes():
    notes = Footnotes([["odd"], []], ["dw is off", "dw is off", "odd"])
    assert notes.marks(["dw is off"]) == " (2)"
    assert notes.lines == ("(1) odd", "(2) dw is off")


def test_every_warning_of_a_measurement_has_a_letter():
    """The texts are made elsewhere: whoever changes one changes its pattern."""
    runs = (((1e-6, 1e-6), (4e-6, 1e-6), (2e-6, 1e-6), (9e-6, 1e-6)), ((1e-5, 1e-6),) * 4)
    marks = ((True, True, True, False), (False,) * 4)
    found = Measurement("step", runs, 1, marks).warnings
    assert [_kind(text) for text in found] == ["s", "n", "p", "d", "D"]


@pytest.mark.parametrize(("changes", "mark"), [({"others_s": 1.0}, "o"), ({"stolen_s": 1.0}, "h")])
def test_what_others_took_has_a_letter(changes, mark):
    quiet = {"wall_s": 2.0, "cores": 2, "others_s": 0.0, "stolen_s": 0.0, "throttled_s": 0.0, "overheated": 0}
    (remark,) = Activity(**{**quiet, "swapped_in": 0, **changes}).remarks
    assert _kind(remark) == mark
