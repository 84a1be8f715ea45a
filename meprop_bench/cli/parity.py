"""`meprop-bench parity`: does a method keep the accuracy of dense training?

Both sides are trained from the same seeds on the same batches, side by side; the difference of each pair in the test
metric, at the best development score, gives the mean difference with its 95% interval. It holds when the whole
interval lies above minus the margin. Pairs are stored as they come.

Exit codes: 0 it holds, 1 it is broken, 4 inconclusive (more seeds may decide), 2 for wrong options, 130 after Ctrl-C:
continue with the same command and --resume. A shard has no verdict, and ends with 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meprop_bench.cli.cluster import MACHINE, cluster_at, refuse_search, refuse_shard, with_ray
from meprop_bench.cli.options import Grouped, examples, with_format, with_out, with_shard
from meprop_bench.cli.output import as_record, interrupted, results_folder, write, write_pages, write_tables
from meprop_bench.cli.recipe import RECIPE_GROUPS, recipe_of, with_recipe
from meprop_bench.durations import duration
from meprop_bench.errors import ExitCode, UserError
from meprop_bench.progress import live
from meprop_bench.results.axes import AXES
from meprop_bench.sweep.accuracy import MARGIN

if TYPE_CHECKING:
    from meprop_bench.results.schema import Parity
    from meprop_bench.results.shards import Shard, ShardOf
    from meprop_bench.results.store import Store
    from meprop_bench.sweep.parity import ParityPlan, ParityProgress

__all__ = ["CODES", "command", "print_parity"]

CODES = {"pass": ExitCode.OK, "fail": ExitCode.REGRESSION, "inconclusive": ExitCode.INCONCLUSIVE}
"""Verdict -> exit code."""
_BUSY = "the accuracies below do not depend on it, the times of the trainings do, by a factor of {factor} or more"
_WORDS = {"pass": "parity holds", "fail": "parity is broken", "inconclusive": "inconclusive"}


@click.command(
    name="parity",
    cls=Grouped,
    short_help="Judge whether a method keeps the accuracy of dense training.",
    groups={
        **RECIPE_GROUPS,
        "Comparison": ("margin", "seeds", "budgets", "processes", "threads"),
        "Training by several processes": ("world-size", "exchange"),
        "Several machines": ("shard", "ray"),
        "Output": ("out", "resume", "format"),
    },
    epilog=examples(
        "meprop-bench parity --task digits --method unified --k 0.1 --epochs 5",
        "meprop-bench parity --task mnist --method meprop --k 80 --epochs 10 --seeds 3",
        "meprop-bench parity --task mnist --method meprop --k 80 --seeds 8 --shard 2/4",
        "meprop-bench parity --task mnist --method unified --k 64 --hidden 2048 --batch 256 --world-size 2",
    ),
)
@with_recipe
@click.option(
    "--margin",
    type=float,
    metavar="POINTS",
    help=f"Tolerated loss: points of accuracy [default: {MARGIN:g}], or for a metric that is not a percentage, in its "
    f"unit [default: {MARGIN:g}% of dense's mean].",
)
@click.option(
    "--seeds", type=int, default=5, show_default=True, metavar="N", help="Number of seeds: trainings of each side."
)
@click.option(
    "--budgets",
    metavar="TIMES",
    help="Compare after these training times, such as 30s,2m,8m, instead of after equal steps: as tune does.",
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    metavar="N",
    help="Trainings that run at the same time [default: the physical cores].",
)
@click.option("--threads", type=int, default=1, show_default=True, metavar="N", help="CPU threads of each training.")
@click.option(
    "--world-size",
    type=int,
    metavar="N",
    help="Train as so many processes would, each with batches of its own [default: 1]; one process computes it.",
)
@click.option("--exchange", metavar="NAME", help=AXES["exchange"].help)
@with_shard()
@with_ray
@with_out
@click.option("--resume", is_flag=True, help="Continue the latest run of this comparison.")
@with_format("table", "json", "md")
def command(
    form: str,
    resume: bool,
    out: Path,
    shard: Shard | None,
    ray: str | None,
    threads: int,
    processes: int | None,
    budgets: str | None,
    seeds: int,
    margin: float | None,
    **given: Any,
) -> int:
    """Train dense and sparse on the same seeds and batches, and judge the difference against a margin."""
    refuse_shard(ray, shard)
    if budgets is not None:
        refuse_search(ray)
        if given["world_size"] or given["exchange"]:
            raise UserError("training times are those of one process: leave --world-size or --budgets out")
        from meprop_bench.cli.tune import request_of, run_tune

        given["method"] = given["method"] or ("meprop" if given["k"] else None)  # as without --budgets
        curve = {**given, "margin": margin, "seeds": seeds, "threads": None, "processes": processes, "shard": shard}
        return run_tune(request_of({**curve, "real_clock": False}, budgets), None, form=form, resume=resume, out=out)
    from meprop_bench.measure.machine import state
    from meprop_bench.report.document import Document
    from meprop_bench.results.axes import default_allocator, default_threads
    from meprop_bench.sweep.cluster_workers import Hosts
    from meprop_bench.sweep.models import check_recipes
    from meprop_bench.sweep.parity import ParityPlan, compare
    from meprop_bench.sweep.shard import shard_of_parity
    from meprop_bench.sweep.worker import start_trainer

    comparison = ParityPlan(recipe_of(given), seeds, margin, threads)
    comparison, part = (comparison, None) if shard is None else shard_of_parity(comparison, shard)
    needs: dict[str, Any] = {"evaluates": True, "differs": seeds > 1}
    check_recipes([comparison.recipe], threads=threads, allocator=default_allocator(), **needs)
    device = comparison.recipe.device
    with ExitStack() as stack:
        with cluster_at(ray) as cluster:
            where: dict[str, Any] = {}
            if cluster is None:
                processes = processes or (max(1, default_threads() // threads) if device == "cpu" else 1)
            else:
                hosts = Hosts(cluster, threads=threads, device=device)
                where["start"] = partial(hosts.start, start_trainer)
                processes = min(processes or hosts.count, hosts.count)
            store = stack.enter_context(_store(comparison, out, resume, part, here=cluster is None))
            click.echo(f"{2 * len(comparison.numbers)} trainings to {store.folder}", err=True)
            if cluster is None:
                store.write_state(state(processes * threads))
            try:
                with _showing(comparison) as show:
                    found = compare(comparison, store, processes=processes, progress=show, **where)
            except KeyboardInterrupt:
                return interrupted()
        printed = partial(print_parity, form, store, found, comparison.recipe.label)
        write_pages(store.folder, Document.of(store), printed)
    return ExitCode.OK if part is not None else CODES[found.verdict]


def _store(comparison: ParityPlan, out: Path, resume: bool, part: ShardOf | None, *, here: bool) -> Store:
    from meprop_bench.measure.environment import machine_slug
    from meprop_bench.tasks.checks import on_device

    machine = machine_slug(str(on_device(comparison.recipe.options.get("device", "cpu")))) if here else MACHINE
    name = f"parity-{comparison.recipe.stem}".replace("=", "-").replace("_", "-")
    plan, what = comparison.to_json(), "this comparison"
    return results_folder(out, name, machine, plan, resume=resume, what=what, shard=part, here=here)


@contextmanager
def _showing(comparison: ParityPlan) -> Iterator[Callable[[ParityProgress], None]]:
    """Give a function that shows where a comparison is: a live line on a terminal, a line for each pair anywhere."""
    from meprop_bench.report.quality import POINTS, Quality

    label = comparison.recipe.label
    with live(label) as (update, line):

        def show(found: ParityProgress) -> None:
            update(found.share, found.left_s)
            if found.seed is None or found.pair is None:
                return
            dense, sparse = found.pair
            quality = POINTS if comparison.percent else Quality(False, abs(dense))
            figures = f"dense {quality.plain(dense)}, {label} {quality.plain(sparse)}, {quality.change(sparse - dense)}"
            left = "" if found.left_s is None else f" ({duration(found.left_s)} left)"
            line(f"seed {found.seed}: {figures}{left}")

        yield show


def print_parity(form: str, store: Store, found: Parity, label: str) -> None:
    """Print a comparison of a method, by its label, with dense training; of a shard no verdict, which others share."""
    from meprop_bench.measure.machine import was_busy
    from meprop_bench.report.markdown import as_section, escaped
    from meprop_bench.report.quality import Quality
    from meprop_bench.report.sections import plain_section

    doubt = was_busy(store.header["states"], {}, _BUSY)
    if form == "json":
        doubts: dict[str, Any] = {"doubts": [doubt]} if doubt else {}
        write(as_record(store.header["environments"], store.rows(), command=store.header["command"], **doubts))
        return
    shard = store.header.get("shard")
    of = None if shard is None else f"{len(found.seeds)} of {shard['plan']['seeds']} seeds: `merge` judges all of them"
    for line in filter(None, (doubt, of or _verdict(found))):
        click.echo(f"{escaped(line) if form == 'md' else line}\n")
    head = ("seed", "dense", label, "difference")
    pairs = zip(found.seeds, found.baseline, found.method, strict=True)
    plain, change = (quality := Quality.of(found)).plain, quality.change
    rows = [(str(seed), plain(dense), plain(sparse), change(sparse - dense)) for seed, dense, sparse in pairs]
    section = plain_section(f"{found.task}: {found.metric}", head, rows)
    if form == "md":
        write(f"{as_section(section)}\n")
    else:
        write_tables(section)


def _verdict(found: Parity) -> str:
    """Return the verdict in a sentence."""
    from meprop_bench.report.quality import held

    return f"{_WORDS[found.verdict]}: {held(found)}; {len(found.seeds)} seeds of {found.steps:,} steps"
