"""Sphinx's configuration: `make docs` builds docs/_build/index.html and fails on any warning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from meprop_bench import __version__ as release
from meprop_bench.results.axes import AXES

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "meprop-bench"
extensions = ["myst_parser", "sphinx_click", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"meprop-bench {release}"

myst_heading_anchors = 3
myst_enable_extensions = ["deflist", "colon_fence"]

autodoc_typehints = "none"  # signatures have them; Google-style docstrings give shapes, units and errors
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}

ELSEWHERE = {
    "methodology": "reports/METHODOLOGY.md",
    "gate": "meprop_bench/gate/README.md",
    "suites": "benchmarks/README.md",
}
"""Pages that stand beside what they describe -> where. Their links to files of the repository become plain paths."""


def axes() -> str:
    """Return the reference of the axes as a table of Markdown."""
    lines = ["| option, key | field of a row | what it is | workloads |", "| --- | --- | --- | --- |"]
    for name, axis in AXES.items():
        owners = ", ".join(axis.workloads) if axis.workloads else "all"
        lines.append(f"| `{name}` | `{axis.stored}` | {axis.help} | {owners} |")
    return "\n".join(lines)


def _from_elsewhere(_: Sphinx, name: str, source: list[str]) -> None:
    if path := ELSEWHERE.get(name):
        text = (Path(__file__).parents[1] / path).read_text(encoding="utf-8")
        source[0] = re.sub(r"\[([^\]]+)\]\((?!https?:|#)([^)]+)\)", r"\1 (`\2`)", text)
    source[0] = source[0].replace("{axes}", axes())


def setup(app: Sphinx) -> None:
    """Read the pages that stand elsewhere."""
    app.connect("source-read", _from_elsewhere)
