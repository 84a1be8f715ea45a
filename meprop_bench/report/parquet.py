"""The rows as Parquet, for pandas, Polars, DuckDB and what else reads columns: the fields of the CSV, and raw values.

    pandas.read_parquet("rows.parquet", columns=["method", "k", "speedup"])
    duckdb:  select method, k, median(speedup) from 'rows.parquet' where phase = 'step' group by all

Types are those of the fields, not of the first values that happen to be there; what a field holds besides a number, a
text or a truth is its JSON. The raw values are lists. Where it all comes from, command and environments, is in the
metadata of the schema, under "meprop-bench". Needs pyarrow, which is 40 MB, so that it is an extra of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from types import UnionType
from typing import Annotated, Any, BinaryIO, Union, get_args, get_origin, get_type_hints

from meprop_bench.optional import require
from meprop_bench.report.document import NESTED, Document
from meprop_bench.results.schema import SCHEMA, Flat, Row, Side

__all__ = ["write_parquet"]

_BATCH = 5_000
"""Rows that are in memory as columns at one time."""
_RAW = {"values_s": float, "baseline_values_s": float, "run_lengths": int, "disturbed": bool}
"""Lists, and what they are of."""


def write_parquet(document: Document, stream: BinaryIO) -> None:
    """Write the rows to a stream of bytes; `UserError` where pyarrow is not installed."""
    require("pyarrow", "Parquet needs pyarrow", "parquet")
    import pyarrow as pa
    from pyarrow import parquet

    names = {float: pa.float64(), int: pa.int64(), bool: pa.bool_(), str: pa.string()}
    lines = document.lines()
    head = next(lines)
    kinds = _kinds()
    columns = [(name, names[kinds.get(name, str)]) for name in head]
    columns += [(name, pa.list_(names[kind])) for name, kind in _RAW.items()]
    about = {"schema": SCHEMA, "command": document.command, "environment": dict(document.environments)}
    schema = pa.schema(columns, metadata={"meprop-bench": json.dumps(about)})
    records = ([*line, *raw] for line, raw in zip(lines, _raw_values(document), strict=True))
    with parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
        while batch := list(islice(records, _BATCH)):
            values = zip(zip(*batch, strict=True), schema.types, strict=True)
            arrays = [pa.array(map(_text, column) if kind == pa.string() else column, kind) for column, kind in values]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def _raw_values(document: Document) -> Iterator[list[Any]]:
    for row in document.rows:
        found = row.measurement
        if found is None:
            yield [None] * len(_RAW)
        else:
            yield [found.values_s, found.baseline_values_s, found.run_lengths, found.disturbed_values]


def _text(value: Any) -> str | None:
    """Return what a column of texts holds: other values as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _kinds() -> dict[str, type]:
    """Return column -> the type of its values, by the fields' annotations."""
    found = {name: _kind(hint) for name, hint in get_type_hints(Row, include_extras=True).items()}
    sides = get_type_hints(Side, include_extras=True)
    found |= {prefix + name: _kind(hint) for prefix in ("", "baseline_") for name, hint in sides.items()}
    found |= {name: _kind(hint) for name, hint in get_type_hints(Flat, include_extras=True).items()}
    for name, structure in NESTED.items():
        hints = get_type_hints(structure, include_extras=True)
        found |= {f"{name}_{part}": _kind(hint) for part, hint in hints.items()}
    return found


def _kind(hint: Any) -> type:
    bases = set(_bases(hint)) - {type(None)}
    for kind in (str, float, int, bool):  # of an integer or a float: a float
        if kind in bases and bases <= {float, int, kind}:
            return kind
    return str


def _bases(hint: Any) -> Iterator[Any]:
    if get_origin(hint) is Annotated:
        yield from _bases(get_args(hint)[0])
    elif get_origin(hint) in (Union, UnionType):
        for part in get_args(hint):
            yield from _bases(part)
    else:
        yield hint
