"""What a user can do wrong, and the exit codes of every verb."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["ExitCode", "UserError"]


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
    """An error that the user caused and can put right.

    Args:
        message: one line that says what is wrong and what to do about it.
        exit_code: the exit code of the verb.

    """

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.USAGE) -> None:
        super().__init__(message)
        self.exit_code = exit_code
