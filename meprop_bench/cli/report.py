"""`meprop-bench report`: print the report of results folders, or write it anew."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meprop_bench.cli.options import examples
from meprop_bench.errors import ExitCode, UserError

if TYPE_CHECKING:
    from meprop_bench.report.document import Document
    from meprop_bench.results.store import Store

__all__ = ["command"]


@click.command(
    name="report",
    short_help="Print or write the report of a results folder.",
    epilog=examples(
        "meprop-bench report reports/2026-11-21_amd-epyc-2c_quick-3",
        "meprop-bench report reports/2026-11-21_amd-epyc-2c_quick-3 --format csv",
    ),
)
@click.argument("folders", metavar="FOLDER...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "md", "csv", "html"]),
    default="table",
    show_default=True,
    help="Format of what is printed; table also rewrites README.md, index.html and the plots of each folder.",
)
@click.option("--mixed-environments", is_flag=True, help="Show folders of different environments side by side.")
def command(folders: tuple[Path, ...], form: str, mixed_environments: bool) -> int:
    """Print the report of results folders. Nothing is measured: stored results are read.

    A FOLDER may be a JSON file of the pytest-benchmark suite, too; of that, nothing is written anew. That of a paper's
    table keeps its own page, the paper beside what was measured.

    Results of different environments are not comparable; showing several folders whose environments differ needs
    --mixed-environments.
    """
    from meprop_bench.paper.folder import load
    from meprop_bench.report.document import Document
    from meprop_bench.report.formats import write_as

    loaded = {folder: load(folder) for folder in folders}
    documents = [document for document, _ in loaded.values()]
    if not mixed_environments:
        _check_comparable(documents)
    for document in documents:
        for note in document.notes:
            click.echo(f"{document.title}: {note}", err=True)
    if not any(document.rows or document.sections for document in documents):
        raise UserError("no case has been measured there yet: go on with the sweep", ExitCode.NOTHING_MEASURED)
    if form == "table":
        _write_all([(document, store) for document, store in loaded.values() if store is not None])
        for document in documents:
            write_as("table", document, sys.stdout)
    else:
        write_as(form, Document.joined(documents), sys.stdout)
    return ExitCode.OK


def _write_all(loaded: Sequence[tuple[Document, Store]]) -> None:
    from meprop_bench.report.formats import missing_parts, write_report

    for document, store in loaded:
        written = write_report(store.folder, document)
        click.echo(f"wrote {', '.join(path.name for path in written)} in {store.folder}", err=True)
    if loaded and (remark := missing_parts()):
        click.echo(remark, err=True)


def _check_comparable(documents: Sequence[Document]) -> None:
    """Refuse folders unless the widest of them knows every environment of the others."""
    known = [frozenset(row.environment_id for row in document.rows) for document in documents]
    widest = max(known, key=len)
    for document, environments in zip(documents, known, strict=True):
        if not environments <= widest:
            raise UserError(
                f"{document.title} was measured in another environment than the rest, so the figures are not"
                " comparable: report it alone, or add --mixed-environments",
                ExitCode.NOT_COMPARABLE,
            )
