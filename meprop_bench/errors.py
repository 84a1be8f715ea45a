"""What a user can do wrong, and the exit codes of every verb."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from enum import IntEnum

__all__ = ["Absent", "ExitCode", "UserError", "nearest", "one_of", "out_of_memory"]


class ExitCode(IntEnum):
    """Exit codes that scripts and CI rely on; the same for every verb."""

    OK = 0
    REGRESSION = 1
    USAGE = 2
    NOT_COMPARABLE = 3
    INCONCLUSIVE = 4
    NOTHING_MEASURED = 5
    INTERRUPTED = 130


class UserError(Exception):
    """An error that the user caused and can put right: one line that says what is wrong and what to do about it."""

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.USAGE) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows: the line, as no traceback says more."""
        return [f"{type(self).__name__}: {self}"]


class Absent(UserError):
    """What a user named is not there: no such file, module or function."""


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, which is nobody's mistake.

    torch raises RuntimeError for the CPU ("DefaultCPUAllocator: can't allocate memory", "not enough memory").
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    said = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, RuntimeError) and any(words in text for words in said)


def nearest(word: object, allowed: Iterable[str]) -> str | None:
    """Return what was probably meant by a misspelt word; None where nothing is near."""
    return next(iter(difflib.get_close_matches(str(word), allowed, n=1)), None)


def one_of(what: str, value: object, allowed: Collection[str]) -> str:
    """Return `value` if it is allowed; else a `UserError` names what was probably meant, and all that is allowed."""
    if isinstance(value, str) and value in allowed:
        return value
    close = nearest(value, allowed)
    hint = f"did you mean {close!r}? " if close else ""
    raise UserError(f"unknown {what} {value!r}: {hint}choose from {', '.join(allowed)}")
