"""The document as Markdown: tables for `--format md`, and the README.md that a results folder shows on a code host.

Names are text of somebody else. Markdown's own characters are escaped; what a code host makes a link, a mention or a
picture of without any (`@name`, `#12`, `GH-12`, an address, `:tada:`) is broken by a space of no width.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice

from meprop_bench.report.cells import Cell
from meprop_bench.report.document import Document, Readable
from meprop_bench.report.sections import Section

__all__ = ["GAP", "as_readme", "as_section", "code_block", "escaped", "findings", "markdown_pieces", "table"]

GAP = "\u200b"
_LIVE = re.compile(
    r"""(?ix)
    (?<=[@\#]) (?=\w)               # a mention, an issue; an e-mail address, too
    | (?<=[!~$%&]) (?=\d)           # GitLab's merge requests, labels, snippets, milestones, epics
    | (?<=:) (?=//)                 # an address of any scheme
    | (?<=www) (?=\.)
    | (?<=gh) (?=-\d) | (?<=ghsa) (?=-)
    | (?<=:) (?=([\w+-]*[a-z][\w+-]*|\d{3,}|[+-]1):)  # an emoji, but no time of day
    """
)


def markdown_pieces(document: Readable) -> Iterator[str]:
    """Give what was found, the tables, what their marks mean, and the command that made them, a part at a time."""
    yield "\n\n".join(findings(document))
    for section in document.sections:
        yield "\n\n"
        yield from _section_pieces(section)
    last = [escaped(line) for line in document.notes]
    if document.hints:
        last.append(_listed(document.hints))
    yield "\n\n".join(["", *last, "Made by", code_block(document.command)]) + "\n"


def as_readme(document: Document, plots: Sequence[tuple[str, str]], remark: str = "") -> str:
    """Return the page of a results folder, with plots (file name, caption); `remark`: why something is missing."""
    parts = [f"# {escaped(document.title)}", *findings(document)]
    if document.notes:
        parts.append(_listed(document.notes))
    if remark:
        parts.append(f"> {escaped(remark)}")
    parts += [f"![{escaped(caption)}]({name})" for name, caption in plots]
    parts += [as_section(section) for section in document.sections]
    parts += ["## How to read this", _listed([*document.hints, *document.how_to_read])]
    parts += [f"## How it was made\n\nMeasured from {escaped(document.started)} by", code_block(document.command)]
    for title, facts in document.facts:
        lines = [f"| {escaped(name)} | {escaped(value)} |" for name, value in facts]
        parts += [f"## {escaped(title)}", "\n".join(["| what | value |", "| --- | --- |", *lines])]
    parts.append(f"Generated from `measurements.jsonl` and `environment.json`; again by `{document.again}`.")
    return "\n\n".join(part for part in parts if part) + "\n"


def findings(document: Readable) -> list[str]:
    """Return what speaks against the figures, a paragraph each, and the paragraph of what was found."""
    doubts = [f"**{escaped(found.text)}**" for found in document.findings if found.kind == "doubt"]
    rest = " ".join(escaped(found.text) for found in document.findings if found.kind != "doubt")
    return [*doubts, *filter(None, [rest])]


def _listed(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escaped(line)}" for line in lines)


def as_section(section: Section) -> str:
    """Return a section under its heading."""
    return "".join(_section_pieces(section))


def _section_pieces(section: Section) -> Iterator[str]:
    head = [f"## {escaped(section.title)}", escaped(section.constants), escaped(section.remark)]
    yield "\n\n".join(filter(None, head)) + "\n\n"
    yield from _table_pieces(section)
    for note in (*section.trends, *section.footnotes):
        yield f"\n\n{escaped(note)}"


def table(section: Section) -> str:
    """Return the table of a section."""
    return "".join(_table_pieces(section))


def _table_pieces(section: Section) -> Iterator[str]:
    rule = [" --- " if name in section.left else " ---: " for name in section.columns]
    yield f"| {' | '.join(escaped(name) for name in section.columns)} |\n|{'|'.join(rule)}|"
    lines = (f"\n| {' | '.join(map(_text, line))} |" for group in section.groups for line in group)
    while batch := list(islice(lines, _TOGETHER)):
        yield "".join(batch)


_TOGETHER = 500


def _text(cell: Cell) -> str:
    return f"[{escaped(cell.text)}]({cell.link})" if cell.link else escaped(cell.text)


def escaped(text: str) -> str:
    """Escape what Markdown or its HTML would interpret, and break what a code host would."""
    # A long table says the same things, and figures, over and over.
    return _short(text) if len(text) <= _SHORT else _escaped(text)


def _escaped(text: str) -> str:
    if _BEFORE_LIVE.search(text):
        text = _LIVE.sub(GAP, text)
    return text.translate(_ESCAPES)


_ESCAPES = str.maketrans({sign: f"\\{sign}" for sign in r"\`*_~[]<>|#&$"})
_BEFORE_LIVE = re.compile("[@#!~$%&:wWgG]")
"""Without one of these nothing is live."""
_SHORT = 200
_short = lru_cache(maxsize=1 << 15)(_escaped)


def code_block(text: str, language: str = "sh") -> str:
    """A block of code that no run of backticks in `text` can end."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"
