"""What every workload gives to be measured: two subjects, their check, their costs, and calls whose memory is measured,
which run steadily, or which are taken apart.

The two sides do the same work on the same data and differ in the method alone. `check` has to pass in the process that
is then timed: a fast wrong gradient is not a result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meprop_bench.measure.paired import Subject
from meprop_bench.ops.cost import Cost
from meprop_bench.results.schema import PASSED

if TYPE_CHECKING:
    from torch import Tensor

    from meprop_bench.ops.kernels import Request

__all__ = ["PASSED", "After", "Call", "Layer", "Prepared"]

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
class Layer:
    """What goes into one linear layer's backward pass, to run it stage by stage.

    Attributes:
        dy: incoming gradient, (B, n).
        x: input, (B, m).
        w: weight, (n, m).
        b: bias, (n,).
        need_dx: whether dx is needed: not of a model's first layer.
        request: what the method requests of a kernel; None where the layer stays dense on both sides.
        kernel: the kernel that runs, or "dense".

    """

    dy: Tensor
    x: Tensor
    w: Tensor
    b: Tensor
    need_dx: bool
    request: Request | None
    kernel: str


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A case that is ready to be timed.

    Attributes:
        phases: what both subjects time, in order.
        baseline: the dense side.
        method: the sparsified side.
        check: compares the method with its definition; `PASSED`, or one line that says why not.
        kernel: the kernel that runs, where one was chosen ("auto" is none).
        k: as resolved; of the mlp, as given, since its layers may differ.
        costs: phase -> (baseline, method): what the definitions say they must compute and move. A phase may be missing.
        memory: phase -> (baseline, method): calls whose memory is measured, `After` another one where need be. A phase
            may be missing.
        steady: phase -> (baseline, method): calls that may be repeated for seconds while the machine is watched; the
            first phase is the one that is. Without any: "step" of `memory`, else "backward".
        layers: the linear layers whose backward passes are timed, in order; empty where there are others.
        data_published: whether the data are those that were published, by their SHA-256; None where none is known.
        notes: what a reader should know, one line each.

    """

    phases: tuple[str, ...]
    baseline: Subject
    method: Subject
    check: Callable[[], str]
    kernel: str
    k: float
    costs: Mapping[str, tuple[Cost, Cost]] = field(default_factory=dict)
    memory: Mapping[str, tuple[Call, Call]] = field(default_factory=dict)
    steady: Mapping[str, tuple[Call, Call]] = field(default_factory=dict)
    layers: tuple[Layer, ...] = ()
    data_published: bool | None = None
    notes: tuple[str, ...] = ()

    @property
    def main(self) -> tuple[str, tuple[Call, Call]] | None:
        """The phase that is run steadily, and its calls; None when no call of this workload can be repeated."""
        if self.steady:
            return next(iter(self.steady.items()))
        return next(((phase, self.memory[phase]) for phase in ("step", "backward") if phase in self.memory), None)
