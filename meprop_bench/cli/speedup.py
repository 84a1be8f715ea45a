"""`meprop-bench speedup`: measure sparsified back propagation against dense, print the result and write its folder.

Everything that can be wrong with the request itself (a misspelt axis, a device that is not there, damaged data, a
folder that cannot be written) is found before anything is measured. A case that fails later costs itself alone.

Exit codes: 1 when a check or an accuracy failed, 5 when no case could be measured, 130 after Ctrl-C (what is done
stays, and is reported). A deadline is no error, nor is an interval wider than the target, or an inconclusive
comparison of accuracies: deciding on results is another command's task.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meprop_bench.cli.cluster import MACHINE, cluster_at, refuse_shard, with_ray
from meprop_bench.cli.options import (
    AXIS_GROUPS,
    Grouped,
    examples,
    with_axes,
    with_format,
    with_out,
    with_shard,
)
from meprop_bench.cli.output import interrupted, name_left_out, results_folder, write_pages
from meprop_bench.errors import ExitCode, UserError
from meprop_bench.progress import showing, state_before

if TYPE_CHECKING:
    from meprop_bench.report.compare import Comparison
    from meprop_bench.report.document import Document
    from meprop_bench.results.schema import Row
    from meprop_bench.results.shards import Shard, ShardOf
    from meprop_bench.results.store import Store
    from meprop_bench.sweep.cluster import Cluster
    from meprop_bench.sweep.deadline import Deadline
    from meprop_bench.sweep.plan import Plan

__all__ = ["command", "exit_code_of"]


@click.command(
    name="speedup",
    cls=Grouped,
    short_help="Measure sparsified back propagation against dense.",
    groups={
        **AXIS_GROUPS,
        "Measuring": ("preset", "replay", "target", "budget", "processes", "pin", "parity", "utilization", "deadline"),
        "Several machines": ("shard", "ray"),
        "Output": ("out", "resume", "format"),
    },
    epilog=examples(
        "meprop-bench speedup",
        "meprop-bench speedup --method unified --k 8,32,128 --hidden 2048 --batch 1024 --gradient rows,dense",
        "meprop-bench speedup --workload mlp --optimizer adagrad --k 0.05",
        "meprop-bench speedup --model my_model.py:build --method meprop,unified --k 0.02,0.05,0.1",
        "meprop-bench speedup --preset targets --resume",
        "meprop-bench speedup --preset targets --shard 2/4",
        "meprop-bench speedup --replay quick.zip",
    ),
)
@with_axes("LIST", multiple=True)
@click.option(
    "--preset",
    metavar="NAME",
    help="A sweep that comes with the package, or a TOML file; axes given here replace its own.",
)
@click.option(
    "--replay",
    type=click.Path(path_type=Path),
    metavar="BUNDLE",
    help="Measure the cases of a bundle or a results folder again, unchanged, and compare.",
)
@click.option(
    "--target",
    type=float,
    metavar="WIDTH",
    help="Half-width of the interval at which a case ends [default: 0.02, ±2%].",
)
@click.option("--budget", type=float, metavar="SECONDS", help="Longest timing of a case [default: 20].")
@click.option("--processes", type=int, metavar="N", help="Fresh processes for each case [default: 5].")
@click.option(
    "--pin/--no-pin", default=None, help="Bind each process to as many cores as it has threads [default: no]."
)
@click.option(
    "--parity/--no-parity",
    default=None,
    help="Compare accuracies, too, where the workload learns from data [default: yes; of your own model: no].",
)
@click.option(
    "--utilization/--no-utilization",
    default=None,
    help="Sample utilisation, power and energy, for another 4 s per case [default: yes].",
)
@with_shard()
@with_out
@click.option("--resume", is_flag=True, help="Continue the latest unfinished run of this sweep.")
@click.option(
    "--deadline", type=float, metavar="SECONDS", help="Start no case that would not finish within this many seconds."
)
@with_ray
@with_format("table", "json", "md", "csv")
def command(
    form: str,
    ray: str | None,
    out: Path,
    resume: bool,
    shard: Shard | None,
    deadline: float | None,
    preset: str | None,
    replay: Path | None,
    **options: Any,
) -> int:
    """Measure sparsified back propagation against dense, in interleaved pairs and fresh processes.

    Axes take lists (--k 8,32 or --k 8 --k 32), and every combination is a case. Without any: a hidden layer of the
    papers' MNIST model. Results go to FOLDER/<date>_<machine>_<name>/.
    """
    from meprop_bench.sweep.deadline import Deadline
    from meprop_bench.sweep.feasible import check_feasible
    from meprop_bench.sweep.shard import shard_of_plan

    refuse_shard(ray, shard)
    parity = options["parity"]
    unsaid = preset is None and parity is None and replay is None
    until, before = Deadline(deadline), None
    if replay is None:
        plan = _plan(preset, options)
    else:
        before, plan = _replayed(replay, preset, options)
    plan, part = (plan, None) if shard is None else shard_of_plan(plan, shard)
    if ray is None:
        check_feasible(plan.cases, pin=plan.pin, evaluates=parity is True, ranks=True)
    if unsaid and "accuracy" not in plan.checks:
        click.echo("accuracies are not compared: add --parity, or use `meprop-bench parity` or `tune`", err=True)
    with ExitStack() as stack:
        with cluster_at(ray, plan.cases) as cluster:
            store = stack.enter_context(_store(plan, out, resume, part, here=cluster is None))
            code = _measure(plan, store, until, cluster, evaluates=parity is True)
        _report(store, form, before)
    return code


def _replayed(replay: Path, preset: str | None, options: Mapping[str, Any]) -> tuple[Document, Plan]:
    """Return what was measured before, and its plan."""
    from meprop_bench.report.bundle import folder_of
    from meprop_bench.report.document import Document
    from meprop_bench.results.store import Store
    from meprop_bench.sweep.plan import plan_of

    models = options["model"]
    given = {"preset": preset, **options, "model": None}
    if also := sorted(name for name, value in given.items() if value not in (None, ())):
        words = ", ".join(f"--{name.replace('_', '-')}" for name in also)
        raise UserError(f"--replay measures what was measured, as it was: leave out {words}")
    with folder_of(replay) as folder:
        store = Store.open(folder)
        return Document.of(store), plan_of(store.header["plan"], models)


def _plan(preset: str | None, options: dict[str, Any]) -> Plan:
    from meprop_bench.sweep.plan import given_axes, load_preset, plan_axes, plan_preset

    axes = given_axes(options)
    parity = options.pop("parity")
    settings = {name: value for name, value in options.items() if value is not None}
    if "seed" in axes:
        settings["seed"] = axes["seed"][0]
    if parity is None and preset is None and "model" in axes:
        parity = False
    if parity is not None:
        settings["checks"] = ("gradients", "accuracy") if parity else ("gradients",)
    if preset is None:
        return plan_axes(axes, **settings)
    return plan_preset(load_preset(preset), axes, **settings)


def _store(plan: Plan, out: Path, resume: bool, part: ShardOf | None, *, here: bool) -> Store:
    from meprop_bench.measure.environment import machine_slug

    machine, what = machine_slug(plan.cases[0].device) if here else MACHINE, "this sweep with these settings"
    return results_folder(out, plan.name, machine, plan.to_json(), resume=resume, what=what, shard=part, here=here)


def _measure(plan: Plan, store: Store, deadline: Deadline, cluster: Cluster | None, *, evaluates: bool) -> int:
    """Run what is missing and return the exit code; an interrupt ends the run, not the report."""
    from meprop_bench.report.cells import counted
    from meprop_bench.sweep.cluster_runner import ClusterRunner
    from meprop_bench.sweep.runner import Runner

    click.echo(f"{counted(len(plan.cases), 'case')} to {store.folder}", err=True)
    say = partial(click.echo, err=True)
    runner: Runner | ClusterRunner
    try:
        with showing(plan) as progress:
            if cluster is None:
                state = partial(state_before, say=say)
                runner = Runner(plan, store, progress=progress, state=state, deadline=deadline)
            else:
                settings: dict[str, Any] = {"progress": progress, "deadline": deadline, "evaluates": evaluates}
                runner = ClusterRunner(plan, store, cluster, say=say, **settings)
            runner.run()
    except KeyboardInterrupt:
        return interrupted(f"{len(store.done_case_ids())} of {len(plan.cases)} cases")
    name_left_out([case.label for case in runner.left_out])
    return exit_code_of(store.rows())


def exit_code_of(rows: Iterable[Row]) -> int:
    """Return the exit code of a sweep that has these rows."""
    rows = list(rows)
    wrong = any(row.error is None and not row.passed for row in rows)
    worse = any(row.parity is not None and row.parity.verdict == "fail" for row in rows)
    if wrong or worse:
        return ExitCode.REGRESSION
    return ExitCode.OK if any(row.speedup is not None for row in rows) else ExitCode.NOTHING_MEASURED


def _report(store: Store, form: str, before: Document | None) -> None:
    """Print the report, or of what was measured before as well the comparison, and write the pages of the folder."""
    from meprop_bench.report.document import Document
    from meprop_bench.report.terminal import write_as

    if not store.rows():
        click.echo(f"nothing is measured yet, so there is no report in {store.folder}", err=True)
        return
    document = Document.of(store)
    shown = document if before is None else _compared(before, document)
    write_pages(store.folder, document, partial(write_as, form, shown, sys.stdout))


def _compared(before: Document, document: Document) -> Document | Comparison:
    from meprop_bench.report.compare import compare

    try:
        return compare(before, document, across_environments=True)
    except UserError as error:  # every case failed, in one of them
        click.echo(f"meprop-bench: {error}", err=True)
        return document
