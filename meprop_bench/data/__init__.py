"""Data sets: which there are and where they lie (`sources`), how they get there (`fetch`), and what reads them.

Importing this package loads neither torch nor NumPy: the `data` verb only moves files.
"""

from meprop_bench.data.images import Batch, ImageData, ImagePart, batches, numbered_batches
from meprop_bench.errors import one_of

__all__ = ["Batch", "ImageData", "ImagePart", "auto_images", "batches", "load_images", "numbered_batches"]

_IMAGE_SETS = ("auto", "mnist", "digits")


def auto_images() -> str:
    """Return the name of the images that "auto" stands for: MNIST when its files are here, else the digits."""
    from meprop_bench.data.sources import SOURCES, is_here

    return "mnist" if is_here(SOURCES["mnist"]) else "digits"


def load_images(name: str = "auto") -> ImageData:
    """Load "mnist", "digits" (ships with scikit-learn) or "auto", see `auto_images`; `published` says what they are.

    A damaged MNIST is a `UserError`, as missing data are, not a reason to take the digits; another set in files of its
    names (Fashion-MNIST) is none, but the result has to say so.
    """
    one_of("image data set", name, _IMAGE_SETS)
    if name == "auto":
        name = auto_images()
    if name == "mnist":
        from meprop_bench.data.mnist import load_mnist

        return load_mnist()
    from meprop_bench.data.images import load_digits

    return load_digits()
