"""What ranks send, against counts by hand."""

from __future__ import annotations

import pytest

from meprop_bench.workloads.network import Network, Tensors, agreed, dense, gathered

_LAYER = [Tensors(2048, 784, 64), Tensors(2048, 1, None)]
_NUMBERS = 2048 * 784 + 2048


@pytest.mark.parametrize("ranks", [2, 4, 64])
def test_a_dense_ring_sends_nearly_twice_of_all(ranks: int) -> None:
    whole = dense(_LAYER, ranks)
    assert whole.bytes == pytest.approx(2 * (ranks - 1) / ranks * 4 * _NUMBERS)
    assert whole.messages == 2 * (ranks - 1)
    assert dense(_LAYER, ranks, "fp16").bytes == whole.bytes / 2


def test_powersgd_sends_two_factors_of_what_they_make_smaller() -> None:
    assert dense(_LAYER, 2, "powersgd").bytes == 4 * (2048 + 784 + 2048)
    assert dense([Tensors(3, 3, None)], 2, "powersgd").bytes == 4 * 9


def test_gathered_rows_go_to_every_other_rank() -> None:
    assert gathered(_LAYER, 2).bytes == 64 * (4 * 784 + 8) + 4 * 2048
    assert gathered(_LAYER, 5).bytes == pytest.approx(4 * 64 * (4 * 784 + 8) + 2 * 4 / 5 * 4 * 2048)


def test_agreed_rows_are_summed_and_so_do_not_grow_with_the_ranks() -> None:
    block = 4 * (64 * 784 + 2048)
    assert agreed(_LAYER, 2).bytes == block + 4 * 2048
    assert agreed(_LAYER, 64).bytes == pytest.approx(2 * 63 / 64 * (block + 4 * 2048))


def test_rows_take_the_messages_that_the_exchange_sends() -> None:
    rows = _LAYER[:1]
    assert [gathered(rows, ranks).messages for ranks in (2, 8)] == [1, 7]
    assert [agreed(rows, ranks).messages for ranks in (2, 8)] == [2, 2 * 14]


def test_agreeing_sends_less_from_three_ranks_on() -> None:
    sent = {ranks: (agreed(_LAYER, ranks).bytes, gathered(_LAYER, ranks).bytes) for ranks in (2, 3, 8)}
    assert sent[2][0] > sent[2][1]
    assert sent[3][0] < sent[3][1]
    assert sent[8][0] < sent[8][1]


@pytest.mark.parametrize("ranks", [2, 8])
def test_gathered_rows_beat_a_ring_below_two_n_over_p(ranks: int) -> None:
    n, m = 4096, 4096

    def less(k: float) -> bool:
        return gathered([Tensors(n, m, k)], ranks).bytes < dense([Tensors(n, m, None)], ranks).bytes

    assert less(0.99 * 2 * n / ranks)
    assert not less(1.01 * 2 * n / ranks)


def test_seconds_are_those_of_bytes_and_of_messages() -> None:
    network = Network(2, 25e9, 20e-6)
    load = dense(_LAYER, 2)
    assert network.seconds(load) == pytest.approx(8 * load.bytes / 25e9 + 2 * 20e-6)
