"""One rule says when a machine is too busy: for the doctor, and for the first line of a result."""

from __future__ import annotations

import math

import pytest

from meprop_bench.measure.machine import HEAVY, Activity, Observer, too_busy, was_busy

CALM = {
    "load_average": [0.3, 0.2, 0.1], "others_cores": 0.1, "stolen_cores": 0.0, "cpu_usable_cores": 2, "cpu_limit": None,
    "threads": 2,
}  # fmt: skip


def notes(**changes):
    quiet = {"wall_s": 2.0, "cores": 2, "others_s": 0.0, "stolen_s": 0.0, "throttled_s": 0.0, "overheated": 0}
    return Activity(**{**quiet, "swapped_in": 0, **changes}).notes


def test_a_calm_machine_has_no_line():
    assert was_busy([CALM], {"a": notes(others_s=0.5), "b": []}) == ""
    assert was_busy([], {}) == ""
    assert was_busy([{"warnings": []}], {}) == ""  # a state of an older version


@pytest.mark.parametrize("wrong", ["x", -1.0, True, 10**400, [1], math.nan])
def test_a_fact_that_cannot_be_is_none(wrong):
    for field in ("others_cores", "stolen_cores", "cpu_limit", "cpu_usable_cores", "threads"):
        assert was_busy([{**CALM, field: wrong}], {}) == ""
    assert "load" not in was_busy([{**CALM, "others_cores": 1.5, "load_average": [wrong]}], {})
    assert "1.50 of 2 cores" in was_busy([{**CALM, "others_cores": 1.5, "load_average": wrong}], {})


@pytest.mark.parametrize(
    ("changes", "check", "words"),
    [
        ({"others_cores": 1.2}, "others", "other processes took 1.20 of 2 cores, more than 25%"),
        ({"stolen_cores": 0.5}, "steal", "the hypervisor withheld 0.50 of 2 cores, more than 10%"),
        ({"cpu_limit": 1.0}, "quota", "2 threads under a CPU quota of 1 cores"),
    ],
)
def test_a_heavy_state_is_told_in_words(changes, check, words):
    state = {**CALM, "load_average": [3.14, 2.0, 1.0], **changes}
    assert too_busy(state) == {check: words}
    line = was_busy([CALM, state], {})
    assert line.startswith(
        f"This machine was busy (load 3.1 on 2 cores; {words}): the times and ratios below may be off"
    )


def test_of_a_run_that_was_resumed_the_worst_state_is_said() -> None:
    states = [{**CALM, "others_cores": cores} for cores in (1.2, 1.8, 1.5)]
    line = was_busy(states, {})
    assert "other processes took 1.80 of 2 cores" in line
    assert line.count("other processes") == 1


def test_half_the_cores_taken_make_times_twice_as_long():
    assert "by a factor of 2 or more." in was_busy([{**CALM, "others_cores": 1.0}], {})
    assert "by a factor of 2 or more." in was_busy([], {"a": notes(others_s=2.0)})
    assert "by a factor of 20 or more." in was_busy([{**CALM, "others_cores": 2.0}], {})
    assert "by a factor of 2 or more." in was_busy([{**CALM, "cpu_limit": 1.0}], {})


def test_what_happened_during_the_cases_counts_by_the_same_shares():
    assert HEAVY == {"others": 0.25, "steal": 0.10}
    line = was_busy([CALM], {"a": notes(others_s=2.4), "b": [], "c": notes(stolen_s=0.5)})
    assert "other processes took up to 60% of the cores during 1 of 3 cases" in line
    assert "the hypervisor withheld up to 12% of the cores during 1 of 3 cases" in line
    assert was_busy([], {"a": notes(others_s=1.0)}) == ""


def test_an_observer_leaves_ours_and_our_childrens_time_out(monkeypatch):
    monkeypatch.setattr("meprop_bench.measure.machine.state", lambda threads: {**CALM, "threads": threads})
    observer = Observer(2)
    assert observer.state["threads"] == 2
    monkeypatch.setattr(observer, "_watch", _Watched(notes(others_s=2.4)))
    assert "60% of the cores during the measurement" in observer.line()


class _Watched:
    def __init__(self, lines):
        self.notes = lines

    def activity(self):
        return self
