"""Gathered: each rank selects rows by itself, and all get the union of them, added up and divided by their number.

    rank r has rows h_r (k_r,) and their values G_r (k_r, m)
    rows = ⋃_r h_r          G[i] = 1 / P Σ_r G_r[i]      P - 1 times as many bytes as a rank has, and up to P k rows

Where it is known how many rows there will be, there is space for so many beside what is announced, and an exchange is
one message to each rank if they suffice. It is laid out once, and the others' messages may come from the beginning of
the backward pass on. Known are the k rows of a unified selection, though some of its neurons may have no gradient, and
what has been the same in two exchanges.

Every rank adds up in the order of the ranks, so that all have the same bits. A row whose sum is zero stays a row: that
it was selected is what an optimizer by rows counts.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from meprop_bench.distributed.buckets import Bucket, Entry
from meprop_bench.distributed.channel import DENSE, Pending
from meprop_bench.ops.kernels import compiled, hybrid_rows

__all__ = ["Gathered", "union"]

_UNION = "meprop_bench.ops.kernels.native.union"
_FIRST = DENSE + 1
"""The first tag of messages with rows: a bucket has two, for what comes beside the announcement and after it."""
_WORTH = 0.75
"""Part of a unified selection's k rows from which on there is space for all of them."""
_INDEX = 8
"""Bytes of a row's number, and of a word that is announced."""


