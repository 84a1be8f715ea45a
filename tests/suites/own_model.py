"""A user's model for the suites, small, whose quality is no percentage."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import meprop_bench as mb


def build() -> mb.Training:
    """Return a perceptron that learns what is no pattern."""
    x, y = torch.randn(64, 12), torch.randint(4, (64,))

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    return mb.Training(
        model=nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)),
        loss=loss,
        batches=list(zip(x.split(16), y.split(16), strict=True)),
        evaluate=lambda model: -loss(model, (x, y)).item(),
        metric="-nats",
    )
