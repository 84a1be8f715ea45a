from __future__ import annotations

from meprop_bench.tuning.budget import Budget


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
