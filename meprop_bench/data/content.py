"""Reading a file that may be damaged or hostile: decompress in pieces, count, hash, and stop early.

A gzip of a few kilobytes can unpack to terabytes. The published size is known, so decompression stops one byte past it,
whatever the stream claims; memory stays at one piece, and a file is called good only when its size and SHA-256 are
those published and nothing follows the end of the stream.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path

from meprop_bench.data.location import locate
from meprop_bench.data.sources import DataFile, Source

__all__ = ["PIECE", "ContentError", "State", "digest", "inspect", "pieces", "plain", "published", "unpublished"]

PIECE = 1 << 16
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_WINDOW = 31  # zlib's code for "a gzip header and trailer, any window size"


class ContentError(Exception):
    """The content is not the published one; the message says in what."""


class State(StrEnum):
    """What is known of a file in the data folder."""

    MISSING = "missing"
    PRESENT = "present"
    WRONG_SIZE = "wrong size"
    VERIFIED = "verified"
    CORRUPT = "corrupt"


def pieces(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file, `PIECE` at a time."""
    with path.open("rb") as stream:
        while piece := stream.read(PIECE):
            yield piece


def _decompressed(raw: Iterable[bytes]) -> Iterator[bytes]:
    """Yield what a gzip stream (of one or more members) unpacks to, at most `PIECE` bytes at a time."""
    member = zlib.decompressobj(_GZIP_WINDOW)
    for piece in raw:
        rest = piece
        while rest:
            if member.eof:
                member = zlib.decompressobj(_GZIP_WINDOW)
            try:
                yield member.decompress(rest, PIECE)
            except zlib.error as error:
                raise ContentError(f"not a sound gzip file ({error})") from None
            rest = member.unused_data if member.eof else member.unconsumed_tail
    if not member.eof:
        raise ContentError("the gzip file is cut off")


def plain(raw: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the content of `raw`, which is gzip when it begins like one; `ContentError` when that is not sound."""
    stream = iter(raw)
    head = b""
    while len(head) < len(_GZIP_MAGIC) and (piece := next(stream, b"")):
        head += piece

    def whole() -> Iterator[bytes]:
        yield head
        yield from stream

    return _decompressed(whole()) if head.startswith(_GZIP_MAGIC) else whole()


def published(raw: Iterable[bytes], file: DataFile) -> Iterator[bytes]:
    """Yield the decompressed content of `raw`, checking on the way that it is that of `file`.

    Never yields more bytes than `file.size`. What was yielded is to be trusted only when the iterator ended without an
    error.

    Raises:
        ContentError: too long, too short, not sound gzip, or another SHA-256.

    """
    digest = hashlib.sha256()
    size = 0
    for piece in plain(raw):
        size += len(piece)
        if size > file.size:
            raise ContentError(f"longer than the published {file.size:,} bytes")
        digest.update(piece)
        yield piece
    if size < file.size:
        raise ContentError(f"{size:,} bytes instead of the published {file.size:,}")
    if digest.hexdigest() != file.sha256:
        raise ContentError("its SHA-256 is not the published one")


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, decompressed, in hexadecimal; "" for one that cannot be read.

    Whoever reads that one next says what is wrong with it.
    """
    found = hashlib.sha256()
    try:
        for piece in plain(pieces(path)):
            found.update(piece)
    except (ContentError, OSError):
        return ""
    return found.hexdigest()


def unpublished(source: Source, digests: Mapping[str, str]) -> tuple[str, ...]:
    """Return a note for whoever reads a result of these data, if they are not the published ones, else nothing.

    Args:
        source: the data set that they stand for.
        digests: name of a file of it -> the SHA-256 of what was read.

    """
    others = [name for name, found in digests.items() if found != source.file(name).sha256]
    if not others:
        return ()
    return (
        f"not the published {source.name} data: {', '.join(others)} {'has' if len(others) == 1 else 'have'} another "
        f"SHA-256; `meprop-bench data fetch {source.name}` gets those that were published",
    )


def _stated_size(path: Path) -> int:
    """Return the decompressed size that a file states: for gzip its last four bytes, else its length."""
    with path.open("rb") as stream:
        if stream.read(len(_GZIP_MAGIC)) != _GZIP_MAGIC:
            return path.stat().st_size
        stream.seek(-4, 2)
        return int.from_bytes(stream.read(4), "little")


def inspect(folder: Path, source: Source, file: DataFile, *, thorough: bool) -> tuple[State, str]:
    """Return what is known of `file` in `folder`, and a detail for a reader ("" when there is nothing to say).

    `thorough` reads and hashes it all (`VERIFIED` or `CORRUPT`); otherwise the stated size alone is looked at
    (`PRESENT` or `WRONG_SIZE`), which costs nothing.
    """
    path = locate(folder, source, file)
    if path is None:
        return State.MISSING, f"no {file.stored_name} in {folder / source.name}"
    try:
        if thorough:
            for _ in published(pieces(path), file):
                pass
            return State.VERIFIED, ""
        stated = _stated_size(path)
    except (ContentError, OSError) as error:
        return State.CORRUPT, str(error)
    if stated != file.size:
        return State.WRONG_SIZE, f"{stated:,} bytes instead of the published {file.size:,}"
    return State.PRESENT, ""
