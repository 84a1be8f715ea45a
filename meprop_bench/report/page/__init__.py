"""The report as one page of HTML that needs nothing else, and lets nothing in.

    page.html.j2    what stands where; everything is escaped
    page.css        how it looks: light, dark, narrow, on paper
    page.js         what a reader can do: choose a picture, point at a figure, filter, sort and search the rows

The content policy forbids every connection, and every script and style but these two, which are known by their SHA-256;
so that a name in a result that gets past the escaping still does nothing. Without the script the page shows the first
picture of each kind and the first rows.

State is in the address (`#rows.q=unified&over.phase=step`), so that what somebody looks at can be sent to another.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from meprop_bench.report.document import Document, Page
from meprop_bench.report.fragment import table
from meprop_bench.report.page.grid import columns_of, encoded, line
from meprop_bench.report.plots import KINDS, PictureKind
from meprop_bench.report.plots.svg import Plot, colours
from meprop_bench.results.redact import bounded

__all__ = ["as_html"]

_ROWS, _FEW = 200, 5
"""Rows of the table at a time, and notes that stand open above the pictures."""


def as_html(
    document: Page,
    plots: Sequence[Plot],
    remark: str = "",
    left_out: Mapping[str, int] | None = None,
    *,
    about: str = "",
    links: Sequence[tuple[str, str]] = (),
) -> str:
    """Return the page of a result, or of anything else that has tables. Needs jinja2 (ImportError).

    `remark` says why something is missing, if it is; `left_out` of which kind of picture how many are not drawn;
    `about` are paragraphs of Markdown from whoever wrote the page's notes; `links` lead to pages beside this one, each
    an address and a text.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # choices have an order
    environment.filters["shown"] = bounded
    template = environment.from_string(_file("page.html.j2"))
    script, style = _file("page.js"), colours() + "\n" + _file("page.css")
    page = template.render(
        document=document,
        few=_FEW,
        remark=remark,
        script=Markup(script),
        style=Markup(style),
        script_hash=_hash(script),
        style_hash=_hash(style),
        figures=_figures(plots, left_out or {}),
        images=[(plot.caption, _address(plot.svg)) for plot in plots if not plot.inline],
        table=lambda section: Markup(table(section, labelled=True)),
        about=[Markup(text) for text in _paragraphs(about)],
        links=links,
        inline=lambda plot: Markup(plot.inline),
        **(_rows(document) if isinstance(document, Document) else {**_NO_ROWS, "sections": document.sections}),
    )
    return page + "\n"


_NO_ROWS: Mapping[str, Any] = {"count": 0, "left_out": "", "again": ""}


def _rows(document: Document) -> dict[str, Any]:
    """Return what the page shows of a result's rows, and of what stands beside them."""
    from markupsafe import Markup

    columns, constant = columns_of(document.rows, document.distinct)
    data, kind = encoded(columns)
    return {
        "columns": [column for column in columns if column.place in ("key", "more")],
        "rows": [line(columns, row) for row in range(min(_ROWS, len(document.rows)))],
        "count": len(document.rows),
        "constant": constant,
        "data": Markup(data),  # no character in it can end the element: see `grid.encoded`
        "data_type": kind,
        "left_out": document.left_out,
        "sections": [*document.own, *document.beside],
        "again": document.again,
    }


def _paragraphs(text: str) -> list[str]:
    """Return paragraphs of Markdown as HTML; of its marks links and code are kept."""
    whole = filter(None, map(str.strip, re.split(r"\n\s*\n", text)))
    return [_CODE.sub(r"<code>\1</code>", _LINK.sub(_linked, escape(" ".join(one.split())))) for one in whole]


_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`]+)`")


def _linked(found: re.Match[str]) -> str:
    text, address = found[1], found[2]
    foreign = re.match(r"[\w+.-]*:", address) and not re.match(r"https?://", address)
    return text if foreign else f'<a href="{address}">{text}</a>'


def _address(svg: bytes) -> str:
    """Return a picture as an address that holds it."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def _file(name: str) -> str:
    return files("meprop_bench.report.page").joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    """Return what a content policy knows an element by."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _figures(plots: Sequence[Plot], more: Mapping[str, int]) -> list[tuple[str, PictureKind, list[Plot], int]]:
    """Return the kinds that have pictures, in the order of the page, and how many more of each there would be."""
    drawn = [plot for plot in plots if plot.inline]
    found = ((key, kind, [plot for plot in drawn if plot.figure == key]) for key, kind in KINDS.items())
    return [(key, kind, own, more.get(key, 0)) for key, kind, own in found if own]
