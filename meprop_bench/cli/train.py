"""`meprop-bench train`: train one model of a task, and continue after whatever ended it.

The folder holds settings.json, history.jsonl (one evaluation a line), checkpoint.pt (`torch.load(path,
weights_only=True)`: "model" and "best_model" are state dicts) and curve.svg. The same command with --resume continues,
after kill -9 too, and ends as if nothing had happened: on the CPU with the same parameters, to the bit.

Exit codes: 2 for wrong options, for a folder that holds a training already (without --resume) or another one (with it),
130 after Ctrl-C, which saves where it is.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meprop_bench.cli.options import Grouped, examples, with_format
from meprop_bench.cli.output import command_line, interrupted
from meprop_bench.cli.recipe import RECIPE_GROUPS, recipe_of, with_recipe
from meprop_bench.durations import duration
from meprop_bench.errors import ExitCode, UserError
from meprop_bench.optional import unavailable_reason
from meprop_bench.progress import live
from meprop_bench.tasks.build import is_model
from meprop_bench.tasks.recipe import Recipe

if TYPE_CHECKING:
    from meprop_bench.report.quality import Quality
    from meprop_bench.tasks.run import Evaluation, Progress, TrainingResult
    from meprop_bench.tasks.task import Task

__all__ = ["command"]

CHECKPOINT, HISTORY, SETTINGS, CURVE = "checkpoint.pt", "history.jsonl", "settings.json", "curve.svg"


@click.command(
    name="train",
    cls=Grouped,
    short_help="Train one model of a task.",
    groups={**RECIPE_GROUPS, "Run": ("seed", "threads"), "Output": ("out", "resume", "format")},
    epilog=examples(
        "meprop-bench train --task digits --method unified --k 0.1 --epochs 5",
        "meprop-bench train --task mnist --method meprop --k 80 --algorithm mesimp --rate 0.1",
    ),
)
@with_recipe
@click.option(
    "--seed", type=int, default=1, show_default=True, metavar="N", help="Seed of weights, batches and dropout."
)
@click.option(
    "--threads", type=click.IntRange(1), metavar="N", help="CPU threads of torch [default: the physical cores]."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder of the training [default: training/<what is trained>].",
)
@click.option("--resume", is_flag=True, help="Continue the training in the folder.")
@with_format("table", "json")
def command(form: str, resume: bool, out: Path | None, threads: int | None, seed: int, **given: Any) -> int:
    """Train one model of a task, dense or by a method, with checkpoints, a history and a learning curve."""
    import torch

    from meprop_bench.results.axes import default_allocator, default_threads
    from meprop_bench.sweep.models import check_recipes
    from meprop_bench.tasks.checks import check_count
    from meprop_bench.tasks.run import describe, run

    recipe = recipe_of(given)
    check_count("seed", seed, 0)
    threads = threads or default_threads()
    check_recipes([recipe], threads=threads, allocator=default_allocator(), evaluates=True)
    torch.set_num_threads(threads)
    with _quiet(recipe):
        task = recipe.load()
    settings = {**describe(task, recipe, seed), "threads": threads}
    if task.data_published is False:  # those of the folder are not gone on with on other data
        settings["data_published"] = False
    folder = out or Path("training") / f"{recipe.stem}-seed{seed}".replace("=", "")
    with _folder(folder, settings, resume) as fresh, _showing(recipe, task) as show, _interruptible() as at:
        click.echo(f"{'training' if fresh else 'going on'} in {folder}", err=True)
        for note in task.notes:
            click.echo(note, err=True)

        def progress(found: Progress) -> None:
            _write_history(folder, found.history)
            show(found)

        try:
            with _quiet(recipe):
                result = run(task, recipe, seed, checkpoint=folder / CHECKPOINT, progress=progress, after_step=at)
        except KeyboardInterrupt:
            return interrupted()
        _write_history(folder, result.history)
        _draw(folder, result, f"{recipe.label}, seed {seed}", task)
    _print(form, settings, result, task)
    return ExitCode.OK


@contextmanager
def _quiet(recipe: Recipe) -> Iterator[None]:
    """Send what a user's model prints, or writes, to standard error: the result alone is on standard output."""
    if not is_model(recipe.task):
        yield
        return
    sys.stdout.flush()
    out = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout.flush()
        os.dup2(out, 1)
        os.close(out)


@contextmanager
def _folder(folder: Path, settings: Mapping[str, Any], resume: bool) -> Iterator[bool]:
    """Hold the folder of one training; give whether it is new.

    `UserError` where it holds a training that is not to be resumed, another one, or something else, or another process
    trains in it.
    """
    from meprop_bench.measure.allocator import current
    from meprop_bench.measure.environment import collect
    from meprop_bench.results.incoming import checked, parsed
    from meprop_bench.results.store import lock, replace_file
    from meprop_bench.tasks.run import difference_of

    settings = json.loads(json.dumps(settings))
    path = folder / SETTINGS
    fresh = not path.exists()
    if fresh:
        with suppress(FileNotFoundError):
            if any(not name.startswith(".") for name in os.listdir(folder)):
                raise UserError(f"{folder} holds something other than a training: choose another --out")
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "command": command_line(),
            "settings": settings,
            "environment": collect(settings["device"], current()),
        }
        replace_file(path, json.dumps(record, indent=1) + "\n")
    held = lock(path)
    try:
        try:
            found = checked(parsed(path.read_bytes())["settings"], dict[str, Any])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path} is damaged: choose another --out, or delete the folder") from None
        if difference := difference_of(found, settings):
            raise UserError(f"{folder} holds another training, whose {difference}: choose another --out")
        if not fresh and not resume:
            raise UserError(f"{folder} holds this training already: add --resume to go on, or choose another --out")
        yield fresh
    finally:
        os.close(held)


