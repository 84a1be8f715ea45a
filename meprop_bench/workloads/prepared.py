"""What every workload hands to whoever measures it: two subjects, their check, their costs, and calls to weigh their
memory.

The two sides do the same work on the same data and differ in the method alone. `check` has to pass in the process
that is then
timed: a fast wrong gradient is not a result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from meprop_bench.measure.paired import Subject
from meprop_bench.ops.cost import Cost
from meprop_bench.results.schema import PASSED

__all__ = ["PASSED", "Prepared"]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A case that is ready to be timed.

    Attributes:
        phases: what both subjects time, in order.
        baseline: the dense side.
        method: the sparsified side.
        check: compares the method with its definition; `PASSED`, or one line that says why not.
        kernel: the kernel that runs, where one was chosen ("auto" is a wish).
        k: as resolved; of the mlp, as asked for, since its layers may differ.
        costs: phase -> (baseline, method): what the definitions say they must compute and move. A phase may be missing.
        memory: phase -> (baseline, method): calls whose fresh tensors are weighed. A phase may be missing.
        notes: what a reader should know, one line each.

    """

    phases: tuple[str, ...]
    baseline: Subject
    method: Subject
    check: Callable[[], str]
    kernel: str
    k: float
    costs: Mapping[str, tuple[Cost, Cost]] = field(default_factory=dict)
    memory: Mapping[str, tuple[Callable[[], object], Callable[[], object]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
