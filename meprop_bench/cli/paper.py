"""`meprop-bench paper`: every table of both papers, as printed, and measured here.

Exit codes of run: 0 done, whatever the verdicts (a claim that did not hold is a result, and no error), 5 when nothing
can be run here, 130 after Ctrl-C: what is done stays; continue with the same command and --resume.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meprop_bench.cli.cluster import MACHINE, cluster_at, refuse_shard, with_ray
from meprop_bench.cli.options import Grouped, examples, with_out, with_shard
from meprop_bench.cli.output import interrupted, name_left_out, results_folder, write_pages, write_prose, write_tables
from meprop_bench.durations import duration
from meprop_bench.errors import ExitCode, UserError
from meprop_bench.progress import showing

if TYPE_CHECKING:
    from meprop_bench.paper.experiment import Experiment
    from meprop_bench.paper.folder import PaperDocument
    from meprop_bench.paper.records import Trainings
    from meprop_bench.paper.shard import Assignment
    from meprop_bench.results.shards import Shard
    from meprop_bench.results.store import Store
    from meprop_bench.sweep.cluster_workers import Hosts
    from meprop_bench.sweep.deadline import Deadline

__all__ = ["command", "print_paper"]

_SCALE = click.Choice(["smoke", "short", "full"])
_PAGE = "PAPERS.md"


@click.group(
    name="paper",
    short_help="Show the tables of both papers: as printed, and measured here.",
    epilog=examples("meprop-bench paper list", "meprop-bench paper run icml:3 --scale smoke"),
)
def command() -> None:
    """Show the papers' tables, run them here, and compare what was measured with what was printed."""


@command.command(
    name="list",
    short_help="List the tables: what can be run, how long it takes, and the results.",
    epilog=examples("meprop-bench paper list"),
)
@with_out
@click.option(
    "--processes", type=int, metavar="N", help="Trainings that run at the same time [default: the physical cores]."
)
def list_tables(out: Path, processes: int | None) -> int:
    """List every table: title, tasks, minutes at each scale, and the stored result with its verdicts."""
    from meprop_bench.paper.folder import best_results
    from meprop_bench.paper.published import published
    from meprop_bench.report.sections import plain_section

    results = best_results(out)
    lines = []
    left_out: dict[str, dict[str, None]] = {}
    for found in published().values():
        document = results.get(found.table_id, (None, None))[1]
        result = "–" if document is None else f"{document.evidence.experiment.scale}: {document.outcome}"
        tasks = ", ".join(dict.fromkeys(part.task for part in found.parts))
        times, skipped = _times(found.table_id, _workers(processes))
        lines.append((found.table_id, found.title, tasks, *times, result))
        for reason in skipped:
            left_out.setdefault(reason, {})[found.table_id] = None
    columns = ("table", "title", "tasks", "smoke", "short", "full", "result")
    notes = ["Not trained at the short scale (what is timed of these tables is measured all the same):"]
    notes += [f"{', '.join(tables)}: {reason}" for reason, tables in left_out.items()]
    words = {"table", "title", "tasks", "result"}
    footnotes = tuple(notes) if left_out else ()
    write_tables(plain_section("The papers' tables", columns, lines, left=words, footnotes=footnotes))
    return ExitCode.OK


def _times(table_id: str, workers: int) -> tuple[tuple[str, str, str], list[str]]:
    from meprop_bench.paper.experiment import experiment
    from meprop_bench.paper.published import table
    from meprop_bench.paper.subjects import SCALES

    found = {scale: experiment(table(table_id), scale) for scale in SCALES}
    smoke, short, full = (
        duration(found[scale].estimate_s(workers)) if found[scale].runnable else "–" for scale in SCALES
    )
    return (smoke, short, full), list(dict.fromkeys(reason for _, reason in found["short"].skipped))


@command.command(
    name="show",
    short_help="Show the printed figures of a table, with their settings.",
    epilog=examples("meprop-bench paper show icml:3"),
)
@click.argument("table_id", metavar="TABLE")
def show(table_id: str) -> int:
    """Print a table as the paper has it: figures, settings, notes, and where the papers disagree."""
    from meprop_bench.paper.published import COLUMNS, table
    from meprop_bench.report.sections import plain_section

    found = table(table_id)
    click.echo(f"{found.table_id}  {found.title}\n")
    write_prose(f"“{found.caption}”")
    if found.best_of:
        click.echo(f"Best of {found.best_of} runs." if found.best_of > 1 else "One run.")
    for part in found.parts:
        click.echo()
        write_prose(f"{part.name} ({part.task}): {part.rows[0].setting.words}".rstrip(": "))
        columns = list(dict.fromkeys(column for row in part.rows for column in row.figures))
        heads = [f"{COLUMNS[column].title}, {COLUMNS[column].unit}" for column in columns]
        lines = [(row.name, *(_figure(row.figures.get(column)) for column in columns)) for row in part.rows]
        write_tables(plain_section("", ("", *heads), lines, left={""}))
        for note in part.notes:
            write_prose(note)
    for title, texts in (("Notes", found.notes), ("The papers disagree", found.contradictions)):
        if texts:
            click.echo(f"\n{title}:")
            for text in texts:
                write_prose(f"- {text}")
    return ExitCode.OK


