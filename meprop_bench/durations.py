"""Seconds of wall clock, as a user writes them and as a user reads them.

seconds_of("20m") == 1200.0            90, 90s, 20m, 1h, 1h30m
duration(1200.0) == "20 min"           0.4 s, 30 s, 2 min, 1.5 h
as_option(1201.0) == "21m"             rounded up
"""

from __future__ import annotations

import math
import re

from meprop_bench.errors import UserError

__all__ = ["as_option", "duration", "seconds_of"]

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_PIECE = r"(\d+(?:\.\d+)?)\s*([smh]?)"


def seconds_of(text: str) -> float:
    """Return the seconds that a text such as `90`, `90s`, `20m` or `1h30m` means; `UserError` for any other."""
    words = text.strip().lower()
    pieces = re.findall(_PIECE, words)
    found = sum(float(number) * _UNITS[unit] for number, unit in pieces)
    sound = re.fullmatch(rf"(?:{_PIECE}\s*)+", words) and (len(pieces) == 1 or all(unit for _, unit in pieces))
    if not sound or not 0 < found < math.inf:
        raise UserError(f"{text!r} is no time: write seconds, or for instance 90s, 20m, 1h30m")
    return found


def duration(seconds: float) -> str:
    """Return seconds in the unit that fits, to two digits."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.2g} min" if minutes < 10 else f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.2g} h"


def as_option(seconds: float) -> str:
    """Return seconds, rounded up, as an option takes them: 90s, 20m, 1.5h."""
    if seconds < 100:
        return f"{math.ceil(seconds)}s"
    minutes = seconds / 60
    return f"{math.ceil(minutes)}m" if minutes < 100 else f"{math.ceil(minutes / 6) / 10:g}h"
