"""Both sides of a model in training, each by several processes: what a step takes when gradients have to be exchanged.

    dense     torch's DistributedDataParallel, plain or with a hook that compresses (`dense-exchange`)
    method    `meprop_bench.distributed`: row gradients gathered or agreed, everything else as dense (`exchange`)

Each rank has batches of its own, all start from rank 0's weights and moments, and a value is that of the slowest rank.
A step is forward + backward + communication + update, of which

    backward        the same pass of a copy of the model that exchanges nothing, timed right before or after the step by
                    all ranks (`no_sync` would not do: ranks agree on what they select in there, too)
    communication   the step's own backward pass less that one: what of the exchange is not hidden behind the pass, with
                    the copies that it needs and what gloo's threads take of the cores meanwhile

so that the four add up to the step. A difference below zero is one that cannot be told from none: it is put down as
`ranks.HIDDEN_S`, and the phase is left out where that is so of more than a few values.

The check, besides that of each rank's own layers in one process: the gradients after the exchange are the mean of what
the ranks have without one, computed by a copy of the model (gathered, and dense); or those of one process that has all
batches in one (agreed). What a step sends is counted by the kernel (`measure.wire`) and by the library itself, and
predicted (`workloads.network`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from meprop_bench.distributed import DataParallel
from meprop_bench.errors import UserError
from meprop_bench.measure.clock import Clock
from meprop_bench.measure.procfs import Unavailable
from meprop_bench.measure.ranks import HIDDEN_S, RankClock, Ranks, here
from meprop_bench.measure.wire import sent_bytes
from meprop_bench.results.schema import PASSED
from meprop_bench.training import Step
from meprop_bench.workloads import Prepared
from meprop_bench.workloads.case import Case
from meprop_bench.workloads.check import compare
from meprop_bench.workloads.dense_side import DenseSide
from meprop_bench.workloads.network import agreed, dense, gathered
from meprop_bench.workloads.steps import WALK, TrainingSide, sides, tensors_of

__all__ = ["PHASES", "spread"]

PHASES = ("forward", "backward", "communication", "update", "step")

_TIMES = {"ddp": 1.0, "gathered": 1.0, "agreed": 100.0, "fp16": 5000.0, "bf16": 5000.0}
"""Exchange -> times the tolerance of a gradient: the order of additions; that of one process, which multiplies matrices
of another size, through all layers; and what 16 bits leave of numbers that are small in them. PowerSGD's gradients are
others by design."""

_TRIES = 3
"""Batches to compare agreed gradients on: rounding may exchange two neurons whose scores are equal but for it."""

_COUNTED = 4
"""Steps over which bytes are counted."""


def spread(case: Case, prepared: Prepared, how: DenseSide) -> Prepared:
    """Return the sides of a case, set up in this process alone, as those of all ranks."""
    own = here()
    if own is None or own.size != case.world_size:
        raise UserError(f"--world-size {case.world_size} is measured by speedup alone: leave it out here")
    outcome, found = prepared.check(), []  # of the layers, while they are as one process has them
    for exchange, side in ((how.exchange, prepared.baseline), (case.exchange or "", prepared.method)):
        assert isinstance(side, TrainingSide)
        _start_alike(side.step)
        alone = replace(side.step, model=copy.deepcopy(side.step.model))
        step = replace(side.step, model=_reduced(side.step.model, exchange))
        found.append(_Exchanged(exchange, _RankSide(step, alone, side.batches, own), case))
    baseline, method = found
    both = sides(baseline.side, method.side)
    return replace(
        prepared,
        baseline=both["baseline"],
        method=both["method"],
        memory=both["memory"],
        steady={},
        phases=PHASES,
        check=lambda: _agreed_check(own, outcome, found),
        wire=lambda: _wire(own, found, sockets=case.device == "cpu"),
        converted=None,  # what bounds a step of one process does not bound this one
        notes=(*prepared.notes, *_remarks(case, how)),
    )


def _remarks(case: Case, how: DenseSide) -> Iterator[str]:
    yield (
        f"{case.world_size} ranks with {case.threads} thread{'s' * (case.threads > 1)} and a batch of {case.batch}"
        f" each, by {'gloo' if case.device == 'cpu' else 'NCCL'}; times are the slowest rank's"
    )
    if how.exchange == "powersgd":
        yield (
            "PowerSGD exchanges an approximation of rank 1 of each gradient, another algorithm than dense training, in"
            " one bucket, as with several its hook fails over gloo"
        )


def _start_alike(step: Step) -> None:
    """Give all ranks rank 0's weights, buffers and moments."""
    tensors: list[Any] = [*step.model.parameters(), *step.model.buffers()]
    for state in step.optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, Tensor)]
    for tensor in tensors:
        dist.broadcast(tensor.detach(), 0)


def _reduced(model: nn.Module, exchange: str) -> nn.Module:
    """Return a model whose gradients are those of all ranks."""
    if exchange in ("gathered", "agreed"):
        return DataParallel(model, exchange=exchange)  # type: ignore[arg-type]
    # PowerSGD goes on in callbacks, which gloo runs in any order: with several buckets ranks would not sum the same.
    one = math.ceil(sum(each.nbytes for each in model.parameters()) / 2**20) if exchange == "powersgd" else None
    wrapped = DistributedDataParallel(model, bucket_cap_mb=one)
    if exchange in ("fp16", "bf16"):
        wrapped.register_comm_hook(None, getattr(default_hooks, f"{exchange}_compress_hook"))
    elif exchange == "powersgd":
        state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
        wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    return wrapped


