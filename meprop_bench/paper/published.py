"""What the papers print, as data: every table's figures with their settings, and where the papers disagree.

    icml.toml, tkde.toml    table -> part (one task under one setting) -> row -> figures, exactly as printed
    contradictions.toml     what a reader who compares the tables stumbles over

A row names its method and what sets it apart from its part (k, h, p), so that the same data say what has to be run to
check the row. Its baseline is the part's first row unless it names another. Nothing here imports torch.

What can be checked is checked on reading (`results.incoming`): a misspelt key is an error with a suggestion, and a
printed speed-up or gain must follow from the figures beside it (up to their rounding), so that a mistyped figure does
not survive.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Annotated, Any, TypeVar, get_type_hints

from msgspec import Meta, Struct, defstruct

from meprop_bench.errors import UserError, one_of
from meprop_bench.methods import METHODS
from meprop_bench.results.incoming import Count, Name, checked, refused

__all__ = [
    "CLAIMS", "COLUMNS", "PublishedColumn", "PublishedPart", "PublishedRow", "PublishedSetting", "PublishedTable",
    "checked_as", "contradictions", "packaged", "published", "table",
]  # fmt: skip


@dataclass(frozen=True)
class PublishedColumn:
    """A column of figures: what it is called, its unit, and what has to be run for it."""

    title: str
    unit: str
    source: str
    """"training", "timing", "data", "decoding" (no paper prints it), or "printed" for what the paper derives from its
    other columns."""


COLUMNS: Mapping[str, PublishedColumn] = {
    "iterations": PublishedColumn("iteration of the best dev score", "epochs", "training"),
    "dev": PublishedColumn("dev", "%", "training"),
    "test": PublishedColumn("test", "%", "training"),
    "best_test": PublishedColumn("best test of all k", "%", "training"),
    "dev_bleu": PublishedColumn("dev", "BLEU", "training"),
    "test_bleu": PublishedColumn("test", "BLEU", "training"),
    "dev_gain": PublishedColumn("dev gain", "points", "printed"),
    "test_gain": PublishedColumn("test gain", "points", "printed"),
    "size": PublishedColumn("average hidden size", "neurons", "training"),
    "first_size": PublishedColumn("first hidden size", "neurons", "training"),
    "second_size": PublishedColumn("second hidden size", "neurons", "training"),
    "size_percent": PublishedColumn("size", "%", "printed"),
    "update_ratio": PublishedColumn("update of dense / update of meAct", "x", "training"),
    "linear_backward_s": PublishedColumn("backprop time", "s", "timing"),
    "backward_s": PublishedColumn("overall backprop time", "s", "timing"),
    "backward_ms": PublishedColumn("backprop time", "ms", "timing"),
    "forward_s": PublishedColumn("overall forward time", "s", "timing"),
    "overall_s": PublishedColumn("overall time", "s", "timing"),
    "speedup": PublishedColumn("speed-up", "x", "timing"),
    "decode_before_s": PublishedColumn("decoding the test set, before", "s", "decoding"),
    "decode_after_s": PublishedColumn("decoding the test set, after", "s", "decoding"),
    "products_before": PublishedColumn("products for an item, before", "", "decoding"),
    "products_after": PublishedColumn("products for an item, after", "", "decoding"),
    "train_size": PublishedColumn("training set", "examples", "data"),
    "train_items": PublishedColumn("training classifications", "items", "data"),
    "dev_size": PublishedColumn("development set", "examples", "data"),
    "dev_items": PublishedColumn("development classifications", "items", "data"),
    "test_size": PublishedColumn("test set", "examples", "data"),
    "test_items": PublishedColumn("test classifications", "items", "data"),
}
"""Name -> what is in the column."""

CLAIMS = (
    *("at-least", "better", "level", "best", "iterations", "faster", "factor", "size", "decode"),
    *("smaller-update", "count"),
)
"""Kinds of claims; `paper.claims` says what each means and when it is reproduced."""


@dataclass(frozen=True)
class PublishedSetting:
    """How a row was obtained; None where the paper does not say, or where it does not apply.

    The method is a name in `methods.METHODS`; None for a row that only sums up others.
    """

    method: str | None = None
    k: int | float | None = None  # neurons that stay, or a ratio of them
    hidden: int | None = None  # h, neurons of a hidden layer
    layers: int | None = None  # hidden ones; encoder and decoder have as many each
    inputs: int | None = None  # of a single layer
    batch: int | None = None
    dropout: float = 0.0
    activation: str | None = None  # behind the hidden layers; a task's own if nothing is said
    optimizer: str | None = None
    learning_rate: float | None = None
    rate: float | None = None  # meSimp's p
    share: float | None = None  # meAct's p
    masked_after: int | None = None  # meAct's e, epochs

    def __post_init__(self) -> None:
        if self.method is not None:
            one_of("method", self.method, tuple(METHODS))
        for name in ("k", "hidden", "layers", "inputs", "batch", "masked_after"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise UserError(f"{name} must be more than 0, not {value!r}")

    @property
    def words(self) -> str:
        """What is known, on one line."""
        known = ((spec.name, getattr(self, spec.name)) for spec in fields(self) if spec.name != "method")
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in known if value)


@dataclass(frozen=True)
class PublishedRow:
    """A row as printed: its name, its setting, its figures (column -> value), and its baseline's name."""

    name: str
    setting: PublishedSetting
    figures: Mapping[str, float]
    against: str | None
    claims: tuple[str, ...]

    @property
    def time_column(self) -> str | None:
        """The column that a printed speed-up is of."""
        times = ("linear_backward_s", "backward_s", "backward_ms")
        return next((column for column in times if column in self.figures), None)


