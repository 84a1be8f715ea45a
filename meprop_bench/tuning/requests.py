"""What a search asks of a measuring process besides steps and trainings.

examine    {recipe} -> metric, percent, per_epoch, batch_s, evaluation_s, layers, rows
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from meprop_bench.tasks.recipe import Recipe

if TYPE_CHECKING:
    from meprop_bench.sweep.worker import Session

__all__ = ["costs"]

_BATCHES = 200
_LONGEST_S = 3.0
"""Seconds of drawing batches: of each one only a few are drawn."""


def costs(session: Session, recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """Answer a worker's request: what a training of this recipe costs besides its steps, and what can be converted.

    The batches of the first epoch are drawn as the training loop draws them, the shuffling of the epoch among them.
    """
    from torch import nn

    from meprop_bench.nn.conversion import survey

    wanted = Recipe(**recipe)
    task = wanted.load()
    model = task.build(1)
    optimizer = task.step(model, wanted).optimizer
    evaluation_s = min(_seconds(lambda: task.evaluate(model, "dev")) for _ in range(2))
    sparse = task.build(1)
    task.sparsify(sparse, replace(wanted, method="meprop", k=0.5))
    kinds = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase)
    layers = {name: layer for name, layer, _ in survey(sparse, kinds) if isinstance(layer, kinds)}
    return {
        "metric": task.metric,
        "percent": task.percent,
        "per_epoch": task.steps_per_epoch,
        "batch_s": _batch_s(task),
        "evaluation_s": evaluation_s,
        "layers": [_layer(name, layer) for name, layer in layers.items()],
        "rows": _takes_rows(optimizer) and any(isinstance(layer, nn.Linear) for layer in layers.values()),
        "notes": list(task.notes),
    }


def _layer(name: str, layer: Any) -> tuple[str, int, bool, str]:
    from meprop_bench.nn.sparsified import Sparsified

    weights = sum(parameter.numel() for parameter in layer.parameters() if parameter.dim() > 1)
    converted = isinstance(layer, Sparsified)
    return name, weights, converted, type(layer).__name__.removeprefix("MeProp") if converted else type(layer).__name__


def _batch_s(task: Any) -> float:
    """Return the mean seconds of drawing a batch."""
    count, begun = 0, time.perf_counter()
    for _ in islice(task.epoch(1, 0), _BATCHES):
        count += 1
        if time.perf_counter() - begun > _LONGEST_S:
            break
    return (time.perf_counter() - begun) / count


def _seconds(call: Any) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _takes_rows(optimizer: Any) -> bool:
    """Whether an optimizer gains by weight gradients as rows; torch's that take them do without momentum or decay."""
    from torch import optim

    from meprop_bench.optim import RowOptimizer

    if isinstance(optimizer, RowOptimizer):
        return not any(optimizer.moves_all_rows(group) for group in optimizer.param_groups)
    plain = all(not group.get("momentum") and not group.get("weight_decay") for group in optimizer.param_groups)
    fused = any(group.get("fused") for group in optimizer.param_groups)
    return type(optimizer) in (optim.SGD, optim.Adagrad) and plain and not fused
