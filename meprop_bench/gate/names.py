"""The name of a benchmark. As it stands in its file it is a key; what is shown of it is made here, and by nothing else.

    key     "m.time_a(   a  b\\n0  1  2)"    compared, looked up, matched with globs, written to JSON
    shown   m.time_a(   a  b\\n0  1  2)      one line, without paths of a machine

Shortening a key would make one benchmark of two. One thing in a key is not the benchmark's: the address in what Python
prints of an object (`<function f at 0x7f12...>`), which is another in each process. So names that only one file has are
matched without it (`without_addresses`), where that is unambiguous.
"""

from __future__ import annotations

import hashlib
import re

from meprop_bench.results.redact import without_paths

__all__ = ["LONGEST", "quoted", "shown", "visible", "without_addresses"]

LONGEST = 300
"""Characters of a name, or of another text of a file, that are shown at most."""

_DIGITS = 6
"""Hexadecimal ones of a digest: no code host takes so few for a commit."""

_ADDRESS = re.compile(r"(\bat |<[^<>]*?\b)0x[0-9a-fA-F]{4,16}\b")


def shown(name: str, limit: int = LONGEST) -> str:
    """Return a name as one printable line of at most `limit` characters, without the paths of a machine."""
    line = without_paths(_escaped(name))
    return line if len(line) <= limit else _with_digest(line, name, limit)


def visible(name: str, limit: int = LONGEST) -> str:
    """Return a name likewise, but each another line: with its paths, and with a digest where it is not as it stands."""
    return name if name.isprintable() and len(name) <= limit else _with_digest(_escaped(name), name, limit)


def quoted(name: str, limit: int = 120) -> str:
    """Return a name for the middle of a sentence."""
    return f"'{shown(name, limit)}'"


def without_addresses(name: str) -> str:
    """Return a name without the addresses of the objects in it."""
    return _ADDRESS.sub(r"\1…", name) if "0x" in name else name


def _escaped(name: str) -> str:
    # Line breaks, terminal escapes, marks that turn the direction of writing, half a surrogate pair.
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name)


def _with_digest(line: str, name: str, limit: int) -> str:
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
    return f"{line[: limit - 1 - _DIGITS]}…{digest}"
