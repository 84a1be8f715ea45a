"""The collectives of one model's exchanges: process groups of their own, bytes counted, errors in one line.

Collectives of one group have to come in the same order on all ranks. Those of torch's DistributedDataParallel are
launched from C++ when its buckets are full, ours from Python when rows are there; in one group the two could interleave
differently on two ranks, and a rank would add up what does not belong together. So there are groups of our own:

    control   gloo: how many rows there are; on the CPU, as the host has to know
    rows      the backend of the model's process group: the rows themselves
    scores    the same: what neurons are selected by, which somebody waits for, and which must not queue behind rows

Where gloo carries them, rows are gathered by a message from each rank to each other one, which are as many bytes as a
ring sends. A message goes from the thread that sends it, at once, a collective by way of a thread of gloo's. Messages
have tags, by which they find each other in any order. Two ranks add up likewise: each sends the other all it has, the
bytes of a ring again, and half its messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from meprop_bench.optional import said

__all__ = ["DENSE", "PAIR", "BytesSent", "Channel", "ExchangeError", "Pending"]

_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""By its new name, where torch has that."""
PAIR = 2
"""Ranks for which a sum is one message."""
DENSE = 1
"""The tag of the sums of dense gradients, which keep to an order of their own; all others have the tag 0."""


class ExchangeError(RuntimeError):
    """An exchange with the other processes failed, in one line: one has ended or hangs, or they do different things."""


class BytesSent(NamedTuple):
    """Bytes that this rank sent, by what they are for, in the last step whose gradients were exchanged.

    They are counted from the tensors that were exchanged, as rings send them: of P ranks, (P - 1) times the size of a
    tensor that is gathered, 2 (P - 1) / P times that of one that is summed. What a network adds to that is not in it.
    """

    rows: int  # numbers of rows, gathered or in agreed blocks; and of a gradient that was dense this time (k >= n)
    indices: int  # which rows these are, where they are gathered
    scores: int  # what neurons are selected by, where ranks agree
    control: int  # how many rows each rank has
    dense: int | None  # all other gradients, by DistributedDataParallel; None where a comm_hook makes them unknown

    @property
    def total(self) -> int | None:
        """All of it; None where `dense` is."""
        return None if self.dense is None else self.rows + self.indices + self.scores + self.control + self.dense


