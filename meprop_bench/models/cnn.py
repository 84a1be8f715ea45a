"""The papers' convolutional network (TKDE, section 3.3.2): two convolutions, each with pooling, then two linear layers.

    x                                                            # (B, side · side), an image in one row
    y_1 = maxpool2(relu(conv5x5(image)))                         # (B, 16, 12, 12) for MNIST
    y_2 = maxpool2(relu(conv5x5(y_1)))                           # (B, 32, 4, 4)
    logits = relu(flat(y_2) W_3ᵀ + b_3) W_outᵀ + b_out           # (B, 512), (B, 10)

"Two 5×5 convolutional layers with 16 and 32 output channels, each followed by a 2×2 max pooling layer. Two
fully-connected layers of size 512 and 10 [...]. The activation function is also ReLU"; neither dropout nor batch
normalisation. The paper does not say how the images are padded; here they are not, as it mentions none. Images come as
rows, as for `MLP`, so that data and training are the same for both.

Of the gradient of a convolution at most a quarter is not zero, since pooling passes it on to one of four positions; so
what k allows beyond that changes nothing.

Initialisation: the linear layers as in `MLP`, from U(±1/sqrt(n)) for n outputs. The authors' convolutional code is
unpublished, and their rule makes no sense of a convolution, whose number of maps says nothing about the sums it makes,
so the convolutions draw from U(±1/sqrt(m)) for patches of m numbers, as PyTorch does.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from meprop_bench.models import check, draw

__all__ = ["CNN"]


class CNN(nn.Sequential):
    """A convolutional network that returns logits `(B, out_features)` of square images of one channel.

    `maps` are those of each convolution, `taps` the height and width of its weights. ValueError: a size below 1, an
    image that is not square, or one that is too small.
    """

    def __init__(
        self,
        in_features: int = 784,
        out_features: int = 10,
        *,
        maps: tuple[int, ...] = (16, 32),
        taps: int = 5,
        hidden: int = 512,
        seed: int = 0,
    ) -> None:
        each = {f"maps[{i}]": n for i, n in enumerate(maps)}
        check(in_features=in_features, out_features=out_features, taps=taps, hidden=hidden, **each)
        side = math.isqrt(in_features)
        if side * side != in_features:
            raise ValueError(f"in_features must be the size of a square image, as 784 is, not {in_features}")
        modules: OrderedDict[str, nn.Module] = OrderedDict(image=nn.Unflatten(1, (1, side, side)))
        with torch.device("meta"):
            for i, (channels, n) in enumerate(zip((1, *maps), maps, strict=False)):
                modules[f"conv{i}"] = nn.Conv2d(channels, n, taps)
                modules[f"relu{i}"] = nn.ReLU()
                modules[f"pool{i}"] = nn.MaxPool2d(2)
                side = (side - taps + 1) // 2
                if side < 1:
                    raise ValueError(f"images of {in_features} entries are too small for convolution {i}")
            modules["flat"] = nn.Flatten()
            modules["linear"] = nn.Linear((1, *maps)[-1] * side * side, hidden)
            modules["relu"] = nn.ReLU()
            modules["output"] = nn.Linear(hidden, out_features)
        super().__init__(modules)
        draw(self, seed, _bound)


def _bound(layer: nn.Module, _: Tensor) -> float:
    weight = layer.get_parameter("weight")
    return 1 / math.sqrt(weight.shape[0] if isinstance(layer, nn.Linear) else weight[0].numel())
