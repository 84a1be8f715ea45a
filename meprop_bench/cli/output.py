"""What the output of commands has in common: text for any terminal, progress, the object of `--format json`."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meprop_bench.errors import UserError
from meprop_bench.stats import CANNOT_TELL, plus_minus, too_wide

if TYPE_CHECKING:
    from rich.console import Console

    from meprop_bench.report.document import Document
    from meprop_bench.results.schema import Row
    from meprop_bench.results.store import Store
    from meprop_bench.sweep.plan import Plan
    from meprop_bench.sweep.runner import SweepProgress
    from meprop_bench.workloads.case import Case

__all__ = [
    "as_record",
    "command_line",
    "complaining",
    "console",
    "live",
    "name_left_out",
    "outcome",
    "results_folder",
    "showing",
    "write",
    "write_pages",
]


def write(text: str) -> None:
    """Print text as it is; what the stream's encoding does not have becomes `?`."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))


def command_line() -> str:
    """Return the command that runs now, as it is stored: without --resume, with which it goes on."""
    return shlex.join(["meprop-bench", *(word for word in sys.argv[1:] if word != "--resume")])


def results_folder(out: Path, name: str, machine: str, plan: Mapping[str, Any], *, resume: bool, what: str) -> Store:
    """Return a new results folder under `out`, or with `resume` the latest one that was begun with the same plan."""
    from meprop_bench.results.store import Store

    if resume:
        found = Store.find_resumable(out, name, machine, plan)
        for note in found.notes if found else [f"no earlier run of {what}: starting anew"]:
            click.echo(note, err=True)
        if found is not None:
            return found
    return Store.create(out, name, machine, command_line(), plan)


def console(**settings: Any) -> Console:
    """Return rich's console, for which a pipe that its reader closed is an error like others.

    Rich itself ends the program with 1 then, which is the exit code of a regression. Nobody has to read standard
    error.
    """
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            if not self.stderr:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            self.quiet = True

    return Plain(**settings)


@contextmanager
def live(label: str) -> Iterator[tuple[Callable[[float, float | None], None], Callable[[str], None]]]:
    """Give two functions that show on standard error where trainings are: the share that is done, and a line.

    The share, with the seconds that are left, moves a live line on a terminal, and is not shown elsewhere.
    """
    from rich import progress as bar

    target = console(stderr=True, highlight=False)

    def line(text: str) -> None:
        target.print(text, markup=False, soft_wrap=True)

    if not target.is_terminal:
        yield lambda share, left_s: None, line
        return
    columns = (bar.TextColumn("{task.description}", markup=False), bar.BarColumn(20), bar.TaskProgressColumn())
    with bar.Progress(*columns, console=target, transient=True) as bars:
        one = bars.add_task(label, total=1.0)

        def update(share: float, left_s: float | None) -> None:
            left = "" if left_s is None else f" · {left_s:.0f} s left"
            bars.update(one, completed=share, description=label + left)

        yield update, line


@contextmanager
def showing(plan: Plan) -> Iterator[Callable[[SweepProgress], None]]:
    """Give a function that shows where a run is, and a line for each case that is done."""

    target = console(stderr=True, highlight=False)
    if not target.is_terminal:
        yield _line
        return
    from rich import progress as bar

    columns = (bar.MofNCompleteColumn(), bar.BarColumn(20), bar.TextColumn("{task.description}", markup=False))
    with bar.Progress(*columns, console=target, transient=True) as bars:
        task = bars.add_task("", total=len(plan.cases))

        def show(progress: SweepProgress) -> None:
            bars.update(task, completed=progress.done, description=_description(progress))
            if progress.stage == "done":
                target.print(_done(progress), markup=False)

        yield show


def _line(progress: SweepProgress) -> None:
    if progress.waits:
        click.echo(f"{progress.case.label}: {progress.stage}, which measures on {progress.case.device}", err=True)
    if progress.stage == "done":
        click.echo(
            f"[{progress.done}/{progress.total}] {_done(progress)} ({_duration(progress.left_s)} left)", err=True
        )


def _description(progress: SweepProgress) -> str:
    widest = max(progress.half_widths.values(), default=None)
    width = "" if widest is None or math.isnan(widest) else f" {plus_minus(widest)}"
    return f"{_duration(progress.left_s)} left · {progress.case.label}: {progress.stage}{width}"


def _done(progress: SweepProgress) -> str:
    return f"{progress.case.label}: {outcome(progress.rows)}"


def outcome(rows: tuple[Row, ...]) -> str:
    """Return a case's result on one line: the speed-up of its main phases, or why there is none."""
    from meprop_bench.report.quality import Quality

    main = [row for row in rows if row.phase in ("backward", "step") and row.speedup is not None]
    if not main:
        return next((f"failed: {row.error or row.check}" for row in rows), "no rows")
    parts = [
        f"{row.phase} {CANNOT_TELL}"
        if too_wide(row.half_width)
        else f"{row.phase} {row.speedup:.3g}x" + ("" if row.half_width is None else f" {plus_minus(row.half_width)}")
        for row in main
    ]
    for found in (row.parity for row in main if row.parity is not None):
        quality = Quality.of(found)
        what = "accuracy" if found.percent else re.split(" on the |, at the end", found.metric)[0]
        parts.append(f"{what} {quality.change(found.difference)}{' points' * found.percent}, {found.verdict}")
    return ", ".join(parts)


def name_left_out(cases: Sequence[Case]) -> None:
    """Name the cases that a deadline left no time for, one a line."""
    if cases:
        count = "one case" if len(cases) == 1 else f"{len(cases)} cases"
        click.echo(f"the deadline left no time for {count}; the same command with --resume goes on", err=True)
    for case in cases:
        click.echo(f"left out: {case.label}", err=True)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


@contextmanager
def complaining() -> Iterator[None]:
    """Make one line on standard error of what cannot be written or printed: a verdict that was reached stands.

    Standard output is flushed at the end, and led nowhere if it fails: what is left in its buffer would fail again at
    the program's end.
    """
    try:
        try:
            yield
            sys.stdout.flush()
        except OSError as error:
            if error.filename is not None:
                raise
            with suppress(OSError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
            raise UserError(f"cannot write to standard output: {error.strerror or type(error).__name__}") from None
    except (UserError, OSError, MemoryError) as error:
        what = str(error) if isinstance(error, UserError) else f"cannot write: {error or 'out of memory'}"
        with suppress(OSError):
            click.echo(f"meprop-bench: {what}", err=True)


def write_pages(folder: Path, document: Document, printed: Callable[[], None]) -> None:
    """Print a report, and write its pages into the results folder; neither keeps the other from it."""
    from meprop_bench.report.formats import missing_parts, write_report

    with complaining():
        write_report(folder, document)
    with complaining():
        printed()
    click.echo(f"report: {folder / 'README.md'}", err=True)
    if remark := missing_parts():
        click.echo(remark, err=True)


def as_record(
    environments: Mapping[str, Any], rows: Iterable[Row] = (), *, command: str | None = None, **more: Any
) -> str:
    """Return the JSON of `results.schema.as_object`, by default for the command that runs now."""
    from meprop_bench.results.schema import as_object

    command = command or shlex.join(["meprop-bench", *sys.argv[1:]])
    return json.dumps(as_object(command, environments, rows, **more), indent=1, allow_nan=False) + "\n"
