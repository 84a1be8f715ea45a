"""Training as phases: forward, backward, update; one step is the three in this order, and nothing else.

    forward   loss = cross_entropy(model(images), labels)      images (B, features), labels (B,) -> ()
    backward  d loss / d parameter, for every parameter        what meProp makes cheaper
    update    the optimizer moves the parameters               often the largest part once backward is cheap

The phases are separate calls so that whoever measures can put a clock between them; training itself knows no clock.
Every random choice follows from an explicit seed: the initial weights (the model's), the batches (`data.batches`) and
what a model or a method draws while training (torch's global state, which `short_run` seeds and puts back). So the
dense baseline and a method differ in the backward pass alone, and a difference in accuracy is the method's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meprop_bench.data import Batch, ImageData, batches
from meprop_bench.errors import UserError
from meprop_bench.optim import RowAdam, RowAdamW

__all__ = ["OPTIMIZERS", "Accuracy", "Step", "evaluate", "make_optimizer", "short_run", "train"]

OPTIMIZERS: Mapping[str, tuple[type[torch.optim.Optimizer], Mapping[str, Any]]] = {
    # The papers' settings (ICML 2017, section 4.1); AdaGrad's rate is the one they give for MNIST.
    "adam": (torch.optim.Adam, {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.1, "eps": 1e-6}),
    # Not in the papers: the cheapest update there is. The rate is where the papers' MLP learns MNIST well.
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    # Not in the papers either, and other algorithms than dense Adam, at its settings: see `meprop_bench.optim`.
    "rowadam": (RowAdam, {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}),
    "rowadamw": (RowAdamW, {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}),
}
"""Optimizers by name: the class and its settings."""

_TAKES_ROWS = ("adagrad", "sgd", "rowadam", "rowadamw")


def make_optimizer(name: str, parameters: Iterable[nn.Parameter], *, gradient: str = "dense") -> torch.optim.Optimizer:
    """Return an unmodified optimizer of torch, or one of this package for rows, with the papers' settings.

    Args:
        name: one of `OPTIMIZERS`.
        parameters: what it moves.
        gradient: "dense", or "rows" when some weights get a row-sparse gradient.

    Raises:
        UserError: an unknown name, or an optimizer that cannot take row gradients.

    """
    if name not in OPTIMIZERS:
        raise UserError(f"there is no optimizer {name!r}: choose from {', '.join(OPTIMIZERS)}")
    if gradient not in ("dense", "rows"):
        raise ValueError(f"gradient must be 'dense' or 'rows', not {gradient!r}")
    if gradient == "rows" and name not in _TAKES_ROWS:
        raise UserError(
            f"{name} does not take row gradients (it moves every row at every step): "
            f"use {', '.join(_TAKES_ROWS)}, or dense gradients"
        )
    kind, settings = OPTIMIZERS[name]
    return kind(parameters, **settings)


@dataclass(frozen=True, eq=False)
class Step:
    """One training step of a classifier, phase by phase or as a whole; another model has another `forward`."""

    model: nn.Module
    optimizer: torch.optim.Optimizer

    def forward(self, batch: Any) -> Tensor:
        """Return the mean loss over a batch of images and labels, a scalar that holds the graph."""
        images, labels = batch
        return F.cross_entropy(self.model(images), labels)

    def backward(self, loss: Tensor) -> None:
        """Compute the gradient of every parameter."""
        loss.backward()  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Move the parameters and drop their gradients."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def __call__(self, batch: Any) -> Tensor:
        """Run the three phases; return the loss before the update, without its graph."""
        loss = self.forward(batch)
        self.backward(loss)
        self.update()
        return loss.detach()


def evaluate(model: nn.Module, images: Tensor, labels: Tensor, *, chunk: int = 4096) -> float:
    """Return the accuracy of `model` in percent.

    Args:
        model: returns logits (B, classes); put into evaluation mode and back.
        images: (N, features).
        labels: (N,).
        chunk: examples at a time, which bounds the memory and does not change the result.

    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            hits = sum(
                int((model(x).argmax(dim=1) == y).sum())
                for x, y in zip(torch.split(images, chunk), torch.split(labels, chunk), strict=True)
            )
    finally:
        model.train(training)
    return 100 * hits / len(labels)


def train(
    step: Step, stream: Iterable[Batch], *, every: int = 0, evaluation: Callable[[], float] | None = None
) -> list[float]:
    """Train on all batches of `stream`.

    Args:
        step: the model and its optimizer.
        stream: the batches.
        every: steps between evaluations; 0 for none.
        evaluation: called then, outside the step.

    Returns:
        What the evaluations returned, in order.

    """
    step.model.train()
    results = []
    for done, batch in enumerate(stream, start=1):
        step(batch)
        if every and evaluation is not None and done % every == 0:
            results.append(evaluation())
    return results


@dataclass(frozen=True)
class Accuracy:
    """Development-set accuracy of one seed, in percent: at the end, and the best of all evaluations."""

    seed: int
    final: float
    best: float


def short_run(
    build: Callable[[int], nn.Module],
    data: ImageData,
    *,
    steps: int,
    batch: int,
    seeds: Sequence[int],
    optimizer: str = "adam",
    gradient: str = "dense",
    evaluations: int = 1,
    device: torch.device | str = "cpu",
) -> list[Accuracy]:
    """Train one model for each seed and return its development-set accuracies.

    Call it once with the dense `build` and once with the method's, on the same seeds: the batches follow from the seed,
    and so do the initial weights if `build` takes them from it, so the i-th results make a pair.

    Args:
        build: returns the model for a seed.
        data: where training and development examples come from.
        steps: training steps for each seed.
        batch: B.
        seeds: one run for each.
        optimizer: a name from `OPTIMIZERS`.
        gradient: "dense" or "rows", as the model's layers give it.
        evaluations: how many times a run is evaluated, evenly spread; the last is at its end.
        device: where to train.

    Returns:
        One `Accuracy` for each seed, in their order.

    Raises:
        ValueError: fewer steps than evaluations, or no evaluation.

    """
    if not 1 <= evaluations <= steps:
        raise ValueError(f"{evaluations} evaluations do not fit in {steps} steps")
    data = data.to(device)
    cuda = [torch.device(device)] if torch.device(device).type == "cuda" else []
    results = []
    for seed in seeds:
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(seed)
            model = build(seed).to(device)
            step = Step(model, make_optimizer(optimizer, model.parameters(), gradient=gradient))

            def accuracy(model: nn.Module = model) -> float:
                return evaluate(model, data.dev.images, data.dev.labels)

            # Evaluations are counted back from the end, so that the last one is the final accuracy.
            every = steps // evaluations
            stream = batches(data.train, batch, seed=seed, steps=steps)
            train(step, itertools.islice(stream, steps - every * evaluations))
            found = train(step, stream, every=every, evaluation=accuracy)
        results.append(Accuracy(seed, found[-1], max(found)))
    return results
