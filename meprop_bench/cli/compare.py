"""`meprop-bench compare`: two stored results of the same cases, what changed, and what differs from chance.

Nothing is measured. It judges no margin; that is the gate's task. Exit codes: 3 when no case is in both, or when they
were measured in different environments and --across-environments was not given; 5 when one of them is empty.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from meprop_bench.cli.options import examples, with_format
from meprop_bench.errors import ExitCode

__all__ = ["command"]


@click.command(
    name="compare",
    short_help="Compare two stored results of the same cases.",
    epilog=examples("meprop-bench compare reports/before reports/after --format md"),
)
@click.argument("base", metavar="BASE", type=click.Path(path_type=Path))
@click.argument("head", metavar="HEAD", type=click.Path(path_type=Path))
@with_format("table", "json", "md", "csv", "html")
@click.option(
    "--across-environments", is_flag=True, help="Compare even if machine, software or settings differ, and say how."
)
def command(base: Path, head: Path, form: str, across_environments: bool) -> int:
    """Compare two results folders, bundles or named baselines, case by case: sparse times, and speed-ups over dense.

    BASE is the earlier one, HEAD the later one. Cases pair up by their id and phase; each ratio has its interval from
    the raw values of both, and all of them are judged together. The biggest changes come first.
    """
    from meprop_bench.cli.output import held_for_good
    from meprop_bench.paper.folder import load
    from meprop_bench.report.compare import compare
    from meprop_bench.report.terminal import write_as

    with held_for_good():
        (before, _), (after, _) = load(_place(base)), load(_place(head))
    found = compare(before, after, across_environments=across_environments)
    write_as(form, found, sys.stdout)
    return ExitCode.OK


def _place(given: Path) -> Path:
    """Return where the results of a named baseline are, or the path that was given."""
    from meprop_bench.results.baselines import Baselines

    name, baselines = str(given), Baselines()
    return baselines.named(name).results if not given.exists() and name in baselines else given
