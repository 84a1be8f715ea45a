"""How the dense side is run, and which optimizer each side of a model in training has.

    same    compiled if the method's side is; torch's optimizer as it comes, not fused, as in the papers
    fused   the same with torch's fused optimizer, which computes the same in one pass over the parameters
    best    the fastest of {eager, compiled} × {as it comes, torch's fused, this package's compiled}

Several processes exchange its gradients as the axis `dense-exchange` says, whose "best" is found out likewise.

`fused` is what a model in training is held against unless it is said otherwise: nobody trains with a method who has not
taken that first. `best` costs a search. Which one is fastest is a property of the machine and of the dense work, so it
is measured: once for each dense work of a run, in one process, before anything else is timed, by interleaved pairs as
any other comparison; all processes then get the one that won. A later candidate has to win by more than `_WORTH`, so
that two that are equal do not change places from run to run, and the simplest is the first.

What computes the same is no part of the method, so the method's side has the dense side's optimizer, too, where its
gradients are dense. Weight gradients as rows take an optimizer for rows, of this package, whatever the dense side has.
That of AdaGrad and SGD is the same algorithm; `rowadam` and `rowadamw` are others, and their dense side has torch's
Adam and AdamW. Whether the method's side is compiled is the axis `compile`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from meprop_bench.errors import UserError
from meprop_bench.measure.paired import Subject, calibrate, measure_pairs, warm_up
from meprop_bench.optimizers import OF_DENSE, OPTIMIZERS, compiled, fused, is_fused, make_optimizer
from meprop_bench.results.axis import EXCHANGES
from meprop_bench.stats import median
from meprop_bench.workloads.case import WORKLOADS, Case

if TYPE_CHECKING:
    import torch
    from torch import nn

    from meprop_bench.measure.clock import Clock

__all__ = ["DenseSide", "NoDenseSide", "candidates", "fastest", "is_searched"]

_WORDS = {"plain": "", "fused": ", fused optimizer", "compiled": ", this package's optimizer"}
"""Optimizer of the dense side -> how a row says it."""

_WORTH = 1.01
_LEAST_PAIRS = 7
_WARM_S = 0.02


@dataclass(frozen=True)
class DenseSide:
    """How the dense side is run."""

    compiled: bool = False
    optimizer: str = "plain"  # torch's as it comes; "fused": torch's fused one; "compiled": this package's
    fused_step: bool = False  # one function without autograd, as the method's side has it
    exchange: str = ""  # how processes exchange its gradients, one of `EXCHANGES`; none of one process

    @classmethod
    def of(cls, case: Case) -> Self:
        """Return what a case asks for, where torch has it; ValueError for the best, which has to be found out."""
        if is_searched(case):
            raise ValueError("the best dense side has to be chosen before the case is set up")
        optimizer = "fused" if case.baseline == "fused" and _may_be_fused(case) else "plain"
        both = case.fused_step == "both"
        return cls(case.compile == "on", optimizer, both, case.dense_exchange or "")

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Build from a JSON object."""
        return cls(**record)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return asdict(self)

    @property
    def way(self) -> str:
        """How its steps are computed."""
        return "fused step" if self.fused_step else "compiled" if self.compiled else "eager"

    def __str__(self) -> str:
        """Name it as a row does: "compiled, fused optimizer"."""
        return self.way + _WORDS[self.optimizer] + (f", {EXCHANGES[self.exchange]}" if self.exchange else "")

    def optimizer_of(
        self, case: Case, parameters: Iterable[nn.Parameter], *, sparsified: bool
    ) -> torch.optim.Optimizer:
        """Return the optimizer of one side of a case; `NoDenseSide` where there is no such one here."""
        if sparsified and case.gradient == "rows":
            return make_optimizer(case.optimizer, parameters, gradient="rows")
        name = OF_DENSE.get(case.optimizer, case.optimizer)
        return self.made_of(make_optimizer(name, parameters), case)

    def made_of(self, optimizer: torch.optim.Optimizer, case: Case) -> torch.optim.Optimizer:
        """Return an optimizer of dense gradients as this one has it, before its first step.

        That of a task is fused as it is made, where torch has it, so that of the best a fused one would be the same
        once more.
        """
        if self.optimizer == "plain" or (
            self.optimizer == "fused" and case.baseline == "fused" and is_fused(optimizer)
        ):
            return optimizer
        found = fused(optimizer) if self.optimizer == "fused" else compiled(optimizer)
        if found is None:
            raise NoDenseSide(f"the optimizer of {case.label} cannot be {self.optimizer}, or is")
        return found

    def notes(self, case: Case) -> tuple[str, ...]:
        """Return what a reader should know of it, a line each."""
        found = []
        if is_searched(case):
            both = self.optimizer != "plain" and case.gradient == "dense"
            more = "; the method has that optimizer, too" if both else ""
            found.append(f"the dense side is {self}, the fastest here{more}")
        elif case.baseline == "fused" and self.optimizer != "fused":
            own = f"optimizer like that of {case.model}"
            name = own if case.optimizer == "own" else f"{case.optimizer} on {case.device}"
            found.append(f"torch has no fused {name}: the dense side's is as it comes")
        if case.gradient == "rows" and case.optimizer in OPTIMIZERS and WORKLOADS[case.workload].trains:
            found.append(OPTIMIZERS[case.optimizer].note)
        return tuple(found)


