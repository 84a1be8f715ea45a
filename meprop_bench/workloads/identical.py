"""The method "dense": the baseline against itself, to measure the instrument instead of the papers.

    A/A        both sides are one step of one dense layer: y = x Wᵀ + b, then (dx, dW, db) of dy, in one call
    slowdown   the second side then waits for a share s of that time:  speed-up = 1 / (1 + s)

Two such sides differ by nothing, so what a run says of them is its error: the spread of the speed-up over repeats is
what the instrument resolves, and the share of repeats that are called slower is its rate of false alarms. With a
slowdown of known size the same repeats say how often one of that size is seen.

The wait is a loop that reads the clock: a sleep takes 50 µs at least, and an operation in its place would change the
caches, too. Around nothing it takes 0.25 µs (AMD EPYC), so a slowdown is that much larger than requested: 0.1% of a
step of 0.3 ms. How long to wait is found in each process by its first call, when it has the machine to itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

from torch import Tensor
from torch.nn import functional as F

from meprop_bench.measure.clock import Clock
from meprop_bench.measure.paired import Subject
from meprop_bench.ops.cost import linear_backward, linear_forward
from meprop_bench.results.schema import PASSED
from meprop_bench.stats import median
from meprop_bench.workloads import Call, Prepared
from meprop_bench.workloads.case import Case
from meprop_bench.workloads.check import compare
from meprop_bench.workloads.layer import timed_backward

__all__ = ["Slowed", "prepare"]

_WARM_NS = 50_000_000
_SEARCH_NS = 200_000_000
_LEAST, _MOST = 5, 1000
"""Calls behind the median that a slowdown is a share of."""


class Slowed:
    """A call that takes a share longer than another one.

    Args:
        call: what is done.
        share: of its median time, that each call waits after it.
        now: nanoseconds of a monotonic clock.

    """

    def __init__(self, call: Call, share: float, now: Callable[[], int] = time.perf_counter_ns) -> None:
        self._call, self._share, self._now = call, share, now
        self._wait_ns: int | None = None

    def __call__(self) -> object:
        """Make the call and wait; the first time, find out how long."""
        if self._wait_ns is None:
            self._wait_ns = round(self._share * self._usual_ns())
        found = self._call()
        now = self._now
        end = now() + self._wait_ns
        while now() < end:
            pass
        return found

    def _usual_ns(self) -> float:
        call, now = self._call, self._now
        begun = now()
        taken: list[int] = []
        while len(taken) < _LEAST or (now() - begun < _SEARCH_NS and len(taken) < _MOST):
            start = now()
            call()
            if (end := now()) - begun > _WARM_NS or end - start > _WARM_NS:
                taken.append(end - start)
        return median(taken)


def prepare(case: Case, x: Tensor, w: Tensor, b: Tensor, dy: Tensor) -> Prepared:
    """Return the two sides of a dense case.

    Args:
        case: its method is "dense".
        x: input, `(B, m)`, requires a gradient.
        w: weight, `(n, m)`, requires a gradient.
        b: bias, `(n,)`, requires a gradient.
        dy: incoming gradient, `(B, n)`.

    """

    def step() -> object:
        return timed_backward(F.linear(x, w, b), (x, w, b), dy)()

    again: Call = Slowed(step, case.slowdown) if case.slowdown else step

    def check() -> str:
        mine, expected = (list(cast("tuple[Tensor, ...]", side())) for side in (again, step))
        return compare(mine, expected) or PASSED

    shape = (case.batch, case.in_features, case.out_features, dy.element_size())
    cost = linear_forward(*shape) + linear_backward(*shape)
    return Prepared(
        phases=("step",),
        baseline=_subject(step),
        method=_subject(again),
        check=check,
        kernel="dense",
        k=case.k,
        costs={"step": (cost, cost)},
        memory={"step": (step, again)},
    )


def _subject(step: Call) -> Subject:
    def subject(loops: int, clock: Clock) -> dict[str, float]:
        return {"step": clock.time(step, loops)}

    return subject
