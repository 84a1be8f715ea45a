"""Text files line by line, gzip or plain, with the number of each line: whoever finds a fault can say where it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from meprop_bench.data.content import ContentError, opened
from meprop_bench.errors import UserError

__all__ = ["Malformed", "numbered_lines"]

_LONGEST = 1 << 20  # bytes of a line; a gzip bomb or a binary file has no line ends
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters but for the tab: C0, DEL and C1. A damaged or binary file has them."""


class Malformed(UserError):
    """A line is not what the format asks for."""

    def __init__(self, path: Path, line: int, reason: str) -> None:
        super().__init__(f"{path}, line {line}: {reason}")


def numbered_lines(path: Path, *, spaces: str = "\x0b\x0c\x1c\x1d\x1e\x1f\x85") -> Iterator[tuple[int, str]]:
    r"""Yield each line with its number, from 1, without its end (`\n` or `\r\n`; no other character ends a line).

    Args:
        path: the file.
        spaces: control characters that may be in it; by default those that count as white space, which running text
            does have.

    Raises:
        UserError: the file cannot be read, is not sound gzip, or a line is not UTF-8, holds a control character or is
            longer than a mebibyte.

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
