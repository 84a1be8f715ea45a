"""Progress of a run on standard error: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from meprop_bench.cli.output import console
from meprop_bench.stats import CANNOT_TELL, plus_minus, too_wide

if TYPE_CHECKING:
    from meprop_bench.results.schema import Row
    from meprop_bench.sweep.plan import Plan
    from meprop_bench.sweep.runner import SweepProgress
    from meprop_bench.workloads.case import Case

__all__ = ["outcome", "showing", "tell_left_out"]


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
    main = [row for row in rows if row.phase in ("backward", "step") and row.speedup is not None]
    if not main:
        return next((f"failed: {row.error or row.check}" for row in rows), "no rows")
    parts = [
        f"{row.phase} {CANNOT_TELL}"
        if too_wide(row.half_width)
        else f"{row.phase} {row.speedup:.3g}x" + ("" if row.half_width is None else f" {plus_minus(row.half_width)}")
        for row in main
    ]
    parts += [
        f"accuracy {row.parity.difference:+.2f} points, {row.parity.verdict}" for row in main if row.parity is not None
    ]
    return ", ".join(parts)


def tell_left_out(cases: Sequence[Case]) -> None:
    """Name the cases that a deadline left no time for, one a line."""
    if cases:
        count = "one case" if len(cases) == 1 else f"{len(cases)} cases"
        click.echo(f"the deadline left no time for {count}; the same command with --resume goes on", err=True)
    for case in cases:
        click.echo(f"left out: {case.label}", err=True)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
