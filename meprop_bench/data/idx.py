"""Read IDX, the format of MNIST: strict, so that a damaged file says so instead of training on noise.

    offset  0: two zero bytes · data type (0x08 = unsigned byte) · number of dimensions d
    offset  4: d sizes, each a big-endian 32-bit integer
    after it : the entries, row-major; nothing else

The length follows from the header alone, so one byte too few or too many is an error. MNIST and its relatives hold
unsigned bytes; the format's other types have no user here and are refused by name.
"""

from __future__ import annotations

import hashlib
import math
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING

from meprop_bench.data.content import ContentError, opened
from meprop_bench.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["digest", "read_idx"]

_UNSIGNED_BYTE = 0x08
_LARGEST = 1 << 29  # bytes; a header that states more is damaged (MNIST's training images are 47 MB)
_PIECE = 1 << 20


def read_idx(path: Path, dimensions: int, remedy: str = "fetch the file again") -> Tensor:
    """Read a file of unsigned bytes, gzip or plain.

    Args:
        path: the file; it is taken for gzip when it begins like one.
        dimensions: how many dimensions it must have.
        remedy: what the reader of an error message can do.

    Returns:
        A `uint8` tensor of the shape that the header states.

    Raises:
        UserError: the file cannot be read, is damaged, or is another kind of file.

    """
    import torch

    try:
        with opened(path) as stream:
            shape, entries = _read(stream, dimensions)
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


def _read(stream: BufferedIOBase, dimensions: int) -> tuple[tuple[int, ...], bytearray]:
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