@contextmanager
def _interruptible() -> Iterator[Callable[[int], None]]:
    """Give a function to call between steps, which raises `KeyboardInterrupt` if Ctrl-C was pressed during the last.

    Between steps, so that the checkpoint that `run` then writes is of a whole step. A second Ctrl-C does not wait.
    SIGTERM and SIGHUP are as a first one.
    """
    from meprop_bench.measure.interrupt import interruptible

    pressed = False

    def note(*_: Any) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def check(step: int) -> None:
        if pressed:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        with interruptible(note):
            yield check
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _showing(recipe: Recipe, task: Task) -> Iterator[Callable[[Progress], None]]:
    """Give a function that shows where a training is: a live line on a terminal, a line an evaluation elsewhere."""
    shown = 0
    with live(recipe.label) as (update, line):

        def show(found: Progress) -> None:
            nonlocal shown
            update(found.step / found.steps, found.left_s)
            for evaluation in found.history[shown:] if shown else found.history[-1:]:
                line(_line(evaluation, recipe, task, found.left_s))
            shown = len(found.history)

        yield show


def _line(found: Evaluation, recipe: Recipe, task: Task, left_s: float) -> str:
    quality = _quality(task, found.dev)
    what, test = "dev", "" if found.test is None else f", best so far: test {quality.plain(found.test)}"
    if is_model(recipe.task):  # which has one set of data to evaluate on
        what, test = task.metric, "" if found.test is None else ", the best so far"
    figures = "".join(f", {name} {value:g}" for name, value in found.figures.items() if name == "size")
    epochs = recipe.epochs if recipe.steps is None else recipe.steps / task.steps_per_epoch
    return (
        f"epoch {_short(found.epoch)}/{_short(epochs)}: loss {found.loss:.4f}, {what} {quality.plain(found.dev)}{test}"
        f"{figures} ({duration(left_s)} left)"
    )


def _short(epochs: float) -> str:
    return f"{epochs:.3g}" if epochs < 100 else f"{epochs:.0f}"


def _quality(task: Task, figure: float) -> Quality:
    from meprop_bench.report.quality import POINTS, Quality

    return POINTS if task.percent else Quality(False, abs(figure))


def _write_history(folder: Path, history: tuple[Evaluation, ...]) -> None:
    """Write the whole history: it is short, and so always that of the checkpoint or newer."""
    from meprop_bench.results.store import replace_file

    lines = (json.dumps(found.to_json(), allow_nan=False) + "\n" for found in history)
    replace_file(folder / HISTORY, "".join(lines))


def _draw(folder: Path, result: TrainingResult, title: str, task: Task) -> None:
    from meprop_bench.report.plots import curve
    from meprop_bench.results.store import replace_file

    if (reason := unavailable_reason("matplotlib")) is not None:
        click.echo(f"no learning curve: matplotlib {reason} (pip install 'meprop-bench[report]')", err=True)
        return
    drawn = curve([found.to_json() for found in result.history], title, task.metric, percent=task.percent)
    replace_file(folder / CURVE, drawn)


def _print(form: str, settings: Mapping[str, Any], result: TrainingResult, task: Task) -> None:
    if form == "json":
        figures = ("iterations", "best_dev", "test_at_best", "final_dev", "seconds")
        record = {
            "settings": dict(settings),
            "metric": task.metric,
            "data_published": task.data_published,
            "notes": list(task.notes),
            **{name: getattr(result, name) for name in figures},
            "figures": dict(result.figures),
            "history": [one.to_json() for one in result.history],
        }
        click.echo(json.dumps(record, indent=1, allow_nan=False))
        return
    plain = _quality(task, result.best_dev).plain
    if is_model(task.name):
        best = f"{plain(result.best_dev)} at best, after {result.iterations:.3g} epochs"
        found = f"{plain(result.final_dev)} at the end; {best}"
    else:
        found = (f"test {plain(result.test_at_best)} at the best dev {plain(result.best_dev)}, after "
                 f"{result.iterations:.3g} epochs; dev at the end {plain(result.final_dev)}")  # fmt: skip
    click.echo(f"{task.metric}: {found}; {result.seconds:.1f} s in steps")
    for name, value in result.figures.items():
        click.echo(f"  {name}: {value:g}")
    if task.data_published is False:
        click.echo("\n".join(f"  {note}" for note in task.notes))
