from __future__ import annotations

from typing import Any

import pytest

from meprop_bench.measure.paired import Measurement
from meprop_bench.measure.ranks import HIDDEN_S
from meprop_bench.sweep.rows import Answers, told_apart


def _answer(*pairs: tuple[float, float], disturbed: list[bool] | None, others_s: float = 0.0) -> dict[str, Any]:
    activity = {"wall_s": 1.0, "cores": 2, "others_s": others_s, "stolen_s": 0.0}
    activity |= {"throttled_s": None, "overheated": 0, "swapped_in": 0}
    return {"pairs": {"step": [list(pair) for pair in pairs]}, "disturbed": disturbed, "activity": activity}


def test_visits_to_a_process_are_one_run_whatever_their_order():
    answers = Answers()
    for process, seconds in ((1, 3.0), (0, 1.0), (0, 2.0), (1, 4.0)):
        answers.add(process, _answer((seconds, 1.0), disturbed=[seconds == 4.0]))
    found = answers.measurement("step", loops=7)
    assert [[*run] for run in found.runs] == [[(1.0, 1.0), (2.0, 1.0)], [(3.0, 1.0), (4.0, 1.0)]]
    assert (found.disturbed, found.loops) == (((False, False), (False, True)), 7)


def test_what_nobody_watched_is_unknown_and_what_others_took_is_noted():
    answers = Answers()
    answers.add(0, _answer((1.0, 1.0), disturbed=[True], others_s=1.0))
    assert answers.measurement("step", 1).disturbed == ((True,),)
    answers.add(1, _answer((1.0, 1.0), disturbed=None))
    answers.add(1, _answer((2.0, 1.0), disturbed=[True]))
    assert answers.measurement("step", 1).disturbed is None
    assert [note.kind for note in answers.notes] == ["others"]


def _communication(hidden: int) -> Measurement:
    return Measurement("communication", ([(HIDDEN_S, 1.0)] * hidden + [(2.0, 1.0)] * (20 - hidden),), 1)


@pytest.mark.parametrize(("hidden", "there"), [(0, True), (2, True), (3, False)])
def test_a_difference_that_is_often_below_nothing_is_no_figure(hidden: int, there: bool):
    step = Measurement("step", ([(2.0, 1.0)],), 1)
    kept, notes = told_apart([_communication(hidden), step])
    assert [found.phase for found in kept] == ["communication", "step"][1 - there :]
    assert [note.kind for note in notes] == ["hidden"] * (not there)
