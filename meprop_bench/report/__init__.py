"""A results folder as something to read: tables, plots, README.md and an HTML page, made from stored results alone.

Nothing here measures or loads torch, so a report can be made again anywhere. Plots and the page need the `report`
extra; without it the README is written alone and says what is missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from meprop_bench.optional import unavailable_reason
from meprop_bench.report.document import Document
from meprop_bench.results.store import replace_file

if TYPE_CHECKING:
    from meprop_bench.report.plots import Plot

__all__ = ["draw", "missing_parts", "write_report"]

_PARTS = {"matplotlib": "plots", "jinja2": "HTML page"}


def missing_parts() -> str:
    """Return one line that says which parts of a report cannot be made here and what to install, or ''."""
    reasons = {package: reason for package in _PARTS if (reason := unavailable_reason(package)) is not None}
    if not reasons:
        return ""
    what, why = " and ".join(_PARTS[package] for package in reasons), "; ".join(map(" ".join, reasons.items()))
    return f"Written without {what} ({why}): install them with pip install 'meprop-bench[report]'"


def draw(document: Document) -> tuple[list[Plot], str]:
    """Return the plots that can be made here, and one line on what is missing, or ''.

    A picture has no room for a doubt, so what is not to be believed is in none.
    """
    if unavailable_reason("matplotlib") is not None:
        return [], missing_parts()
    from meprop_bench.report.plots import plots
    from meprop_bench.report.roofline import rooflines

    rows = [row for row in document.rows if row.baseline_disagreement is None]
    return [*plots(rows), *rooflines(rows, document.peaks)], missing_parts()


def write_report(folder: Path, document: Document | None = None) -> list[Path]:
    """Write README.md, index.html and the plots of a results folder anew and return their paths.

    Args:
        folder: of the results.
        document: what it holds, where that has been read already.

    Raises:
        UserError: no results there, corrupt rows, a folder that cannot be written.

    """
    document = document or Document.load(folder)
    drawn, remark = draw(document)
    if unavailable_reason("matplotlib") is None:
        drawn = [*document.curves(), *drawn]
    contents: dict[str, str | bytes] = {plot.name: plot.svg for plot in drawn}

    from meprop_bench.report.markdown import as_readme

    contents["README.md"] = as_readme(document, [(plot.name, plot.caption) for plot in drawn], remark)
    if unavailable_reason("jinja2") is None:
        from meprop_bench.report.html import as_html

        contents["index.html"] = as_html(document, drawn, remark)
    for stale in (path for kind in ("speedup", "phases", "roofline") for path in folder.glob(f"{kind}-*.svg")):
        if stale.name not in contents:
            stale.unlink(missing_ok=True)
    for name, content in contents.items():
        replace_file(folder / name, content)
    return [folder / name for name in contents]
