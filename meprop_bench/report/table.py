"""The sections as rich tables: in colour on a terminal, plain and as wide as they need to be in a pipe or a file."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING

from meprop_bench.report.document import Readable
from meprop_bench.report.sections import Section

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Page", "as_table"]

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

    page = Page(terminal, width if terminal else (width or _UNBOUNDED))
    page.say("bold red", *document.doubts)
    page.say("bold", document.title)
    page.print(Text(f"made by: {document.command}"), soft_wrap=True)  # whole, so that it can be copied
    if summary_first:
        page.say("", *document.summary)
    for section in document.sections:
        page.print()
        page.say("bold", section.title)
        page.say("dim", section.constants, section.remark)
        page.print(_table(section))
        page.say("dim", *section.footnotes)
    page.print()
    page.say("", *(() if summary_first else document.summary), *document.notes)
    page.say("dim", *document.hints)
    return page.text


class Page:
    """What rich prints, as text.

    Args:
        terminal: whether a terminal will show it: then with colour.
        width: columns; None is the terminal's.

    """

    def __init__(self, terminal: bool, width: int | None) -> None:
        from rich.console import Console

        self._target = StringIO()
        self._console = Console(
            file=self._target, force_terminal=terminal, width=width, highlight=False, markup=False, emoji=False
        )
        self.print, self.width = self._console.print, self._console.width

    def say(self, style: str, *texts: str) -> None:
        """Print paragraphs, without those that are empty."""
        from rich.text import Text

        for text in filter(None, texts):
            self.print(Text(text, style), width=min(self.width, _PROSE))

    @property
    def text(self) -> str:
        """All of it."""
        return "\n".join(line.rstrip() for line in self._target.getvalue().splitlines()) + "\n"


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
