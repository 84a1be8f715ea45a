"""The ranks of a case: the processes of one data-parallel training, which are timed as one.

    every rank answers every request alike, step for step: what one decides by its clock, all decide by rank 0's
    barrier, timed, slowest        a value begins when all are there, and is that of the rank that took longest

A training step is over when its last rank is, so the time of a step is the slowest rank's. What ranks say to each other
about the measurement goes through a process group of its own (gloo, on the CPU), never within what is timed, and its
sockets are none of those whose bytes are counted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from meprop_bench.measure.clock import Clock

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed import ProcessGroup

__all__ = ["HIDDEN_S", "RankClock", "Ranks", "here", "join"]

HIDDEN_S = 1e-9
"""What is put down for a difference of two times that is not above zero."""

Value = TypeVar("Value")

_PATIENCE = timedelta(days=30)
"""For which a rank waits for the next request: other processes may measure for hours meanwhile."""


class Ranks:
    """This process among its ranks: `rank` of `size`."""

    def __init__(self, rank: int, size: int, control: ProcessGroup) -> None:
        self.rank, self.size, self._control = rank, size, control

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        import torch.distributed as dist

        dist.barrier(group=self._control)

    def share(self, value: Value | None) -> Value:
        """Return rank 0's value, anything that can be pickled; what the others give is not looked at."""
        import torch.distributed as dist

        found: list[Any] = [value]
        dist.broadcast_object_list(found, src=0, group=self._control)
        result: Value = found[0]
        return result

    def every(self, value: Value) -> list[Value]:
        """Return the values of all ranks, in their order."""
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self._control)
        return found

    def now(self) -> float:
        """Return rank 0's wall seconds."""
        return self._agreed([time.perf_counter()])[0]

    def spent_s(self) -> float:
        """Return the CPU seconds of all ranks so far, all their threads: to each other they are no strangers."""
        return sum(self.every(time.process_time()))

    def slowest(self, phases: Mapping[str, float]) -> dict[str, float]:
        """Return the seconds of the rank whose phases together took longest; all ranks have the same phases."""
        import torch
        import torch.distributed as dist

        own = torch.tensor(list(phases.values()), dtype=torch.float64)
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own, group=self._control)
        return dict(zip(phases, max(found, key=lambda one: float(one.sum())).tolist(), strict=True))

    def _agreed(self, values: list[float]) -> list[float]:
        import torch
        import torch.distributed as dist

        found = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(found, src=0, group=self._control)
        result: list[float] = found.tolist()
        return result


_here: Ranks | None = None


def here() -> Ranks | None:
    """Return the ranks that this process is one of; None of a process by itself."""
    return _here


def join(rank: int, size: int, device: str) -> Ranks:
    """Meet the other ranks where the environment says (`MASTER_ADDR`, ...), once; gradients go through the default
    group, of gloo, and on a CUDA device of NCCL.
    """
    global _here  # noqa: PLW0603  which ranks it is one of is a fact of the process
    import torch.distributed as dist

    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, rank=rank, world_size=size)
    _here = Ranks(rank, size, dist.new_group(backend="gloo", timeout=_PATIENCE))
    return _here


class RankClock:
    """A clock that all ranks read alike: each call begins when all are there and takes as long as the slowest.

    `own` is this rank's.
    """

    def __init__(self, own: Clock, ranks: Ranks) -> None:
        self.own, self.ranks = own, ranks

    def now(self) -> float:
        """Return rank 0's wall seconds."""
        return self.ranks.now()

    def synchronize(self) -> None:
        """Wait until this rank's device has finished what was launched."""
        self.own.synchronize()

    def time(self, fn: Callable[[], object], loops: int) -> float:
        """Return the seconds of one call of `fn`, made by all ranks."""
        self.ranks.barrier()
        return self.ranks.slowest({"call": self.own.time(fn, loops)})["call"]

    def time_phases(self, phases: Mapping[str, Callable[[], object]], loops: int) -> dict[str, float]:
        """Return the seconds of each phase for one round, of the rank whose round took longest."""
        self.ranks.barrier()
        return self.ranks.slowest(self.own.time_phases(phases, loops))
