"""meSimp: remove the neurons that are seldom in the top k while the model trains, and keep the smaller model.

python examples/simplify.py                  # a few seconds

Every `interval` examples, a neuron that was among the k of fewer than a share `rate` of them is removed, together with
its weights and the optimizer's state for it. What is left is a plain, smaller model.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn, optim

from meprop_bench.algorithms.mesimp import MeSimp
from meprop_bench.algorithms.simplified import describe
from meprop_bench.nn import convert, revert


def data(examples: int) -> tuple[Tensor, Tensor]:
    """Random vectors, labelled by a random linear teacher: learnable, and nothing to download."""
    x = torch.randn(examples, 64)
    return x, (x @ torch.randn(64, 10)).argmax(1)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of examples that the model labels rightly."""
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


def main() -> None:
    """Train, simplify meanwhile, and describe what is left."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--steps", type=int, default=1200, help="training steps")
    options.add_argument("--rate", type=float, default=0.05, help="share of examples in which a neuron must be active")
    given = options.parse_args()
    torch.manual_seed(1)
    x, y = data(6000)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    convert(model, k=32)
    optimizer = optim.Adam(model.parameters())
    simp = MeSimp(model, optimizer, interval=6400, rate=given.rate)
    before = sum(layer.flops for layer in describe(model, x[:1]))
    for step in range(given.steps):
        chosen = torch.randint(5000, (64,))
        nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if simp.after_step(len(chosen)):
            print(f"step {step + 1}: {simp.sizes}, accuracy {accuracy(model, x[5000:], y[5000:]):.1%}")
    simp.close()
    plain = revert(model)
    after = sum(layer.flops for layer in describe(plain, x[:1]))
    print(f"{after / before:.0%} of the operations are left, accuracy {accuracy(plain, x[5000:], y[5000:]):.1%}")
    print(plain)


if __name__ == "__main__":
    main()
