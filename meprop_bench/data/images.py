"""Labelled images in three parts, and the batches that every method sees alike.

The papers compare methods on equal terms only if everything but the method is equal: the same parts, the same scaling,
and for one seed the same batches in the same order. So a part is a plain pair of tensors, and `batches` depends on its
arguments alone, never on torch's global random state, which a method (random-k, dropout) may use up at its own pace.

The 1,797 digits of scikit-learn are real data for a machine without a network. The set has no published parts, so we
make them: a seeded permutation, then 797 images for training, 750 for development and 250 for test. The development set
is large because a short comparison is judged on it: one image is 0.13 points of accuracy, where of 250 it was 0.4 of a
margin of 0.5. Both sides have fewer images to train on for it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from meprop_bench.data.order import example_numbers
from meprop_bench.data.sources import DataSet
from meprop_bench.optional import require

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Batch", "ImageData", "ImagePart", "batches", "check_installed", "load_digits", "numbered_batches"]

Batch: TypeAlias = "tuple[Tensor, Tensor]"
"""Images (B, features) and labels (B,)."""

_GATHERED = 1 << 18
"""Entries of images that are gathered at a time: 1 MiB, which a core's cache holds until the batches are used."""


@dataclass(frozen=True, eq=False)
class ImagePart:
    """Examples of one part: `images` (N, features), float32 in [0, 1]; `labels` (N,), int64."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.ndim != 2 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"images {tuple(self.images.shape)} and labels {tuple(self.labels.shape)} do not pair")

    def __len__(self) -> int:
        return self.images.shape[0]

    def to(self, device: torch.device | str) -> ImagePart:
        """Return the same examples on `device`."""
        return ImagePart(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class ImageData(DataSet[ImagePart]):
    """Images of so many classes."""

    classes: int = field(default=10, kw_only=True)

    @property
    def features(self) -> int:
        """Entries of one image."""
        return self.train.images.shape[1]

    def to(self, device: torch.device | str) -> ImageData:
        """Return the same data on `device`."""
        return replace(self, train=self.train.to(device), dev=self.dev.to(device), test=self.test.to(device))


def batches(
    part: ImagePart, batch: int, *, seed: int, steps: int | None = None, epochs: float | None = None
) -> Iterator[Batch]:
    """Yield batches that depend on the arguments alone, in the order of `data.order`.

    There are `steps` of them, or as many as fit into `epochs` passes over the data. Raises ValueError without examples,
    for B or a length below 1, or for not exactly one of `steps` and `epochs`.
    """
    if (steps is None) == (epochs is None):
        raise ValueError("give either steps or epochs")
    if steps is None:
        steps = int((epochs or 0) * len(part)) // max(batch, 1)
    return ((images, labels) for images, labels, _ in numbered_batches(part, batch, seed=seed, steps=steps))


def numbered_batches(
    part: ImagePart, batch: int, *, seed: int, steps: int, start: int = 0
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield the batches of `batches` with the numbers of their examples, their places in the part: `(B,)`.

    The first `start` batches are left out. Raises ValueError without examples, or for B or `steps` below 1.
    """
    together = max(1, _GATHERED // max(1, batch * part.images.shape[1]))
    return _gathered(
        part, batch, example_numbers(len(part), batch, seed=seed, steps=steps, start=start, together=together)
    )


def _gathered(part: ImagePart, batch: int, order: Iterator[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    import torch

    for chunk in order:
        numbers = chunk.to(part.images.device)
        sequences = (part.images[numbers], part.labels[numbers], numbers)
        yield from zip(*(torch.split(sequence, batch) for sequence in sequences), strict=True)


_TRAIN, _DEV = 797, 750
_SEED = 0


def check_installed() -> None:
    """Raise `UserError` where scikit-learn cannot be used."""
    require("sklearn", "the digits data come with scikit-learn", "digits")


def load_digits() -> ImageData:
    """Load the digits; `UserError` without scikit-learn."""
    import torch

    check_installed()
    from sklearn import datasets

    published = datasets.load_digits()
    images = torch.from_numpy(published.data).float().div_(16)
    labels = torch.from_numpy(published.target).long()
    order = torch.tensor(_permutation(len(labels)))
    cuts = order.tensor_split([_TRAIN, _TRAIN + _DEV])
    return ImageData("digits", *(ImagePart(images[cut], labels[cut]) for cut in cuts))


def _permutation(n: int) -> list[int]:
    """Return 0 to n-1 in a seeded order that holds for good.

    Python promises that `Random.random()` keeps its sequence from version to version; neither torch nor NumPy's current
    generators promise it for their permutations, and other parts would mean other accuracies.
    """
    generator = random.Random(_SEED)
    keys = [generator.random() for _ in range(n)]
    return sorted(range(n), key=keys.__getitem__)