class _RankSide(TrainingSide):
    """One rank of a side in training, whose times are those of the slowest rank; `alone` exchanges nothing."""

    def __init__(self, step: Step, alone: Step, stream: Sequence[Any], own: Ranks) -> None:
        self.alone, self._ranks = alone, own
        super().__init__(step, stream)

    def __call__(self, loops: int, clock: Clock) -> Mapping[str, float]:
        """Time `loops` steps, phase by phase, each with the same passes without exchange before it or after."""
        own = clock.own if isinstance(clock, RankClock) else clock
        totals = dict.fromkeys(PHASES[:-1], 0.0)
        for _ in range(loops):
            if self._at >= WALK:
                self.restart()
            alone_first = self._at % 2 == 0
            alone_s = self._alone(own) if alone_first else 0.0
            self._ranks.barrier()
            found = own.time_phases({"forward": self._forward, "backward": self.backward, "update": self.update}, 1)
            if not alone_first:
                alone_s = self._alone(own)
            parts = {**found, "backward": alone_s, "communication": found["backward"] - alone_s}
            for phase, seconds in parts.items():
                totals[phase] += seconds / loops
        slowest = self._ranks.slowest(totals)
        step = sum(slowest.values())
        return {**slowest, "communication": max(slowest["communication"], HIDDEN_S), "step": step}

    def _alone(self, clock: Clock) -> float:
        """Return the seconds of a backward pass without exchange, which leaves no gradients."""
        self._ranks.barrier()
        taken = clock.time_phases({"forward": self._forward_alone, "backward": self._backward_alone}, 1)
        self.alone.model.zero_grad(set_to_none=True)
        return taken["backward"]

    def _forward_alone(self) -> None:
        self._loss_alone = self.alone.forward(self.batches[self._at % self._count])

    def _backward_alone(self) -> None:
        self.alone.backward(self._loss_alone)


@dataclass
class _Exchanged:
    """One side of all ranks."""

    exchange: str
    side: _RankSide
    case: Case

    def difference(self, own: Ranks, number: int) -> str | None:
        """Say which gradient of a batch is not what the exchange has to give; None where all are."""
        if self.exchange not in _TIMES:
            return None
        step, alone, batch = self.side.step, self.side.alone, self.side.batches[number % len(self.side.batches)]
        inner: Any = step.model.module
        alone.model.load_state_dict(inner.state_dict())
        got = self._gradients(step, inner, batch)
        if self.exchange == "agreed":
            true = self._gradients(alone, alone.model, _joined(own.every(batch)))
        else:
            true = self._gradients(alone, alone.model, batch)
            for name in sorted(true):
                dist.all_reduce(true[name])
                true[name].div_(own.size)
        if got.keys() != true.keys():
            return f"only one of both has the gradient of {min(got.keys() ^ true.keys())}"
        names = sorted(got)
        mine, theirs = ([found[name] for name in names] for found in (got, true))
        return compare(mine, theirs, names, times=_TIMES[self.exchange])

    def _gradients(self, step: Step, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        torch.manual_seed(self.case.seed)
        model.zero_grad(set_to_none=True)
        step.backward(step.forward(batch))
        found = {name: p.grad.to_dense().clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad(set_to_none=True)
        return found

    def predicted(self, ranks: int) -> float:
        """Return the bytes that a rank sends in a step."""
        tensors = tensors_of(self.side.alone.model, self.case)
        if self.exchange == "gathered":
            return gathered(tensors, ranks).bytes
        return agreed(tensors, ranks).bytes if self.exchange == "agreed" else dense(tensors, ranks, self.exchange).bytes


def _joined(batches: list[Any]) -> Any:
    """Return the batches of all ranks as one."""
    if isinstance(batches[0], Tensor):
        return torch.cat(batches)
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


def _agreed_check(own: Ranks, outcome: str, both: Sequence[_Exchanged]) -> str:
    """Return what all ranks found out together, beginning with their layers: none may be timed where one is wrong."""
    if (wrong := _first(own, outcome)) is not None:
        return wrong
    for side in both:
        found: str | None = None
        for number in range(_TRIES if side.exchange == "agreed" else 1):
            found = _first(own, side.difference(own, number) or PASSED)
            if found is None:
                break
        if found is not None:
            return f"{side.exchange} gradients after the exchange, {found}"
    return PASSED


def _first(own: Ranks, outcome: str) -> str | None:
    """Return the first rank's line that is not `PASSED`; None where all have passed."""
    return next((f"rank {rank}: {one}" for rank, one in enumerate(own.every(outcome)) if one != PASSED), None)


def _wire(own: Ranks, both: Sequence[_Exchanged], *, sockets: bool) -> Mapping[str, Any]:
    """Return the bytes that a rank sends in a step of each side: predicted, as the library counts, and as the kernel
    does where they go through sockets.
    """
    found: list[dict[str, float | None]] = []
    reason = None if sockets else "NCCL sends past the sockets"
    for side in both:
        own.barrier()
        before = _sent()
        for _ in range(_COUNTED):
            side.side.next_step()
        after = _sent()
        measured = None
        if reason is None and before is not None and after is not None:
            measured = sum(own.every((after - before) / _COUNTED)) / own.size
        model = side.side.step.model
        counted = model.bytes_sent.total if isinstance(model, DataParallel) else None
        found.append({"predicted": side.predicted(own.size), "measured": measured, "counted": counted})
        if measured is None and reason is None:
            reason = "this system does not tell what a socket has sent"
    return {"sides": found, "unavailable": reason}


def _sent() -> int | None:
    try:
        return sent_bytes()
    except Unavailable:
        return None
