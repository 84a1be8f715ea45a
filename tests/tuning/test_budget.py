from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from meprop_bench.measure.worker import WorkerOverdue
from meprop_bench.tuning.budget import Bounded, Budget, Over


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


class Slow:
    """A process that takes so many seconds for a request."""

    def __init__(self, time: list[float], seconds: float) -> None:
        self.time, self.seconds, self.closed = time, seconds, False

    def request(self, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        self.time[0] += min(timeout, self.seconds)
        if self.seconds > timeout:
            raise WorkerOverdue(f"no answer within {timeout:.3g} s, so it was killed")
        return {"did": message["do"]}

    def close(self) -> None:
        self.closed = True


def test_it_ends_in_so_many_seconds_or_with_the_whole() -> None:
    time = [0.0]
    whole = Budget(100.0, lambda: time[0])
    assert (whole.until(30.0).left_s, whole.until(130.0).left_s) == (30.0, 100.0)
    time[0] = 90.0
    assert whole.until(30.0).left_s == 10.0


def test_a_process_has_no_longer_than_the_budget() -> None:
    time = [0.0]
    worker = Bounded(slow := Slow(time, 40.0), Budget(100.0, lambda: time[0]))
    assert worker.request({"do": "setup"}, 900.0) == {"did": "setup"}
    with pytest.raises(WorkerOverdue):  # its own limit is the shorter one
        worker.request({"do": "setup"}, 30.0)
    with pytest.raises(Over):
        worker.request({"do": "setup"}, 900.0)
    assert time[0] == 100.0
    with pytest.raises(Over):
        worker.request({"do": "setup"}, 900.0)
    worker.close()
    assert slow.closed
