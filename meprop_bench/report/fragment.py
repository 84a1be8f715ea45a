"""A report as HTML within another page, a notebook's output: its own styles and nothing from elsewhere.

Text and rules have the colour of what is around them, so that a dark notebook stays dark; of the tones there is a light
and a dark set, chosen by what Jupyter, VS Code and others mark their pages with. A viewer that drops styles shows the
same words, as those say everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from meprop_bench.report.cells import ABSENT, Cell
from meprop_bench.report.document import Readable
from meprop_bench.report.sections import Section

__all__ = ["as_fragment", "enclosed", "folded", "paragraphs", "section", "table"]


def as_fragment(document: Readable, verdict: Sequence[str] = ()) -> str:
    """Return the report as a fragment of HTML, a verdict in front of it."""
    return enclosed(
        paragraphs("bad", (found.text for found in document.findings if found.kind == "doubt")),
        paragraphs("verdict", verdict[:1]),
        paragraphs("", verdict[1:]),
        _found_in(document),
        *map(section, document.sections),
        paragraphs("quiet", document.notes),
        folded("How to read this", paragraphs("", document.hints)),
    )


def _found_in(document: Readable) -> str:
    """Return the paragraph of what was found, each finding in its tone, without what speaks against the figures."""
    spans = [
        f"<span{_class(found.tone)}>{escape(found.text)}</span>" for found in document.findings if found.kind != "doubt"
    ]
    return f"<p>{' '.join(spans)}</p>\n" if spans else ""


def enclosed(*parts: str) -> str:
    """Return parts, HTML each, with the styles that they need."""
    style = files("meprop_bench.report").joinpath("notebook.css").read_text("utf-8")
    return f'<div class="meprop-bench">\n<style>\n{style}</style>\n{"".join(parts)}</div>\n'


def paragraphs(kind: str, texts: Iterable[str]) -> str:
    """Return a paragraph for each text that is not empty."""
    return "".join(f"<p{_class(kind)}>{escape(text)}</p>\n" for text in texts if text)


def folded(title: str, inside: str) -> str:
    """Return HTML under a title that opens it; nothing where there is none."""
    return f"<details><summary>{escape(title)}</summary>\n{inside}</details>\n" if inside else ""


def section(found: Section) -> str:
    """Return a section under its title."""
    return "".join(
        (
            paragraphs("title", [found.title]),
            paragraphs("quiet", [found.constants, found.remark]),
            table(found),
            paragraphs("quiet", [*found.trends, *found.footnotes]),
        )
    )


def table(found: Section, *, labelled: bool = False) -> str:
    """Return a section's table; `labelled`: where cells hold sentences, each names its column, so that a page which is
    too narrow for a table can show them one below the other.
    """
    stacked = labelled and any(len(cell.text) > _PROSE for group in found.groups for line in group for cell in line)
    left = ["left" * (name in found.left) for name in found.columns]
    head = "".join(
        f'<th scope="col"{_class(side)}>{escape(name)}</th>' for name, side in zip(found.columns, left, strict=True)
    )
    named = [f' data-head="{escape(name)}"' * stacked for name in found.columns]
    lines = [f'<div class="wide">\n<table{_class("stacked" * stacked)}>\n<thead><tr>{head}</tr></thead>\n']
    for group in found.groups:
        lines.append("<tbody>\n")
        for line in group:
            cells = (
                f"<td{_class(cell.tone, side, _extent(cell.text) if side else '')}{name}>{_text(cell)}</td>"
                for cell, side, name in zip(line, left, named, strict=True)
            )
            lines.append(f"<tr>{''.join(cells)}</tr>\n")
        lines.append("</tbody>\n")
    return "".join([*lines, "</table>\n</div>\n"])


_PHRASE, _PROSE, _ESSAY = 20, 40, 160
"""Characters from which on words in a cell are broken, those of a sentence, those of several."""


def _extent(text: str) -> str:
    if len(text) <= _PHRASE:
        return "none" if text == ABSENT else ""
    return "phrase" if len(text) <= _PROSE else "prose" if len(text) <= _ESSAY else "prose essay"


_WHOLE = re.compile(r"\S+ \[[^\]\s]+ [^\]\s]+\]")
"""A figure with its interval, which is not broken."""


def _text(cell: Cell) -> str:
    text = cell.text
    if len(text) > _PHRASE:
        text = _WHOLE.sub(lambda found: found[0].replace(" ", "\u00a0"), text)
    text = escape(text)
    return f'<a href="{escape(cell.link)}">{text}</a>' if cell.link else text


def _class(*names: str) -> str:
    given = " ".join(filter(None, names))
    return f' class="{given}"' if given else ""
