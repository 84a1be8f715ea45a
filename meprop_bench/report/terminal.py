"""Text for a terminal, a pipe or a log: the findings, then the tables, all in one style; every command prints by this.

In a terminal text has colour and the terminal's width (`layout`); elsewhere it has none, and a line of a table is one
line however long, so that it can be searched and cut. Words and marks say all that colours say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Literal, TextIO

from meprop_bench.report.layout import GAP, fitted, wrapped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from meprop_bench.report.compare import Comparison
    from meprop_bench.report.document import Document, Readable
    from meprop_bench.report.findings import Finding
    from meprop_bench.report.sections import Section

__all__ = ["as_table", "fit_for", "new_page", "paragraph", "printed", "say", "show", "tables", "write_as"]

STYLES = {"": "", "good": "green", "bad": "bold red", "quiet": "dim"}
_UNBOUNDED = 10_000  # columns: nobody wraps a file
_PROSE = 110


def as_table(
    document: Readable, *, terminal: bool = False, width: int | None = None, verdict: Sequence[str] = ()
) -> str:
    """Return the report as text: in colour and in the width of a `terminal`, or as wide as it needs to be.

    A `verdict` that is given besides stands before the findings.
    """
    from rich.text import Text

    page = new_page(terminal=terminal, width=width)
    say(page, STYLES["bad"], *(found.text for found in document.findings if found.kind == "doubt"))
    say(page, "bold", *verdict[:1])
    say(page, "", *verdict[1:])
    paragraph(page, [found for found in document.findings if found.kind != "doubt"])
    page.print()
    say(page, "bold", document.title)
    page.print(Text(f"made by: {document.command}", "dim"), soft_wrap=True)  # whole, so that it can be copied
    for section in document.sections:
        page.print()
        show(page, section)
    page.print()
    say(page, "", *document.notes)
    say(page, "dim", *document.hints)
    return printed(page)


def write_as(form: str, document: Document | Comparison, stream: TextIO) -> None:
    """Print a document on `stream`, as a "table" or in a form of `formats`, as the stream can hold it."""
    from meprop_bench.report.formats import pieces

    texts = [as_table(document, terminal=stream.isatty())] if form == "table" else pieces(form, document)
    for text in texts:
        stream.write(fit_for(stream, text))
    stream.flush()


def tables(sections: Iterable[Section], *, terminal: bool, width: int | None = None) -> str:
    """Return sections as text, without a report around them."""
    page = new_page(terminal=terminal, width=width)
    for number, section in enumerate(sections):
        if number:
            page.print()
        show(page, section)
    return printed(page)


def new_page(*, terminal: bool, width: int | None = None) -> Console:
    """Return a console that keeps what is printed, in a notebook, too; without a terminal it has no colour.

    Its width is that of the terminal if nothing is said, and without one as good as none.
    """
    from rich.console import Console

    return Console(
        file=StringIO(),
        force_terminal=terminal,
        force_jupyter=False,
        width=width if terminal or width else _UNBOUNDED,
        highlight=False,
        markup=False,
        emoji=False,
    )


def say(page: Console, style: str, *texts: str) -> None:
    """Print paragraphs, without those that are empty."""
    from rich.text import Text

    for text in filter(None, texts):
        _print_prose(page, Text(" ".join(text.split()), style))


def paragraph(page: Console, found: Sequence[Finding]) -> None:
    """Print findings as one paragraph, each in its colour."""
    from rich.text import Text

    if found:
        _print_prose(page, Text(" ").join(Text(" ".join(one.text.split()), STYLES[one.tone]) for one in found))


def _print_prose(page: Console, text: Text) -> None:
    """Print a text in lines, broken where an interval or a unit stays whole."""
    ends: list[int] = []
    place = 0
    for line in wrapped(text.plain, min(page.width, _PROSE)):
        place = text.plain.index(line, place) + len(line)
        ends.append(place)
    for part in text.divide(ends):
        if shown := part.plain.strip():
            start = part.plain.index(shown)
            page.print(part[start : start + len(shown)], soft_wrap=True)


def show(page: Console, section: Section) -> None:
    """Print a section: its title, what is the same in all lines, the table, what stands below it."""
    say(page, "bold", section.title)
    say(page, "dim", section.constants, section.remark)
    found = fitted(section, None if page.width >= _UNBOUNDED else page.width)
    for text in found.paragraphs:
        page.print(text, soft_wrap=True)
    if not found.paragraphs:
        page.print(_table(found.section, found.headings))
    say(page, "dim", *section.trends, *section.footnotes)
    if found.missing:
        say(page, "dim", f"Not shown in this width: {', '.join(found.missing)}.")


_PLAINER = str.maketrans(dict(zip("▁▂▃▄▅▆▇█", "12345678", strict=True)) | {"→": "->", "–": "-", "µ": "u", "…": "..."})


def fit_for(stream: TextIO, text: str) -> str:
    """Return text as a stream can hold it: where its encoding has no arrows, `->`; what has no substitute is `?`."""
    encoding = stream.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_PLAINER).encode(encoding, "replace").decode(encoding)
    return text


def printed(page: Console) -> str:
    """Return what was printed on a page."""
    assert isinstance(page.file, StringIO)
    return "\n".join(line.rstrip() for line in page.file.getvalue().splitlines()) + "\n"


def _table(section: Section, headings: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True, padding=(0, GAP // 2))
    for name in section.columns:
        side: Literal["left", "right"] = "left" if name in section.left else "right"
        table.add_column(Text(name), justify=side, no_wrap=True, overflow="crop")
    apart = bool(headings) or any(len(group) > 1 for group in section.groups)
    for number, group in enumerate(section.groups):
        if number < len(headings):
            table.add_row(Text(headings[number], "bold"))
        for line in group:
            table.add_row(
                *(Text(cell.text, STYLES[cell.tone]) for cell in line), end_section=apart and line is group[-1]
            )
    return table
