"""How the dense side is run: as the method's side, or on the strongest footing that there is here.

    same    compiled if the method's side is, the optimizer as the case has it
    best    the fastest of {eager, compiled} × {the optimizer as it is, the same one fused}

Which one is fastest is a property of the machine and of the dense work, so it is measured: once for each dense work of
a run, in one process, before anything else is timed, by interleaved pairs as any other comparison; all processes then
get the one that won. A later candidate has to win by more than `_WORTH`, so that two that are equal do not change
places from run to run, and the simplest is the first.

A fused optimizer is the same mathematics in one pass over the parameters, and nobody trains with a method without it
who has it when training densely: if it wins, the method's side has it, too, where its gradients allow (not as rows).
Whether the method's side is compiled is the axis `compile`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from meprop_bench.errors import UserError
from meprop_bench.measure.paired import Subject, calibrate, measure_pairs, warm_up
from meprop_bench.optimizers import OPTIMIZERS
from meprop_bench.results.axes import OWN
from meprop_bench.stats import median
from meprop_bench.workloads.case import WORKLOADS, Case

if TYPE_CHECKING:
    from meprop_bench.measure.clock import Clock

__all__ = ["Baseline", "Unavailable", "candidates", "fastest"]

_WORTH = 1.01
_LEAST_PAIRS = 7
_WARM_S = 0.02


@dataclass(frozen=True)
class Baseline:
    """How the dense side is run."""

    compiled: bool = False
    fused: bool = False  # the optimizer; of both sides

    @classmethod
    def same(cls, case: Case) -> Self:
        """Return how it is run as the method's side is; ValueError for a case that asks for the best."""
        if case.baseline == "best":
            raise ValueError("baseline 'best' has to be chosen before the case is set up")
        return cls(compiled=case.compile == "on")

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Build from a JSON object."""
        return cls(**record)

    def to_json(self) -> dict[str, bool]:
        """Return the JSON object."""
        return asdict(self)

    def __str__(self) -> str:
        """Name it as a row does: "compiled, fused optimizer"."""
        return ("compiled" if self.compiled else "eager") + (", fused optimizer" if self.fused else "")

    def note(self, case: Case) -> str:
        """Return what a reader should know where it was chosen."""
        both = self.fused and case.gradient == "dense"
        return f"the dense side is {self}, the fastest here" + ("; the method has that optimizer, too" if both else "")


class Unavailable(UserError):
    """There is no such dense side here: nothing that a user did wrong."""


def candidates(case: Case) -> tuple[Baseline, ...]:
    """Return what the dense side of a case can be, the simplest first: one of "same", several of "best"."""
    if case.baseline == "same":
        return (Baseline.same(case),)
    workload = WORKLOADS[case.workload]
    # Of any model the optimizer is known when it is made; that of a task is fused as it is.
    own = case.workload == OWN
    fused = workload.trains and (own or case.device.partition(":")[0] in OPTIMIZERS[case.optimizer].fused)
    return tuple(
        Baseline(compiled, optimizer)
        for compiled in (False, *(() if workload.uncompiled else (True,)))
        for optimizer in (False, *((True,) if fused else ()))
    )


def fastest(
    subjects: Iterable[tuple[Baseline, Subject]], clock: Clock, *, seconds: float, rng: random.Random
) -> Baseline:
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
