"""Text files line by line, gzip or plain, with the number of each line: whoever finds a fault can say where it is."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from meprop_bench.errors import UserError

__all__ = ["Malformed", "numbered_lines"]

_LONGEST = 1 << 20  # bytes of a line; a gzip bomb or a binary file has no line ends


class Malformed(UserError):
    """A line is not what the format asks for."""

    def __init__(self, path: Path, line: int, reason: str) -> None:
        super().__init__(f"{path}, line {line}: {reason}")


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    r"""Yield each line with its number, from 1, without its end (`\n` or `\r\n`; no other character ends a line).

    Raises:
        UserError: the file cannot be read, is not sound gzip, or a line is not UTF-8 or longer than a mebibyte.

    """
    number = 0
    try:
        with path.open("rb") as probe:
            is_gzip = probe.read(2) == b"\x1f\x8b"
        with gzip.open(path) if is_gzip else path.open("rb") as stream:
            while raw := stream.readline(_LONGEST):
                number += 1
                if len(raw) == _LONGEST and not raw.endswith(b"\n"):
                    raise Malformed(path, number, "it is longer than a mebibyte, so this is not a text file")
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise Malformed(path, number, "it is not UTF-8") from None
    except (EOFError, zlib.error, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"cannot read {path}, after line {number}: {reason}") from None
