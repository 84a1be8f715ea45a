"""A bucket: parameters whose rows are exchanged together, in two collectives.

    announced   each rank says how many rows it has of each parameter                     (P, 1 + 2 L) numbers
    sent        the rows themselves, by the way that the subclass is                      one buffer for all
    finished    the gradients that come of it are the parameters'

What is announced makes the rest sound: ranks may have different numbers of rows, none at all (a layer that did not run
there), or a dense gradient (k >= n), and each knows of the others before a buffer is laid out. It overlaps with the
backward pass. All ranks go through their buckets in one order, whatever the order in which their gradients come. The
first number counts the passes, so that what one that was broken off has left behind is never taken for another's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from meprop_bench.distributed.channel import Channel, ExchangeError, Pending
from meprop_bench.optim.table import each_once

__all__ = ["Bucket", "Entry"]

_NONE, _DENSE = -1, -2
"""What is announced in place of a number of rows: no gradient; a dense one."""


class Entry(NamedTuple):
    """A parameter `(n, m)` whose rows are exchanged, its name in the model, and how many rows its gradient may have:
    those of a unified selection, unless its k is raised later; else n.
    """

    name: str
    parameter: nn.Parameter
    most: int

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return self.parameter.shape[1]


class Bucket(ABC):
    """See the module. Its parameters have one dtype and one device."""

    def __init__(self, channel: Channel, entries: Sequence[Entry], number: int) -> None:
        self.channel, self.entries, self.number = channel, entries, number
        self.words = 1 + 2 * len(entries)  # that each rank announces
        self.dtype, self.device = entries[0].parameter.dtype, entries[0].parameter.device
        self._passes = 0
        self.waiting: list[Pending] = []  # for all that is under way
        self._announced: tuple[Tensor, Pending] | None = None  # until it is answered by `send`
        self.open()

    def open(self) -> None:
        """Be as at the beginning of a backward pass; end what one that was broken off has begun, as all ranks do."""
        if self._announced is not None:
            self.send()
        self._wait()
        self._missing = set(range(len(self.entries)))
        self._dense: list[tuple[Entry, Tensor]] = []
        self.gradients: list[Tensor | None] = []

    def arrive(self, index: int) -> None:
        """Be informed that the gradient of a parameter is there."""
        self._missing.discard(index)

    def complete(self) -> bool:
        """Whether all gradients are there."""
        return not self._missing

    def announce(self) -> None:
        """Begin to tell the others what gradients there are."""
        words = [self._passes]
        for entry in self.entries:
            gradient = entry.parameter.grad
            if gradient is not None and gradient.is_sparse:
                gradient = each_once(entry.parameter, gradient)
                words += [gradient._indices().shape[1], self.signature(gradient)]
            else:
                words += [_NONE if gradient is None else _DENSE, 0]
            self.gradients.append(gradient)
        self._announced = self.send_words(torch.tensor(words))
        self.waiting.append(self._announced[1])

    def announced(self) -> bool:
        """Whether all ranks have said what they have."""
        return self._announced is not None and self._announced[1].done()

    def send(self) -> None:
        """Begin to exchange the rows, when all ranks have said what they have, which is waited for."""
        assert self._announced is not None
        (everyone, waiting), self._announced = self._announced, None
        waiting.wait()
        words = everyone.tolist()
        for rank, (passes, *_) in enumerate(words):
            if passes != self._passes:
                raise ExchangeError(
                    f"rank {rank} is at its backward pass {passes} of those whose gradients are exchanged, rank"
                    f" {self.channel.rank} at {self._passes}: all ranks have to make the same ones, and to their ends"
                )
        counts = [[word[1 + 2 * i] for word in words] for i in range(len(self.entries))]
        self.rows = [[max(count, 0) for count in of_entry] for of_entry in counts]
        self.some = [max(of_entry) >= 0 for of_entry in counts]
        for i, of_entry in enumerate(counts):
            if _DENSE in of_entry:
                self._send_dense(i)
                self.rows[i], self.some[i] = [0] * self.channel.size, False
        self.send_rows([[word[2 + 2 * i] for word in words] for i in range(len(self.entries))])

    def _send_dense(self, index: int) -> None:
        """Begin to average a gradient that is dense on some rank."""
        entry, gradient = self.entries[index], self.gradients[index]
        if gradient is None:
            mean = torch.zeros_like(entry.parameter, memory_format=torch.contiguous_format)
        else:
            dense = gradient.to_dense() if gradient.is_sparse else gradient
            mean = torch.mul(dense, 1 / self.channel.size).contiguous()
        self._dense.append((entry, mean))
        self.waiting.append(self.channel.sum(mean))

    def finish(self) -> None:
        """Wait for all, and give the parameters their gradients."""
        with torch.no_grad():
            self._wait()
            for entry, mean in self._dense:
                entry.parameter.grad = mean
            self.finish_rows()
        self.open()

    def _wait(self) -> None:
        for each in self.waiting:
            each.wait()
        self.waiting.clear()

    def expect(self) -> None:
        """Be informed that a backward pass has begun whose gradients are exchanged: the others may be ahead."""
        self._passes += 1

    def send_words(self, words: Tensor) -> tuple[Tensor, Pending]:
        """Begin to send what is announced, int64 `(1 + 2 L,)`; return where all ranks' will be, `(P, 1 + 2 L)`."""
        return self.channel.gather(words)

    def signature(self, gradient: Tensor) -> int:
        """Return a number that is the same on all ranks if the gradient has the rows that it should have."""
        return 0

    @abstractmethod
    def send_rows(self, signatures: list[list[int]]) -> None:
        """Begin to exchange the rows of `gradients`, of which each rank has as many as `rows` says, (L, P).

        `signatures` are those of each rank's gradients, (L, P); `some` says for which there is a gradient by rows, if
        perhaps without any.
        """

    @abstractmethod
    def finish_rows(self) -> None:
        """Give the parameters their gradients: all that was begun (`waiting`) is there."""
