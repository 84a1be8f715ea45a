"""Workloads: a case, set up to be checked and timed. The lowest layer that sees both the method and the instrument.

    setup(case) -> Prepared    two subjects, their check, their costs, and calls whose memory is measured, which run
                               steadily, or which are taken apart

The two sides do the same work on the same data and differ in the method alone. `check` has to pass in the process that
is then timed: a fast wrong gradient is not a result.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from meprop_bench.workloads.case import WORKLOADS, Case
from meprop_bench.workloads.dense_side import DenseSide, NoDenseSide, candidates, fastest
from meprop_bench.workloads.network import Tensors

if TYPE_CHECKING:
    from torch import Tensor

    from meprop_bench.measure.clock import Clock
    from meprop_bench.measure.paired import Subject
    from meprop_bench.ops.cost import Cost
    from meprop_bench.ops.kernels import Request

__all__ = ["After", "Call", "Case", "DenseSide", "LayerTensors", "Prepared", "choose", "setup"]

Call = Callable[[], object]


@dataclass(frozen=True)
class After:
    """A call that needs another one right before it, which is not measured: a backward pass after its forward pass."""

    before: Call
    call: Call

    def __call__(self) -> object:
        """Make both calls."""
        self.before()
        return self.call()


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerTensors:
    """What goes into one linear layer's backward pass, to run it stage by stage."""

    dy: Tensor  # incoming gradient, (B, n)
    x: Tensor  # input, (B, m)
    w: Tensor  # weight, (n, m)
    b: Tensor  # bias, (n,)
    need_dx: bool  # whether dx is needed: not of a model's first layer
    request: Request | None  # what the method requests of a kernel; None where the layer stays dense on both sides
    kernel: str  # the kernel that runs, or "dense"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A case that is ready to be timed; a pair is of baseline and method, and a phase may be missing in a mapping."""

    phases: tuple[str, ...]  # what both subjects time, in order
    baseline: Subject  # the dense side
    method: Subject  # the sparsified side
    check: Callable[[], str]  # compares the method with its definition; `PASSED`, or one line that says why not
    kernel: str  # that runs, where one was chosen ("auto" is none)
    k: float  # as resolved; of the mlp, as given, since its layers may differ
    costs: Mapping[str, tuple[Cost, Cost]] = field(default_factory=dict)  # what they have to compute and move
    memory: Mapping[str, tuple[Call, Call]] = field(default_factory=dict)  # calls whose memory is measured
    steady: Mapping[str, tuple[Call, Call]] = field(default_factory=dict)  # calls that can run for seconds
    layers: Callable[[], Sequence[LayerTensors]] = tuple  # the linear layers whose backward passes are timed, in order
    exchanged: Callable[[], Sequence[Tensors]] = tuple  # of a model in training: what ranks exchange of its gradients
    wire: Callable[[], Mapping[str, Any]] | None = None  # of several ranks: what a step of each side sends
    convertible: Mapping[str, tuple[str, float | None]] | None = None  # layers of a model: see `nn.kinds_and_k`
    converted: float | None = None  # share of the backward pass's operations that sparsified layers have, if counted
    data_published: bool | None = None  # whether the data are the published ones, by SHA-256; None where none is known
    dense_side: str | None = None  # how it is run, in words; None for the baseline "same"
    notes: tuple[str, ...] = ()  # what a reader should know, one line each

    @property
    def main(self) -> tuple[str, tuple[Call, Call]] | None:
        """The phase that is run steadily, and its calls: the first of `steady`, else "step" or "backward" of `memory`.

        None when no call of this workload can be repeated.
        """
        if self.steady:
            return next(iter(self.steady.items()))
        return next(((phase, self.memory[phase]) for phase in ("step", "backward") if phase in self.memory), None)


def setup(case: Case, baseline: DenseSide | None = None) -> Prepared:
    """Set a case up in this process; its module (and torch with it) is loaded here, and torch set to its arithmetic.

    The dense side is run as the case says, or as `baseline`, which was chosen for one of the baseline "best". Where the
    optimizer of a user's model cannot be fused, it stays as it is, and a note says so. What is compiled is compiled
    now, for torch's number of threads; after that this process compiles nothing, until the next case is set up, which
    no longer has what this one compiled.

    Raises:
        UserError: it cannot be compiled.
        ValueError: the kernel requested cannot do the case.

    """
    from meprop_bench.measure.arithmetic import adopt
    from meprop_bench.workloads.compiled import compilation

    adopt(case.dtype)
    chosen = baseline or DenseSide.of(case)
    wanted = case.compile == "on" or chosen.compiled
    with compilation(wanted, keep_graph=not WORKLOADS[case.workload].trains) as made:
        try:
            prepared = _set_up(case, chosen)
        except NoDenseSide:
            if baseline is not None:
                raise
            chosen = replace(chosen, optimizer="plain")
            prepared = _set_up(case, chosen)
    dense_side = None if case.baseline == "same" and case.world_size == 1 else str(chosen)
    return replace(prepared, dense_side=dense_side, notes=(*prepared.notes, *chosen.notes(case), *made.notes()))


def choose(
    case: Case,
    clock: Clock,
    *,
    seconds: float,
    rng: random.Random,
    among: Sequence[DenseSide] | None = None,
) -> tuple[DenseSide, tuple[str, ...]]:
    """Return the fastest dense side of a case, and a line if it cannot be compiled; the rest is as for `setup`.

    `seconds` are those of each comparison; `among` are its candidates, the simplest first, all if nothing is said.
    """
    from meprop_bench.measure.arithmetic import adopt
    from meprop_bench.workloads.compiled import CannotCompile, compilation

    adopt(case.dtype)
    missing: list[str] = []
    plain, layer = replace(case, compile="off"), not WORKLOADS[case.workload].trains

    def subjects() -> Iterator[tuple[DenseSide, Subject]]:
        beside = False
        for candidate in candidates(case) if among is None else among:
            if candidate.compiled and missing:
                continue
            try:
                with compilation(candidate.compiled, keep_graph=layer, beside=beside):
                    subject = _set_up(plain, candidate).baseline
            except NoDenseSide:
                continue
            except CannotCompile as error:
                missing.append(f"the dense side is not compiled: {error.reason}")
            else:
                beside |= candidate.compiled
                yield candidate, subject

    return fastest(subjects(), clock, seconds=seconds, rng=rng), tuple(missing)


def _set_up(case: Case, baseline: DenseSide) -> Prepared:
    module = WORKLOADS[case.workload].module or case.workload
    prepared: Prepared = import_module(f"{__name__}.{module}").setup(case, baseline)
    if case.world_size == 1:
        return prepared
    from meprop_bench.workloads.data_parallel import spread

    return spread(case, prepared, baseline)
