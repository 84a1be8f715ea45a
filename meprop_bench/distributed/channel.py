"""The collectives of one model's exchanges: process groups of their own, bytes counted, errors in one line.

Collectives of one group have to come in the same order on all ranks. Those of torch's DistributedDataParallel are
launched from C++ when its buckets are full, ours from Python when rows are there; in one group the two could interleave
differently on two ranks, and a rank would add up what does not belong together. So there are groups of our own:

    control   gloo: how many rows there are; on the CPU, as the host has to know
    rows      the backend of the model's process group: the rows themselves
    scores    the same: what neurons are selected by, which somebody waits for, and which must not queue behind rows
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from meprop_bench.optional import said

__all__ = ["BytesSent", "Channel", "ExchangeError", "Waiting"]

_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""By its new name, where torch has that."""


class ExchangeError(RuntimeError):
    """An exchange with the other processes failed, in one line: one has ended or hangs, or they do different things."""


class BytesSent(NamedTuple):
    """Bytes that this rank sent, by what they are for, in the last step whose gradients were exchanged.

    They are counted from the tensors that were given to collectives, as rings send them: of P ranks, (P - 1) times the
    size of a tensor that is gathered, 2 (P - 1) / P times that of one that is summed. What a network adds to that is
    not in it.
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


class Waiting:
    """A collective that is under way."""

    def __init__(self, channel: Channel, work: Any) -> None:
        self._channel, self._work = channel, work

    def done(self) -> bool:
        """Whether `wait` would not wait; also when it has failed."""
        return bool(self._work.is_completed())

    def wait(self) -> None:
        """Wait until the result is there; ExchangeError where it will never be."""
        try:
            self._work.wait()
        except RuntimeError as error:
            raise self._channel.failure(error) from error


class Channel:
    """The process groups: see the module.

    Args:
        group: of the ranks that train the model together; None for all.
        timeout: how long to wait for the others, None for as long as `group` does.
        scores: whether ranks agree on selections.

    """

    def __init__(self, group: dist.ProcessGroup | None, timeout: timedelta | None, *, scores: bool) -> None:
        group = dist.group.WORLD if group is None else group
        assert group is not None
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self._ranks = dist.get_process_group_ranks(group)
        # By default a new group would wait for half an hour, whatever this one does.
        self._timeout = _timeout_of(group) if timeout is None else timeout
        # Ranks outside of a part of them need not be here; groups are named by their ranks then, and a name must not be
        # used again, since others would find the addresses of those who had it: so such groups stay.
        self._part = group is not dist.group.WORLD
        backend = dist.get_backend(group) if self._part else None
        try:
            self._control = self._new("gloo")
            self._rows = self._new(backend)
            self._scores = self._new(backend) if scores else None
        except RuntimeError as error:
            raise self.failure(error) from error
        self.forget()

    def _new(self, backend: str | None) -> dist.ProcessGroup:
        made = dist.new_group(self._ranks, timeout=self._timeout, backend=backend, use_local_synchronization=self._part)
        assert isinstance(made, dist.ProcessGroup)
        return made

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

    def gather(self, mine: Tensor, *, indices: int | None = None, control: int = 0) -> tuple[Tensor, Waiting]:
        """Begin to gather a tensor of each rank: counts; or rows, of which so many bytes say which, and are counts.

        All ranks have the same shape `(s,)`, and get `(P, s)`.
        """
        everyone = mine.new_empty(self.size, mine.numel())
        size, times = mine.numel() * mine.element_size(), self.size - 1
        group = self._control if indices is None else self._rows
        if indices is None:
            indices, control = 0, size
        self._sent["rows"] += times * (size - indices - control)
        self._sent["indices"] += times * indices
        self._sent["control"] += times * control
        return everyone, self._begun(_gather, everyone.view(-1), mine, group=group)

    def sum(self, tensor: Tensor, *, scores: bool = False) -> Waiting:
        """Begin to add a contiguous tensor up over the ranks, in place: rows or scores."""
        self._sent["scores" if scores else "rows"] += self._ring * tensor.numel() * tensor.element_size()
        return self._begun(dist.all_reduce, tensor, group=self._scores if scores else self._rows)

    def broadcast(self, tensor: Tensor) -> None:
        """Give all ranks the first one's tensor."""
        self._begun(dist.broadcast, tensor, src=self._ranks[0], group=self._rows).wait()

    def descriptions(self, mine: Any) -> list[Any]:
        """Return what each rank gives."""
        everyone: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(everyone, mine, group=self._control)
        except RuntimeError as error:
            raise self.failure(error) from error
        return everyone

    def total(self, number: int) -> int:
        """Return the sum of the ranks' numbers."""
        everyone, waiting = self.gather(torch.tensor([number]))
        waiting.wait()
        return int(everyone.sum())

    def _begun(self, collective: Any, *args: Any, **keywords: Any) -> Waiting:
        try:
            return Waiting(self, collective(*args, **keywords, async_op=True))
        except RuntimeError as error:
            raise self.failure(error) from error

    def failure(self, error: Exception) -> ExchangeError:
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
