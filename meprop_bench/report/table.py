"""The sections as rich tables: in colour on a terminal, plain and as wide as they need to be in a pipe or a file."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING

from meprop_bench.report.document import Readable
from meprop_bench.report.sections import Section

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["as_table", "new_page", "printed", "say"]

_STYLES = {"": "", "good": "green", "bad": "bold red", "quiet": "dim"}
_UNBOUNDED = 1000  # columns: nobody wraps a file, and no table is wider
_PROSE = 110


def as_table(
    document: Readable, *, terminal: bool = False, width: int | None = None, summary_first: bool = False
) -> str:
    """Return the report as text.

    Args:
        document: what to print.
        terminal: whether a terminal will show it: then with colour, in its width.
        width: columns (default: the terminal's; without one, as many as needed).
        summary_first: whether the result comes before the tables: a verdict does, figures sum up what was shown.

    """
    from rich.text import Text

    page = new_page(terminal=terminal, width=width if terminal else (width or _UNBOUNDED))
    say(page, "bold red", *document.doubts)
    say(page, "bold", document.title)
    page.print(Text(f"made by: {document.command}"), soft_wrap=True)  # whole, so that it can be copied
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
    """Return a console that keeps what is printed; without a terminal it has no colour."""
    from rich.console import Console

    return Console(file=StringIO(), force_terminal=terminal, width=width, highlight=False, markup=False, emoji=False)


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
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for column in section.columns:
        table.add_column(column, justify="left" if column in section.left else "right", overflow="fold")
    for group in section.groups:
        for line in group:
            table.add_row(*(Text(cell.text, _STYLES[cell.tone]) for cell in line), end_section=line is group[-1])
    return table
