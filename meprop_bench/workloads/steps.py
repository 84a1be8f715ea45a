"""A model in training as a subject that times its own phases, for every workload that trains one.

One step, phase by phase, on changing batches: forward (loss of the batch), backward (`loss.backward()`), update (the
optimizer), step (the three together). What else a workload times on the side stands apart from the steps.

Both sides of a case start from the same weights and see the same batches. Training changes the figures (neurons die,
moments become denormal numbers, which are slow), so a side goes back, outside the timed region, to where it started
after each `WALK` steps. What was timed is thus the beginning of training, on both sides alike.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from meprop_bench.measure.clock import Clock
from meprop_bench.measure.ranks import here
from meprop_bench.nn.sparsified import Sparsified
from meprop_bench.ops import resolve_k
from meprop_bench.ops.cost import expected_rows
from meprop_bench.training import Step
from meprop_bench.workloads import After, Call
from meprop_bench.workloads.case import Case
from meprop_bench.workloads.network import Tensors

__all__ = ["PHASES", "WALK", "TrainingSide", "own_batches", "sides", "tensors_of"]

PHASES = ("forward", "backward", "update", "step")

WALK = 32
"""Steps (and batches) of a side before it starts again: no favourite batch, and all of them fit in memory."""

_WARM_STEPS = 2
"""Steps before the state that a side starts from: the optimizer has its moments, and they are no longer zero.

