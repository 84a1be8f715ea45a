"""Data sets: where they come from (`sources`), where they lie (`location`), how they get there (`fetch`).

Importing this package loads neither torch nor NumPy: the `data` verb only moves files.
"""

from meprop_bench.data.images import Batch, ImageData, Part, batches, load_images, numbered_batches

__all__ = ["Batch", "ImageData", "Part", "batches", "load_images", "numbered_batches"]
