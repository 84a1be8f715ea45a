"""The gate between two revisions: what is measured of them, by `meprop-bench gate --base REV` and `--self-test`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meprop_bench.cli.output import complaining, write
from meprop_bench.errors import UserError
from meprop_bench.progress import console

if TYPE_CHECKING:
    from meprop_bench.gate.judgement import Outcome
    from meprop_bench.gate.revisions import GateProgress
    from meprop_bench.gate.series import Series
    from meprop_bench.gate.settings import Settings
    from meprop_bench.gate.targets import Targets
    from meprop_bench.gate.worktree import Checkout
    from meprop_bench.sweep.plan import Plan

__all__ = ["of_revisions", "run_self_test"]


def of_revisions(base: str, head: str | None, settings: Settings) -> Outcome:
    """Return what two revisions come to; without a head it is the work tree."""
    from meprop_bench.gate.decide import judge, undecided
    from meprop_bench.gate.files.machine import machine_line
    from meprop_bench.gate.judgement import Outcome
    from meprop_bench.gate.looks import Looks
    from meprop_bench.gate.project import compare
    from meprop_bench.gate.repeat import words
    from meprop_bench.gate.revisions import measure
    from meprop_bench.gate.targets import Targets

    plan, looks = _plan(settings), Looks.within(settings.pairs)

    def waiting(series: Iterable[Series]) -> frozenset[str]:
        return undecided(series, settings, looks)

    with _measuring(plan, base, head) as (first, second, progress, busy):
        if isinstance(plan, Targets):
            found = compare(plan, first, second, settings, undecided=waiting, progress=progress)
        else:
            found = measure(plan, first, second, undecided=waiting, progress=progress)
        # A machine that was busy casts no doubt on an installation that failed.
        doubts = tuple(filter(None, (busy(),))) if any(one.pairs for one in found.series) else ()
    judgements = judge(found.series, settings, looks)
    environment = dict(found.environment)
    incomparable, firm = found.open_cases(judgements)
    return Outcome(
        *(first.name, second.name, judgements, found.notes),
        environment=environment,
        doubts=doubts,
        machine=machine_line(environment),
        repeat=words(sys.argv[1:], first.commit, None if second.changed else second.commit),
        runs={(one.case, one.figure): one.pairs for one in found.series if one.pairs},
        firm=firm,
        incomparable=incomparable,
    )


def run_self_test(head: str | None, settings: Settings) -> int:
    """Measure a revision against itself, print what the gate can promise here, and return the exit code."""
    from meprop_bench.gate.project import both_installed
    from meprop_bench.gate.selftest import as_text, check

    plan = _plan(settings)
    # Two trees of one revision; of uncommitted changes, HEAD stands for both.
    revision = head or "HEAD"
    with _measuring(plan, revision, revision) as (first, second, progress, busy):
        sides = both_installed(first, second, settings) if settings.own else (first, second)
        promise = check(plan, *sides, settings, progress=progress)
        doubt = busy()
    with complaining():
        write((f"{doubt}\n" if doubt else "") + as_text(promise))
    return promise.exit_code


@contextmanager
def _measuring(
    plan: Plan | Targets, base: str, head: str | None
) -> Iterator[tuple[Checkout, Checkout, Callable[[GateProgress], None], Callable[[], str]]]:
    """Give both revisions, what shows the progress, and what says whether the machine was busy meanwhile."""
    from meprop_bench.gate.targets import Targets
    from meprop_bench.gate.worktree import repository_of, work_trees
    from meprop_bench.measure.machine import Observer

    folder = Path.cwd()
    project = folder if isinstance(plan, Targets) else None
    with work_trees(repository_of(folder), base, head, project=project) as (first, second), _showing() as progress:
        yield first, second, progress, Observer(max(case.threads for case in plan.cases)).line


def _plan(settings: Settings) -> Plan | Targets:
    """Return the cases that can have a figure to judge, with the gate's budget: a project's own, or the preset's."""
    from meprop_bench.gate.targets import targets
    from meprop_bench.sweep.feasible import check_feasible
    from meprop_bench.sweep.plan import load_preset, plan_preset
    from meprop_bench.workloads.case import Case

    if settings.own:
        own = targets(settings)
        # Each revision's models are its own: that one cannot be built is found there, and in which of the two.
        check_feasible((case for case in own.cases if isinstance(case, Case)), models=False)
        return own
    preset = load_preset(name := settings.preset or "gate")
    # A model's usual baseline is the best, which each revision might choose otherwise, or one that older ones lack.
    chosen = any("baseline" in sweep for sweep in preset.sweeps)
    plan = plan_preset(preset, {} if chosen else {"baseline": ["same"]})
    cases = tuple(case for case in plan.cases if settings.measured(case.label))
    if not cases:
        names = ", ".join(case.label for case in plan.cases[:3])
        raise UserError(f"no case of the preset {name} matches {', '.join(settings.cases)}: it has {names} ...")
    if other := next((case for case in cases if case.compile == "on" or case.baseline == "best"), None):
        raise UserError(
            f"the gate judges only eager code of revisions: leave compile and baseline best out of {other.label}"
        )
    check_feasible(cases)
    return replace(plan, cases=cases, budget=settings.budget, processes=min(plan.processes, settings.pairs))


@contextmanager
def _showing() -> Iterator[Callable[[GateProgress], None]]:
    """Show on standard error where a comparison is: one live line on a terminal, a line for each round elsewhere."""

    target = console(stderr=True, highlight=False)
    if target.is_terminal:
        with target.status("") as status:
            yield lambda progress: status.update(_where(progress))
        return
    rounds: set[int] = set()

    def once(progress: GateProgress) -> None:
        if progress.round not in rounds:
            rounds.add(progress.round)
            with suppress(OSError):  # nobody reads it: that is no reason to stop
                click.echo(_where(progress, short=True), err=True)

    yield once


def _where(progress: GateProgress, *, short: bool = False) -> str:
    spent = f"{progress.spent_s:.0f} s of {progress.budget_s:.0f} s at most"
    if progress.round == 0:
        return f"{progress.stage} both revisions: {spent}"
    text = f"pair {progress.round} of processes, {progress.left} of {progress.total} cases to decide: {spent}"
    case = "" if progress.case is None else f" · {progress.case.label}"
    return text if short else f"{text} · {progress.stage}{case}"
