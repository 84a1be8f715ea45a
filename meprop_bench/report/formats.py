"""`--format`: the same document as a table, JSON, CSV, Markdown or HTML on one stream, and nothing else on it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from io import StringIO
from typing import Any, TextIO

from meprop_bench.optional import require
from meprop_bench.report.document import Document
from meprop_bench.report.markdown import as_markdown
from meprop_bench.report.table import as_table
from meprop_bench.results.schema import KEYS, Parity, Utilization

__all__ = ["FORMATS", "as_csv", "as_json", "as_page", "write_as"]

FORMATS = ("table", "json", "md", "csv", "html")
_NESTED = {"parity": Parity, "utilization": Utilization, "baseline_utilization": Utilization}
# Thousands of figures in one cell help nobody; JSON has them.
_RAW = ("values_s", "baseline_values_s", "run_lengths", "disturbed", "note_kinds")


def as_json(document: Document) -> str:
    """Return the document as one JSON object."""
    return json.dumps(document.to_json(), indent=1, allow_nan=False) + "\n"


def as_csv(document: Document) -> str:
    """Return the rows as CSV with a header: every field but the raw values, nested ones as columns of their own."""
    plain = [key for key in KEYS if key not in (*_RAW, *_NESTED)]
    apart = [(name, field.name) for name, kind in _NESTED.items() for field in fields(kind)]
    target = StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow([*plain, *(f"{name}_{part}" for name, part in apart)])
    for row in document.rows:
        record = row.to_json()
        cells = [_cell(record[name]) for name in plain]
        writer.writerow(cells + [_cell((record[name] or {}).get(part)) for name, part in apart])
    return target.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return "; ".join(str(item) for item in value)
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {item}" for key, item in value.items())
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else value


def as_page(document: Document) -> str:
    """Return the HTML page, with what plots can be drawn here; raises `UserError` without jinja2."""
    from meprop_bench.report import draw
    from meprop_bench.report.html import as_html

    require("jinja2", "the HTML page needs jinja2", "report")
    return as_html(document, *draw(document))


_TEXTS: dict[str, Callable[[Document], str]] = {"json": as_json, "csv": as_csv, "md": as_markdown, "html": as_page}


def write_as(form: str, document: Document, stream: TextIO) -> None:
    """Print the document on `stream` in one of `FORMATS`; characters that the stream cannot hold become `?`."""
    text = as_table(document, terminal=stream.isatty()) if form == "table" else _TEXTS[form](document)
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding))
    stream.flush()