@dataclass(frozen=True)
class PublishedPart:
    """A block of a table: one task under one setting."""

    name: str
    task: str
    rows: tuple[PublishedRow, ...]
    notes: tuple[str, ...] = ()

    def row(self, name: str) -> PublishedRow:
        """Return the row of that name."""
        return next(row for row in self.rows if row.name == name)

    def baseline(self, row: PublishedRow) -> PublishedRow | None:
        """Return what the row is compared with."""
        return None if row.against is None else self.row(row.against)


@dataclass(frozen=True)
class PublishedTable:
    """A table (or figure) of a paper: "icml:1", "tkde:fig4"; `title` in our words, `caption` as printed.

    `best_of` are the runs of which the paper reports the best; None where it does not say.
    """

    table_id: str
    title: str
    caption: str
    parts: tuple[PublishedPart, ...]
    best_of: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def contradictions(self) -> tuple[str, ...]:
        """Where it disagrees with another table, or with the text."""
        return tuple(text for tables, text in contradictions() if self.table_id in tables)


_Structure = TypeVar("_Structure")


class _PartEntry(Struct, forbid_unknown_fields=True):
    name: Name
    task: Name
    rows: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    setting: dict[str, Any] = {}
    claims: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


class _TableEntry(Struct, forbid_unknown_fields=True):
    id: Name
    title: Name
    caption: str
    part: Annotated[list[_PartEntry], Meta(min_length=1)]
    claims: tuple[str, ...] = ()
    best_of: Count | None = None
    notes: tuple[str, ...] = ()


class _Paper(Struct, forbid_unknown_fields=True):
    paper: Name
    title: Name
    table: list[Any]


_SETTINGS = get_type_hints(PublishedSetting)
_FIGURES: Mapping[str, Any] = dict.fromkeys(COLUMNS, int | float)
_OWN: Mapping[str, Any] = {"against": str, "claims": tuple[str, ...]}
_Settings = defstruct("_Settings", [(name, kind, None) for name, kind in _SETTINGS.items()], forbid_unknown_fields=True)
_Row = defstruct(
    "_Row",
    [("name", Name), *((name, kind | None, None) for name, kind in {**_OWN, **_SETTINGS, **_FIGURES}.items())],
    forbid_unknown_fields=True,
)
"""A row as it is written: its own setting and its figures side by side."""


