"""MNIST as the papers use it: 55,000 training, 5,000 development and 10,000 test images of 28 x 28 pixels.

The development set is the *first* 5,000 training images (the authors' code), pixels are divided by 255 and not
normalised, and an image is one row of 784.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meprop_bench.data.dataset import compared
from meprop_bench.data.idx import digest, read_idx
from meprop_bench.data.images import ImageData, Part
from meprop_bench.data.location import data_folder, path_of
from meprop_bench.data.sources import SOURCES
from meprop_bench.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DEV_IMAGES", "load_mnist"]

DEV_IMAGES = 5_000


def load_mnist() -> ImageData:
    """Load MNIST from the data folder, or what lies there in files of its names: a note says so.

    Raises:
        UserError: a file is missing or damaged.

    """
    digests: dict[str, str] = {}
    images, labels = _read("train", digests)
    test = _part(*_read("t10k", digests))
    dev = _part(images[:DEV_IMAGES], labels[:DEV_IMAGES])
    found = ImageData("mnist", _part(images[DEV_IMAGES:], labels[DEV_IMAGES:]), dev, test)
    return compared(found, SOURCES["mnist"], digests)


def _read(prefix: str, digests: dict[str, str]) -> tuple[Tensor, Tensor]:
    """Read images (N, 28, 28) and labels (N,) of one published part, and hold them against each other."""
    source = SOURCES["mnist"]
    arrays = []
    for name, dimensions in ((f"{prefix}-images-idx3-ubyte", 3), (f"{prefix}-labels-idx1-ubyte", 1)):
        arrays.append(read_idx(path_of(source, name), dimensions, source.remedy))
        digests[name] = digest(arrays[-1])
    images, labels = arrays
    if images.shape[1:] != (28, 28) or len(images) != len(labels) or len(labels) <= DEV_IMAGES:
        found = f"images {tuple(images.shape)}, labels {tuple(labels.shape)}"
    elif (largest := int(labels.max())) > 9:
        found = f"a label is {largest}"
    else:
        return images, labels
    raise UserError(f"the {prefix} files in {data_folder() / 'mnist'} are not MNIST's ({found}): {source.remedy}")


def _part(images: Tensor, labels: Tensor) -> Part:
    return Part(images.reshape(len(images), -1).float().div_(255), labels.long())
