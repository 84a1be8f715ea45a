"""Labelled images in three parts, and the batches that every method sees alike.

The papers compare methods on equal terms only if everything but the method is equal: the same parts, the same scaling,
and for one seed the same batches in the same order. So a part is a plain pair of tensors, and `batches` depends on its
arguments alone, never on torch's global random state, which a method (random-k, dropout) may use up at its own pace.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from meprop_bench.data.location import data_folder, locate
from meprop_bench.data.sources import SOURCES
from meprop_bench.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["IMAGE_SETS", "Batch", "ImageData", "Part", "batches", "load_images"]

IMAGE_SETS = ("auto", "mnist", "digits")

Batch: TypeAlias = "tuple[Tensor, Tensor]"
"""Images (B, features) and labels (B,)."""


@dataclass(frozen=True, eq=False)
class Part:
    """Examples of one part: `images` (N, features), float32 in [0, 1]; `labels` (N,), int64."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.ndim != 2 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"images {tuple(self.images.shape)} and labels {tuple(self.labels.shape)} do not pair")

    def __len__(self) -> int:
        return self.images.shape[0]

    def to(self, device: torch.device | str) -> Part:
        """Return the same examples on `device`."""
        return Part(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set: what it is called, its three parts, and how many classes it has."""

    name: str
    train: Part
    dev: Part
    test: Part
    classes: int = 10

    @property
    def features(self) -> int:
        """Entries of one image."""
        return self.train.images.shape[1]

    def to(self, device: torch.device | str) -> ImageData:
        """Return the same data on `device`."""
        return ImageData(self.name, self.train.to(device), self.dev.to(device), self.test.to(device), self.classes)


def load_images(name: str = "auto") -> ImageData:
    """Load a data set by name; its `name` says which one it is.

    Args:
        name: "mnist", "digits" (ships with scikit-learn), or "auto": MNIST when its four files are in the data folder,
        else
            the digits. A damaged MNIST is an error, not a reason to take the digits.

    Raises:
        UserError: an unknown name, or the data are missing or damaged.

    """
    if name not in IMAGE_SETS:
        raise UserError(f"there is no image data set {name!r}: choose from {', '.join(IMAGE_SETS)}")
    if name == "auto":
        folder, source = data_folder(), SOURCES["mnist"]
        name = "mnist" if all(locate(folder, source, file) for file in source.files) else "digits"
    if name == "mnist":
        from meprop_bench.data.mnist import load_mnist

        return load_mnist()
    from meprop_bench.data.digits import load_digits

    return load_digits()


def batches(
    part: Part, batch: int, *, seed: int, steps: int | None = None, epochs: float | None = None
) -> Iterator[Batch]:
    """Yield batches that depend on the arguments alone.

    The examples are one endless sequence, a fresh permutation for each pass over them, cut into batches. So every batch
    is full, whatever B is (a step's cost must not vary, and B may exceed the data), and a batch may straddle two
    passes.

    Args:
        part: the examples.
        batch: B, examples in a batch.
        seed: of the permutations.
        steps: how many batches.
        epochs: or how many passes over the data; the last batch that does not fit is left out.

    Raises:
        ValueError: no examples, B or the length below 1, or not exactly one of `steps` and `epochs`.

    """
    if len(part) < 1 or batch < 1:
        raise ValueError(f"batches of {batch} from {len(part)} examples")
    if (steps is None) == (epochs is None):
        raise ValueError("give either steps or epochs")
    count = steps if steps is not None else int((epochs or 0) * len(part)) // batch
    if count < 1:
        raise ValueError(f"steps={steps}, epochs={epochs} give no batch of {batch}")
    return _batches(part, batch, seed, count)


def _batches(part: Part, batch: int, seed: int, count: int) -> Iterator[Batch]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    queue = torch.empty(0, dtype=torch.int64)
    for _ in range(count):
        while len(queue) < batch:
            queue = torch.cat([queue, torch.randperm(len(part), generator=generator)])
        chosen, queue = queue[:batch].to(part.images.device), queue[batch:]
        yield part.images[chosen], part.labels[chosen]
