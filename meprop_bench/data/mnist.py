"""MNIST as the papers use it: 55,000 training, 5,000 development and 10,000 test images of 28 x 28 pixels.

The development set is the *first* 5,000 training images (the authors' code), pixels are divided by 255 and not
normalised, and an image is one row of 784. Its format, IDX, is read strictly, so that a damaged file says so:

    offset  0: two zero bytes · data type (0x08 = unsigned byte) · number of dimensions d
    offset  4: d sizes, each a big-endian 32-bit integer
    after it : the entries, row-major; nothing else

The length follows from the header alone, so one byte too few or too many is an error. The format's other types have no
user here and are refused by name.
"""

from __future__ import annotations

import hashlib
import math
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING

from meprop_bench.data.content import ContentError, opened
from meprop_bench.data.images import ImageData, ImagePart
from meprop_bench.data.sources import SOURCES, compared, data_folder, path_of
from meprop_bench.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DEV_IMAGES", "digest", "load_mnist", "read_idx"]

DEV_IMAGES = 5_000


def load_mnist() -> ImageData:
    """Load MNIST, or what lies in files of its names: a note says so; `UserError` for a missing or damaged file."""
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


def _part(images: Tensor, labels: Tensor) -> ImagePart:
    return ImagePart(images.reshape(len(images), -1).float().div_(255), labels.long())


_UNSIGNED_BYTE = 0x08
_LARGEST = 1 << 29  # bytes; a header that states more is damaged (MNIST's training images are 47 MB)
_PIECE = 1 << 20


def read_idx(path: Path, dimensions: int, remedy: str = "fetch the file again") -> Tensor:
    """Return what a file of unsigned bytes, gzip or plain, holds: a `uint8` tensor of the shape that its header states.

    `UserError`, with the remedy: it cannot be read, is damaged, of another kind, or has not so many dimensions.
    """
    import torch

    try:
        with opened(path) as stream:
            shape, entries = _entries(stream, dimensions)
    except MemoryError:
        raise UserError(f"cannot read {path}: its header states more than the memory holds; {remedy}") from None
    except (ValueError, ContentError) as error:
        raise UserError(f"cannot read {path}: {error}; {remedy}") from None
    found = torch.frombuffer(entries, dtype=torch.uint8) if entries else torch.empty(0, dtype=torch.uint8)
    return found.reshape(shape)


def digest(entries: Tensor) -> str:
    """Return the SHA-256 of the plain file that holds these unsigned bytes, in hexadecimal: they are all that is in it.

    It is that of what is trained on, without a second look at a file that may have changed.
    """
    header = bytes([0, 0, _UNSIGNED_BYTE, entries.dim()]) + b"".join(n.to_bytes(4, "big") for n in entries.shape)
    found = hashlib.sha256(header)
    found.update(entries.contiguous().numpy().data)
    return found.hexdigest()


def _entries(stream: BufferedIOBase, dimensions: int) -> tuple[tuple[int, ...], bytearray]:
    """Return the shape and the entries; `ValueError` says what is wrong."""
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise ValueError("it is not an IDX file")
    if magic[2] != _UNSIGNED_BYTE:
        raise ValueError(f"its data type is 0x{magic[2]:02X}, not unsigned bytes (0x08)")
    if magic[3] != dimensions:
        raise ValueError(f"it has {magic[3]} dimensions, not {dimensions}")
    header = stream.read(4 * dimensions)
    if len(header) < 4 * dimensions:
        raise ValueError("it is truncated in its header")
    shape = tuple(int.from_bytes(header[i : i + 4], "big") for i in range(0, len(header), 4))
    stated = math.prod(shape)
    if stated > _LARGEST:
        raise ValueError(f"its header states {stated:,} entries, which cannot be right")
    # Piece by piece: to read all at once takes the memory that the header states, whatever the file holds.
    entries = bytearray()
    while piece := stream.read(min(_PIECE, stated - len(entries))):
        entries += piece
    if len(entries) < stated:
        raise ValueError(f"it is truncated: {len(entries):,} of the {stated:,} entries its header states")
    if stream.read(1):
        raise ValueError(f"data follow the {stated:,} entries its header states")
    return shape, entries
