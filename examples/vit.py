"""A vision transformer of torchvision: does sparsified back propagation pay for it?

meprop-bench speedup --model examples/vit.py --method unified --k 0.05,0.1,0.25
meprop-bench train   --model examples/vit.py --method unified --k 0.25 --steps 300

Sparsified are the attention of each block, by its projections, and the two linear layers of its perceptron. The head,
the last linear layer, stays dense.

The images are scikit-learn's digits, enlarged: real data that need no download. torchvision has to fit torch (see
examples/README.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import VisionTransformer

import meprop_bench as mb


def images(size: int) -> tuple[Tensor, Tensor]:
    """Return the 1,797 digits as images of one channel (N, 1, size, size), about standardised, and their labels."""
    found = load_digits()
    small = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 0.6
    return F.interpolate(small, size=(size, size), mode="bilinear"), torch.tensor(found.target)


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    """Cross-entropy of a batch, the one channel taken for all three."""
    x, y = batch
    return F.cross_entropy(model(x.expand(-1, 3, -1, -1)), y, label_smoothing=0.1)


def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW, its usual opponent of overfitting strong."""
    return torch.optim.AdamW(parameters, lr=5e-4, weight_decay=0.1, fused=True)


def schedule(optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """Warm up for a tenth of the steps, then fall to nothing as a cosine."""
    warm_up = max(1, steps // 10)

    def rate(step: int) -> float:
        past = min(1.0, max(0, step - warm_up) / max(1, steps - warm_up))
        return min(1.0, (step + 1) / warm_up) * (1 + math.cos(math.pi * past)) / 2

    return LambdaLR(optimizer, rate)


def training(size: int, patch: int, width: int, heads: int, layers: int, batch: int, examples: int) -> mb.Training:
    """Return the training on images of size x size; those after the first `examples` judge it."""
    x, y = images(size)
    held_out = DataLoader(TensorDataset(x[examples:], y[examples:]), batch_size=64)

    def evaluate(model: nn.Module) -> float:
        right = sum((model(x.expand(-1, 3, -1, -1)).argmax(1) == y).sum().item() for x, y in held_out)
        return 100 * right / len(held_out.dataset)

    return mb.Training(
        model=VisionTransformer(size, patch, layers, heads, width, 4 * width, num_classes=10),
        loss=loss,
        batches=DataLoader(TensorDataset(x[:examples], y[:examples]), batch_size=batch, shuffle=True, drop_last=True),
        optimizer=optimizer,
        schedule=schedule,
        clip=1.0,
        evaluate=evaluate,
        metric="accuracy %",
        kinds=(nn.Linear, nn.MultiheadAttention),
    )


def build() -> mb.Training:
    """The size that is measured: ViT-S cut to four blocks, 7.1 million parameters, 65 patches of 32 images."""
    return training(size=32, patch=4, width=384, heads=6, layers=4, batch=32, examples=1437)


def tiny() -> mb.Training:
    """A size to try the commands with."""
    return training(size=16, patch=4, width=32, heads=2, layers=2, batch=8, examples=1765)
