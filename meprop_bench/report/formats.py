"""One document in every form: text for a terminal, JSON, CSV, Markdown, a page of HTML, the files of a results folder.

Nothing here measures or loads torch, so a report can be made again anywhere. Plots and the page need the `report`
extra; without it the README is written alone and says what is missing.
"""

from __future__ import annotations

import csv
import json
from base64 import b64encode
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from meprop_bench.optional import require, unavailable_reason
from meprop_bench.report.document import Document, Page, Readable
from meprop_bench.report.markdown import as_readme, markdown_pieces
from meprop_bench.results.store import replace_file

if TYPE_CHECKING:
    from rich.console import Console, OverflowMethod
    from rich.table import Table

    from meprop_bench.report.cells import Section
    from meprop_bench.report.compare import Comparison
    from meprop_bench.report.plots import Plot

__all__ = [
    "FORMATS",
    "as_csv",
    "as_html",
    "as_json",
    "as_table",
    "draw",
    "missing_parts",
    "new_page",
    "new_table",
    "printed",
    "say",
    "write_as",
    "write_report",
]

FORMATS = ("table", "json", "md", "csv", "html")
_PARTS = {"matplotlib": "plots", "jinja2": "HTML page"}
_STYLES = {"": "", "good": "green", "bad": "bold red", "quiet": "dim"}
_UNBOUNDED = 1000  # columns: nobody wraps a file, and no table is wider
_PROSE = 110


def write_as(form: str, document: Document | Comparison, stream: TextIO) -> None:
    """Print the document on `stream` in one of `FORMATS`; characters that the stream cannot hold become `?`."""
    pieces = [as_table(document, terminal=stream.isatty())] if form == "table" else _TEXTS[form](document)
    encoding = stream.encoding or "utf-8"
    for piece in pieces:
        stream.write(piece.encode(encoding, "replace").decode(encoding))
    stream.flush()


def as_json(document: Document | Comparison) -> str:
    """Return the document as one JSON object."""
    return json.dumps(document.to_json(), indent=1, allow_nan=False) + "\n"


def as_csv(document: Document | Comparison) -> str:
    """Return the rows as CSV with a header."""
    return "".join(_csv_pieces(document))


def _csv_pieces(document: Document | Comparison) -> Iterator[str]:
    """Give a CSV's lines, many at a time: all of a hundred thousand rows would be 400 MB in a `StringIO`."""
    lines = iter(document.lines())
    while batch := list(islice(lines, _TOGETHER)):
        target = StringIO()
        csv.writer(target, lineterminator="\n").writerows(
            [value if type(value) in _AS_THEY_ARE else _cell(value) for value in line] for line in batch
        )
        yield target.getvalue()


_TOGETHER = 500
_AS_THEY_ARE = frozenset({type(None), str, float, int})


