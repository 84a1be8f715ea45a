"""A JSON object of which one member is too long a list to be held as Python objects.

A pytest-benchmark file of a million rows is 0.7 GB, 1.6 GB with the values. `json.load` makes 35 objects of each row:
of 100,000 rows without values (68 MB) it takes 1.9 s and 0.24 GiB. Rows that are decoded straight into the fields that
are wanted (`msgspec`) take 0.6 s and 0.06 GiB. msgspec decodes whole documents only, so the list is cut:

    ... {row}, {row}, {row}, {r|ow}, ...      what is in memory, about 1 MiB
             `[` {row}, {row} `]`             up to a `}, {` near its end, decoded as a list of its own

A cut inside a row or a string leaves brackets open, so whatever decodes was cut between rows. What does not decode
(such a cut, NaN or Infinity, which Python writes and JSON does not have) is read row by row with `json`, the slow and
sure way, and so are all members beside the list. Memory is bounded by the longest row and the longest other member.
Libraries that do it were tried (docs/decisions.md).

JSON has integers of any length, and Python writes NaN and Infinity into it. So each number is checked where it comes
in: it is finite and at most `LARGEST` in size, so that a thousand of them can be added up, and two multiplied on the
log scale, without an overflow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO, TypeVar

import msgspec

from meprop_bench.errors import UserError
from meprop_bench.gate.names import shown
from meprop_bench.results.incoming import unique
from meprop_bench.results.redact import one_line

__all__ = ["LARGEST", "count", "number", "out_of_range", "read_object"]

_Row = TypeVar("_Row")

LARGEST = 1e300
_MOST = 1 << 53
"""Above this not every integer is a float."""
_DIGITS = 300

_CHUNK = 1 << 20
_NEAR_THE_END = 1 << 16
_CUTS = 3
"""Cuts that are tried before a row is read by itself."""
_LITERAL = 16
"""No literal is longer (`-Infinity`, an escape): an error further from the end of what was read is one of the file."""

_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7": "unxz", b"PK": "unzip", b"(\xb5": "unzstd"}
"""How a compressed file begins, and what unpacks it."""

_SPACE = re.compile(r"[ \t\r\n]*")
_BETWEEN = re.compile(r"\}(?=[ \t\r\n]*,[ \t\r\n]*\{)")


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


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"it holds an integer of {len(digits)} digits, which is no number of a result")
    return int(digits)


_JSON = json.JSONDecoder(parse_int=_integer, object_pairs_hook=unique)


def read_object(
    path: Path, listed: str, row: type[_Row], take: Callable[[list[_Row]], None]
) -> tuple[dict[str, Any], bool]:
    """Return the object that a file begins with, and whether there is more behind it (as in a file of JSON lines).

    The member `listed`, if it is a list, is given to `take` in pieces, its rows as msgspec decodes them to the type
    `row`, and stands as their number. Raises `UserError` for what cannot be read, or is not such an object.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = _Text(file, shown(path.name, 120))
            members = _members(text, listed, row, take)
            return members, text.peek() != ""
    except UnicodeDecodeError:
        raise UserError(f"{shown(path.name, 120)} {_not_text(path)}") from None
    except OSError as error:
        raise UserError(f"cannot read {shown(str(path), 120)}: {error.strerror or type(error).__name__}") from None
    except RecursionError:
        raise UserError(f"{shown(path.name, 120)} is nested too deeply to be a result") from None


def _not_text(path: Path) -> str:
    with suppress(OSError), path.open("rb") as file:
        if name := _COMPRESSED.get(file.read(2)):
            return f"is compressed: unpack it first ({name})"
    return "is not a text in UTF-8; measure again, or convert it"