class _Buffer:
    """What ranks send each other: words, the numbers of all rows, then the rows."""

    def __init__(self, ranks: int, entries: Sequence[Entry], capacity: list[int], words: int = 0) -> None:
        parameter = entries[0].parameter
        self.capacity, rows = capacity, sum(capacity)
        first = list(accumulate(capacity, initial=words))
        numbers = list(accumulate(count * entry.width for count, entry in zip(capacity, entries, strict=True)))
        # In whole words, so that the next rank's are aligned.
        size = words + rows + -(-numbers[-1] * parameter.element_size() // _INDEX)
        self.everyone = parameter.new_empty(ranks, size, dtype=torch.int64, requires_grad=False)
        self.words = self.everyone[:, :words]
        self.indices, self.control = _INDEX * rows, _INDEX * words  # bytes
        self.parts: list[list[tuple[Tensor, Tensor]]] = []  # row numbers and rows, of each rank and parameter
        for of_rank in self.everyone:
            values = of_rank[words + rows :].view(parameter.dtype)
            self.parts.append(
                [
                    (of_rank[at : at + count], values[end - count * entry.width : end].view(count, entry.width))
                    for at, count, end, entry in zip(first, capacity, numbers, entries, strict=False)
                ]
            )

    def part(self, rank: int, i: int, count: int) -> tuple[Tensor, Tensor]:
        """Return the first row numbers and rows of a rank's parameter."""
        rows, values = self.parts[rank][i]
        return (rows, values) if count == self.capacity[i] else (rows[:count], values[:count])


class Gathered(Bucket):
    """A bucket whose rows are gathered: see the module."""

    _most: list[int] | None = None
    """The most rows that a rank had of each parameter, in the last exchange."""
    _early: _Buffer | None = None
    """For rows that come beside what is announced, if it is known how many."""
    _receiving: Pending | None = None
    """Of what comes into that."""

    def expect(self) -> None:
        """See `Bucket`."""
        super().expect()
        if self._early is not None and self._receiving is None:
            self._receiving = self.channel.receive(self._early.everyone, 2 * self.number + _FIRST)

    def send_words(self, words: Tensor) -> tuple[Tensor, Pending]:
        """See `Bucket`."""
        early = self._early
        if early is None:
            return super().send_words(words)
        early.words[self.channel.rank] = words
        self._fill(early)
        receiving, self._receiving = self._receiving, None
        return early.words, self._gather(early, 2 * self.number + _FIRST, receiving)

    def send_rows(self, signatures: list[list[int]]) -> None:
        """See `Bucket`."""
        most, before, early = [max(counts) for counts in self.rows], self._most, self._early
        if early is not None and all(count <= capacity for count, capacity in zip(most, early.capacity, strict=True)):
            self._buffer = early
        else:
            self._buffer = _Buffer(self.channel.size, self.entries, most)
            if any(most):
                self._fill(self._buffer)
                self.waiting.append(self._gather(self._buffer, 2 * self.number + _FIRST + 1))
        self._most, capacity = most, self._expected(most, before)
        if capacity is None or not self.channel.has_messages(self.device):
            self._early = None
        elif early is None or early.capacity != capacity:
            self._early = _Buffer(self.channel.size, self.entries, capacity, self.words)

    def _expected(self, most: list[int], before: list[int] | None) -> list[int] | None:
        """Return how many rows of each parameter there will be, at most; None if that is not known, or none."""
        capacity = []
        for i, (count, entry) in enumerate(zip(most, self.entries, strict=True)):
            if entry.most < entry.parameter.shape[0] and _WORTH * entry.most <= count <= entry.most:
                capacity.append(entry.most)
            elif before is not None and count == before[i]:
                capacity.append(count)
            else:
                return None
        return capacity if any(capacity) else None

    def _gather(self, buffer: _Buffer, tag: int, receiving: Pending | None = None) -> Pending:
        return self.channel.gather_rows(
            buffer.everyone, tag, indices=buffer.indices, control=buffer.control, receiving=receiving
        )

    def _fill(self, buffer: _Buffer) -> None:
        """Write what this rank has, as far as it fits."""
        for i, gradient in enumerate(self.gradients):
            if gradient is None or not gradient.is_sparse:
                continue
            idx = gradient._indices()[0]
            if len(idx) <= buffer.capacity[i]:
                rows, values = buffer.part(self.channel.rank, i, len(idx))
                rows.copy_(idx)
                values.copy_(gradient._values())

    def finish_rows(self) -> None:
        """See `Bucket`."""
        for i, entry in enumerate(self.entries):
            if not self.some[i]:
                continue
            if any(self.rows[i]):
                parts = [self._buffer.part(rank, i, count) for rank, count in enumerate(self.rows[i])]
                rows, values = union(parts, 1 / self.channel.size)
            else:
                rows = torch.empty(0, dtype=torch.int64, device=self.device)
                values = torch.empty(0, entry.width, dtype=self.dtype, device=self.device)
            entry.parameter.grad = hybrid_rows(rows, values, entry.parameter.shape[0])
        del self._buffer


def union(parts: list[tuple[Tensor, Tensor]], scale: float) -> tuple[Tensor, Tensor]:
    """Return the rows that any part has, ascending, and the sums of their values, times scale.

    Args:
        parts: rows, int64 `(r,)`, ascending from 0 or more, and values `(r, m)` of each, contiguous.
        scale: what sums are multiplied by.

    """
    _, first = parts[0]
    native = compiled.load(_UNION) if first.dtype == torch.float32 and first.is_cpu else None
    if native is None:
        return _by_operators(parts, scale)
    words = array("q")
    for rows, values in parts:
        words.extend((rows.data_ptr(), values.data_ptr(), len(rows)))
    table, width = words.buffer_info()[0], first.shape[1]
    united = torch.empty(sum(len(rows) for rows, _ in parts), dtype=torch.int64)
    count = native.unite(table, len(parts), united.data_ptr())
    sums = first.new_empty(count, width)
    native.combine(table, len(parts), united.data_ptr(), count, sums.data_ptr(), width, scale)
    return united[:count], sums


def _by_operators(parts: list[tuple[Tensor, Tensor]], scale: float) -> tuple[Tensor, Tensor]:
    """Return the union by torch's operators, added up in float32 at least, and rounded once."""
    rows, values = (torch.cat(column) for column in zip(*parts, strict=True))
    dtype = values.dtype
    if not len(rows):
        return rows, values
    united, place = torch.unique(rows, return_inverse=True)
    # Not `index_add_`, which on a GPU adds up in any order, and so on each rank in another one.
    wide = values.to(torch.promote_types(dtype, torch.float32))
    ones = torch.sparse_coo_tensor(place[None], wide, (len(united), wide.shape[1]), check_invariants=False)
    return united, ones.coalesce()._values().mul_(scale).to(dtype)
