"""The sections as rich tables: in colour on a terminal, plain and as wide as they need to be in a pipe or a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meprop_bench.report.document import Readable
from meprop_bench.report.sections import Section

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["as_table"]

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
    from io import StringIO

    from rich.console import Console
    from rich.text import Text

    target = StringIO()
    wide = width if terminal else (width or _UNBOUNDED)
    console = Console(file=target, force_terminal=terminal, width=wide, highlight=False, markup=False, emoji=False)

    def say(style: str, *texts: str) -> None:
        for text in filter(None, texts):
            console.print(Text(text, style), width=min(console.width, _PROSE))

    say("bold red", *document.doubts)
    say("bold", document.title)
    console.print(Text(f"made by: {document.command}"), soft_wrap=True)  # whole, so that it can be copied
    if summary_first:
        say("", *document.summary)
    for section in document.sections:
        console.print()
        say("bold", section.title)
        say("dim", section.constants, section.remark)
        console.print(_table(section))
        say("dim", *section.footnotes)
    console.print()
    say("", *(() if summary_first else document.summary), *document.notes)
    say("dim", *document.hints)
    return "\n".join(line.rstrip() for line in target.getvalue().splitlines()) + "\n"


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
