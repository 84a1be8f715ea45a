"""`meprop-bench export`: export stored results to other tools."""

from __future__ import annotations

from pathlib import Path

import click

from meprop_bench.cli.options import examples
from meprop_bench.errors import ExitCode

__all__ = ["command"]

_MOST = 20
"""Replaced figures that are named."""


@click.group(
    name="export",
    short_help="Export stored results to other tools.",
    epilog=examples("meprop-bench export asv reports/2026-11-28_amd-epyc-2c_quick"),
)
def command() -> None:
    """Export stored results to the file formats of other tools."""


@command.command(name="asv", epilog=examples("meprop-bench export asv reports/2026-11-28_amd-epyc-2c_quick"))
@click.argument("folders", metavar="FOLDER...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--to",
    "results",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".asv/results"),
    show_default=True,
    help="asv's results_dir; existing results stay.",
)
@click.option(
    "--repo",
    "repository",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=Path(),
    show_default=True,
    help="The checkout whose commits were measured.",
)
@click.option("--dirty", is_flag=True, help="Accept results of a tree with uncommitted changes as those of its commit.")
def asv(folders: tuple[Path, ...], results: Path, repository: Path, dirty: bool) -> int:
    """Export results folders as results of asv.

    `asv publish`, `asv show` and `asv compare` then show the paired measurements, as benchmarks whose names begin with
    "stored". Nothing is measured, and asv need not be installed. `asv run` rewrites its list of benchmarks: export
    again afterwards.
    """
    from meprop_bench.report.asv import export

    found = export(folders, results, repository=repository, dirty=dirty)
    for path in found.files:
        click.echo(path)
    for line in found.replaced[:_MOST]:
        click.echo(f"replaced {line}", err=True)
    if (more := len(found.replaced) - _MOST) > 0:
        click.echo(f"replaced {more} more figures of earlier runs of the same commits", err=True)
    left = f"; left out, as they failed: {found.left_out}" if found.left_out else ""
    click.echo(f"exported {found.rows} row{'s' * (found.rows > 1)}{left}", err=True)
    return ExitCode.OK
