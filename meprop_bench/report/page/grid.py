"""Rows as the page's table has them: column by column, each text once, small enough for a hundred thousand rows.

    {"columns": [{"head": "method", "place": "key", "left": true, "filter": true,
                  "texts": ["meprop", "unified"], "of": [0, 0, 1, 0, ...]},
                 {"head": "speed-up", "place": "key", "texts": ["5.12x [5.02, 5.22]", ...], "keys": [5.12, ...],
                  "tones": ["good", ...], "of": null}, ...]}

`of` has a number for each row: the place of its text; null where each row has its own. `keys` are what a column of
figures is sorted by, one for each text; words are sorted as words. Figures are written here, as everywhere in a report,
and nowhere else; the script only shows them.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Hashable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from meprop_bench.report import processes
from meprop_bench.report.cells import (
    ABSENT,
    SHAPE,
    Cell,
    check,
    efficiency,
    failure,
    left_alone,
    parity,
    seconds,
    speedup,
)
from meprop_bench.report.sections import AXES, PARTS, WORDS, memory_pair
from meprop_bench.results.axes import AXES as TABLE
from meprop_bench.results.redact import one_line
from meprop_bench.results.schema import PASSED, Row
from meprop_bench.stats import too_wide

__all__ = ["Column", "columns_of", "encoded", "line"]

Place: TypeAlias = Literal["key", "more", "detail", "filter"]
"""Where a column is shown: always, where it fits, in an opened row alone, as a filter alone."""

_LONGEST, _LONGEST_NOTE = 160, 400
_MOST_FILTERED = 60
_PLAIN = 200_000
"""Characters of data up to which they stand in the page as they are; beyond, they are compressed."""
_MOST_PAIRS, _PAIRS_OF_A_ROW = 20_000, 200
_MOST_PROCESSES = 20_000
"""Rows up to which each process's times are there, too; of more, its speed-up alone."""


