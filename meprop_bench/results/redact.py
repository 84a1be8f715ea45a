"""Free text that is fit to be stored and published: one printable line without this machine's paths.

Errors of libraries and typed commands end up in results, and results are committed and shown on web pages. They may
hold line breaks, terminal escapes and the home folder of whoever ran them. All three are taken out once, on the way in,
so that everything downstream only has to escape for its own syntax.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

__all__ = ["bounded", "one_line", "printable", "without_paths"]

# An absolute path of two components or more: POSIX, home-relative or Windows; not the tail of a word, of a URL or of a
# relative path.
_PATH = re.compile(
    r"(?<![\w./~…-])(?:~?(?:/[\w.+@%:,-]+){2,}/?|~/[\w.+@%:,-]+/?|[A-Za-z]:\\(?:[\w .+@%,-]+\\)*[\w.+@%,-]*)"
)


def without_paths(text: str) -> str:
    """Shorten every absolute path in `text` to `…/<last component>`."""

    if "/" not in text and "\\" not in text:
        return text

    def shorten(match: re.Match[str]) -> str:
        return "…/" + re.split(r"[/\\]", match.group().rstrip("/\\"))[-1]

    return _PATH.sub(shorten, text)


def one_line(text: str, limit: int = 300) -> str:
    """Return `text` as one printable line of at most `limit` characters, without absolute paths."""
    # The rows of a result say the same few things over and over.
    return _short(text, limit) if len(text) <= _SHORT else _one_line(text, limit)


def _one_line(text: str, limit: int) -> str:
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " for c in text)
    line = without_paths(" ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def bounded(text: str, limit: int = 4000) -> str:
    """Return `text` fit to be shown whatever it is made of: one line of bounded length, and so each of its words."""
    return _ENDLESS.sub(r"\1…", one_line(text, limit))


_ENDLESS = re.compile(r"(\S{160})\S+")


def printable(value: Any) -> Any:
    """Return JSON values whose texts are printable lines: what a file says of a machine is shown as it stands there."""
    if isinstance(value, str):
        return value if value.isprintable() and len(value) <= _LONG else one_line(value, _LONG)
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    return [printable(item) for item in value] if isinstance(value, list) else value


_LONG = 2000
_SHORT = 400
_short = lru_cache(maxsize=4096)(_one_line)
