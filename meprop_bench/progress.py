"""How long work shows where it is: a live line in a terminal, one line that changes in a notebook, lines elsewhere.

    with showing(plan) as progress: Runner(plan, store, progress=progress).run()
    with live("training") as (update, line): ...

All of it goes to standard error, so that what a program prints stays what it is; a notebook shows it where the cell's
output begins.
"""

from __future__ import annotations

import errno
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from meprop_bench.durations import duration
from meprop_bench.stats import CANNOT_TELL, plus_minus, too_wide

if TYPE_CHECKING:
    from rich.console import Console

    from meprop_bench.results.schema import Row
    from meprop_bench.sweep.plan import Plan
    from meprop_bench.sweep.runner import SweepProgress
    from meprop_bench.tuning.run import Watcher

__all__ = ["console", "lines", "live", "notebook_line", "outcome", "showing", "state_before", "watcher"]


def console(**settings: Any) -> Console:
    """Return rich's console, for which a pipe that its reader closed is an error like others.

    Rich itself ends the program with 1 then, which is the exit code of a regression. Nobody has to read standard
    error. In a notebook it would write to the cell's output whatever it was given.
    """
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            if not self.stderr:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            self.quiet = True

    return Plain(force_jupyter=False, **settings)


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
            left = "" if left_s is None else f" · {duration(left_s)} left"
            bars.update(one, completed=share, description=label + left)

        yield update, line


@contextmanager
def showing(plan: Plan) -> Iterator[Callable[[SweepProgress], None]]:
    """Give a function that shows where a run is, and a line for each case that is done."""
    if (show_line := notebook_line()) is not None:
        yield lambda progress: show_line(f"[{progress.done}/{progress.total}] {_description(progress)}")
        show_line(f"{len(plan.cases)} case{'s' * (len(plan.cases) != 1)} measured")
        return
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


def notebook_line() -> Callable[[str], None] | None:
    """Return what shows a line of text in place of the one that it showed before; None where this is no notebook.

    Rich's own live lines need widgets there, which are seldom installed.
    """
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if getattr(shell, "kernel", None) is None:  # IPython in a terminal has none
        return None
    display: Any = import_module("IPython.display").display  # typed or not, by its version
    handle: Any = None

    def show(text: str) -> None:
        nonlocal handle
        data = {"text/plain": text}
        if handle is None:
            handle = display(data, raw=True, display_id=True)
        else:
            handle.update(data, raw=True)

    return show


def lines() -> Callable[[str], None]:
    """Return what shows a line for each thing that is done; in a notebook in place of the one before."""
    if (show_line := notebook_line()) is not None:
        return show_line
    target = console(stderr=True, highlight=False)

    def line(text: str) -> None:
        target.print(text, markup=False, soft_wrap=True)

    return line


def state_before(threads: int, say: Callable[[str], object]) -> Mapping[str, Any]:
    """Look at the machine before a run, and say what will spoil its figures, before they are waited for."""
    from meprop_bench.measure import machine

    found = machine.state(threads)
    for warning in found["warnings"]:
        say(f"warning: {warning}")
    return found


def watcher(line: Callable[[str], None]) -> Watcher:
    """Return what a search reports to: a line for each thing that is done, the timing of a step among them."""
    from meprop_bench.tuning.run import Watcher

    def timing(progress: SweepProgress) -> None:
        if progress.waits:
            line(_waiting(progress))
        if progress.stage == "done":
            line(f"[{progress.done}/{progress.total}] {_done(progress)}")

    return Watcher(line, timing)


def _waiting(progress: SweepProgress) -> str:
    return f"{progress.case.label}: {progress.stage}, which measures on {progress.case.device}"


def _line(progress: SweepProgress) -> None:
    if progress.waits:
        click.echo(_waiting(progress), err=True)
    if progress.stage == "done":
        left = duration(progress.left_s)
        click.echo(f"[{progress.done}/{progress.total}] {_done(progress)} ({left} left)", err=True)


def _description(progress: SweepProgress) -> str:
    widest = max(progress.half_widths.values(), default=None)
    width = "" if widest is None or math.isnan(widest) else f" {plus_minus(widest)}"
    return f"{duration(progress.left_s)} left · {progress.case.label}: {progress.stage}{width}"


def _done(progress: SweepProgress) -> str:
    return f"{progress.case.label}: {outcome(progress.rows)}"


def outcome(rows: tuple[Row, ...]) -> str:
    """Return a case's result on one line: the speed-up of its main phases, or why there is none."""
    from meprop_bench.report.quality import Quality, measure

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
        parts.append(f"{measure(found)} {quality.change(found.difference)}{' points' * found.percent}, {found.verdict}")
    return ", ".join(parts)
