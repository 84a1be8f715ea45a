"""What the package advises, as Python has it: `--kernel gather` is kernel="gather", and `--threads 2` is threads=2."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from meprop_bench.errors import UserError
from meprop_bench.results.axes import AXES

__all__ = ["as_keywords", "in_python"]

_OPTION = re.compile(r"--([a-z][a-z-]*[a-z]|k)\b(?: ([\w./:]*\w))?")

_NO_VALUE = frozenset({"and", "in", "of", "or", "out", "with"})
"""Words after an option with which the sentence goes on: "leave --gradient out"."""


@contextmanager
def in_python() -> Iterator[None]:
    """Name keywords as they are in Python in what is refused."""
    try:
        yield
    except UserError as error:
        raise UserError(as_keywords(str(error)), error.exit_code) from error.__cause__


def as_keywords(text: str) -> str:
    """Return a text whose options are keywords."""
    return _OPTION.sub(_keyword, text)


def _keyword(found: re.Match[str]) -> str:
    name, word = found[1].replace("-", "_"), found[2]
    if word is None:
        return name
    if word[0].isdigit():
        return f"{name}={word}"
    takes_words = found[1] in AXES and AXES[found[1]].words
    return f'{name}="{word}"' if takes_words and word not in _NO_VALUE else f"{name} {word}"