@command.command(
    name="run",
    cls=Grouped,
    short_help="Run a table, and compare the result with the paper.",
    groups={
        "What is run": ("scale", "seeds", "device"),
        "How": ("processes", "deadline", "reuse"),
        "Several machines": ("shard", "ray"),
        "Output": ("out", "resume"),
    },
    epilog=examples(
        "meprop-bench paper run icml:3 --scale smoke",
        "meprop-bench paper run icml:3 --scale full --shard 2/4",
        "meprop-bench paper run tkde:4 --scale short --reuse reports/2026-11-21_amd-epyc-2c_paper-icml-4-short",
    ),
)
@click.argument("table_id", metavar="TABLE")
@click.option("--scale", type=_SCALE, default="short", show_default=True, help="How much is trained and timed.")
@click.option("--seeds", type=int, metavar="N", help="Seeds of each row [default: the scale's].")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option(
    "--processes", type=int, metavar="N", help="Trainings that run at the same time [default: the physical cores]."
)
@with_shard()
@with_out
@click.option("--resume", is_flag=True, help="Continue the latest run of this table with the same settings.")
@click.option(
    "--deadline", type=float, metavar="SECONDS", help="Start nothing that would not finish within this many seconds."
)
@click.option(
    "--reuse",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    multiple=True,
    help="Reuse the trainings, timed cases and decodings of a results folder; repeatable.",
)
@with_ray
def run_table(
    table_id: str,
    scale: str,
    seeds: int | None,
    device: str,
    processes: int | None,
    shard: Shard | None,
    out: Path,
    resume: bool,
    deadline: float | None,
    reuse: tuple[Path, ...],
    ray: str | None,
) -> int:
    """Train every row with the same seeds and batches, time what the table times, print the paper beside ours."""
    from meprop_bench.measure.environment import machine_slug
    from meprop_bench.paper.experiment import check_runnable, experiment, reasons
    from meprop_bench.paper.published import table
    from meprop_bench.paper.records import Trainings
    from meprop_bench.paper.runner import slug
    from meprop_bench.paper.shard import ALL, shard_of_table
    from meprop_bench.results.store import Store
    from meprop_bench.sweep.cluster_workers import Hosts
    from meprop_bench.sweep.deadline import Deadline
    from meprop_bench.sweep.feasible import check_feasible
    from meprop_bench.tasks.checks import on_device

    refuse_shard(ray, shard)
    if ray is None:
        device = str(on_device(device))
    elif device == "cuda":
        device = "cuda:0"  # whichever is free
    until, known = Deadline(deadline), [Store.open(each) for each in reuse]
    workers = _workers(processes, device)
    found = check_runnable(experiment(table(table_id), scale, seeds=seeds, device=device))
    own, plan, part = ALL, {**found.to_json(), "device": device}, None
    if shard is not None:
        own, part = shard_of_table(found, plan, shard)
    cases = own.cases(found.distinct_cases)
    if cases and ray is None:
        check_feasible(cases)
    for line in reasons(found.skipped):
        click.echo(f"not trained: {line}", err=True)
    what = "this table with these settings"
    with ExitStack() as stack:
        with cluster_at(ray, cases) as cluster:
            hosts = None
            if cluster is not None:
                hosts = Hosts(cluster, threads=1, device=device)
                workers = min(processes or hosts.count, hosts.count)
            here = cluster is None
            machine = machine_slug(device) if here else MACHINE
            folder = results_folder(out, slug(found), machine, plan, resume=resume, what=what, shard=part, here=here)
            store = stack.enter_context(folder)
            about_s = found.estimate_s(workers) / (1 if shard is None else shard.of)
            click.echo(f"about {duration(about_s)} to {store.folder}", err=True)
            try:
                trainings = Trainings(store.folder, write=True)
                for note in trainings.notes:
                    click.echo(note, err=True)
                _take(found, store, trainings, known, own)
                _run(found, store, trainings, workers, device, until, own, hosts)
                code = ExitCode.OK
            except KeyboardInterrupt:
                code = interrupted()
        _report(store)
    return code