@dataclass(frozen=True)
class Column:
    """A column: its texts, each once, with tones and what they are sorted by, and which of them each row has."""

    head: str
    place: Place
    texts: Sequence[str]
    of: Sequence[int] | None = None
    tones: Sequence[str] = ()
    keys: Sequence[float | None] | None = None
    left: bool = False
    filter: bool = False

    def at(self, row: int) -> int:
        """Return the place of a row's text."""
        return row if self.of is None else self.of[row]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, without what is not so."""
        record: dict[str, Any] = {"head": self.head, "place": self.place, "texts": self.texts, "of": self.of}
        record |= {"tones": self.tones} if any(self.tones) else {}
        record |= {"keys": self.keys} if self.keys is not None else {}
        record |= {"left": True} if self.left else {}
        return record | ({"filter": True} if self.filter and len(self.texts) <= _MOST_FILTERED else {})


def columns_of(rows: Sequence[Row], distinct: AbstractSet[int]) -> tuple[list[Column], str]:
    """Return the columns of a report's rows, and what is the same in all of them as one line.

    `distinct`: identities of the rows whose speed-up differs from 1, all judged at once.
    """
    axes = _axes(rows) if rows else []
    constant = [one for one in axes if len(one.texts) == 1 and one.head not in ("method", "k")]
    usual = {axis.heading: axis.text(axis.default) for axis in TABLE.values() if axis.came_later}
    said = [one for one in constant if one.texts[0] not in (ABSENT, usual.get(one.head))]
    varying = [one for one in axes if one not in constant]
    found = [one for one in varying if one.head in _FIRST]
    found += [one for one in _figures(rows, distinct) if any(text not in (ABSENT, "") for text in one.texts)]
    found += [one for one in varying if one.head not in _FIRST]
    return found, "; ".join(f"{one.head} {one.texts[0]}" for one in said)


def _axes(rows: Sequence[Row]) -> list[Column]:
    """Return a column for each axis, its text made once for each value."""
    stored = {axis.heading: axis for axis in TABLE.values()}
    found = []
    for name, text in {**_TITLED, **AXES}.items():
        axis = stored.get(name)
        values: list[Hashable] = list(map({**_TITLED, **PARTS}[name], rows))
        first = dict(zip(reversed(values), reversed(rows), strict=True))
        texts = {value: one_line(text(first[value]), _LONGEST) for value in dict.fromkeys(values)}
        keys = {value: _number(value) for value in texts} if axis is not None and not axis.words else None
        found.append(_coded(name, "key" if name in _KEY else "more", values, texts, keys, left=_is_word(name)))
    return found


_TITLED: dict[str, Callable[[Row], str]] = {
    "workload": lambda row: row.workload,
    "allocator": lambda row: row.allocator,
}
_KEY = ("phase", "method", SHAPE, "k")
_FIRST = ("workload", *_KEY)
"""Columns before the figures; on a telephone without the first of them."""


def _is_word(name: str) -> bool:
    return name in WORDS or name in _TITLED


def _number(value: Hashable) -> float | None:
    """Return the figure of an axis: of a case, or else as it was requested."""
    found = [one for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, int | float)]
    return float(found[0]) if found else None


def _coded(
    head: str,
    place: Place,
    values: Iterable[Hashable],
    texts: dict[Hashable, str],
    keys: dict[Hashable, float | None] | None,
    *,
    left: bool,
) -> Column:
    """Return the column of an axis; values whose texts are the same are one."""
    places = {text: number for number, text in enumerate(dict.fromkeys(texts.values()))}
    of_value = {value: places[text] for value, text in texts.items()}
    of = list(map(of_value.__getitem__, values))
    by_text = {texts[value]: key for value, key in (keys or {}).items()}
    sorted_by = None if keys is None else [by_text[text] for text in places]
    return Column(head, place, list(places), of, (), sorted_by, left, filter=True)


def _figures(rows: Sequence[Row], distinct: AbstractSet[int]) -> list[Column]:
    """Return what was measured, and what an opened row says besides."""
    shown = [speedup(row, distinct=id(row) in distinct) for row in rows]
    passed = all(row.check == PASSED for row in rows)
    outcomes = [Cell(_outcome(row, cell)) for row, cell in zip(rows, shown, strict=True)]
    return [
        _column("speed-up", "key", shown, [row.speedup for row in rows], left=True),
        _column("dense", "more", [_time(row.dense.median_s) for row in rows], [row.dense.median_s for row in rows]),
        _column(
            "sparse",
            "more",
            [_time(row.sparse.median_s if row.passed else None) for row in rows],
            [row.sparse.median_s for row in rows],
        ),
        _column("efficiency", "more", [efficiency(row) for row in rows], [row.sparse.efficiency for row in rows]),
        _column(
            "peak memory",
            "more",
            [Cell(memory_pair(row)) for row in rows],
            [row.sparse.peak_memory_bytes for row in rows],
        ),
        _column(
            "parity",
            "more",
            [parity(row) for row in rows],
            [None if row.parity is None else row.parity.difference for row in rows],
        ),
        *([] if passed else [_column("check", "more", [check(row) for row in rows], left=True)]),
        _column(
            "warnings", "more", [Cell(str(len(row.notes) or "")) for row in rows], [len(row.notes) for row in rows]
        ),
        _column("outcome", "filter", outcomes, filter=True),
        _column("why it has no figures", "detail", [Cell(_note(failure(row) or ""), "bad") for row in rows]),
        _column("warning", "detail", [Cell("\n".join(_note(one.text) for one in row.notes)) for row in rows]),
        *_processes(rows),
        _column("accuracy of each seed, dense → sparse", "detail", [Cell(_seeds(row)) for row in rows]),
    ]


def _column(
    head: str,
    place: Place,
    cells: Sequence[Cell],
    keys: Sequence[float | None] | None = None,
    *,
    left: bool = False,
    filter: bool = False,
) -> Column:
    """Return a column of cells, each once where they repeat."""
    places: dict[tuple[str, str], int] = {}
    of = [places.setdefault((cell.text, cell.tone), len(places)) for cell in cells]
    own = len(places) > 0.8 * len(cells)
    kept = [(cell.text, cell.tone) for cell in cells] if own else list(places)
    if own:
        sorted_by = keys
    else:
        by_place = {} if keys is None else dict(zip(reversed(of), reversed(keys), strict=True))
        sorted_by = None if keys is None else [by_place[at] for at in range(len(places))]
    numbers = None if sorted_by is None else [None if key is None else float(f"{key:.5g}") for key in sorted_by]
    texts, tones = [text for text, _ in kept], [tone for _, tone in kept]
    return Column(head, place, texts, None if own else of, tones, numbers, left, filter)


def _note(text: str) -> str:
    return one_line(text, _LONGEST_NOTE) if text else ""


def _time(value: float | None) -> Cell:
    return Cell(seconds(value))


def _outcome(row: Row, shown: Cell) -> str:
    if not row.passed or row.speedup is None:
        return "no speed-up"
    if row.baseline_disagreement is not None:
        return "not to be believed"
    if left_alone(row):
        return "left as it is"
    if too_wide(row.half_width) or shown.tone == "quiet":
        return "undecided"
    return "faster" if row.speedup > 1 else "slower"


def _processes(rows: Sequence[Row]) -> list[Column]:
    """Return the columns of raw values: what each process gave, and the pairs themselves where they are few."""
    times = len(rows) <= _MOST_PROCESSES
    pairs = sum(sum(row.measurement.run_lengths) for row in rows if row.measurement) <= _MOST_PAIRS
    found: dict[str, list[Cell]] = {"speed-up of each process": []}
    found |= {"dense, each process": [], "sparse, each process": []} if times else {}
    found |= {"pairs, dense / sparse": []} if pairs else {}
    for row in rows:
        texts = [processes.speedups(row)]
        if times:
            texts += [processes.times(row, side) for side in (0, 1)]
        if pairs:
            texts.append(processes.pairs(row, _PAIRS_OF_A_ROW))
        for cells, text in zip(found.values(), texts, strict=True):
            cells.append(Cell(text))
    return [_column(head, "detail", cells) for head, cells in found.items()]


def _seeds(row: Row) -> str:
    if row.parity is None:
        return ""
    both = zip(row.parity.baseline, row.parity.method, strict=True)
    return ", ".join(f"{dense:.4g} → {sparse:.4g}" for dense, sparse in both)


def line(columns: Sequence[Column], row: int) -> list[tuple[Column, str, str]]:
    """Return a row's cells in the table: column, text, tone."""
    shown = [(column, column.at(row)) for column in columns if column.place in ("key", "more")]
    return [(one, one.texts[at], one.tones[at] if one.tones else "") for one, at in shown]


def encoded(columns: Sequence[Column]) -> tuple[str, str]:
    """Return the data as the page holds them, and the type that says which of the two ways it is."""
    records = [one.to_json() for one in columns]
    text = json.dumps({"columns": records}, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    if len(text) <= _PLAIN:
        # What could end the element, or begin a comment in it, is written in another way.
        return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"), "application/json"
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode(), "application/gzip+base64"
