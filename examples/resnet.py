"""ResNet-18 of torchvision: does sparsified back propagation pay for convolutions?

meprop-bench speedup --model examples/resnet.py --method meprop --k 0.02,0.05,0.1
meprop-bench train   --model examples/resnet.py --method meprop --k 0.05 --steps 200

k are positions of a map here, a share of them, as maps get smaller from layer to layer. Sparsified are the convolutions
of 3 x 3 whose maps have 30 positions and more: in the first layer a patch of three channels costs less than the
selection does, in those of 1 x 1 there is little to save, and of the few positions of the last maps a share of 5% is
one, of which batch normalisation makes little sense.

The images are scikit-learn's digits, enlarged: real data that need no download. torchvision has to fit torch (see
examples/README.md).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

import meprop_bench as mb


def images(size: int) -> tuple[Tensor, Tensor]:
    """Return the 1,797 digits as images of one channel (N, 1, size, size), about standardised, and their labels."""
    found = load_digits()
    small = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 0.6
    return F.interpolate(small, size=(size, size), mode="bilinear"), torch.tensor(found.target)


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    """Cross-entropy of a batch, the one channel taken for all three."""
    x, y = batch
    return F.cross_entropy(model(x.expand(-1, 3, -1, -1)), y)


def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Stochastic gradient descent as in the paper, with the rate of a batch of 16."""
    return torch.optim.SGD(parameters, lr=0.0125, momentum=0.9, weight_decay=1e-4, nesterov=True, fused=True)


def schedule(optimizer: torch.optim.Optimizer, steps: int) -> CosineAnnealingLR:
    """Fall to nothing as a cosine."""
    return CosineAnnealingLR(optimizer, steps)


def chosen(layer: nn.Module, name: str) -> bool:
    """Whether a layer is sparsified."""
    return layer.kernel_size == (3, 3) and not name.startswith("layer4")


def training(size: int, batch: int, examples: int) -> mb.Training:
    """Return the training on images of size x size; those after the first `examples` judge it."""
    x, y = images(size)
    held_out = DataLoader(TensorDataset(x[examples:], y[examples:]), batch_size=64)

    def evaluate(model: nn.Module) -> float:
        right = sum((model(x.expand(-1, 3, -1, -1)).argmax(1) == y).sum().item() for x, y in held_out)
        return 100 * right / len(held_out.dataset)

    return mb.Training(
        model=resnet18(num_classes=10),
        loss=loss,
        batches=DataLoader(TensorDataset(x[:examples], y[:examples]), batch_size=batch, shuffle=True, drop_last=True),
        optimizer=optimizer,
        schedule=schedule,
        evaluate=evaluate,
        metric="accuracy %",
        kinds=(nn.Conv2d,),
        filter=chosen,
    )


def build() -> mb.Training:
    """The size that is measured: maps of 24 x 24, 12 x 12 and 6 x 6 positions are sparsified."""
    return training(size=96, batch=16, examples=1437)


def tiny() -> mb.Training:
    """A size to try the commands with."""
    return training(size=32, batch=4, examples=1765)