class Pending:
    """What is under way: a collective, or messages, of which gloo says that they have come only to who waits.

    Args:
        channel: by which.
        works: torch's.
        timeout: of each, None for as long as its group has it.
        summand: `(sum, other)`, of which one is added to the other once it is there.

    """

    def __init__(
        self,
        channel: Channel,
        works: list[Any],
        timeout: timedelta | None = None,
        summand: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self._channel, self.works, self._timeout, self._summand = channel, works, timeout, summand

    def done(self) -> bool:
        """Whether `wait` would not wait, as far as that is known; also when it has failed."""
        return all(work.is_completed() for work in self.works)

    def wait(self) -> None:
        """Wait until the result is there, if nobody has; ExchangeError where it will never be."""
        works, self.works = self.works, []
        with self._channel.failing():
            for work in works:
                work.wait() if self._timeout is None else work.wait(self._timeout)
        if self._summand is not None:
            (total, other), self._summand = self._summand, None
            total.add_(other)


class Channel:
    """The process groups: see the module.

    Args:
        group: of the ranks that train the model together; None for all.
        timeout: how long to wait for the others, None for as long as `group` does.

    """

    def __init__(self, group: dist.ProcessGroup | None, timeout: timedelta | None) -> None:
        group = dist.group.WORLD if group is None else group
        assert group is not None
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self._ranks = dist.get_process_group_ranks(group)
        self._others = [(self.rank + step) % self.size for step in range(1, self.size)]
        # By default a new group would wait for half an hour, whatever this one does.
        self._timeout = _timeout_of(group) if timeout is None else timeout
        # Ranks outside of a part of them need not be here; groups are named by their ranks then, and a name must not be
        # used again, since others would find the addresses of those who had it: so such groups stay.
        self._part = group is not dist.group.WORLD
        self._backend = dist.get_backend(group) if self._part else None
        with self.failing():
            self._control = self._new("gloo")
            self._rows = self._new(self._backend)
        self._scores: dist.ProcessGroup | None = None
        self._gloo = _is_gloo(self._rows)
        self.forget()

    def _new(self, backend: str | None) -> dist.ProcessGroup:
        made = dist.new_group(self._ranks, timeout=self._timeout, backend=backend, use_local_synchronization=self._part)
        assert isinstance(made, dist.ProcessGroup)
        return made

    def open_scores(self) -> None:
        """Make what ranks need that agree on selections: all of them, once it is known that all do."""
        with self.failing():
            self._scores = self._new(self._backend)

    def close(self) -> None:
        """Give the connections and threads of the groups back: torch keeps groups until they are destroyed."""
        for group in () if self._part else (self._control, self._rows, self._scores):
            with suppress(ValueError, RuntimeError, AssertionError):  # all groups may have been destroyed at once
                if group is not None and dist.get_backend(group) == "gloo":  # of others all ranks have to, at once
                    dist.destroy_process_group(group)

    def forget(self) -> None:
        """Begin to count at nothing."""
        self._sent = dict.fromkeys(("rows", "indices", "scores", "control"), 0.0)

    def sent(self, dense: float | None) -> BytesSent:
        """Return what was sent since `forget`, besides dense gradients of so many bytes, which were summed."""
        counts = {name: round(size) for name, size in self._sent.items()}
        return BytesSent(**counts, dense=None if dense is None else round(dense * self._ring))

    @property
    def _ring(self) -> float:
        """How often a rank sends a tensor that is summed by a ring."""
        return 2 * (self.size - 1) / self.size

    def has_messages(self, device: torch.device) -> bool:
        """Whether what is on a device goes by messages, which find each other in any order, or by collectives."""
        return self._gloo and device.type == "cpu"

    def gather(self, mine: Tensor) -> tuple[Tensor, Pending]:
        """Begin to gather words of each rank, on the CPU: all have the same shape `(s,)`, and get `(P, s)`."""
        everyone = mine.new_empty(self.size, mine.numel())
        self._sent["control"] += (self.size - 1) * mine.nbytes
        return everyone, self._begun(_gather, everyone.view(-1), mine, group=self._control)

    def receive(self, everyone: Tensor, tag: int) -> Pending:
        """Begin to receive, by messages, what `gather_rows` gathers: the others may be ahead."""
        with self.failing():
            works = [self._rows.recv([everyone[rank]], rank, tag) for rank in self._others]
        return Pending(self, works, self._timeout)

    def gather_rows(
        self, everyone: Tensor, tag: int, *, indices: int, control: int, receiving: Pending | None = None
    ) -> Pending:
        """Begin to give the others this rank's part of `everyone` `(P, s)`, and to get theirs.

        Of its bytes some say which rows these are, and some how many. The tag, above `DENSE`, is no other's that are
        under way. What has been begun by `receive` goes on.
        """
        mine, times = everyone[self.rank], self.size - 1
        self._sent["rows"] += times * (mine.nbytes - indices - control)
        self._sent["indices"] += times * indices
        self._sent["control"] += times * control
        if not self.has_messages(everyone.device):
            return self._begun(_gather, everyone.view(-1), mine.clone(), group=self._rows)
        waiting = self.receive(everyone, tag) if receiving is None else receiving
        with self.failing():
            waiting.works += [self._rows.send([mine], rank, tag) for rank in self._others]
        return waiting

    def sum(self, tensor: Tensor, *, scores: bool = False, tag: int = 0) -> Pending:
        """Begin to add a contiguous tensor up over the ranks, in place: rows or scores; or dense gradients (`DENSE`).

        Sums of one tag are begun in one order on all ranks.
        """
        if tag != DENSE:  # what of these is sent is known beforehand
            self._sent["scores" if scores else "rows"] += self._ring * tensor.nbytes
        group = self._scores if scores else self._rows
        if self.size != PAIR or not self.has_messages(tensor.device):
            return self._begun(dist.all_reduce, tensor, group=group)
        assert group is not None
        other, peer = torch.empty_like(tensor), 1 - self.rank
        with self.failing():
            works = [group.recv([other], peer, tag), group.send([tensor], peer, tag)]
        return Pending(self, works, self._timeout, (tensor, other))

    def sum_in(self, tensor: Tensor, group: dist.ProcessGroup) -> Pending:
        """Begin to add a tensor up over the ranks, in place, in a group that is not one of these."""
        return self._begun(dist.all_reduce, tensor, group=group)

    def broadcast(self, tensor: Tensor) -> None:
        """Give all ranks the first one's tensor."""
        self._begun(dist.broadcast, tensor, src=self._ranks[0], group=self._rows).wait()

    def descriptions(self, mine: Any) -> list[Any]:
        """Return what each rank gives."""
        everyone: list[Any] = [None] * self.size
        with self.failing():
            dist.all_gather_object(everyone, mine, group=self._control)
        return everyone

    def total(self, number: int) -> int:
        """Return the sum of the ranks' numbers."""
        everyone, waiting = self.gather(torch.tensor([number]))
        waiting.wait()
        return int(everyone.sum())

    def _begun(self, collective: Any, *args: Any, **keywords: Any) -> Pending:
        with self.failing():
            return Pending(self, [collective(*args, **keywords, async_op=True)])

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Raise ExchangeError where torch or gloo fails."""
        try:
            yield
        except RuntimeError as error:
            raise self._failure(error) from None  # which says what gloo said

    def _failure(self, error: Exception) -> ExchangeError:
        """Return what is said when a collective has failed."""
        reason = re.sub(r"^\w+: (\[\S+:\d+\] )?", "", said(error)).partition(". ")[0]  # without gloo's advice
        return ExchangeError(
            f"rank {self.rank} of {self.size} cannot exchange gradients any more: another rank has ended or hangs, see"
            f" its output ({reason})"
        )


def _timeout_of(group: dist.ProcessGroup) -> timedelta | None:
    """Return how long a group waits for its ranks, None where it does not say."""
    for device in ("cpu", "cuda"):
        try:
            return group._get_backend(torch.device(device)).options._timeout
        except (RuntimeError, AttributeError):
            continue
    return None


def _is_gloo(group: dist.ProcessGroup) -> bool:
    """Whether gloo carries what a group sends from the CPU."""
    try:
        return bool(group._get_backend(torch.device("cpu")).name() == "gloo")
    except RuntimeError:
        return False