No more than that, as each process takes them on both sides, and a step of a large model takes seconds.
"""


class TrainingSide:
    """One side in training over `WALK` batches; `apart` has phase -> a call that is timed beside, as often as steps."""

    def __init__(
        self, step: Step, stream: Sequence[Any], apart: Mapping[str, Callable[[], object]] | None = None
    ) -> None:
        self.batches = stream
        self._at = 0  # steps since the start
        self._part = 0  # of the batches of a step, where gradients are added up
        self._many, self._count = step.accumulate, len(stream)
        self._loss: Tensor | None = None
        self._apart = apart or {}
        self.step = step
        for number in range(_WARM_STEPS):
            self.step(self._of_step(number))
        self._weights = {name: tensor.detach().clone() for name, tensor in self._tensors()}
        self._moments = {parameter: copy.deepcopy(state) for parameter, state in self.step.optimizer.state.items()}

    def __call__(self, loops: int, clock: Clock) -> Mapping[str, float]:
        """Time `loops` steps, phase by phase, and as many calls of what stands apart."""
        forward = self._forward if self._many == 1 else self._forward_part
        phases: dict[str, Call] = {}
        for part in range(self._many):
            phases |= {f"forward {part}": forward, f"backward {part}": self.backward}
        phases["update"] = self.update
        totals = dict.fromkeys(PHASES[:3], 0.0)
        done = 0
        while done < loops:
            count = min(loops - done, WALK)
            if self._at + count > WALK:
                self.restart()
            for name, seconds in clock.time_phases(phases, count).items():
                totals[name.split()[0]] += seconds * count / loops
            done += count
        apart = {name: clock.time(call, loops) for name, call in self._apart.items()}
        return {**totals, "step": sum(totals.values()), **apart}

    def whole_step(self) -> None:
        """Take one training step on the first batch."""
        self.step(self._of_step(0))

    def first_forward(self) -> Tensor:
        """Compute the loss of the first batch, without gradients from before."""
        self.step.optimizer.zero_grad(set_to_none=True)
        self._loss = self.step.forward(self.batches[0])
        return self._loss

    def next_pass(self) -> None:
        """Compute loss and gradients of the next batch; every `WALK` steps, start again first."""
        if self._at >= WALK:
            self.restart()
        self.step.optimizer.zero_grad(set_to_none=True)
        for _ in range(self._many):
            self._forward_part()
            self.backward()

    def next_step(self) -> None:
        """Take one training step and go on to the next batch; every `WALK` steps, start again first."""
        if self._at >= WALK:
            self.restart()
        self.step(self._of_step(self._at))
        self._at += 1

    def walk(self) -> None:
        """Take all steps once and go back: what depends on the shapes of batches has then been done."""
        for _ in range(WALK):
            self.next_step()
        self.restart()

    def _of_step(self, number: int) -> Any:
        """Return the batch of a step, or its batches where their gradients are added up."""
        many, count = self._many, len(self.batches)
        found = [self.batches[(number * many + part) % count] for part in range(many)]
        return found[0] if many == 1 else found

    def _forward(self) -> None:
        self._loss = self.step.forward(self.batches[self._at % self._count])

    def _forward_part(self) -> None:
        self._loss = self.step.forward(self.batches[(self._at * self._many + self._part) % self._count])
        self._part = (self._part + 1) % self._many

    def backward(self) -> None:
        """Compute all gradients, after a forward pass."""
        assert self._loss is not None
        self.step.backward(self._loss)

    def update(self) -> None:
        """Move the parameters and go on to the next batch."""
        self.step.update()
        self._at += 1

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.step.model.named_parameters()
        yield from self.step.model.named_buffers()

    @torch.no_grad()
    def restart(self) -> None:
        """Go back to where it started: parameters, buffers, and all that the optimizer holds.

        In place, where tensors are what they were. What came later goes (moments of a parameter that had no gradient
        before); a buffer that has grown (a cache of positions) stays.
        """
        self._at = self._part = 0
        self.step.optimizer.zero_grad(set_to_none=True)
        for name, tensor in self._tensors():
            start = self._weights.get(name)
            if start is not None and start.shape == tensor.shape:
                tensor.copy_(start)
        states = self.step.optimizer.state
        for parameter in [*states]:
            if parameter not in self._moments:
                del states[parameter]
                continue
            state, start = states[parameter], self._moments[parameter]
            for name in [*state]:
                if name not in start:
                    del state[name]
                elif isinstance(state[name], Tensor) and isinstance(start[name], Tensor):
                    state[name].copy_(start[name])
                else:
                    state[name] = copy.deepcopy(start[name])


class _StepSides(TypedDict):
    baseline: TrainingSide
    method: TrainingSide
    memory: Mapping[str, tuple[Call, Call]]
    steady: Mapping[str, tuple[Call, Call]]


def sides(baseline: TrainingSide, method: TrainingSide, **memory: tuple[Call, Call]) -> _StepSides:
    """Return what `Prepared` wants of the two sides; `memory` has the calls of phases that stand apart."""

    def both(make: Callable[[TrainingSide], Call]) -> tuple[Call, Call]:
        return make(baseline), make(method)

    of_a_step = {
        "step": both(lambda side: side.whole_step),
        "forward": both(lambda side: side.first_forward),
        "backward": both(lambda side: After(side.first_forward, side.backward)),
        "update": both(lambda side: After(side.next_pass, side.update)),
    }
    return {
        "baseline": baseline,
        "method": method,
        "memory": {**of_a_step, **memory},
        "steady": {"step": both(lambda side: side.next_step)},
    }


def own_batches(stream: Iterable[Any]) -> Iterator[Any]:
    """Yield of a stream the batches of this rank: each P-th one; all of a process by itself."""
    own = here()
    yield from stream if own is None else islice(stream, own.rank, None, own.size)


def tensors_of(model: nn.Module, case: Case) -> list[Tensors]:
    """Return what the gradients of a model are exchanged as, by rows where its layers give rows.

    Of selections of each example's own, the rows are as many as independent, uniform ones would choose.
    """
    rows: dict[int, float] = {}
    for layer in model.modules():
        if isinstance(layer, Sparsified) and getattr(layer, "sparse", False):
            weight: Any = layer.weight
            n, k = len(weight), resolve_k(layer.k, len(weight))
            if k < n:
                examples = case.batch * (case.length or 1)
                rows[id(weight)] = k if "unified" in layer.selection else expected_rows(examples, n, k)
    return [
        Tensors(len(each), each.numel() // len(each), rows.get(id(each)))
        for each in model.parameters()
        if each.requires_grad
    ]
