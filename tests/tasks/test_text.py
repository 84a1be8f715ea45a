"""Batches of like lengths."""

import pytest

from meprop_bench.tasks.text import bucketed, in_order_of_length

LENGTHS = [7, 1, 3, 9, 2, 2, 30, 4, 5, 1, 8]


@pytest.mark.parametrize("batch", [1, 3, 4, 11, 20])
def test_every_sentence_once(batch):
    for batches in (list(bucketed(LENGTHS, batch, seed=1, epoch=0)), list(in_order_of_length(LENGTHS, batch))):
        assert sorted(place for places in batches for place in places) == list(range(len(LENGTHS)))
        assert len(batches) == -(-len(LENGTHS) // batch)
        assert max(map(len, batches)) <= batch


def test_seed_and_epoch_tell_the_order():
    def order(seed, epoch):
        return list(bucketed(LENGTHS, 2, seed=seed, epoch=epoch))

    assert order(1, 0) == order(1, 0)
    assert len({str(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_like_lengths_side_by_side():
    lengths = list(range(1, 101)) * 4
    spans = [
        max(map(lengths.__getitem__, b)) - min(map(lengths.__getitem__, b))
        for b in bucketed(lengths, 8, seed=0, epoch=0)
    ]
    assert max(spans) <= 2
