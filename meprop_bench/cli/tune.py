"""`meprop-bench tune`: which method and which k, for this model on this machine; or to stay dense.

Steps are timed in interleaved pairs, trainings compared over paired seeds, all within the budget; the answer is one
sentence, the code that does it, and a table of everything that was tried. With --budgets it draws quality over
wall-clock time instead. Everything that is done is stored as it comes.

Exit codes: 0 an arm is to be taken, or dense is; 4 undecided; 5 nothing was measured; 2 for wrong options, 130 after
Ctrl-C: continue with the same command and --resume. A shard has no verdict, and ends with 0, or with 5 where nothing
was timed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meprop_bench.cli.cluster import refuse_search, with_ray
from meprop_bench.cli.options import Grouped, examples, with_format, with_out, with_shard
from meprop_bench.cli.output import (
    as_record,
    complaining,
    interrupted,
    name_left_out,
    results_folder,
    write,
    write_tables,
)
from meprop_bench.cli.recipe import RECIPE_GROUPS, recipe_of, with_recipe
from meprop_bench.errors import UserError
from meprop_bench.optional import unavailable_reason
from meprop_bench.progress import lines, state_before, watcher

if TYPE_CHECKING:
    from meprop_bench.results.shards import Shard
    from meprop_bench.results.store import Store
    from meprop_bench.tuning.run import Result, TuneRequest

__all__ = ["command", "print_result", "request_of", "run_tune", "write_folder"]

_SEARCHED = ("method", "k", "gradient", "kernel", "leave", "k_by_layer")
_NOT_TUNED = ("algorithm", "rate", "prunes", "simplify", "normal", "share", "pretrain", "end", "shape", "best_after")
_BUDGET = "20m"
CURVE, ANSWER = "time-to-quality.svg", "README.md"


@click.command(
    name="tune",
    cls=Grouped,
    short_help="Find the method and k that pay for a model, or that none does.",
    groups={
        **{
            heading: [name for name in names if name.replace("-", "_") not in _NOT_TUNED]
            for heading, names in RECIPE_GROUPS.items()
            if heading != "Algorithm"
        },
        "Search": ("margin", "budget", "budgets", "seeds", "threads", "processes", "real-clock"),
        "Several machines": ("shard", "ray"),
        "Output": ("out", "resume", "format"),
    },
    epilog=examples(
        "meprop-bench tune --task mnist --margin 0.5 --budget 20m",
        "meprop-bench tune --model my_model.py:build --method unified --k 0.05,0.1,0.2",
        "meprop-bench tune --task mnist --budgets 30s,2m,8m --method unified --k 0.25",
        "meprop-bench tune --task mnist --steps 2000 --shard 2/4",
    ),
)
@with_recipe
@click.option(
    "--margin",
    type=float,
    metavar="POINTS",
    help="Tolerated loss: points of a percentage [default: 0.5], or for another metric, in its unit [default: 0.5% of "
    "dense's figure].",
)
@click.option(
    "--budget",
    metavar="TIME",
    help=f"Wall-clock time of the whole search: 90s, 20m, 1h [default: {_BUDGET}; with --budgets as much as it needs].",
)
@click.option(
    "--budgets", metavar="TIMES", help="Compare qualities after these training times, such as 30s,2m,8m, instead of"
    " searching.",
)  # fmt: skip
@click.option("--seeds", type=int, metavar="N", help="Seeds to judge by [default: as many as fit; curve: 5].")
@click.option(
    "--threads", type=click.IntRange(1), metavar="N", help="CPU threads of a timed step [default: the physical cores]."
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    metavar="N",
    help="Trainings that run at the same time, each on one thread [default: the physical cores].",
)
@click.option("--real-clock", is_flag=True, help="At the end run the choice and its opponent by the real clock, too.")
@with_shard()
@with_ray
@with_out
@click.option("--resume", is_flag=True, help="Continue the latest search of this kind.")
@with_format("table", "json", "md")
def command(form: str, resume: bool, out: Path, ray: str | None, **given: Any) -> int:
    """Search methods, k and layouts for the fastest training step that keeps the quality; or say that dense is best.

    --method, --k and --gradient take lists. Without --steps trainings are as long as the budget allows, at most
    --epochs. A task's learning rate is annealed (cosine) unless --schedule says otherwise.
    """
    refuse_search(ray)
    budget, budgets = given.pop("budget"), given.pop("budgets")
    return run_tune(request_of(given, budgets), budget, form=form, resume=resume, out=out)


_HELP = {
    "method": "Methods to try, with commas between them [default: unified,meprop].",
    "k": "k to try: integers, or ratios in (0, 1] [default: ratios from 1/64 to 1/2].",
    "k_by_layer": "k of some layers in every arm, as in 'blocks.0.*=0.25;*.up=0.1' [default: searched, too].",
    "gradient": "Weight gradients to try: dense, rows [default: dense; rows, too, where the optimizer takes them].",
    "schedule": "Learning-rate schedule: constant, cosine [default: cosine; of your own model its own].",
    "epochs": "Passes over the training examples, at most [default: 20].",
    "steps": "Steps of a training [default: as many as the budget allows, at most those of the epochs].",
    "shard": "Search among part I of N of the arms, as one of N machines, or train part of the seeds of --budgets; "
    "`meprop-bench merge` judges all of them together.",
    "ray": "Refused: a search is of one machine; --shard splits it.",
}
"""Of options that mean more than for a single training."""
command.params = [param for param in command.params if param.name not in _NOT_TUNED]
for _param in command.params:
    if isinstance(_param, click.Option):
        _param.help = _HELP.get(str(_param.name), _param.help)


def request_of(given: dict[str, Any], budgets: str | None) -> TuneRequest:
    """Return what the options of `tune` ask for; `UserError` for those that cannot be used."""
    from meprop_bench.durations import seconds_of
    from meprop_bench.sweep.plan import parse_axis
    from meprop_bench.tasks.build import is_model
    from meprop_bench.tuning.run import TuneRequest

    shard: Shard | None = given.pop("shard", None)
    for name in _NOT_TUNED:  # of `parity`, which has these options
        if given.pop(name, None) is not None:
            raise UserError(f"--budgets is for methods that select a top k: leave --{name.replace('_', '-')} out")
    searched = {name: given.pop(name) for name in _SEARCHED}
    own = {name: given.pop(name) for name in ("margin", "seeds", "threads", "processes", "real_clock")}
    steps = given.get("steps")
    if given.get("schedule") is None and not (given.get("model") and is_model(given["model"])):
        # The strongest dense side for a given time anneals its rate in it; a model of one's own has its own schedule.
        given["schedule"] = "cosine"
    lists = {name: tuple(_words(searched[name])) for name in ("method", "gradient")}
    request = TuneRequest(
        recipe_of(given),
        methods=lists["method"],
        gradients=lists["gradient"],
        ks=() if searched["k"] is None else tuple(parse_axis("k", [searched["k"]])),
        kernel=searched["kernel"] or "auto",
        leave=tuple(filter(None, (searched["leave"] or "").split(";"))),
        k_by_layer=searched["k_by_layer"],
        steps=steps,
        budgets=() if budgets is None else tuple(seconds_of(word) for word in budgets.split(",")),
        **own,
    )
    return request if shard is None else request.sharded(shard)


def _words(text: str | None) -> list[str]:
    return [] if text is None else [word.strip() for word in text.split(",")]


def run_tune(request: TuneRequest, budget: str | None, *, form: str, resume: bool, out: Path) -> int:
    """Search, print the answer, and return the exit code."""
    from meprop_bench.durations import duration, seconds_of
    from meprop_bench.results.axes import default_threads

    seconds = float("inf") if budget is None and request.budgets else seconds_of(budget or _BUDGET)
    with _store(request, out, resume) as store:
        limit = "" if seconds == float("inf") else f", within {duration(seconds)}"
        click.echo(f"tuning {request.recipe.task} to {store.folder}{limit}", err=True)
        # For its warnings: the state that counts is stored when something is timed, which resuming may do without.
        state_before(request.threads or default_threads(), partial(click.echo, err=True))
        try:
            result = request.run(store, seconds, watcher(lines()))
        except KeyboardInterrupt:
            return interrupted()
        found = result.answer or result.curve
        assert found is not None
        more = "continue with --resume and a larger --budget"
        name_left_out(found.left_out, "piece", spent="the budget", then=more, most=10)
        with complaining():
            write_folder(result)
        with complaining():
            print_result(form, result)
    return result.code


def _store(request: TuneRequest, out: Path, resume: bool) -> Store:
    from meprop_bench.measure.environment import machine_slug
    from meprop_bench.tasks.checks import on_device
    from meprop_bench.tuning.run import folder_name

    machine = machine_slug(str(on_device(request.recipe.options.get("device") or "cpu")))
    name = folder_name(request)
    return results_folder(out, name, machine, request.to_json(), resume=resume, what="this search", shard=request.part)


def write_folder(result: Result) -> None:
    """Write the answer, and a curve's picture, into the results folder."""
    from meprop_bench.report.markdown import escaped
    from meprop_bench.results.store import replace_file
    from meprop_bench.tuning.document import drawn, markdown

    text = markdown(result)
    if result.curve is not None:
        if (reason := unavailable_reason("matplotlib")) is not None:
            click.echo(f"no picture: matplotlib {reason} (pip install 'meprop-bench[report]')", err=True)
        else:
            title = f"{result.request.recipe.task}: {result.metric} in the same seconds"
            replace_file(result.folder / CURVE, drawn(result.curve, title, result.metric))
            text += f"\n![{escaped(title)}]({CURVE})\n"
    replace_file(result.folder / ANSWER, text)
    click.echo(f"report: {result.folder / ANSWER}", err=True)


def print_result(form: str, result: Result) -> None:
    """Print what came of a search, or of a curve."""
    from meprop_bench.tuning.document import advice, as_json, doubt, markdown, tables

    header, line = result.store.header, doubt(result)
    if form == "json":
        more: Mapping[str, Any] = {"doubts": [line]} if line else {}
        record = as_record(
            header["environments"], result.store.rows(), command=header["command"], tune=as_json(result), **more
        )
        write(record)
        return
    if line:
        click.echo(f"{line}\n")
    if form == "md":
        write(markdown(result))
        return
    write(f"{result.sentence}\n")
    if parts := advice(result):
        code = "\n".join(f"    {line}" if line else "" for line in parts[0].splitlines())
        again = "\n    ".join(parts[1:])
        write(f"\n{code}\n\nMeasured again by\n    {again}\n")
    write("\n")
    write_tables(*tables(result))
