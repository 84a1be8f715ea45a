"""`meprop-bench report`: print the report of results folders; with --write, also rewrite their pages."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meprop_bench.cli.options import Grouped, examples, with_format
from meprop_bench.errors import ExitCode, UserError

if TYPE_CHECKING:
    from meprop_bench.report.document import Document
    from meprop_bench.report.index import Index
    from meprop_bench.report.trends import Trends
    from meprop_bench.results.store import Store

__all__ = ["collected", "command"]


@click.command(
    name="report",
    cls=Grouped,
    groups={"Printing": ("format", "mixed-environments"), "Writing": ("write", "index", "bundle")},
    short_help="Print or write the report of a results folder.",
    epilog=examples(
        "meprop-bench report reports/2026-11-28_amd-epyc-2c_quick",
        "meprop-bench report reports/2026-11-28_amd-epyc-2c_quick --format csv",
        "meprop-bench report reports/2026-11-28_amd-epyc-2c_quick --write",
        "meprop-bench report reports/2026-11-28_amd-epyc-2c_quick --bundle quick.zip",
        "meprop-bench report --index reports",
    ),
)
@click.argument("folders", metavar="FOLDER...", nargs=-1, required=True, type=click.Path(path_type=Path))
@with_format("table", "json", "md", "csv", "html", "parquet")
@click.option("--write", is_flag=True, help="Also rewrite README.md, index.html and the plots of each folder.")
@click.option("--mixed-environments", is_flag=True, help="Show folders of different environments side by side.")
@click.option(
    "--index",
    is_flag=True,
    help="Write a page of all results below FOLDER, and one of trends over commits and machines.",
)
@click.option(
    "--bundle",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write FOLDER as one file to share: rows, environment, command, constraints.",
)
def command(
    folders: tuple[Path, ...], form: str, write: bool, mixed_environments: bool, index: bool, bundle: Path | None
) -> int:
    """Print the report of results folders. Nothing is measured, and nothing is written to them without --write.

    A FOLDER may also be its measurements.jsonl, a bundle, or a JSON file of the pytest-benchmark suite; the last two
    are never written to. A folder of a paper's table keeps its own page: the paper beside what was measured.

    Results of different environments are not comparable; showing several folders whose environments differ needs
    --mixed-environments.
    """
    if index and bundle is not None:
        raise UserError("--index and --bundle write different things: give one of them")
    if index:
        return max(map(_index, folders))
    if bundle is not None:
        return _bundle(folders, bundle)
    from meprop_bench.cli.output import held_for_good
    from meprop_bench.paper.folder import load
    from meprop_bench.report.document import Document
    from meprop_bench.report.terminal import write_as

    with held_for_good():
        loaded = {folder: load(folder) for folder in folders}
    documents = [document for document, _ in loaded.values()]
    if not mixed_environments:
        _check_comparable(documents)
    for document in documents if form in ("json", "csv") else ():  # the others show them
        for note in document.notes:
            click.echo(f"{document.title}: {note}", err=True)
    if not any(document.rows or document.sections for document in documents):
        raise UserError("no case has been measured there yet: continue the sweep", ExitCode.NOTHING_MEASURED)
    if write:
        _write_all([(document, store) for document, store in loaded.values() if store is not None])
    with held_for_good():
        if form == "table":
            for number, document in enumerate(documents):
                click.echo("\n" * bool(number), nl=False)
                write_as("table", document, sys.stdout)
        elif form == "parquet":
            _write_parquet(Document.joined(documents))
        else:
            write_as(form, Document.joined(documents), sys.stdout)
    return ExitCode.OK


def _write_parquet(document: Document) -> None:
    from meprop_bench.report.parquet import write_parquet

    if sys.stdout.isatty():
        raise UserError("Parquet is a binary format: redirect it to a file, as in --format parquet > rows.parquet")
    write_parquet(document, sys.stdout.buffer)
    sys.stdout.buffer.flush()


def _bundle(folders: Sequence[Path], target: Path) -> int:
    from meprop_bench.report.bundle import write_bundle

    if len(folders) > 1:
        raise UserError("a bundle holds one folder: write one for each")
    written = write_bundle(folders[0], target)
    click.echo(f"wrote {written.path}: {', '.join(written.files)}, {written.size / 2**20:.1f} MiB", err=True)
    return ExitCode.OK


def _index(root: Path) -> int:
    """Write the pages of all results below a folder; the code is that of a wrong input where one cannot be read."""
    from meprop_bench.report.index import write_index

    index, trends = collected(root)
    for path in write_index(root, index, trends):
        click.echo(f"wrote {path}", err=True)
    for line in index.doubts:
        click.echo(line, err=True)
    return ExitCode.USAGE if index.doubts else ExitCode.OK


def collected(root: Path) -> tuple[Index, Trends]:
    """Read all results below a folder, one after another, and say on standard error which cannot be read."""
    from meprop_bench.cli.output import command_line
    from meprop_bench.paper.folder import PaperDocument, load
    from meprop_bench.report.index import Index, ListedResult, baselines_of, notes_of, results_below
    from meprop_bench.report.trends import Trends

    notes, entries, trends = notes_of(root), list[ListedResult](), Trends(command_line())
    folders = list(results_below(root))
    for number, folder in enumerate(folders, 1):
        place = folder.relative_to(root).as_posix()
        if sys.stderr.isatty():
            click.echo(f"\r\x1b[Kreading {number} of {len(folders)}: {place[:60]}", nl=number == len(folders), err=True)
        question = notes.question.get(folder.name, "")
        try:
            document, _ = load(folder)
        except UserError as error:
            click.echo(f"{place}: {error}", err=True)
            entries.append(ListedResult.unread(place, error, kind="Results that cannot be read", question=question))
            continue
        kind = "The papers' tables" if isinstance(document, PaperDocument) else "Measurements"
        paged = (folder / "index.html").is_file()
        entries.append(ListedResult.of(place, document, kind=kind, question=question, paged=paged))
        trends.add(place, document)
    if not entries:
        raise UserError(f"there is no results folder below {root}", ExitCode.NOTHING_MEASURED)
    baselines, wrong = baselines_of(root)
    for baseline in baselines:
        try:
            if baseline.results.is_dir():  # else it is of another tool, and has none of these cases
                trends.add_baseline(baseline.name, load(baseline.results)[0])
        except UserError as error:
            wrong.append(error)
    return Index(entries, command_line(), notes, trends.said(), baselines, wrong), trends


def _write_all(loaded: Sequence[tuple[Document, Store]]) -> None:
    from meprop_bench.report.formats import missing_parts, write_report

    if searches := [document.title for document, _ in loaded if document.answer]:
        raise UserError(f"the README.md of {searches[0]} is the answer of a search: print its report without --write")

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