@cache
def published() -> Mapping[str, PublishedTable]:
    """Return every table of both papers by its id, in the papers' order."""
    tables: dict[str, PublishedTable] = {}
    for name in ("icml", "tkde"):
        for entry in checked_as(packaged(file := f"{name}.toml"), _Paper, file).table:
            found = parse_table(entry)
            if found.table_id in tables or not found.table_id.startswith(f"{name}:"):
                raise UserError(f"the table {found.table_id!r} is there twice, or in the wrong paper's file")
            tables[found.table_id] = found
    return tables


def table(table_id: str) -> PublishedTable:
    """Return a table; `UserError` with a suggestion for one that the papers do not have."""
    return published()[one_of("table", table_id, tuple(published()))]


@cache
def contradictions() -> tuple[tuple[tuple[str, ...], str], ...]:
    """Return the papers' contradictions: the tables that each is about, and what it is."""
    return tuple((tuple(entry["tables"]), entry["text"]) for entry in packaged("contradictions.toml")["contradiction"])


def parse_table(entry: Mapping[str, Any]) -> PublishedTable:
    """Return a table from its TOML record, checked."""
    found = checked_as(entry, _TableEntry, where := f"the table {entry.get('id')}")
    parts = tuple(_part(part, found.claims, f"{where}, {part.name}") for part in found.part)
    return PublishedTable(found.id, found.title, found.caption, parts, found.best_of, found.notes)


def _part(entry: _PartEntry, claims: tuple[str, ...], where: str) -> PublishedPart:
    checked_as(entry.setting, _Settings, where)
    rows: list[PublishedRow] = []
    for row in entry.rows:
        checked_as(row, _Row, where)
        wanted = tuple(row.get("claims", claims if entry.claims is None else entry.claims))
        for claim in wanted:
            one_of("claim", claim, CLAIMS)
        own, figures = ({key: row[key] for key in row if key in known} for known in (_SETTINGS, COLUMNS))
        against = row.get("against", rows[0].name if rows else None)
        rows.append(PublishedRow(row["name"], PublishedSetting(**{**entry.setting, **own}), figures, against, wanted))
    names = [row.name for row in rows]
    if len(set(names)) < len(names) or any(row.against not in (None, *names) for row in rows):
        raise UserError(f"{where}: a row is there twice, or is compared with one that is not there")
    part = PublishedPart(entry.name, entry.task, tuple(rows), entry.notes)
    _check_derived(part, where)
    return part


def _check_derived(part: PublishedPart, where: str) -> None:
    """Hold what the paper derived against what it is derived from; 4% allows for times that were rounded to seconds."""
    for row in part.rows:
        baseline = part.baseline(row)
        if baseline is None:
            continue
        for kind in ("dev", "test"):
            if {kind} <= row.figures.keys() & baseline.figures.keys() and f"{kind}_gain" in row.figures:
                gain = row.figures[kind] - baseline.figures[kind]
                if abs(gain - row.figures[f"{kind}_gain"]) > 0.006:
                    raise UserError(f"{where}, {row.name}: the printed {kind} gain is not {gain:+.2f}")
        time = row.time_column
        if time is not None and "speedup" in row.figures:
            ratio = baseline.figures[time] / row.figures[time]
            if abs(ratio / row.figures["speedup"] - 1) > 0.04:
                raise UserError(f"{where}, {row.name}: the printed speed-up is not {ratio:.1f}x")


def checked_as(record: object, kind: type[_Structure], where: str) -> _Structure:
    """Return what was written by hand as a structure; UserError with a suggestion for what it cannot be."""
    try:
        return checked(record, kind)
    except ValueError as error:
        raise refused(where, error, "correct it") from None


def packaged(name: str) -> dict[str, Any]:
    """Return a TOML file of this package."""
    return tomllib.loads((resources.files("meprop_bench.paper") / name).read_text(encoding="utf-8"))
