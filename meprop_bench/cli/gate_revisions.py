"""The gate between two revisions: what is measured of them, by `meprop-bench gate --base REV` and `--self-test`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meprop_bench.cli.gate_output import typed
from meprop_bench.cli.output import complaining, write
from meprop_bench.errors import ExitCode, UserError
from meprop_bench.progress import console

if TYPE_CHECKING:
    from meprop_bench.gate.judgement import Outcome
    from meprop_bench.gate.revisions import GateProgress, Measured
    from meprop_bench.gate.series import Series
    from meprop_bench.gate.settings import Settings
    from meprop_bench.gate.targets import Targets
    from meprop_bench.gate.worktree import Checkout
    from meprop_bench.results.shards import Shard
    from meprop_bench.sweep.plan import Plan

__all__ = ["of_revisions", "outcome_of", "run_self_test", "save_shard"]


def of_revisions(base: str, head: str | None, settings: Settings) -> Outcome:
    """Return what two revisions come to; without a head it is the work tree."""
    from meprop_bench.gate.files.machine import machine_line
    from meprop_bench.gate.repeat import words

    plan = _plan(settings)
    found, doubts, (first, second) = _measured(plan, base, head, settings)
    again = words(sys.argv[1:], first.commit, None if second.changed else second.commit)
    return outcome_of(found, settings, (first.name, second.name), doubts, machine_line(found.environment), again)


def outcome_of(
    found: Measured,
    settings: Settings,
    names: tuple[str, str],
    doubts: tuple[str, ...],
    machine: str,
    repeat: tuple[str, ...],
) -> Outcome:
    """Return what was measured of base and head, judged."""
    from meprop_bench.gate.decide import judge
    from meprop_bench.gate.judgement import Outcome
    from meprop_bench.gate.looks import Looks

    judgements = judge(found.series, settings, Looks.within(settings.pairs))
    incomparable, firm = found.open_cases(judgements)
    return Outcome(
        *(*names, judgements, found.notes),
        environment=dict(found.environment),
        doubts=doubts,
        machine=machine,
        repeat=repeat,
        runs={(one.case, one.figure): one.pairs for one in found.series if one.pairs},
        firm=firm,
        incomparable=incomparable,
    )


def save_shard(base: str, head: str | None, settings: Settings, shard: Shard, path: Path) -> int:
    """Measure the cases that are a shard's own, save what was found, and return the exit code: there is no verdict."""
    from meprop_bench.gate.repeat import words
    from meprop_bench.gate.shards import GateShard, Revision, save

    plan, begun = _plan(settings), time.monotonic()
    labels = tuple(case.label for case in plan.cases)
    if not (own := shard.part(labels)):
        raise UserError(
            f"shard {shard} has nothing to do: the gate has {len(labels)} case{'s' * (len(labels) != 1)}; `gate merge`"
            " does not miss it",
            ExitCode.NOTHING_MEASURED,
        )
    mine = _only(plan, own)
    revisions: dict[str, Revision] = {}
    found, doubts, (first, second) = _measured(
        mine, base, head, settings, every=labels, seen=lambda one: revisions.update({one.side: Revision.of(one)})
    )
    again = words(sys.argv[1:], first.commit, None if second.changed else second.commit)
    known = json.loads(json.dumps(settings.to_json()))
    seconds = time.monotonic() - begun
    save(
        GateShard(
            shard, labels, revisions["base"], revisions["head"], known, settings.own, found, doubts, again, seconds
        ),
        path,
    )
    click.echo(
        f"measured {len(own)} of {len(labels)} cases for shard {shard}, saved as {path.name}: `meprop-bench gate merge`"
        " judges all shards together",
        err=True,
    )
    return ExitCode.OK


def _only(plan: Plan | Targets, labels: frozenset[str]) -> Plan | Targets:
    """Return the plan of some of its cases."""
    from meprop_bench.gate.targets import Targets

    if isinstance(plan, Targets):
        return replace(plan, cases=tuple(case for case in plan.cases if case.label in labels))
    return replace(plan, cases=tuple(case for case in plan.cases if case.label in labels))


def _measured(
    plan: Plan | Targets,
    base: str,
    head: str | None,
    settings: Settings,
    *,
    every: Sequence[str] | None = None,
    seen: Callable[[Checkout], object] = lambda _: None,
) -> tuple[Measured, tuple[str, ...], tuple[Checkout, Checkout]]:
    """Measure a plan, and return what was found, whether the machine was busy, and both revisions.

    `every` has the labels of all cases of the gate, where others measure some of them; `seen` is called with each
    revision before anything is run in it.
    """
    from meprop_bench.gate.decide import undecided
    from meprop_bench.gate.looks import Looks
    from meprop_bench.gate.project import compare
    from meprop_bench.gate.revisions import measure
    from meprop_bench.gate.shards import FIGURES_OF_A_CASE
    from meprop_bench.gate.targets import Targets
    from meprop_bench.measure.layout import unavailable_reason

    looks = Looks.within(settings.pairs)
    besides = 0 if every is None else FIGURES_OF_A_CASE * (len(every) - len(plan.cases))

    def waiting(series: Iterable[Series]) -> frozenset[str]:
        return undecided(series, settings, looks, besides)

    with _measuring(plan, base, head) as (first, second, progress, busy):
        seen(first)
        seen(second)
        if isinstance(plan, Targets):
            found = compare(plan, first, second, settings, undecided=waiting, every=every, progress=progress)
        else:
            found = measure(plan, first, second, undecided=waiting, shared=every is not None, progress=progress)
        measured = any(one.pairs for one in found.series)
        # A machine that was busy casts no doubt on an installation that failed.
        doubts = tuple(filter(None, (busy(),))) if measured else ()
    if measured and (reason := unavailable_reason()):
        note = f"memory layouts could not be equalised, so pairs of processes may differ by them: {reason}"
        found = replace(found, general=(*found.general, note))
    return found, doubts, (first, second)


def run_self_test(head: str | None, settings: Settings, seconds: float | None) -> int:
    """Measure a revision against itself, print what the gate can promise here, and return the exit code.

    Measuring takes so many `seconds`; None: as many as `selftest.check` says.
    """
    from meprop_bench.gate.files.machine import machine_line
    from meprop_bench.gate.project import both_installed
    from meprop_bench.gate.selftest import as_text, check

    plan = _plan(settings)
    # Two trees of one revision; of uncommitted changes, HEAD stands for both.
    revision = head or "HEAD"
    with _measuring(plan, revision, revision) as (first, second, progress, busy):
        sides = both_installed(first, second, settings) if settings.own else (first, second)
        promise = check(plan, *sides, settings, seconds=seconds, progress=progress)
        doubt = busy()
    with complaining():
        where = f"{first.name} against itself, on {machine_line(promise.environment)}"
        write("".join(f"{line}\n" for line in (doubt, typed(), where) if line) + as_text(promise))
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
