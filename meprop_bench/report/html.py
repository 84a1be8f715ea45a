"""The document as one HTML page that needs nothing else: styles inside, plots as data URIs, everything escaped."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from importlib.resources import files

from meprop_bench.report.document import Document
from meprop_bench.report.plots import Plot

__all__ = ["as_html"]


def as_html(document: Document, plots: Sequence[Plot], remark: str = "") -> str:
    """Return the page; `remark` says why something is missing, if it is. Needs jinja2 (ImportError)."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("meprop_bench.report").joinpath("page.html.j2").read_text("utf-8"))
    images = [(plot.caption, f"data:image/svg+xml;base64,{b64encode(plot.svg).decode()}") for plot in plots]
    return template.render(document=document, images=images, remark=remark, how_to_read=document.how_to_read) + "\n"
