"""What decoding costs before and after meSimp: a task's model as it was, and one cut to the sizes that training found.

    before    the dense model of the arm
    after     the same, its layers cut to so many neurons by `algorithms.removal`, as meSimp itself does
    decode    the task's own evaluation of the test set, which is what a user of the model pays: embeddings, parser
              states, the argmax included

Which neurons are left does not change what they cost, so the first ones stay; nothing here says how good the small
model is, which is what the trainings are for. Both are plain modules of torch.nn. Before anything is timed, the small
model's outputs on a batch are held against those of the large one whose other neurons are at zero (`removal.Masks`, the
authors' way): a cut that computes something else would have no time worth knowing.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from meprop_bench.algorithms.removal import Masks, remove
from meprop_bench.algorithms.structure import Group, Structure, trace
from meprop_bench.measure.clock import Clock, clock_for
from meprop_bench.measure.paired import Subject, measure_pairs
from meprop_bench.nn.evaluation import evaluation_mode
from meprop_bench.paper.arm import Arm
from meprop_bench.tasks.task import Task
from meprop_bench.workloads.check import compare

__all__ = ["Decoders", "cut", "multiplications"]

_KINDS = (nn.Linear, nn.RNNBase)
_LEAST_PAIRS = 2


def cut(model: nn.Module, sizes: Mapping[str, int]) -> None:
    """Cut layers of a model to so many neurons, in place.

    Args:
        model: dense.
        sizes: name of a layer, or of a cell of a recurrent one ("lstm.l0_reverse"), to the neurons that are left.

    Raises:
        ValueError: a layer that is not there, or more neurons than it has.

    """
    structure, keep = _staying(model, sizes)
    remove(structure, keep)


def _staying(model: nn.Module, sizes: Mapping[str, int]) -> tuple[Structure, dict[Group, Tensor]]:
    """Return where the model's neurons live, and which stay: the first ones."""
    layers: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _KINDS) and any(size == name or size.startswith(f"{name}.") for size in sizes)
    }
    structure = trace(model, layers)
    groups = {group.name: group for group in structure.groups}
    for name, size in sizes.items():
        if name not in groups or not 0 < size <= groups[name].size:
            has = ", ".join(f"{group.size} in {group.name}" for group in groups.values()) or "no such layer"
            raise ValueError(f"cannot leave {size} neurons in {name!r}: the model has {has}")
    return structure, {groups[name]: torch.arange(groups[name].size) < size for name, size in sizes.items()}


def multiplications(model: nn.Module) -> int:
    """Return the products of numbers that an item takes: one for each weight of the linear and recurrent layers."""
    layers = [module for module in model.modules() if isinstance(module, _KINDS)]
    return sum(weight.numel() for layer in layers for weight in layer.parameters() if weight.dim() == 2)


class Decoders:
    """The two models of an arm, ready to be timed.

    Args:
        arm: whose task, whose sizes before.
        sizes: after, as for `cut`.
        device: where.

    Raises:
        ValueError: sizes that the model cannot be cut to, or the cut model computes something else.

    """

    def __init__(self, arm: Arm, sizes: Mapping[str, int], device: str = "cpu") -> None:
        self._task, self._clock = arm.recipe(device).load(), clock_for(device)
        self.models = [self._task.build(seed=1) for _ in range(2)]
        cut(self.models[1], sizes)
        masked = self._task.build(seed=1)
        structure, keep = _staying(masked, sizes)
        Masks(structure).add(keep)
        batch = next(iter(self._task.epoch(0, 0)))
        small, large = (_outputs(self._task, model, batch) for model in (self.models[1], masked))
        if wrong := compare([small], [large], ["the cut model's output"]):
            raise ValueError(wrong)

    def multiplications(self) -> tuple[int, int]:
        """Return those of an item, before and after."""
        before, after = map(multiplications, self.models)
        return before, after

    def pairs(self, seconds: float, seed: int) -> list[tuple[float, float]]:
        """Return the seconds of decoding the test set, (before, after), in interleaved pairs."""
        before, after = (_decoding(self._task, model) for model in self.models)
        before(1, self._clock)
        after(1, self._clock)
        found = measure_pairs(
            before,
            after,
            seconds=seconds,
            least_pairs=_LEAST_PAIRS,
            loops=1,
            rng=random.Random(seed),
            clock=self._clock,
        )
        return [pair.phases["decode"] for pair in found]


@torch.no_grad()
def _outputs(task: Task, model: nn.Module, batch: Any) -> Tensor:
    """Return what the model makes of a batch, before the loss makes one number of it."""
    found: list[Tensor] = []
    hook = model.register_forward_hook(lambda _module, _inputs, output: found.append(output))
    with evaluation_mode(model):
        task.loss(model, batch)
    hook.remove()
    return found[0]


def _decoding(task: Task, model: nn.Module) -> Subject:
    def decode(loops: int, clock: Clock) -> Mapping[str, float]:
        return {"decode": clock.time(lambda: task.evaluate(model, "test"), loops)}

    return decode
