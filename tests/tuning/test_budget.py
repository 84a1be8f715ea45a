from __future__ import annotations

import pytest

from meprop_bench.errors import UserError
from meprop_bench.tuning.budget import Budget, duration, seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("20m", 1200), ("1h", 3600), ("1h30m", 5400), ("0.5m", 30), (" 2 m ", 120), ("1H", 3600)],
)
def test_times_as_they_are_written(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5", "0", "20 minutes", "1d", "5m3", "nan", "inf"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no time: write seconds, or for instance 90s, 20m, 1h30m"):
        seconds_of(text)


def test_durations_as_they_are_read() -> None:
    assert [duration(seconds) for seconds in (0.4, 30, 120, 1200, 7200)] == ["0.4 s", "30 s", "2 min", "20 min", "2 h"]


def test_a_part_ends_before_the_whole_and_leaves_what_it_does_not_use() -> None:
    time = [0.0]
    whole = Budget(100.0, lambda: time[0])
    time[0] = 20.0
    part = whole.part(0.25)
    assert part.left_s == 20.0
    assert part.allows(19)
    assert not part.allows(20)
    time[0] = 50.0
    assert part.left_s == 0.0
    assert whole.left_s == 50.0
    assert whole.spent_s == 50.0
