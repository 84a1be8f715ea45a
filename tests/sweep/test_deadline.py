from __future__ import annotations

import math

import pytest

from meprop_bench.errors import UserError
from meprop_bench.sweep.deadline import Deadline


def test_without_one_everything_is_begun() -> None:
    deadline = Deadline()
    deadline.took(1e9)
    assert deadline.left_s == math.inf
    assert deadline.allows()


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_it_is_a_number_of_seconds(seconds: float) -> None:
    with pytest.raises(UserError, match="a deadline must be more than 0 seconds, and finite"):
        Deadline(seconds)


def test_what_would_not_be_done_in_time_is_not_begun() -> None:
    now = [5.0]
    deadline = Deadline(10.0, lambda: now[0])
    assert deadline.left_s == 10.0
    now[0] = 14.9
    assert deadline.allows()  # nothing is known of what a piece takes
    deadline.took(3.0)
    assert not deadline.allows()
    now[0] = 11.9
    assert deadline.allows()
    for seconds in (3.2, 90.0):  # one that took long does not speak for the others
        deadline.took(seconds)
    assert not deadline.allows()
    now[0] = 11.7
    assert deadline.allows()
    now[0] = 15.0
    assert deadline.left_s == 0.0
    assert not deadline.allows()


def test_what_a_piece_is_known_to_take_counts_until_others_than_the_first_show_it() -> None:
    now = [0.0]
    deadline = Deadline(100.0, lambda: now[0], usual_s=20.0)
    now[0] = 79.0
    assert deadline.allows()
    deadline.took(70.0)  # of which most was the start of all
    assert deadline.allows()
    deadline.took(30.0)
    assert not deadline.allows()
    now[0] = 69.0
    assert deadline.allows()