def _take(found: Experiment, store: Store, trainings: Trainings, known: Sequence[Store], own: Assignment) -> None:
    from meprop_bench.paper.runner import take

    for other in known:
        taken = zip(take(found, store, trainings, other, own), ("trainings", "timed cases"), strict=True)
        words = [f"{count} of {total} {what}" for (count, total), what in taken if total]
        click.echo(f"{' and '.join(words)} are those of {other.folder}", err=True)


def _run(
    found: Experiment,
    store: Store,
    trainings: Trainings,
    workers: int,
    device: str,
    deadline: Deadline,
    own: Assignment,
    hosts: Hosts | None,
) -> None:
    from meprop_bench.measure.machine import state
    from meprop_bench.paper.runner import TrainingDone, count_data, decode_all, plan_of, start_training, train_all
    from meprop_bench.sweep.cluster_runner import ClusterRunner
    from meprop_bench.sweep.runner import Runner

    say = partial(click.echo, err=True)
    train, decode = dict[str, Any](), dict[str, Any]()
    if hosts is None:
        store.write_state(state(workers))
    else:
        train["start"], decode["do"] = partial(hosts.start, start_training), partial(hosts.alone, device)

    def report(step: TrainingDone) -> None:
        one = step.trained
        result = f"test {one.test:.2f}, best in epoch {one.best_epoch:g}" if one.test is not None else f"{one.error}"
        click.echo(
            f"[{step.done}/{step.total}] {step.arm.label}, seed {one.seed}: {result} "
            f"({one.seconds:.0f} s; {duration(step.left_s)} of trainings left)",
            err=True,
        )

    limits: dict[str, Any] = {"device": device, "deadline": deadline, "own": own}
    if late := train_all(found, store, trainings, processes=workers, progress=report, **limits, **train):
        click.echo(
            f"the deadline left no time for {late} trainings; continue with the same command and --resume", err=True
        )
    count_data(found, store, own=own)
    decode_all(found, store, trainings, tell=say, **limits, **decode)
    if (plan := plan_of(found, own)) is not None:
        runner: Runner | ClusterRunner
        with showing(plan) as progress:
            if hosts is None:
                runner = Runner(plan, store, progress=progress, deadline=deadline)
            else:
                runner = ClusterRunner(plan, store, hosts.cluster, progress=progress, say=say, deadline=deadline)
            runner.run()
        name_left_out([case.label for case in runner.left_out])


def _report(store: Store) -> None:
    from meprop_bench.paper.folder import read

    document = read(store)
    write_pages(store.folder, document, partial(print_paper, document))


def print_paper(document: PaperDocument) -> None:
    """Print a table: the paper beside ours, and the verdicts."""
    from meprop_bench.paper.folder import own_sections

    for finding in document.findings:
        click.echo(finding.text)
    click.echo()
    write_tables(*own_sections(document))


@command.command(
    name="report",
    short_help="Rewrite the page of stored results, or that of all claims.",
    epilog=examples(
        "meprop-bench paper report reports/2026-11-22_amd-epyc-2c_paper-icml-2-short",
        "meprop-bench paper report --claims",
    ),
)
@click.argument("folders", metavar="[FOLDER]...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--claims", is_flag=True, help=f"Write {_PAGE}: one line for each claim, of all stored results.")
@click.option("--check", is_flag=True, help=f"With --claims: only exit with 1 if {_PAGE} is out of date.")
@with_out
def report(folders: tuple[Path, ...], claims: bool, check: bool, out: Path) -> int:
    """Rewrite README.md, index.html and the plots of results folders, or the page of claims. Nothing is measured."""
    from meprop_bench.results.store import Store

    if check and not claims:
        raise UserError("--check applies to the page of claims: add --claims")
    if not folders and not claims:
        raise UserError("name results folders of `meprop-bench paper run`, or add --claims")
    for folder in folders:
        with Store.open(folder) as store:
            _report(store)
    return _claims(out, check) if claims else ExitCode.OK


def _claims(out: Path, check: bool) -> int:
    from meprop_bench.paper.folder import as_overview
    from meprop_bench.results.store import replace_file

    text, path = as_overview(out), out / _PAGE
    if not check:
        if not out.is_dir():
            raise UserError(f"{out} is not a folder: run a table first, or name another by --out")
        replace_file(path, text)
        click.echo(f"wrote {path}", err=True)
        return ExitCode.OK
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return ExitCode.OK
    click.echo(f"{path} is not what the results give: run `meprop-bench paper report --claims`", err=True)
    return ExitCode.REGRESSION


def _workers(processes: int | None, device: str = "cpu") -> int:
    from meprop_bench.results.axes import default_threads

    if processes is not None and processes < 1:
        raise UserError(f"--processes must be at least 1, not {processes}")
    return processes or (default_threads() if device == "cpu" else 1)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if value == int(value) and abs(value) >= 1000 else f"{value:,}"