class _Text:
    """A file's text from where it was read to, as far as it is in memory."""

    def __init__(self, file: TextIO, name: str) -> None:
        self._file, self.name = file, name
        self.text, self.at = "", 0
        self._before = 0

    @property
    def place(self) -> int:
        """Which character of the file is next."""
        return self._before + self.at

    def more(self) -> bool:
        """Read on, twice as much as is unread or a chunk; False at the file's end."""
        unread = self.text[self.at :]
        piece = self._file.read(max(_CHUNK, len(unread)))
        self._before += self.at
        self.text, self.at = unread + piece, 0
        return bool(piece)

    def peek(self) -> str:
        """Return the next character that is not space, without passing it; nothing at the end."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]  # it may be empty
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def expect(self, wanted: str) -> str:
        """Pass the next character, which is one of `wanted`."""
        found = self.peek()
        if found == "" or found not in wanted:
            raise self.error("it ends too early" if found == "" else f"{one_line(repr(found))} is not expected")
        self.at += 1
        return found

    def value(self) -> Any:
        """Pass a value and return it."""
        self.peek()
        while True:
            try:
                found, end = _JSON.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                cut_off = error.msg.startswith("Unterminated") or error.pos > len(self.text) - _LITERAL
                if cut_off and self.more():
                    continue
                self.at = error.pos
                raise self.error("it ends too early" if cut_off else error.msg.lower()) from None
            except ValueError as error:
                raise UserError(f"{self.name}: {error}; measure again") from None
            if end < len(self.text) or not self.more():  # a number could go on
                self.at = end
                return found

    def error(self, what: str) -> UserError:
        """Return the error that says where the text is not JSON."""
        return UserError(f"{self.name} is not JSON, or was cut off: {what} at character {self.place}; measure again")


def _members(text: _Text, listed: str, row: type[_Row], take: Callable[[list[_Row]], None]) -> dict[str, Any]:
    if text.peek() == "":
        raise UserError(f"{text.name} is empty; measure again")
    found: dict[str, Any] = {}
    text.expect("{")
    if text.peek() == "}":
        text.expect("}")
        return found
    while True:
        if text.peek() != '"':
            text.expect('"')
        key = text.value()
        text.expect(":")
        if key in found:
            raise UserError(f"{text.name} has {one_line(repr(key), 40)} twice: it is unclear which of them to take")
        found[key] = _rows(text, row, take) if key == listed and text.peek() == "[" else text.value()
        if text.expect(",}") == "}":
            return found


def _rows(text: _Text, row: type[_Row], take: Callable[[list[_Row]], None]) -> int:
    """Pass the list, give its rows to `take`, and return how many there were."""
    decoder = msgspec.json.Decoder(list[row])  # type: ignore[valid-type]
    count = again = 0  # from where to try many at once: an attempt that failed has cost a chunk
    text.expect("[")
    if text.peek() == "]":
        text.expect("]")
        return 0
    while True:
        rows = _many(text, decoder) if text.place >= again else []
        if not rows:
            again = again if text.place < again else text.place + _CHUNK
            rows = [_one(text, row, count)]
        count += len(rows)
        take(rows)
        if text.expect(",]") == "]":
            return count


def _many(text: _Text, decoder: msgspec.json.Decoder[list[_Row]]) -> list[_Row]:
    """Pass as many rows as can be decoded at once; none where that does not work."""
    text.peek()
    while len(text.text) - text.at < _CHUNK and text.more():
        pass
    cuts = [match.end() for match in _BETWEEN.finditer(text.text, max(text.at, len(text.text) - _NEAR_THE_END))]
    for cut in reversed(cuts[-_CUTS:]):
        try:
            rows = decoder.decode(f"[{text.text[text.at : cut]}]")
        except msgspec.DecodeError:
            continue
        text.at = cut
        return rows
    return []


def _one(text: _Text, row: type[_Row], number: int) -> _Row:
    value = text.value()
    try:
        return msgspec.convert(value, row)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:  # half a surrogate pair in a key
        raise UserError(f"{text.name}: row {number + 1} is not one of a result: {one_line(str(error), 120)}") from None
