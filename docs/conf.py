"""Sphinx's configuration: `make docs` builds docs/_build/index.html and fails on any warning."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from meprop_bench import __version__ as release

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "meprop-bench"
extensions = ["myst_parser", "sphinx_click", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"meprop-bench {release}"

smartquotes_action = "qe"  # two hyphens begin an option and stay two
myst_heading_anchors = 3
myst_enable_extensions = ["deflist", "colon_fence"]

autodoc_typehints = "none"  # signatures have them; Google-style docstrings give shapes, units and errors
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {
    "methodology": "reports/METHODOLOGY.md",
    "papers": "reports/PAPERS.md",
    "results": "reports/README.md",
    "gate": "meprop_bench/gate/README.md",
    "suites": "benchmarks/README.md",
    "contributing": "CONTRIBUTING.md",
    "changes": "CHANGELOG.md",
}
"""Pages that stand beside what they describe -> where."""

_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")


def axes() -> str:
    """Return the reference of the axes as a table of Markdown: what stands for `{axes}` on a page."""
    from meprop_bench.results.axes import AXES

    lines = ["| option, key | field of a row | what it is | workloads |", "| --- | --- | --- | --- |"]
    for name, axis in AXES.items():
        owners = ", ".join(axis.workloads) if axis.workloads else "all"
        lines.append(f"| `{name}` | `{axis.stored}` | {axis.help} | {owners} |")
    return "\n".join(lines)


def _resolve_links(_: Sphinx, name: str, source: list[str]) -> None:
    """Make the links of a page lead to pages; a link to any other file of the repository becomes its path."""
    page = ROOT / ELSEWHERE.get(name, f"docs/{name}.md")
    if not page.exists():  # not Markdown
        return

    def resolved(link: re.Match[str]) -> str:
        text, path, anchor = link.groups(default="")
        target = Path(os.path.normpath(page.parent / path))
        here = {ROOT / path: ROOT / "docs" / f"{name}.md" for name, path in ELSEWHERE.items()}
        target = here.get(target, target)
        if target.suffix in (".md", ".rst") and target.is_relative_to(ROOT / "docs"):
            return f"[{text}]({os.path.relpath(target, (ROOT / 'docs' / name).parent)}{anchor})"
        return f"{text} (`{target.relative_to(ROOT)}`)"

    source[0] = _LINK.sub(resolved, page.read_text(encoding="utf-8"))
    if "{axes}" in source[0]:
        source[0] = source[0].replace("{axes}", axes())


def setup(app: Sphinx) -> None:
    """Read the pages that stand elsewhere, and resolve links."""
    app.connect("source-read", _resolve_links)
