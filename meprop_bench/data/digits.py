"""The 1,797 handwritten digits that ship with scikit-learn: real data for a machine without a network.

An image is 8 x 8 pixels of 0 to 16, here one row of 64, divided by 16. The set has no published parts, so we make them:
a seeded permutation, then 1,297 images for training, 250 for development and 250 for test. They are not stratified: the
development set has 14 to 33 images of a class. One image there is 0.4 points of accuracy, hence the several seeds of a
parity check.
"""

from __future__ import annotations

import random

from meprop_bench.data.images import ImageData, Part
from meprop_bench.optional import require

__all__ = ["check_installed", "load_digits"]

_TRAIN, _DEV = 1_297, 250
_SEED = 0


def check_installed() -> None:
    """Raise `UserError` where scikit-learn cannot be used."""
    require("sklearn", "the digits data come with scikit-learn", "digits")


def load_digits() -> ImageData:
    """Load the digits.

    Raises:
        UserError: scikit-learn is not installed.

    """
    import torch

    check_installed()
    from sklearn import datasets

    published = datasets.load_digits()
    images = torch.from_numpy(published.data).float().div_(16)
    labels = torch.from_numpy(published.target).long()
    order = torch.tensor(_permutation(len(labels)))
    cuts = order.tensor_split([_TRAIN, _TRAIN + _DEV])
    return ImageData("digits", *(Part(images[cut], labels[cut]) for cut in cuts))


def _permutation(n: int) -> list[int]:
    """Return 0 to n-1 in a seeded order that holds for good.

    Python promises that `Random.random()` keeps its sequence from version to version; neither torch nor NumPy's current
    generators promise it for their permutations, and other parts would mean other accuracies.
    """
    generator = random.Random(_SEED)
    keys = [generator.random() for _ in range(n)]
    return sorted(range(n), key=keys.__getitem__)
