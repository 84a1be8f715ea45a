from __future__ import annotations

from typing import Any

from meprop_bench.sweep.rows import Answers


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
