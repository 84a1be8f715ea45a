"""What a search asks of a measuring process besides steps and trainings.

costs    {recipe} -> metric, percent, per_epoch, batch_s, evaluation_s, step_s, layers, rows
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import islice
from typing import TYPE_CHECKING, Any

from meprop_bench.tasks.recipe import Recipe

if TYPE_CHECKING:
    from meprop_bench.sweep.worker import WorkerSession

__all__ = ["costs"]

_BATCHES, _STEPS = 200, 20
_LONGEST_S = 3.0
"""Seconds of drawing batches, and of steps: of a slow task there are few."""


def costs(session: WorkerSession, recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """Answer a worker's request: what a training of this recipe costs besides its steps, and what can be converted.

    The batches of the first epoch are drawn as the training loop draws them, the shuffling of the epoch among them.
    """
    import torch

    from meprop_bench.nn import kinds_and_k

    wanted = Recipe(**recipe)
    task = wanted.load()
    model = task.build(1)
    step = task.step(model, wanted)
    evaluation_s = min(_seconds(lambda: task.evaluate(model, "dev")) for _ in range(2))
    sparse = task.build(1)
    task.sparsify(sparse, replace(wanted, method="meprop", k=0.5))
    layers = kinds_and_k(sparse)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a training has
    step_s = _step_s(task, step)
    torch.set_num_threads(threads)
    return {
        "metric": task.metric,
        "percent": task.percent,
        "per_epoch": task.steps_per_epoch,
        "batch_s": _batch_s(task),
        "evaluation_s": evaluation_s,
        "step_s": step_s,
        "layers": [
            (name, _weights(sparse, name), k is not None, kind, _own_k(task, name))
            for name, (kind, k) in layers.items()
        ],
        "rows": _takes_rows(step.optimizer)
        and any((kind, k is None) == ("Linear", False) for kind, k in layers.values()),
        "notes": list(task.notes),
    }


def _weights(model: Any, name: str) -> int:
    return sum(parameter.numel() for parameter in model.get_submodule(name).parameters() if parameter.dim() > 1)


def _own_k(task: Any, name: str) -> float | None:
    """Return the k that a user's `Training` gives a layer, whatever is asked for."""
    from meprop_bench.tasks.own import Own

    given = task.training.k or {} if isinstance(task, Own) else {}
    return next((k for pattern, k in given.items() if fnmatchcase(name, pattern)), None)


def _step_s(task: Any, step: Any) -> float:
    """Return the median seconds of a few dense steps, the first left out."""
    times, begun = [], time.perf_counter()
    for batch in islice(task.epoch(1, 0), 1 + _STEPS):
        times.append(_seconds(lambda batch=batch: float(step(batch))))  # a number, which a GPU is waited for
        if len(times) > 1 and time.perf_counter() - begun > _LONGEST_S:
            break
    return statistics.median(times[1:] or times)


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
