"""What comes in from a file, checked once: JSON without ambiguity, then a structure whose fields have types and bounds.

    bytes  --parsed-->  JSON values  --checked-->  a structure        one line that says which field, and what it holds

The structures are dataclasses whose annotations say what a field may hold (`msgspec`): a time is positive and finite, a
count is not negative, a share lies between 0 and 1. So nothing behind this module meets a number that it could stumble
over. The bounds are far outside of what can be measured, and so narrow that no ratio of two of them, and no interval of
such ratios, leaves the range of a float.

Keys that a structure does not have are ignored, as files of newer versions have them, unless it is a `msgspec.Struct`
that forbids them, as those of hand-written files are; a key that is missing, or one too many, is looked for among the
others. A key that an object has twice is refused: nothing says which of the two is meant.

A results folder may hold 100,000 rows, so `parsed` is in a hurry: msgspec decodes, which knows no NaN and no Infinity
either, yet keeps the last of two equal keys without a word. But every key stands before a colon, and no other colon
stands outside a string. So what was decoded is encoded again, and has as many colons as the text, or the text takes the
slow way, which says what is wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import UnionType
from typing import Annotated, Any, TypeAlias, TypeVar, Union, get_args, get_origin

import msgspec
import msgspec.inspect
from msgspec import Meta

from meprop_bench.errors import UserError, nearest
from meprop_bench.results.redact import one_line

__all__ = [
    "MOST_PERCENT", "Amount", "Busy", "Count", "Finite", "Name", "Number", "Percent", "Rate", "Ratio", "Seconds",
    "Share", "checked", "conforming", "parsed", "parts", "refused", "unique",
]  # fmt: skip

Seconds: TypeAlias = Annotated[float, Meta(ge=1e-12, le=1e8)]
"""A time that something took: a picosecond is below any clock, and 1e8 s are three years."""
Amount: TypeAlias = Annotated[float, Meta(ge=0, le=1e30)]
"""Operations, bytes, joules and the like."""
Count: TypeAlias = Annotated[int, Meta(ge=1, le=1 << 40)]
"""How many there are of what there has to be one of."""
Number: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 62)]
"""A size or a count that may be 0."""
Rate: TypeAlias = Annotated[float, Meta(ge=1, le=1e30)]
"""Operations or bytes a second, and the bytes that it holds for."""
Ratio: TypeAlias = Annotated[float, Meta(ge=1e-300, le=1e300)]
"""One time over another, or a bound of it."""
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
MOST_PERCENT = 100.01
"""BLEU rounds a little above 100."""
Percent: TypeAlias = Annotated[float, Meta(ge=0, le=MOST_PERCENT)]
"""Of a whole."""
Busy: TypeAlias = Annotated[float, Meta(ge=0, le=150)]
"""Percent by a counter of the hardware, which may overshoot."""
Finite: TypeAlias = Annotated[float, Meta(ge=-1e30, le=1e30)]
Name: TypeAlias = Annotated[str, Meta(min_length=1)]

_Structure = TypeVar("_Structure")

_WORDS: Mapping[Any, str] = {bool: "true or false", str: "a text"}

_EXPECTED = re.compile(r"(?P<what>.*?)(?: - at `(?P<place>.*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<field>.+)`")
_SUPERFLUOUS = re.compile(r"Object contains unknown field `(?P<field>.+)`")


def parsed(data: bytes | str) -> Any:
    """Return the value of a JSON text.

    ValueError, in one line: it is none, or has a number that is not finite, or an object has a key twice.
    """
    with suppress(msgspec.DecodeError, UnicodeError, RecursionError):
        found = msgspec.json.decode(data)
        text = data if isinstance(data, bytes) else data.encode()
        if b"\\u003" not in text and text.count(b":") == msgspec.json.encode(found).count(b":"):
            return found
    try:
        return json.loads(data, object_pairs_hook=unique, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is not a text in UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON, or was cut off ({error.msg} at character {error.pos})") from None


def checked(record: object, kind: type[_Structure]) -> _Structure:
    """Return JSON values as a structure, a dataclass or a type of msgspec's, whose annotations say what is allowed.

    ValueError, in one line that names it: a field is missing or holds what it cannot.
    """
    try:
        return msgspec.convert(record, kind)
    except msgspec.ValidationError as error:
        raise ValueError(_explained(str(error), record, kind)) from None
    except (OverflowError, RecursionError) as error:
        raise ValueError(one_line(str(error), 80)) from None


def parts(kind: Any) -> tuple[tuple[type, str], ...]:
    """Return the types that a value of a kind may have in Python, each with its `description`."""
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    found = []
    for member in members:
        base, *bounds = get_args(member) if get_origin(member) is Annotated else (member,)
        said = [bound.description for bound in bounds if bound.description]
        found.append((base, said[0] if said else _WORDS.get(base, "")))
    return tuple(found)


def conforming(what: str, value: object, kind: Any) -> Any:
    """Return what a user gave as the kind has it; what it must be is in the `description`s of its types.

    `UserError`: `batch must be an integer of at least 1, not 0`.
    """
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, OverflowError) as error:
        most = re.search(r"`int` <= (\d+)", str(error))
        must = f"{what} must be {' or '.join(words for _, words in parts(kind))}, not {value!r}"
        raise UserError(f"{must}: at most {most[1]}" if most else must) from None


def refused(where: str, error: Exception, advice: str = "measure again") -> UserError:
    """Return the error that names the file and the line of what `parsed` or `checked` refused."""
    return UserError(f"{where}: {one_line(str(error), 240)}; {advice}")


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object (`object_pairs_hook`); raises ValueError for a key that it has twice."""
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise ValueError(f"it has the key {one_line(repr(twice), 60)} twice")
    return record


