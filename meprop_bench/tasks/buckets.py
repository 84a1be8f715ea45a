"""Batches of sentences of like lengths, so that little of a batch is padding, in an order of seed and epoch.

All sentences are permuted; each run of `_POOL` batches is sorted by length and cut into batches; these are permuted.
The last batch of an epoch may be smaller.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

__all__ = ["bucketed", "in_order_of_length"]

_POOL = 50


def bucketed(lengths: Sequence[int], batch: int, *, seed: int, epoch: int) -> Iterator[list[int]]:
    """Yield the places of each batch's sentences: all of them once.

    Args:
        lengths: words of each sentence.
        batch: B.
        seed: of the training.
        epoch: from 0.

    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths))
    sizes = np.asarray(lengths)
    batches = []
    for start in range(0, len(order), batch * _POOL):
        pool = order[start : start + batch * _POOL]
        pool = pool[np.argsort(sizes[pool], kind="stable")]
        batches += [pool[i : i + batch] for i in range(0, len(pool), batch)]
    for place in rng.permutation(len(batches)):
        yield batches[place].tolist()


def in_order_of_length(lengths: Sequence[int], batch: int) -> Iterator[list[int]]:
    """Yield the places of each batch's sentences, the shortest first: for evaluation, where order is of no matter."""
    order = np.argsort(np.asarray(lengths), kind="stable")
    for start in range(0, len(order), batch):
        yield order[start : start + batch].tolist()
