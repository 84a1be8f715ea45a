"""Gradients of k rows, and optimizers that move only those: what is the update's share, and does it learn as well?

python examples/row_adam.py                  # half a minute

With `sparse=True` a layer's weight gradient is a sparse tensor of the rows that were selected. `RowAdagrad` reads and
writes those rows alone, and computes what `Adagrad` does, which leaves a row without a gradient as it is. `Adam` moves
every weight in every step: `RowAdam` is a different algorithm, not a faster version of the same one. Compare the
accuracy before you use it. The seconds are of one process; `own_model.py` shows how to measure them properly.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter

import torch
from torch import Tensor, nn

from meprop_bench.nn import convert
from meprop_bench.optim import RowAdagrad, RowAdam

Make = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
TRAININGS: dict[str, tuple[bool, Make]] = {
    "dense, AdaGrad": (False, lambda p: torch.optim.Adagrad(p, lr=0.01, fused=True)),
    "unified, RowAdagrad": (True, lambda p: RowAdagrad(p, lr=0.01)),
    "dense, Adam": (False, lambda p: torch.optim.Adam(p, fused=True)),
    "unified, RowAdam": (True, RowAdam),
}
"""Whether the weight gradients are rows, and the optimizer."""


def data(examples: int) -> tuple[Tensor, Tensor]:
    """Random vectors, labelled by a random linear teacher: learnable, and nothing to download."""
    x = torch.randn(examples, 64)
    return x, (x @ torch.randn(64, 10)).argmax(1)


def batches(x: Tensor, y: Tensor, steps: int, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random batches."""
    for _ in range(steps):
        chosen = torch.randint(len(x), (size,))
        yield x[chosen], y[chosen]


def train(sparse: bool, make: Make, width: int, steps: int) -> tuple[float, float, float]:
    """Return the accuracy on unseen data, and the seconds of all backward passes and of all updates."""
    torch.manual_seed(1)
    x, y = data(6000)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    if sparse:
        convert(model, k=0.05, selection="unified", sparse=True)
    optimizer = make(model.parameters())
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
    """Train all from the same weights on the same batches, and compare."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--width", type=int, default=2048, help="neurons of a hidden layer")
    options.add_argument("--steps", type=int, default=150, help="training steps")
    given = options.parse_args()
    for name, (sparse, make) in TRAININGS.items():
        accuracy, backward_s, update_s = train(sparse, make, given.width, given.steps)
        print(f"{name:20} accuracy {accuracy:.1%}, backward {backward_s:.2f} s, update {update_s:.2f} s")


if __name__ == "__main__":
    main()
