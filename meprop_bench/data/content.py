"""Reading a file that may be damaged or hostile: decompress in pieces, count, hash, and stop early; or line by line.

A gzip of a few kilobytes can unpack to terabytes. The published size is known, so decompression stops one byte past it,
whatever the stream claims; memory stays at one piece, and a file is called good only when its size and SHA-256 are
those published and nothing follows the end of the stream.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from io import BufferedIOBase
from itertools import chain
from pathlib import Path

from meprop_bench.data.sources import DataFile, Source, locate
from meprop_bench.errors import UserError

__all__ = [
    "PIECE", "ContentError", "Malformed", "State", "condition", "digest", "inspect", "numbered_lines", "opened",
    "published",
]  # fmt: skip

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


@contextmanager
def opened(path: Path) -> Iterator[BufferedIOBase]:
    """Open a file to read its content, gzip (when it begins like one) or plain.

    ContentError: it cannot be read, or is not sound gzip, found out at any time within the block.
    """
    try:
        with path.open("rb") as probe:
            packed = probe.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        with gzip.open(path) if packed else path.open("rb") as stream:
            yield stream
    except (EOFError, zlib.error, OSError) as error:
        raise ContentError(getattr(error, "strerror", None) or str(error)) from None


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


def _plain(raw: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the content of `raw`, which is gzip when it begins like one; `ContentError` when that is not sound."""
    stream = iter(raw)
    head = b""
    while len(head) < len(_GZIP_MAGIC) and (piece := next(stream, b"")):
        head += piece
    whole = chain((head,), stream)
    return _decompressed(whole) if head.startswith(_GZIP_MAGIC) else whole


def published(raw: Iterable[bytes], file: DataFile) -> Iterator[bytes]:
    """Yield the decompressed content of `raw`, checking on the way that it is that of `file`.

    Never yields more bytes than `file.size`. What was yielded is to be trusted only when the iterator ended without an
    error: ContentError for too long, too short, not sound gzip, or another SHA-256.
    """
    digest = hashlib.sha256()
    size = 0
    for piece in _plain(raw):
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
    try:
        with opened(path) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except ContentError:
        return ""


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
            with path.open("rb") as stream:
                for _ in published(iter(partial(stream.read, PIECE), b""), file):
                    pass
            return State.VERIFIED, ""
        stated = _stated_size(path)
    except (ContentError, OSError) as error:
        return State.CORRUPT, str(error)
    if stated != file.size:
        return State.WRONG_SIZE, f"{stated:,} bytes instead of the published {file.size:,}"
    return State.PRESENT, ""


def condition(folder: Path, source: Source, *, thorough: bool) -> tuple[str, list[str]]:
    """Return how a data set is, and a line for each file that is not as published; the argument is that of `inspect`.

    It is "present", "missing" (all of it; there is no line then), "incomplete" or "damaged".
    """
    found = [(file.stored_name, *inspect(folder, source, file, thorough=thorough)) for file in source.files]
    states = {state for _, state, _ in found}
    sound = {State.PRESENT, State.VERIFIED}
    if states <= sound:
        return "present", []
    if states == {State.MISSING}:
        return "missing", []
    lines = [f"{source.name}/{name}: {state}: {detail}" for name, state, detail in found if state not in sound]
    return "incomplete" if states <= {*sound, State.MISSING} else "damaged", lines


_LONGEST = 1 << 20  # bytes of a line; a gzip bomb or a binary file has no line ends
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters but for the tab: C0, DEL and C1. A damaged or binary file has them."""


class Malformed(UserError):
    """A line is not what the format asks for."""

    def __init__(self, path: Path, line: int, reason: str) -> None:
        super().__init__(f"{path}, line {line}: {reason}")


def numbered_lines(path: Path, *, spaces: str = "\x0b\x0c\x1c\x1d\x1e\x1f\x85") -> Iterator[tuple[int, str]]:
    r"""Yield each line with its number, from 1, without its end (`\n` or `\r\n`; no other character ends a line).

    `spaces` are control characters that may be in it; by default those that count as white space, which running text
    does have. `UserError`: the file cannot be read, is not sound gzip, or a line is not UTF-8, holds another control
    character or is longer than a mebibyte.
    """
    number = 0
    try:
        with opened(path) as stream:
            while raw := stream.readline(_LONGEST):
                number += 1
                if len(raw) == _LONGEST and not raw.endswith(b"\n"):
                    raise Malformed(path, number, "it is longer than a mebibyte, so this is not a text file")
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n").removesuffix("\r")
                if found := next((char for char in _CONTROL.findall(line) if char not in spaces), None):
                    raise Malformed(path, number, f"it holds the control character U+{ord(found):04X}")
                yield number, line
    except UnicodeDecodeError:
        raise Malformed(path, number, "it is not UTF-8") from None
    except ContentError as error:
        raise UserError(f"cannot read {path}, after line {number}: {error}") from None
