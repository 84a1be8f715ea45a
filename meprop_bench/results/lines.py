"""Files of JSON lines that only grow: what was appended is on the disk, and a kill costs the line being written alone.

A write that was cut off leaves a torn last line, without a line break. A reader gets the whole lines and learns of the
torn one at the end; whoever may write to the file cuts it off.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from meprop_bench.errors import UserError

__all__ = ["Lines", "append_lines", "cut", "or_user_error"]

_TOGETHER, _AT_ONCE = 512, 1 << 20
"""Lines that are given at once, and bytes that are read at once."""


class Lines:
    """The whole lines of a file; iterating gives some at a time, each with its line break. `UserError`: unreadable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0  # bytes of the whole lines read so far
        self.torn = b""  # what there is of one more, once all others have been read

    def __iter__(self) -> Iterator[list[bytes]]:
        with or_user_error(self.path, "read"), self.path.open("rb", buffering=_AT_ONCE) as file:
            while lines := list(islice(file, _TOGETHER)):
                if not lines[-1].endswith(b"\n"):
                    self.torn = lines.pop()
                self.size += sum(map(len, lines))
                yield lines


def append_lines(path: Path, lines: Iterable[bytes], fd: int | None = None) -> None:
    """Append lines to a file (open as `fd`): all of them are on the disk when this returns, or none (`UserError`)."""
    data = b"".join(line + b"\n" for line in lines)
    with or_user_error(path), open(path if fd is None else fd, "ab", buffering=0, closefd=fd is None) as file:
        number, written = file.fileno(), 0
        size = os.fstat(number).st_size
        try:
            while written < len(data):
                written += os.write(number, data[written:])
            os.fsync(number)
        except OSError:
            with suppress(OSError):  # then the next to open it finds a torn line, and removes it
                os.ftruncate(number, size)
            raise


def cut(path: Path, size: int, fd: int | None = None) -> None:
    """Cut a file (open as `fd`) off after so many bytes; that is on the disk when this returns (`UserError`)."""
    with or_user_error(path), open(path if fd is None else fd, "r+b", buffering=0, closefd=fd is None) as file:
        os.ftruncate(file.fileno(), size)
        os.fsync(file.fileno())


@contextmanager
def or_user_error(path: Path, verb: str = "write") -> Iterator[None]:
    """Turn an error of the file system into one line that says what to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        advice = "free some space or choose another folder" if verb == "write" else "check its permissions"
        raise UserError(f"cannot {verb} {path.parent.name}/{path.name}: {reason}; {advice}") from None
