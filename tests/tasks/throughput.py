"""Does a dense baseline train as fast as torch's own modules in a plain loop? Measured, not believed; no part of CI.

    MEPROP_BENCH_DATA=... python -m tests.tasks.throughput [mnist mnist-cnn pos parsing]

One side is `tasks.run.run`, as `train`, `parity` and `paper run` call it; the other a loop as anybody writes it, around
modules of `torch.nn` and the same fused Adam, on the same batches. Both train the same number of steps in pairs, on one
thread, in some fresh processes; printed is how many times as fast as the plain loop ours is, with its interval over the
processes. Nothing else may run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from meprop_bench.stats import paired_ratio
from meprop_bench.tasks import load_task
from meprop_bench.tasks.recipe import Recipe
from meprop_bench.tasks.run import run
from meprop_bench.tasks.task import Task

_TASKS: dict[str, tuple[dict[str, int], int]] = {
    "mnist": ({}, 150),
    "mnist-cnn": ({}, 50),
    "pos": ({"batch": 16, "hidden": 128}, 15),
    "parsing": ({"batch": 500, "hidden": 128}, 20),
}
"""Task -> its options, as at the short scale, and the steps of one training."""

_PROCESSES, _PAIRS = 4, 6


class _Tagger(nn.Module):
    def __init__(self, task: Any) -> None:
        super().__init__()
        self.word = nn.Embedding(len(task.words), 50)
        self.features = nn.ModuleList(nn.Embedding(len(feature), 20) for feature in task.features)
        self.lstm = nn.LSTM(50 + 20 * len(task.features), 128, batch_first=True, bidirectional=True)
        self.output = nn.Linear(256, len(task.labels))

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        x = torch.cat([self.word(ids[..., 0]), *(f(ids[..., 1 + i]) for i, f in enumerate(self.features))], -1)
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.output(pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0])


class _Parser(nn.Module):
    def __init__(self, task: Any) -> None:
        super().__init__()
        sizes = (len(task.words) + 2, len(task.tags) + 2, len(task.labels) + 1)
        self.word, self.tag, self.label = (nn.Embedding(size, 50) for size in sizes)
        self.hidden, self.output = nn.Linear(48 * 50, 128), nn.Linear(128, 1 + 2 * len(task.labels))

    def forward(self, features: Tensor) -> Tensor:
        words, tags, labels = features.split([18, 18, 12], 1)
        e = torch.cat([self.word(words).flatten(1), self.tag(tags).flatten(1), self.label(labels).flatten(1)], 1)
        return self.output(self.hidden(e) ** 3)


def _perceptron(_: Any) -> nn.Module:
    return nn.Sequential(nn.Linear(784, 500), nn.ReLU(), nn.Linear(500, 500), nn.ReLU(), nn.Linear(500, 10))


def _convolutional(_: Any) -> nn.Module:
    maps = (nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2))
    linear = (nn.Flatten(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    return nn.Sequential(nn.Unflatten(1, (1, 28, 28)), *maps, *linear)


_PLAIN: dict[str, Callable[[Any], nn.Module]] = {
    "mnist": _perceptron,
    "mnist-cnn": _convolutional,
    "pos": _Tagger,
    "parsing": _Parser,
}


def _loss(name: str, model: nn.Module, batch: Any) -> Tensor:
    if name == "pos":
        ids, lengths, tags = batch
        return F.cross_entropy(model(ids, lengths).flatten(0, 1), tags.flatten(), ignore_index=-100)
    return F.cross_entropy(model(batch[0]), batch[1])


def _plain_s(name: str, task: Task, steps: int) -> float:
    model = _PLAIN[name](task)
    optimizer = torch.optim.Adam(model.parameters(), lr=task.entry.rates.get("adam", 1e-3), fused=True)
    begun = time.perf_counter()
    for batch in itertools.islice(task.epoch(1, 0), steps):
        optimizer.zero_grad()
        _loss(name, model, batch).backward()
        optimizer.step()
    return time.perf_counter() - begun


def _pairs(name: str) -> list[tuple[float, float]]:
    """Return (plain, ours) seconds of each pair, without the first."""
    torch.set_num_threads(1)
    options, steps = _TASKS[name]
    task = load_task(name, **options)
    task.evaluate = lambda *_: 0.0  # type: ignore[method-assign]  # it is not of the loop
    recipe = Recipe(name, options, steps=steps, epochs=1)
    found = []
    for number in range(1 + _PAIRS):
        sides: list[Callable[[], float]] = [lambda: _plain_s(name, task, steps), lambda: run(task, recipe).seconds]
        order = (0, 1) if number % 2 else (1, 0)
        seconds = {side: sides[side]() for side in order}
        found.append((seconds[0], seconds[1]))
    return found[1:]


def main() -> int:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(_TASKS)} [default: all]")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(_pairs(arguments.one)))
        return 0
    for name in arguments.tasks or _TASKS:
        command = [sys.executable, "-m", "tests.tasks.throughput", "--one", name]
        runs = [
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            for _ in range(_PROCESSES)
        ]
        ratio = paired_ratio([[(plain, ours) for plain, ours in pairs] for pairs in runs])
        print(f"{name}: {ratio.estimate:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] times as fast", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
