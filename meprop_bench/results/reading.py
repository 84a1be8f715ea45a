"""Lines of `measurements.jsonl` as rows, many at a time and in a hurry; what is unusual takes the careful way.

    line  ->  msgspec, by type  ->  the fields of a row       what `Row.from_json` gives, without its detours
    512 rows  ->  NumPy                                       their medians and estimates, held against what is stored

A result may hold 100,000 rows of 5 kB. `Row.from_json` and `results.consistency` say what a row is and what is wrong
with one; here is nothing but a shorter way to the same rows, and `rows_of` gives up where one is not plainly sound.

That no key is there twice follows from counting: each key stands before a colon, and no other colon stands outside of
a string. So lines that have as many colons as there are keys in what was decoded, and colons in its texts, have each of
them once. That is counted of all lines together, and of each by itself only where it does not come out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from functools import cache
from operator import itemgetter
from sys import intern
from typing import Any, Literal, Required, TypeAlias, TypedDict, cast, get_type_hints

import msgspec

from meprop_bench.errors import UserError
from meprop_bench.measure.many import settle
from meprop_bench.measure.notes import Note
from meprop_bench.measure.paired import Measurement
from meprop_bench.results.consistency import FAR, TOLERANCE, check_row
from meprop_bench.results.incoming import Seconds, parsed
from meprop_bench.results.schema import KEYS, PASSED, SCHEMA, TEXTS, Flat, Row, Side, readable, reasons
from meprop_bench.stats.many import ratios

__all__ = ["rows_of"]

_LOOSE: Mapping[str, Any] = {
    **dict.fromkeys(("parity", "utilization", "baseline_utilization", "convertible"), Any),
    **{"unavailable": dict[str, str], "notes": list[str], "note_kinds": list[dict[str, Any]] | None},
    **dict.fromkeys(("values_s", "baseline_values_s"), list[Seconds] | None),
}
"""Keys whose values are looked at here: by their number, or in their own way."""


def rows_of(lines: Sequence[bytes]) -> list[Row] | None:
    """Return the rows of some lines; None where one of them is not sound."""
    try:
        found = _rows_of(lines, together=True)
        return _rows_of(lines, together=False) if found is _MORE_COLONS else found
    except (UserError, ValueError):
        return None


def _rows_of(lines: Sequence[bytes], *, together: bool) -> list[Row] | None:
    texts: dict[tuple[str | None, ...], Mapping[str, str | None]] = {}
    rows: list[Row] = []
    timed: list[_Timed] = []
    short: list[bytes] = []
    apart: list[tuple[Row, Flat]] = []
    for line in lines:
        if (found := _timed(line, texts, alone=not together)) is not None:
            timed.append(found)
            short.append(line)
            rows.append(found[0])
        else:
            apart.append(Row.unchecked(parsed(line[:-1])))
            rows.append(apart[-1][0])
    if together and not _as_many(short, sum(colons for *_, colons in timed)):
        return _MORE_COLONS
    settle([row.measurement for row in rows if row.measurement is not None])
    for row, flat in apart:
        check_row(row, flat)
    return rows if not timed or _agree(timed) else None


_MORE_COLONS: list[Row] = []
"""In the place of rows: some key may be there twice."""

_Timed: TypeAlias = tuple[Row, int | None, float | None, int]
"""A row, what is stored of its processes and its efficiency, and the colons that its line should have."""


def _timed(line: bytes, texts: dict[tuple[str | None, ...], Mapping[str, str | None]], *, alone: bool) -> _Timed | None:
    """Return a row that was timed, did not fail and holds no more than that; None for any other.

    `texts` are those of other rows: a hundred thousand of them say "linear", which is kept once.
    """
    try:
        stored: dict[str, Any] = _decoder().decode(line)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    if alone and not _each_key_once(line, stored):
        return None
    colons = len(stored)
    if colons < len(_EVERY):
        stored = {**_EVERY, **stored}
    if stored["check"] not in (None, PASSED) or _more(stored) != _NOTHING:
        return None
    values, baseline, lengths, disturbed, loops, processes, efficiency, notes, kinds = _flat(stored)
    if values is None or baseline is None or lengths is None or not stored["case_id"].isprintable():
        return None
    own = dict(zip(_PLAIN, _plain(stored), strict=True))
    said = _said(own)
    if (kept := texts.get(said)) is None:
        if not "".join(filter(None, said)).isprintable():
            return None
        kept = texts[said] = {
            name: text if text is None else intern(text) for name, text in zip(TEXTS, said, strict=True)
        }
    own.update(kept)
    own["case_id"] = intern(own["case_id"])
    missing = own["unavailable"] or {}
    colons += len(missing) + sum(map(len, kinds or ()))
    colons += "".join(filter(None, (*said, *missing.values(), *(notes or ())))).count(":")
    own["unavailable"] = reasons(missing)
    own["sparse"], own["dense"] = (_side(of_side(stored)) for of_side in _of_sides)
    own["measurement"] = Measurement.from_values(
        own["phase"] or "", baseline, values, lengths, loops or 1, disturbed, sound=True
    )
    own["notes"] = _notes(notes, kinds)
    row = object.__new__(Row)
    object.__setattr__(row, "__dict__", own)
    return row, processes, efficiency, colons


def _notes(texts: Sequence[str] | None, kinds: Sequence[Mapping[str, Any]] | None) -> tuple[Note, ...]:
    if not texts and not kinds:
        return ()
    texts = texts or ()
    if kinds is not None and len(kinds) != len(texts):
        raise ValueError(f"{len(kinds)} note_kinds for {len(texts)} notes")
    return readable(map(Note.read, texts, kinds or (None,) * len(texts)))


def _side(values: Sequence[Any]) -> Side:
    """Return a side of its fields in order; they are what they have to be."""
    side = object.__new__(Side)
    for put, value in zip(_PUT, values, strict=True):
        put(side, value)
    return side


def _as_many(lines: Sequence[bytes], colons: int) -> bool:
    """Whether lines have so many colons; where some may be written in another way nobody can say."""
    import numpy as np

    found = 0
    for first in range(0, len(lines), _IN_CACHE):
        data = b"".join(lines[first : first + _IN_CACHE])
        signs = np.frombuffer(data, np.uint8)
        found += int(np.count_nonzero(signs == ord(":")))
        if np.count_nonzero(signs == ord("\\")) and b"\\u003" in data:
            return False
    return found == colons


_IN_CACHE = 32
"""Lines that are counted at once: of more, memory is slower than counting."""


def _each_key_once(line: bytes, stored: Mapping[str, Any]) -> bool:
    keys = len(stored) + len(stored.get("unavailable", ())) + sum(map(len, stored.get("note_kinds") or ()))
    more = line.count(b":") - keys
    if not more:
        return True
    in_notes = "".join(stored.get("notes", ())).count(":")
    return b"\\u003" not in line and (more == in_notes or more == _colons(stored))


def _colons(value: Any) -> int:
    """Count the colons in the texts of a JSON value; none of a list that begins with a number, which has none."""
    kind = type(value)
    if kind is str:
        return cast("str", value).count(":")
    if kind is dict:
        return sum(map(_colons, value)) + sum(map(_colons, value.values()))
    return sum(map(_colons, value)) if kind is list and value and type(value[0]) in (str, dict) else 0


def _agree(found: Sequence[_Timed]) -> bool:
    """Whether the figures of rows are those of their raw values (`consistency.check_row`, of all at once)."""
    import numpy as np

    rows = [row for row, *_ in found]
    measured = [cast("Measurement", row.measurement) for row in rows]

    def column(values: Any) -> np.ndarray:
        return np.array(list(values), np.float64)  # None becomes NaN

    def same(stored: np.ndarray, own: np.ndarray) -> bool:
        return bool(np.all(np.isnan(stored) | (np.abs(stored - own) <= TOLERANCE * np.abs(own))))

    speedup, low, high = (
        column(getattr(row, name) for row in rows) for name in ("speedup", "speedup_low", "speedup_high")
    )
    timed = ~np.isnan(speedup)
    own, own_low, own_high = ratios([one.estimate for one in measured])
    sides = [[row.sparse for row in rows], [row.dense for row in rows]]
    medians, baselines = (column(one.median_s for one in side) for side in sides)
    stored, floors = column(efficiency for *_, efficiency, _ in found), column(side.floor_s for side in sides[0])
    converged, passed = (
        np.array(flags) for flags in ([bool(row.converged) for row in rows], [row.passed for row in rows])
    )
    bounded = ~np.isnan(low)
    return (
        bool(np.all(passed | ~timed))
        and same(column(processes for _, processes, *_ in found), column(one.processes for one in measured))
        and same(medians, column(one.median_s for one in measured))
        and same(baselines, column(one.baseline_median_s for one in measured))
        and same(speedup, own)
        and same(np.where(timed, low, np.nan), own_low)
        and same(np.where(timed, high, np.nan), own_high)
        and bool(np.all(bounded == ~np.isnan(high)))
        and bool(np.all(~bounded | ((low <= speedup) & (speedup <= high))))
        and bool(np.all(bounded | ~converged))
        and same(stored, floors / medians)
        and not bool(np.any(stored > FAR))
    )


@cache
def _decoder() -> msgspec.json.Decoder[dict[str, Any]]:
    """Return what reads a line: the types of all fields, in the order in which they are written."""
    side = get_type_hints(Side, include_extras=True)
    hints: dict[str, Any] = {"schema": cast("Any", Literal)[SCHEMA]}
    hints |= {name: kind for name, kind in get_type_hints(Row, include_extras=True).items() if name in KEYS}
    hints |= {f"{prefix}{name}": side[name] for name in side for prefix in ("", "baseline_")}
    hints |= {**get_type_hints(Flat, include_extras=True), **_LOOSE}
    wanted = {spec.name for spec in fields(Row) if spec.default is spec.default_factory is MISSING} | {"schema"}
    kinds = {name: cast("Any", Required)[kind] if name in wanted else kind for name, kind in hints.items()}
    return msgspec.json.Decoder(cast("Any", TypedDict)("Stored", kinds, total=False))


_MORE = ("parity", "utilization", "baseline_utilization", "convertible", "error")
_NOTHING = (None,) * len(_MORE)
_OF_SIDE = tuple(spec.name for spec in fields(Side))
_PUT = tuple(Side.__dict__[name].__set__ for name in _OF_SIDE)
_PLAIN = tuple(spec.name for spec in fields(Row) if spec.name in KEYS and spec.name != "notes")
_EVERY = dict.fromkeys(("schema", *KEYS)) | {
    spec.name: spec.default for spec in fields(Row) if spec.name in _PLAIN and spec.default is not MISSING
}
"""What a line says that is silent about it; what it must say is replaced."""
_more, _plain, _said = itemgetter(*_MORE), itemgetter(*_PLAIN), itemgetter(*TEXTS)
_flat = itemgetter("values_s", "baseline_values_s", "run_lengths", "disturbed", "loops", "processes", "efficiency",
                   "notes", "note_kinds")  # fmt: skip
_of_sides = tuple(itemgetter(*(prefix + name for name in _OF_SIDE)) for prefix in ("", "baseline_"))
