"""One document in every form but a terminal's: JSON, CSV, Markdown, a page of HTML, the files of a results folder.

Nothing here measures or loads torch, so a report can be made again anywhere. Plots and the page need the `report`
extra; without it the README is written alone and says what is missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from meprop_bench.optional import require, unavailable_reason
from meprop_bench.report.document import Document
from meprop_bench.report.markdown import as_readme, markdown_pieces
from meprop_bench.results.store import replace_file

if TYPE_CHECKING:
    from meprop_bench.report.compare import Comparison
    from meprop_bench.report.plots import Plot

__all__ = ["as_json", "draw", "missing_parts", "pieces", "write_report"]

_FILES = ("speedup", "phases", "roofline", "heat", "accuracy", "curve", "sizes")
"""What the names of a report's pictures begin with."""
_PARTS = {"matplotlib": "plots", "jinja2": "HTML page"}


def as_json(document: Document | Comparison) -> str:
    """Return the document as one JSON object."""
    return json.dumps(document.to_json(), indent=1, allow_nan=False) + "\n"


def _csv_pieces(document: Document | Comparison) -> Iterator[str]:
    """Give a CSV's lines, many at a time and column by column: of a hundred thousand rows most columns say the same."""
    lines = iter(document.lines())
    while batch := list(islice(lines, _TOGETHER)):
        columns = map(_texts, zip(*batch, strict=True))
        yield "\n".join(map(",".join, zip(*columns, strict=True))) + "\n"


_TOGETHER = 500


def _texts(values: Sequence[Any]) -> Sequence[str]:
    """Return a column's fields as a CSV has them."""
    first = values[0]
    if (first is None or type(first) is str) and values.count(first) == len(values):
        return [_text(first)] * len(values)
    if {*map(type, values)} == {float}:
        # Shortest digits, as `repr` has them, in a quarter of the time; they differ in where an exponent begins.
        texts = msgspec.json.encode(values).decode()[1:-1].split(",")
        return [text if 1e-4 <= value < 1e16 else repr(value) for text, value in zip(texts, values, strict=True)]
    return list(map(_text, values))


def _text(value: Any) -> str:
    kind = type(value)
    if value is None or kind is float or kind is int:
        return "" if value is None else str(value)
    if kind is bool:
        return str(value).lower()
    if kind is not str and isinstance(value, list | tuple):
        value = "; ".join(str(item) for item in value)
    elif kind is not str and isinstance(value, Mapping):
        value = "; ".join(f"{key}: {item}" for key, item in value.items())
    text = str(value)
    return '"' + text.replace('"', '""') + '"' if _TO_QUOTE.search(text) else text


_TO_QUOTE = re.compile('[",\r\n]')


def _as_page(document: Document | Comparison) -> str:
    require("jinja2", "the HTML page needs jinja2", "report")
    from meprop_bench.report.page import as_html

    return as_html(document, *draw(document)) if isinstance(document, Document) else as_html(document, ())


_TEXTS: dict[str, Callable[[Any], Iterable[str]]] = {
    "json": lambda document: [as_json(document)],
    "csv": _csv_pieces,
    "md": markdown_pieces,
    "html": lambda document: [_as_page(document)],
}


def pieces(form: str, document: Document | Comparison) -> Iterable[str]:
    """Give a document as "json", "csv", "md" or "html", a part at a time where it may be long."""
    return _TEXTS[form](document)


def missing_parts() -> str:
    """Return one line that says which parts of a report cannot be made here and what to install, or ''."""
    reasons = {package: reason for package in _PARTS if (reason := unavailable_reason(package)) is not None}
    if not reasons:
        return ""
    what, why = " and ".join(_PARTS[package] for package in reasons), "; ".join(map(" ".join, reasons.items()))
    return f"Written without {what} ({why}): install them with pip install 'meprop-bench[report]'"


def draw(document: Document) -> tuple[list[Plot], str, dict[str, int]]:
    """Return the plots that can be made here, one line on what is missing, or '', and how many more
    of each kind there would be.

    A picture cannot say that it is doubtful, so what is not to be believed is in none.
    """
    if unavailable_reason("matplotlib") is not None:
        return [], missing_parts(), {}
    from meprop_bench.report.plots import plots

    rows = [row for row in document.rows if row.baseline_disagreement is None]
    drawn, left_out = plots(rows, document.peaks)
    return [*document.curves(), *drawn], missing_parts(), left_out


def write_report(folder: Path, document: Document | None = None) -> list[Path]:
    """Write README.md, index.html and the plots of a results folder anew and return their paths.

    `document` is what it holds, where that has been read already. `UserError`: no results there, corrupt rows, a folder
    that cannot be written.
    """
    document = document or Document.load(folder)
    drawn, remark, left_out = draw(document)
    files = [plot for plot in drawn if plot.main]
    contents: dict[str, str | bytes] = {plot.name: plot.svg for plot in files}
    contents["README.md"] = as_readme(document, [(plot.name, plot.caption) for plot in files], remark)
    if unavailable_reason("jinja2") is None:
        from meprop_bench.report.page import as_html

        contents["index.html"] = as_html(document, drawn, remark, left_out)
    for stale in (path for kind in _FILES for path in folder.glob(f"{kind}-*.svg")):
        if stale.name not in contents:
            stale.unlink(missing_ok=True)
    for name, content in contents.items():
        replace_file(folder / name, content)
    return [folder / name for name in contents]