class NoDenseSide(UserError):
    """There is no such dense side here: nothing that a user did wrong."""


def _may_be_fused(case: Case) -> bool:
    """Whether torch has a fused step of a case's optimizer; of your own, that is known when it has been made."""
    if not WORKLOADS[case.workload].trains:
        return False
    if case.optimizer == "own":
        return True
    name = OF_DENSE.get(case.optimizer, case.optimizer)
    return case.device.partition(":")[0] in OPTIMIZERS[name].fused


def is_searched(case: Case) -> bool:
    """Whether the dense side is the fastest of several, which has to be found out."""
    return "best" in (case.baseline, case.dense_exchange)


def candidates(case: Case) -> tuple[DenseSide, ...]:
    """Return what the dense side of a case can be, the simplest first: several of "best", otherwise one."""
    if case.dense_exchange == "best":
        half = "fp16" if case.device == "cpu" else "bf16"
        return tuple(
            each for way in ("ddp", half, "powersgd") for each in candidates(replace(case, dense_exchange=way))
        )
    if case.baseline != "best":
        return (DenseSide.of(case),)
    ours = WORKLOADS[case.workload].trains and case.device == "cpu"
    optimizers = ["plain", *["fused"] * _may_be_fused(case), *["compiled"] * ours]
    both = case.fused_step == "both"
    eager = both or case.world_size > 1 or WORKLOADS[case.workload].uncompiled
    ways, exchange = (False,) if eager else (False, True), case.dense_exchange or ""
    return tuple(DenseSide(each, optimizer, both, exchange) for each in ways for optimizer in optimizers)


def fastest(
    subjects: Iterable[tuple[DenseSide, Subject]], clock: Clock, *, seconds: float, rng: random.Random
) -> DenseSide:
    """Return the fastest of several dense sides by a whole step, or a forward and a backward pass.

    Args:
        subjects: the candidates; each is taken when it meets the best one so far, so that two are there at a time.
        clock: the device's.
        seconds: of pairs for each meeting.
        rng: decides the order in pairs.

    """
    found = ((candidate, _whole(subject)) for candidate, subject in subjects)
    best, leader = next(found)
    for challenger, subject in found:
        for side in (leader, subject):
            warm_up(side, clock, seconds=_WARM_S)
        loops = max(calibrate(side, clock) for side in (leader, subject))
        pairs = measure_pairs(
            leader, subject, seconds=seconds, least_pairs=_LEAST_PAIRS, loops=loops, rng=rng, clock=clock
        )
        values = [pair.phases["whole"] for pair in pairs]
        if median([leader_s / challenger_s for leader_s, challenger_s in values]) > _WORTH:
            best, leader = challenger, subject
    return best


def _whole(subject: Subject) -> Subject:
    """Return a subject that times a step as one phase, or all of the phases of what has no step."""

    def timed(loops: int, clock: Clock) -> Mapping[str, float]:
        phases = subject(loops, clock)
        return {"whole": phases.get("step") or sum(phases.values())}

    return timed
