"""The numbers of a result file, each checked where it comes in, so that no arithmetic after that can overflow.

JSON has integers of any length, and Python writes NaN and Infinity into it. What is in a file is a finite number of at
most `LARGEST` in size: a thousand of them can be added up, and two multiplied on the log scale.
"""

from __future__ import annotations

from meprop_bench.errors import UserError
from meprop_bench.results.redact import one_line

__all__ = ["LARGEST", "count", "integer", "number", "out_of_range"]

LARGEST = 1e300
_MOST = 1 << 53
"""Above this not every integer is a float."""
_DIGITS = 300


def number(value: object, what: str, *, signed: bool = False) -> float:
    """Return a value of a file as a float; raises `UserError`, which names `what` it is, for one that cannot be."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UserError(f"{what} is {one_line(repr(value), 40)}, not a number; measure again")
    if not (-LARGEST if signed else 0) <= value <= LARGEST:  # NaN is not between them either
        raise out_of_range(value, what, signed=signed)
    return float(value)


def count(value: object, what: str) -> int:
    """Return how often something was done; raises `UserError` if that cannot be."""
    found = number(value, what)
    if found > _MOST or found != int(found):
        raise UserError(f"{what} is {one_line(repr(value), 40)}: it is an integer of at most 2^53; measure again")
    return int(found)


def out_of_range(value: float, what: str, *, signed: bool = False) -> UserError:
    """Return the error of a number that is none to calculate with."""
    wanted = "it is finite" if signed else "it is finite and not negative"
    return UserError(f"{what} is {one_line(repr(value), 40)}: {wanted}, and at most {LARGEST:g}; measure again")


def integer(digits: str) -> int:
    """Return an integer of a JSON text (`json.JSONDecoder(parse_int=...)`); ValueError where it is too long."""
    if len(digits) > _DIGITS:
        raise ValueError(f"it holds an integer of {len(digits)} digits, which is no number of a result")
    return int(digits)