def _finite(text: str) -> float:
    value = float(text)
    if value - value != 0:
        raise ValueError(f"it holds {one_line(text, 40)}, which is beyond what a float holds")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}, which is no number of JSON")


def _explained(message: str, record: object, kind: object) -> str:
    """Return msgspec's message with the field's name first, and what it holds."""
    found = _EXPECTED.fullmatch(message)
    assert found is not None
    what, place = found["what"], (found["place"] or "$").removeprefix("$").removeprefix(".")
    if (missing := _MISSING.fullmatch(what)) is not None:
        owner = _at(record, place)
        close = nearest(missing["field"], list(owner) if isinstance(owner, Mapping) else [])
        hint = f"; did you mean it by {one_line(repr(close), 60)}?" if close else ""
        return f"{place or 'the record'} has no {missing['field']!r}{hint}"
    if (superfluous := _SUPERFLUOUS.fullmatch(what)) is not None:
        close = nearest(superfluous["field"], _names(msgspec.inspect.type_info(kind)))
        hint = f"; did you mean {close!r}?" if close else ""
        return f"{place or 'the record'} has an unknown {one_line(repr(superfluous['field']), 60)}{hint}"
    value = _at(record, place)
    held = f" is {one_line(repr(value), 60)}" if isinstance(value, str | int | float | None) else ""
    return f"{place or 'the record'}{held}: {what[:1].lower()}{what[1:]}".replace("`", "")


def _names(kind: Any) -> list[str]:
    """Return the names of all fields of a structure, and of the structures in it."""
    own = getattr(kind, "fields", ())
    parts = [each.type for each in own]
    parts += [part for name in ("item_type", "value_type") if (part := getattr(kind, name, None)) is not None]
    parts += [part for name in ("item_types", "types") for part in getattr(kind, name, ())]
    return [each.encode_name for each in own] + [name for part in parts for name in _names(part)]


def _at(record: object, place: str) -> object:
    """Return what is at a path of msgspec's, such as `utilization.power_w` or `values_s[3]`; `...` where it ends."""
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d*)\]", place.replace("[...]", "[]")):
        if isinstance(record, Mapping) and name in record:
            record = record[name]
        elif isinstance(record, Sequence) and index and int(index) < len(record):
            record = record[int(index)]
        else:
            return ...
    return record
