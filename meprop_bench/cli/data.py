"""`meprop-bench data`: list, fetch and check the data sets."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from meprop_bench.cli.options import examples
from meprop_bench.cli.output import write_tables
from meprop_bench.errors import UserError
from meprop_bench.optional import unavailable_reason
from meprop_bench.progress import console

if TYPE_CHECKING:
    from meprop_bench.data.fetch import Progress
    from meprop_bench.data.sources import Source

__all__ = ["command"]


@click.group(
    name="data",
    short_help="List, fetch and check the data sets.",
    epilog=examples("meprop-bench data list", "meprop-bench data fetch mnist"),
)
def command() -> None:
    """List, fetch and check the data sets.

    They are stored in the folder named by MEPROP_BENCH_DATA, or else in the user's cache. The digits need no files:
    they come with scikit-learn.
    """


@command.command(name="list", epilog=examples("meprop-bench data list"))
def list_() -> None:
    """Show every data set, and whether it is here."""
    from meprop_bench.data.content import condition
    from meprop_bench.data.sources import SOURCES, VARIABLE, data_folder
    from meprop_bench.report.sections import plain_section

    folder = data_folder()
    columns, lines, remarks = ("name", "for", "licence", "size", "state"), [], []
    for source in SOURCES.values():
        state, complaints = condition(folder, source, thorough=False)
        lines.append((source.name, source.purpose, source.licence, f"{source.size / 1e6:.1f} MB", state))
        remarks += complaints
    reason = unavailable_reason("sklearn")
    present = "missing" if reason else "present"
    lines.append(("digits", "MLP: small images of digits", "CC BY 4.0", "0.5 MB", present))
    if reason is not None:
        remarks.append(f"digits: comes with scikit-learn, which {reason}: pip install 'meprop-bench[digits]'")
    write_tables(plain_section("", columns, lines, left={*columns} - {"size"}))
    for remark in remarks:
        click.echo(remark)
    chosen_by = VARIABLE if os.environ.get(VARIABLE) else f"the cache; {VARIABLE} chooses another"
    click.echo(f"data folder: {folder} ({chosen_by})")


@command.command(epilog=examples("meprop-bench data fetch mnist"))
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Download files again even if they are complete.")
@click.option(
    "--deadline",
    type=float,
    default=1800.0,
    show_default=True,
    metavar="SECONDS",
    help="Give up on a data set after this many seconds.",
)
def fetch(names: tuple[str, ...], force: bool, deadline: float) -> None:
    """Download data sets, verified, into the data folder. An interrupted download continues where it stopped."""
    from meprop_bench.data.fetch import fetch as download
    from meprop_bench.data.sources import data_folder, find_source

    if not 0 < deadline < math.inf:
        raise UserError(f"a deadline must be more than 0 seconds, and finite, not {deadline:g}")
    sources = [find_source(name) for name in dict.fromkeys(names)]
    folder = data_folder()
    for source in sources:
        with _progress(source) as progress:
            fetched = download(source, folder, force=force, progress=progress, deadline=deadline)
        here = len(source.files) - len(fetched)
        click.echo(f"{source.name}: {len(fetched)} fetched, {here} already here, in {folder / source.name}")


@command.command(epilog=examples("meprop-bench data check", "meprop-bench data check mnist"))
@click.argument("names", metavar="[NAME]...", nargs=-1)
def check(names: tuple[str, ...]) -> None:
    """Verify the SHA-256 of every file of the named data sets, by default of all that are here.

    Each file that is missing or not as published is one line; the exit code is then 2.
    """
    from meprop_bench.data.content import State, inspect
    from meprop_bench.data.sources import SOURCES, data_folder, find_source, locate

    folder = data_folder()
    sources = [find_source(name) for name in dict.fromkeys(names)] or [
        source for source in SOURCES.values() if any(locate(folder, source, file) for file in source.files)
    ]
    if not sources:
        raise UserError(f"no data set lies in {folder}: fetch one with `meprop-bench data fetch NAME`")
    damaged = []
    for source in sources:
        for file in source.files:
            state, detail = inspect(folder, source, file, thorough=True)
            click.echo(f"{source.name}/{file.stored_name}: {state}{f': {detail}' if detail else ''}")
            if state is not State.VERIFIED and source.name not in damaged:
                damaged.append(source.name)
    if damaged:
        raise UserError(f"data are missing or damaged: run `meprop-bench data fetch {' '.join(damaged)}`")


@contextmanager
def _progress(source: Source) -> Iterator[Progress]:
    """Show a bar for each file that is being fetched, on standard error, where that is a terminal."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    target = console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=target, disable=not target.is_terminal) as bars:
        tasks = {
            file: bars.add_task(f"{source.name}/{file.name}", total=file.size, visible=False) for file in source.files
        }
        yield lambda file, done: bars.update(tasks[file], completed=done, visible=True)
