"""Gathered: each rank selects rows by itself, and all get the union of them, added up and divided by their number.

    rank r has rows h_r (k_r,) and their values G_r (k_r, m)
    rows = ⋃_r h_r          G[i] = 1 / P Σ_r G_r[i]      P - 1 times as many bytes as a rank has, and up to P k rows

Where a bucket had the same most rows in two exchanges, as k rows of a unified selection are, the next one makes room
for so many beside what is announced, and is done in one collective if they suffice.

Every rank adds up in the order of the ranks, so that all have the same bits. A row whose sum is zero stays a row: that
it was selected is what an optimizer by rows counts.
"""

from __future__ import annotations

from array import array
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from meprop_bench.distributed.buckets import Bucket
from meprop_bench.distributed.channel import Waiting
from meprop_bench.ops.kernels import compiled, hybrid_rows

__all__ = ["Gathered", "union"]

_UNION = "meprop_bench.ops.kernels.native.union"
_INDEX = 8
"""Bytes of a row's number."""


class _Layout(NamedTuple):
    """Where a bucket's gradients are in the buffer of a rank: first the rows' numbers of all, then the rows."""

    room: list[int]  # rows of each parameter
    first: list[int]  # of these, the place of each parameter's first
    values: list[int]  # the place of each parameter's first number
    rows: int
    size: int  # bytes


class Gathered(Bucket):
    """A bucket whose rows are gathered: see the module."""

    _most: list[int] | None = None
    """The most rows that a rank had of each parameter, in the last exchange."""
    _expected: list[int] | None = None
    """The same, if it was so before; else None."""
    _early: tuple[_Layout, Tensor] | None = None
    """The rows that come beside what is announced."""

    def send_words(self, words: Tensor) -> tuple[Tensor, Waiting]:
        """See `Bucket`."""
        if self._expected is None or self.device.type != "cpu":
            return super().send_words(words)
        layout, header = self._laid_out(self._expected), _INDEX * len(words)
        mine = torch.empty(header + layout.size, dtype=torch.uint8)
        mine[:header].view(torch.int64).copy_(words)
        self._fill(mine[header:], layout)
        everyone, waiting = self.channel.gather(mine, indices=_INDEX * layout.rows, control=header)
        self._early = layout, everyone[:, header:]
        return everyone.view(torch.int64)[:, : len(words)], waiting

    def send_rows(self, signatures: list[list[int]]) -> None:
        """See `Bucket`."""
        most, before, self._work = [max(counts) for counts in self.rows], self._most, None
        early, self._early = self._early, None
        self._most, self._expected = most, most if most == before and any(most) else None
        if early is not None and all(count <= room for count, room in zip(most, early[0].room, strict=True)):
            self._layout, self._everyone = early
            return
        self._layout = self._laid_out(most)
        if not self._layout.rows:
            return
        mine = torch.empty(self._layout.size, dtype=torch.uint8, device=self.device)
        self._fill(mine, self._layout)
        self._everyone, self._work = self.channel.gather(mine, indices=_INDEX * self._layout.rows)

    def _laid_out(self, room: list[int]) -> _Layout:
        """Return the layout with room for so many rows of each parameter."""
        rows = list(accumulate(room, initial=0))
        values = list(accumulate((r * e.width for r, e in zip(room, self.entries, strict=True)), initial=0))
        size = _INDEX * (
            rows[-1] + -(-values[-1] * self.dtype.itemsize // _INDEX)
        )  # so that the next rank's is aligned
        return _Layout(room, rows[:-1], values[:-1], rows[-1], size)

    def _fill(self, buffer: Tensor, layout: _Layout) -> None:
        """Write what this rank has, as far as there is room for it."""
        for i, gradient in enumerate(self.gradients):
            if (
                gradient is not None
                and gradient.is_sparse
                and (count := gradient._indices().shape[1]) <= layout.room[i]
            ):
                idx, numbers = self._part(buffer, layout, i, count)
                idx.copy_(gradient._indices()[0])
                numbers.copy_(gradient._values())

    def _part(self, buffer: Tensor, layout: _Layout, i: int, count: int) -> tuple[Tensor, Tensor]:
        """Return the first rows and values of a parameter in a rank's buffer."""
        width = self.entries[i].width
        idx = buffer[: _INDEX * layout.rows].view(torch.int64)[layout.first[i] :][:count]
        numbers = buffer[_INDEX * layout.rows :].view(self.dtype)[layout.values[i] :][: count * width]
        return idx, numbers.view(count, width)

    def finish_rows(self) -> None:
        """See `Bucket`."""
        if self._work is not None:
            self._work.wait()
        for i, entry in enumerate(self.entries):
            if not self.some[i]:
                continue
            if any(self.rows[i]):
                parts = [
                    self._part(self._everyone[rank], self._layout, i, count) for rank, count in enumerate(self.rows[i])
                ]
                rows, values = union(parts, 1 / self.channel.size)
            else:
                rows = torch.empty(0, dtype=torch.int64, device=self.device)
                values = torch.empty(0, entry.width, dtype=self.dtype, device=self.device)
            entry.parameter.grad = hybrid_rows(rows, values, entry.parameter.shape[0])
        self._work = None
        vars(self).pop("_everyone", None)


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
