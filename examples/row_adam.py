"""Gradients of k rows, and an Adam that moves only those: what is the update's share, and does it learn as well?

python examples/row_adam.py                  # a quarter of a minute

With `sparse=True` a layer's weight gradient is a sparse tensor of the rows that were selected. `RowAdam` reads and
writes those rows alone, where `Adam` moves every weight in every step. That is a different algorithm, not a faster
version of the same one: compare the accuracy before you use it. The seconds are of one process; `own_model.py` shows
how to measure them properly.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from time import perf_counter

import torch
from torch import Tensor, nn

from meprop_bench.nn import convert
from meprop_bench.optim import RowAdam


def data(examples: int) -> tuple[Tensor, Tensor]:
    """Random vectors, labelled by a random linear teacher: learnable, and nothing to download."""
    x = torch.randn(examples, 64)
    return x, (x @ torch.randn(64, 10)).argmax(1)


def batches(x: Tensor, y: Tensor, steps: int, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random batches."""
    for _ in range(steps):
        chosen = torch.randint(len(x), (size,))
        yield x[chosen], y[chosen]


def train(sparse: bool, width: int, steps: int) -> tuple[float, float, float]:
    """Return the accuracy on unseen data, and the seconds of all backward passes and of all updates."""
    torch.manual_seed(1)
    x, y = data(6000)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    if sparse:
        convert(model, k=0.05, selection="unified", sparse=True)
    optimizer = RowAdam(model.parameters()) if sparse else torch.optim.Adam(model.parameters())
    backward_s = update_s = 0.0
    for inputs, targets in batches(x[:5000], y[:5000], steps):
        loss = nn.functional.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        started = perf_counter()
        loss.backward()
        middle = perf_counter()
        optimizer.step()
        backward_s, update_s = backward_s + middle - started, update_s + perf_counter() - middle
    with torch.no_grad():
        right = (model(x[5000:]).argmax(1) == y[5000:]).float().mean()
    return right.item(), backward_s, update_s


def main() -> None:
    """Train both from the same weights on the same batches, and compare."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--width", type=int, default=2048, help="neurons of a hidden layer")
    options.add_argument("--steps", type=int, default=150, help="training steps")
    given = options.parse_args()
    for name, sparse in (("dense, Adam", False), ("unified, RowAdam", True)):
        accuracy, backward_s, update_s = train(sparse, given.width, given.steps)
        print(f"{name:17} accuracy {accuracy:.1%}, backward {backward_s:.2f} s, update {update_s:.2f} s")


if __name__ == "__main__":
    main()