def _cell(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return "; ".join(str(item) for item in value)
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {item}" for key, item in value.items())
    if isinstance(value, bool):
        return str(value).lower()
    return value


def _as_page(document: Document | Comparison) -> str:
    require("jinja2", "the HTML page needs jinja2", "report")
    return as_html(document, *draw(document)) if isinstance(document, Document) else as_html(document, ())


def as_html(document: Page, plots: Sequence[Plot], remark: str = "") -> str:
    """Return one HTML page that needs nothing else: styles inside, plots as data URIs, everything escaped.

    `remark` says why something is missing, if it is. Needs jinja2 (ImportError).
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    from meprop_bench.report.fragment import table

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("meprop_bench.report").joinpath("page.html.j2").read_text("utf-8"))
    images = [(plot.caption, f"data:image/svg+xml;base64,{b64encode(plot.svg).decode()}") for plot in plots]
    page = template.render(
        document=document,
        images=images,
        remark=remark,
        how_to_read=document.how_to_read,
        table=lambda section: Markup(table(section)),
    )
    return page + "\n"


_TEXTS: dict[str, Callable[[Any], Iterable[str]]] = {
    "json": lambda document: [as_json(document)],
    "csv": _csv_pieces,
    "md": markdown_pieces,
    "html": lambda document: [_as_page(document)],
}


def as_table(
    document: Readable,
    *,
    terminal: bool = False,
    width: int | None = None,
    summary_first: bool = False,
    verdict: Sequence[str] = (),
) -> str:
    """Return the report as text: in colour and in the width of a `terminal`, or as wide as it needs to be.

    `summary_first` puts the result before the tables: a verdict stands there, figures sum up what was shown. So does
    a `verdict` that is given besides.
    """
    from rich.text import Text

    page = new_page(terminal=terminal, width=width if terminal else (width or _UNBOUNDED))
    say(page, "bold red", *document.doubts)
    say(page, "bold", document.title)
    page.print(Text(f"made by: {document.command}"), soft_wrap=True)  # whole, so that it can be copied
    say(page, "bold", *verdict[:1])
    say(page, "", *verdict[1:])
    if summary_first:
        say(page, "", *document.summary)
    for section in document.sections:
        page.print()
        say(page, "bold", section.title)
        say(page, "dim", section.constants, section.remark)
        page.print(_table(section))
        say(page, "dim", *section.footnotes)
    page.print()
    say(page, "", *(() if summary_first else document.summary), *document.notes)
    say(page, "dim", *document.hints)
    return printed(page)


def new_page(*, terminal: bool, width: int | None) -> Console:
    """Return a console that keeps what is printed, in a notebook, too; without a terminal it has no colour."""
    from rich.console import Console

    return Console(
        file=StringIO(),
        force_terminal=terminal,
        force_jupyter=False,
        width=width,
        highlight=False,
        markup=False,
        emoji=False,
    )


def new_table(columns: Sequence[str], left: Collection[str], *, overflow: OverflowMethod, **settings: Any) -> Table:
    """Return a table whose columns of words begin at the `left`."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, **settings)
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", overflow=overflow)
    return table


def say(page: Console, style: str, *texts: str) -> None:
    """Print paragraphs, without those that are empty."""
    from rich.text import Text

    for text in filter(None, texts):
        page.print(Text(text, style), width=min(page.width, _PROSE))


def printed(page: Console) -> str:
    """Return what was printed on a page."""
    assert isinstance(page.file, StringIO)
    return "\n".join(line.rstrip() for line in page.file.getvalue().splitlines()) + "\n"


def _table(section: Section) -> Table:
    from rich.text import Text

    table = new_table(section.columns, section.left, overflow="fold", collapse_padding=True)
    for group in section.groups:
        for line in group:
            table.add_row(*(Text(cell.text, _STYLES[cell.tone]) for cell in line), end_section=line is group[-1])
    return table


def missing_parts() -> str:
    """Return one line that says which parts of a report cannot be made here and what to install, or ''."""
    reasons = {package: reason for package in _PARTS if (reason := unavailable_reason(package)) is not None}
    if not reasons:
        return ""
    what, why = " and ".join(_PARTS[package] for package in reasons), "; ".join(map(" ".join, reasons.items()))
    return f"Written without {what} ({why}): install them with pip install 'meprop-bench[report]'"


def draw(document: Document) -> tuple[list[Plot], str]:
    """Return the plots that can be made here, and one line on what is missing, or ''.

    A picture cannot say that it is doubtful, so what is not to be believed is in none.
    """
    if unavailable_reason("matplotlib") is not None:
        return [], missing_parts()
    from meprop_bench.report.plots import plots, rooflines

    rows = [row for row in document.rows if row.baseline_disagreement is None]
    return [*plots(rows), *rooflines(rows, document.peaks)], missing_parts()


def write_report(folder: Path, document: Document | None = None) -> list[Path]:
    """Write README.md, index.html and the plots of a results folder anew and return their paths.

    `document` is what it holds, where that has been read already. `UserError`: no results there, corrupt rows, a folder
    that cannot be written.
    """
    document = document or Document.load(folder)
    drawn, remark = draw(document)
    if unavailable_reason("matplotlib") is None:
        drawn = [*document.curves(), *drawn]
    contents: dict[str, str | bytes] = {plot.name: plot.svg for plot in drawn}
    contents["README.md"] = as_readme(document, [(plot.name, plot.caption) for plot in drawn], remark)
    if unavailable_reason("jinja2") is None:
        contents["index.html"] = as_html(document, drawn, remark)
    for stale in (path for kind in ("speedup", "phases", "roofline") for path in folder.glob(f"{kind}-*.svg")):
        if stale.name not in contents:
            stale.unlink(missing_ok=True)
    for name, content in contents.items():
        replace_file(folder / name, content)
    return [folder / name for name in contents]
