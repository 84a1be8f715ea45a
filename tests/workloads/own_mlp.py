"""The workload mlp's usual case as a user's model, to show that the way by `--model` costs nothing.

    meprop-bench speedup --preset tests/workloads/own_mlp.toml

measures both, case by case after each other. The speed-ups of backward and step have to agree within their intervals,
and so do the times of both sides.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import meprop_bench as mb
from meprop_bench.data import ImageData, auto_images, batches, load_images
from meprop_bench.models.mlp import MLP
from meprop_bench.workloads.steps import WALK


@cache
def images() -> ImageData:
    """The digits of MNIST, or those of scikit-learn where MNIST is not there."""
    return load_images(auto_images())


def loss(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy of images and labels."""
    x, y = batch
    return F.cross_entropy(model(x), y)


def adam(parameters: Any) -> torch.optim.Optimizer:
    """Adam as the workload has it."""
    return torch.optim.Adam(parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8)


def build() -> mb.Training:
    """The workload's model, batches and optimizer."""
    data = images()
    return mb.Training(
        model=MLP(data.features, 500, data.classes, layers=2, seed=0),
        loss=loss,
        batches=list(batches(data.train, 50, seed=0, steps=WALK)),
        optimizer=adam,
    )
