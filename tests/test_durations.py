from __future__ import annotations

import pytest

from meprop_bench.durations import as_option, duration, seconds_of
from meprop_bench.errors import UserError


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


def test_a_budget_to_be_given_is_rounded_up() -> None:
    given = [as_option(seconds) for seconds in (0.4, 99.5, 1201, 6001)]
    assert given == ["1s", "100s", "21m", "1.7h"]
    assert all(seconds_of(text) >= seconds for text, seconds in zip(given, (0.4, 99.5, 1201, 6001), strict=True))
