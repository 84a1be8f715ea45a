"""Two processes that hand over to each other: here both ends are in one."""

from __future__ import annotations

import gc

import pytest

from meprop_bench.sweep.blocks import Handoff


def _met() -> tuple[Handoff, Handoff]:
    first, second = Handoff(), Handoff()
    second.connect(first.listen())
    return first, second


def test_it_goes_to_and_fro_and_what_an_earlier_exchange_left_is_not_for_the_next() -> None:
    first, second = _met()
    assert second.give(1)
    assert first.wait(1)
    assert first.give(1)
    first.stop(1)
    assert first.give(2)
    assert second.wait(2)
    first.stop(3)
    assert not second.wait(3)


def test_who_waits_for_a_process_that_has_ended_is_told() -> None:
    first, second = _met()
    assert second.give(1)
    assert first.wait(1)
    del second
    gc.collect()
    assert not first.wait(2)
    assert not (first.give(2) and first.wait(2))


def test_without_another_one_there_is_nothing_to_hand_over() -> None:
    with pytest.raises(ValueError, match="have not met"):
        Handoff().wait(1)
