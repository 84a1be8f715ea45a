"""How many of torch's operators a method calls: a count without noise, and the better part of a small layer's cost.

At B = 10 and h = 500 a backward pass is a dozen operators of 2 to 5 microseconds each; one more of them is a regression
that no stopwatch sees on a busy machine. A dispatch mode sees each operator below autograd once, those that autograd's
engine calls included; what a compiled kernel does by itself is not an operator, and counts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from meprop_bench.sweep.worker import WorkerSession
from meprop_bench.workloads import After

__all__ = ["count"]


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    observes = True
    """Lets the layers run the kernel that is counted, instead of operators alone: see `ops.plain`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def count(session: WorkerSession) -> Mapping[str, Any]:
    """Count the operators of the method's phases, in a pass of its own: counting slows what it counts.

    Of `After`, the second call alone is counted.
    """
    prepared, _ = session.passed()
    counts = {}
    for phase, (_, call) in prepared.memory.items():
        if isinstance(call, After):
            call.before()
        with _Count() as counted:
            (call.call if isinstance(call, After) else call)()
        counts[phase] = counted.calls
    return {"operators": counts}
