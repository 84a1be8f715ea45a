"""Named baselines: `meprop-bench gate --save-baseline NAME`, and `meprop-bench gate baselines`, which lists them.

Exit codes: 0 saved, or listed; 2 not saved: wrong usage, or a baseline has the name and nobody confirmed that it goes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

from meprop_bench.cli.options import examples
from meprop_bench.cli.output import write_tables
from meprop_bench.errors import ExitCode, UserError
from meprop_bench.results.baselines import FOLDER, Baseline, Baselines

__all__ = ["list_baselines", "save_as_baseline", "with_baselines"]

with_baselines = click.option(
    "--baselines",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    default=FOLDER,
    help=f"Folder of the named baselines [default: {FOLDER}].",
)


def save_as_baseline(
    name: str, candidate: Path, folder: Path, replaces: str | None, compare: Callable[[Baseline], int]
) -> int:
    """Keep results under a name; of a baseline that has it, show what changes, and have somebody confirm it.

    `compare` shows how the candidate compares with that.
    """
    from meprop_bench.gate.baselines import save

    baselines = Baselines(folder)
    before = None
    try:
        before = baselines.named(name) if name in baselines else None
    except UserError as error:  # there is nothing left to compare with; it is replaced by its digest alone
        click.echo(f"meprop-bench: {error}", err=True)
    if before is not None:
        try:
            compare(before)
        except UserError as error:  # it is confirmed all the same: an expired one is there to be replaced
            if error.exit_code != ExitCode.NOT_COMPARABLE:
                raise
            click.echo(f"meprop-bench: {error}", err=True)
        if replaces is None and sys.stdin.isatty() and sys.stderr.isatty():
            if not click.confirm(f"Replace the baseline {before.line}?", err=True):
                raise UserError(f"the baseline {name} stays as it is")
            replaces = before.digest
    saved = save(name, candidate, folder, replaces=replaces or "")
    click.echo(f"saved the baseline {saved.line} in {folder}", err=True)
    return ExitCode.OK


@click.command(
    name="baselines",
    short_help="List the named baselines.",
    epilog=examples("meprop-bench gate baselines"),
)
@with_baselines
def list_baselines(baselines: Path) -> int:
    """List the named baselines: when each was saved, from what, and where that was measured."""
    from meprop_bench.report.sections import plain_section

    found = Baselines(baselines)
    if not (names := found.names()):
        click.echo(f"no baselines in {baselines}: meprop-bench gate --candidate FILE --save-baseline NAME keeps one")
        return ExitCode.OK
    columns = ("name", "saved", "of", "measured on", "digest")
    lines, remarks = [], []
    for name in names:
        try:
            one = found.named(name)
        except UserError as error:
            remarks.append(str(error))
        else:
            lines.append((one.name, f"{one.saved:%Y-%m-%d}", one.source, one.machine, one.digest))
    if lines:
        write_tables(plain_section("", columns, lines, left=columns))
    for remark in remarks:
        click.echo(remark)
    return ExitCode.USAGE if remarks else ExitCode.OK
