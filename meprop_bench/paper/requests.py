"""What a worker answers for the tables: it trains one arm after the other, counts data, and times decoding.

train_arm   {arm, seed, device}   -> the training, as `records.TrainedArm` has it
examples    {source}              -> column -> how many examples the data have
cut         {arm, sizes, device}  -> multiplications of an item, before and after; both models wait to be timed
decode      {seconds, seed}       -> pairs: seconds of decoding the test set, before and after

Decoding is the task's own evaluation of the test set, which is what a user of the model pays: embeddings, parser
states, the argmax included. *Before* is the dense model of the arm; *after* is the same, its layers cut to so many
neurons by `algorithms.removal`, as meSimp itself does. Which neurons are left does not change what they cost, so the
first ones stay; nothing here says how good the small model is, which is what the trainings are for. Both are plain
modules of torch.nn. Before anything is timed, the small model's outputs on a batch are held against those of the large
one whose other neurons are at zero (`removal.Masks`, the authors' way): a cut that computes something else would have
no time worth knowing.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from meprop_bench.algorithms.removal import Masks, remove
from meprop_bench.algorithms.structure import Group, Structure, trace
from meprop_bench.data import load_images
from meprop_bench.measure.clock import Clock, clock_for
from meprop_bench.measure.paired import Subject, measure_pairs
from meprop_bench.nn.evaluation import evaluation_mode
from meprop_bench.paper.arm import PaperArm
from meprop_bench.paper.arm import train_arm as trained_arm
from meprop_bench.tasks.task import Task
from meprop_bench.workloads.check import compare

if TYPE_CHECKING:
    from meprop_bench.sweep.worker import WorkerSession

__all__ = ["Decoders", "cut_layers", "multiplications"]

_KINDS = (nn.Linear, nn.RNNBase)


def train_arm(session: WorkerSession, arm: Mapping[str, Any], seed: int, device: str) -> Mapping[str, Any]:
    """Train one arm from one seed."""
    trained = trained_arm(PaperArm.from_json(arm), seed, device=device, environment_id=session.environment_id)
    return replace(trained, git_revision=session.environment.get("git_revision")).to_json()


def examples(session: WorkerSession, source: str) -> Mapping[str, Any]:
    """Count the examples of a data set of images, each of which is one classification; and whether it is published.

    `published` is a number among numbers: 0 of data that are not the published ones, else 1.
    """
    data = load_images(source)
    parts = {"train": data.train, "dev": data.dev, "test": data.test}
    counts = {f"{name}_{what}": len(part) for name, part in parts.items() for what in ("size", "items")}
    return counts | {"published": int(data.published is not False)}


def cut(session: WorkerSession, arm: Mapping[str, Any], sizes: Mapping[str, int], device: str) -> Mapping[str, Any]:
    """Build the arm's model, and once more with its layers cut to these sizes."""
    session.loaded["decoders"] = decoders = Decoders(PaperArm.from_json(arm), sizes, device)
    return {"multiplications": tuple(map(multiplications, decoders.models))}


def decode(session: WorkerSession, seconds: float, seed: int) -> Mapping[str, Any]:
    """Time the decoding of the test set by both."""
    if "decoders" not in session.loaded:
        raise ValueError("there are no models to decode with")
    return {"pairs": session.loaded["decoders"].pairs(seconds, seed)}


def multiplications(model: nn.Module) -> int:
    """Return the products of numbers that an item takes: one for each weight of the linear and recurrent layers."""
    layers = [module for module in model.modules() if isinstance(module, _KINDS)]
    return sum(weight.numel() for layer in layers for weight in layer.parameters() if weight.dim() == 2)


def cut_layers(model: nn.Module, sizes: Mapping[str, int]) -> None:
    """Cut layers of a dense model to so many neurons, in place.

    `sizes`: name of a layer, or of a cell of a recurrent one ("lstm.l0_reverse"), to the neurons that are left;
    ValueError for a layer that is not there, or more neurons than it has.
    """
    remove(*_staying(model, sizes))


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


class Decoders:
    """The two models of an arm, ready to be timed: as it is, and cut to `sizes`, as for `cut_layers`.

    Raises ValueError for sizes that the model cannot be cut to, and for a cut model that computes something else.
    """

    def __init__(self, arm: PaperArm, sizes: Mapping[str, int], device: str = "cpu") -> None:
        self._task, self._clock = arm.recipe(device).load(), clock_for(device)
        self.models = [self._task.build(seed=1) for _ in range(2)]
        cut_layers(self.models[1], sizes)
        masked = self._task.build(seed=1)
        structure, keep = _staying(masked, sizes)
        Masks(structure).add(keep)
        batch = next(iter(self._task.epoch(0, 0)))
        small, large = (_outputs(self._task, model, batch) for model in (self.models[1], masked))
        if wrong := compare([small], [large], ["the cut model's output"]):
            raise ValueError(wrong)

    def pairs(self, seconds: float, seed: int) -> list[tuple[float, float]]:
        """Return the seconds of decoding the test set, (before, after), in interleaved pairs."""
        before, after = (_decoding(self._task, model) for model in self.models)
        for side in (before, after):
            side(1, self._clock)
        rng = random.Random(seed)
        found = measure_pairs(before, after, seconds=seconds, least_pairs=2, loops=1, rng=rng, clock=self._clock)
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
