"""`meprop-bench merge`: one results folder of those of a run's shards, as if one machine had measured it.

Exit codes: those of the command that was split; 2 for folders that are no shards, or come twice, and for a folder that
is there already; 3 where shards are missing or contradict each other, 5 when nothing was measured.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meprop_bench.cli.options import examples, with_format
from meprop_bench.cli.output import complaining, write_pages
from meprop_bench.errors import ExitCode, UserError

if TYPE_CHECKING:
    from meprop_bench.results.merge import Shards
    from meprop_bench.results.schema import Row
    from meprop_bench.results.store import Store
    from meprop_bench.tuning.run import Result

__all__ = ["command"]

_MOST = 10_000


@click.command(
    name="merge",
    short_help="Put the shards of one run together.",
    epilog=examples(
        "meprop-bench merge reports/*_targets-shard-*-of-4 --out reports/2026-11-28_cluster_targets",
        "meprop-bench merge one two --out all --partial",
    ),
)
@click.argument("folders", metavar="FOLDER...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Results folder to make; it must not be there yet.",
)
@click.option("--partial", "lacks", is_flag=True, help="Merge although shards, or cases of them, are missing.")
@click.option(
    "--mixed-environments",
    is_flag=True,
    help="Merge although machines or software differ: each row keeps its environment. Refused for a search.",
)
@with_format("table", "json", "md", "csv")
def command(folders: tuple[Path, ...], out: Path, lacks: bool, mixed_environments: bool, form: str) -> int:
    """Put the folders of `--shard 1/N` to `--shard N/N` of one command together, and print the report.

    The result is that of a run which nobody split: the same rows in the same order, the same report. (A search is split
    by its arms, and judged once over all of them.) Each row keeps its environment. Folders of different runs or splits,
    a case that is in two, and one that is in none are refused.
    """
    from meprop_bench.results.merge import Shards, check_new, new_folder
    from meprop_bench.results.store import Store

    check_new(out)
    shards = Shards.of([Store.open(folder) for folder in folders])
    whole = _whole(shards)
    if not whole.done:
        raise UserError("nothing was measured in any of the shards: go on with them", ExitCode.NOTHING_MEASURED)
    left_out, missing = shards.missing(whole.done, whole.unit)
    if missing and not lacks:
        raise UserError(
            f"{missing}: measure them (--resume goes on), and name the folders; or merge what there is with --partial",
            ExitCode.NOT_COMPARABLE,
        )
    if (differs := shards.differing(whole.rows, whole.timed)) and not (mixed_environments and whole.mixed):
        more = ", or add --mixed-environments" if whole.mixed else ": a search has one answer, for machines of one kind"
        raise UserError(
            f"the shards were measured in different environments ({differs}), so that their times are not comparable:"
            f" measure all on machines of one kind{more}",
            ExitCode.NOT_COMPARABLE,
        )
    with new_folder(out) as folder:
        with Store.begin(folder, shards.header(whole.rows, mixed=bool(differs))) as store:
            store.append(whole.rows, shards.stores)
        whole.write(folder)
    click.echo(f"{len(shards.stores)} shards merged to {out}", err=True)
    if missing:
        click.echo(f"merged without what is missing: {missing}", err=True)
    for label in [*left_out[:_MOST], *([f"{len(left_out) - _MOST} more"] if len(left_out) > _MOST else [])]:
        click.echo(f"not measured: {label}", err=True)
    return whole.report(form, Store.open(out))


@dataclass(frozen=True)
class _Whole:
    """What the shards of one command come to."""

    rows: Sequence[Row]
    done: Collection[str]  # keys of the units that are measured
    report: Callable[[str, Store], int]  # prints it, writes the folder's pages, and returns the exit code
    unit: str = "case"
    timed: Collection[str] = ()  # ids of environments that more than rows was timed in
    write: Callable[[Path], object] = lambda _: None  # what there is beside the rows
    mixed: bool = True  # whether those of different environments can stand side by side


def _whole(shards: Shards) -> _Whole:
    from meprop_bench.paper import PLAN_KEYS

    if shards.plan.keys() >= PLAN_KEYS:
        return _table(shards)
    if shards.plan.get("name") == "parity" and "recipe" in shards.plan:
        return _comparison(shards)
    if shards.plan.get("name") == "tune" and "arms" in shards.plan:
        return _search(shards)
    rows = shards.measured()
    return _Whole(rows, {row.case_id for row in rows}, _report_sweep)


def _report_sweep(form: str, store: Store) -> int:
    from meprop_bench.cli.speedup import exit_code_of
    from meprop_bench.report.document import Document
    from meprop_bench.report.terminal import write_as

    document = Document.of(store)
    write_pages(store.folder, document, partial(write_as, form, document, sys.stdout))
    return exit_code_of(store.rows())


def _table(shards: Shards) -> _Whole:
    from meprop_bench.paper.merge import TableShards

    found = TableShards(shards)
    return _Whole(found.rows, found.done, _report_table, "unit", found.timed, found.write)


def _report_table(form: str, store: Store) -> int:
    from meprop_bench.cli.paper import print_paper
    from meprop_bench.paper.folder import read
    from meprop_bench.report.terminal import write_as

    document = read(store)
    printed = partial(print_paper, document) if form == "table" else partial(write_as, form, document, sys.stdout)
    write_pages(store.folder, document, printed)
    return ExitCode.OK


def _comparison(shards: Shards) -> _Whole:
    from meprop_bench.sweep.parity import merged

    row, label = merged(shards)
    seeds = [] if row is None or row.parity is None else row.parity.seeds
    return _Whole([] if row is None else [row], set(map(str, seeds)), partial(_report_comparison, label), "seed")


def _report_comparison(label: str, form: str, store: Store) -> int:
    from meprop_bench.cli.parity import CODES, print_parity
    from meprop_bench.report.document import Document
    from meprop_bench.report.terminal import write_as

    (found,) = (row.parity for row in store.rows() if row.parity is not None)
    document = Document.of(store)
    csv = partial(write_as, form, document, sys.stdout)
    write_pages(store.folder, document, csv if form == "csv" else partial(print_parity, form, store, found, label))
    return CODES[found.verdict]


def _search(shards: Shards) -> _Whole:
    from meprop_bench.tuning.merge import TuningShards

    found = TuningShards(shards)

    def report(form: str, store: Store) -> int:
        return _report_search(form, found.result(store))

    return _Whole(found.rows, found.done, report, found.unit, found.timed, found.write, mixed=False)


def _report_search(form: str, result: Result) -> int:
    from meprop_bench.cli.tune import print_result, write_folder
    from meprop_bench.report.document import Document
    from meprop_bench.report.terminal import write_as

    with complaining():
        write_folder(result)
    with complaining():
        if form == "csv":
            write_as(form, Document.of(result.store), sys.stdout)
        else:
            print_result(form, result)
    return result.code
