"""`meprop-bench gate`: did something get slower, larger or less accurate?

meprop-bench gate --base main                                  # the work tree, changes and all, against main
meprop-bench gate --base v1.2 --head topic --output gate.md --output gate.xml
meprop-bench gate --baseline before.json --candidate after.json
meprop-bench gate --candidate after.json --save-baseline main  # from now on --baseline main is that
meprop-bench gate explain 'linear*/backward'                   # what a verdict was made of (`cli.gate_explain`)
meprop-bench gate --base main --shard 2/3 --save shard-2.json  # one of three runners (`cli.gate_merge`)
meprop-bench gate --history .asv/results --candidate run.json  # one run against the runs before it
meprop-bench gate --self-test                                  # what it can promise on this machine, in 35 minutes

Settings come from [tool.meprop-bench.gate] of pyproject.toml; options take their place. Any project that names models
or functions there can be measured; without these it is this package, or a fork of it. In a GitHub job the Markdown is
appended to $GITHUB_STEP_SUMMARY as well.

Exit codes: 0 passed, 1 something got worse, 2 wrong usage or input, 3 not comparable, 4 inconclusive, 5 nothing was
judged, 130 interrupted.
"""

from __future__ import annotations

import re
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from meprop_bench.cli.gate_baselines import list_baselines, save_as_baseline, with_baselines
from meprop_bench.cli.gate_explain import explain
from meprop_bench.cli.gate_merge import merge
from meprop_bench.cli.gate_output import (
    OUTPUT,
    check_outputs,
    check_writable,
    conclude,
    job,
    telling_refusals,
    with_outputs,
)
from meprop_bench.cli.gate_revisions import of_revisions, run_self_test, save_shard
from meprop_bench.cli.options import GroupedVerbs, examples, with_shard
from meprop_bench.errors import ExitCode, UserError

if TYPE_CHECKING:
    from meprop_bench.gate.files import Compared
    from meprop_bench.gate.judgement import Outcome
    from meprop_bench.gate.settings import Settings
    from meprop_bench.results.baselines import Baseline
    from meprop_bench.results.shards import Shard

__all__ = ["command"]


@click.group(
    name="gate",
    cls=GroupedVerbs,
    invoke_without_command=True,
    short_help="Fail when something got slower, larger or less accurate.",
    groups={
        "Revisions": ("base", "head", "self-test", "minutes", "preset", "budget", "pairs"),
        "Stored results": ("baseline", "candidate", "ratios-only", "save-baseline", "replace", "baselines"),
        "A history": ("history", "window", "confirm"),
        "Judgement": (
            *("cases", "report-only", "margin", "accuracy-margin", "least-time", "confidence", "allow-inconclusive"),
        ),
        "Several machines": ("shard", "save"),
        "Output": OUTPUT,
    },
    epilog=examples(
        "meprop-bench gate --base main",
        "meprop-bench gate --base main --head topic --margin 0.1 --output gate.md",
        "meprop-bench gate --baseline before.json --candidate after.json",
        "meprop-bench gate --candidate after.json --save-baseline main",
        "meprop-bench gate --history .asv/results --candidate run.json --confirm second.json",
        "meprop-bench gate --base main --shard 2/3 --save shard-2.json",
        "meprop-bench gate --self-test",
    ),
)
@click.pass_context
@click.option("--base", metavar="REV", help="Revision to measure against.")
@click.option(
    "--head", metavar="REV", help="Revision to judge [default: the work tree, including uncommitted changes]."
)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Stored results to compare with, or the name of a baseline.",
)
@click.option("--candidate", type=click.Path(path_type=Path), metavar="FILE", help="Stored results to judge.")
@click.option(
    "--history",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Runs by which the candidate is judged: asv's results, pytest-benchmark's storage, or results folders.",
)
@click.option("--window", type=int, metavar="N", help="Last runs of a history used for a figure [default: 20].")
@click.option(
    "--confirm",
    is_flag=False,
    flag_value="",
    multiple=True,
    metavar="[FILE]",
    help="With --history: a figure fails only if it stands out in a second run, FILE, too; without FILE, request one. A"
    " third run is another --confirm FILE.",
)
@click.option(
    "--self-test",
    is_flag=True,
    help="Measure the head against itself, and against itself slowed: what the gate can promise here.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(1, 1440),
    metavar="N",
    help="With --self-test: how long to measure [default: 30 budgets of a case, 30 minutes].",
)
@click.option(
    "--ratios-only", is_flag=True, help="Compare only the sparse/dense ratios of stored results, from any environments."
)
@click.option("--preset", metavar="NAME", help="Cases to measure: a preset, or a TOML file [default: gate].")
@click.option("--cases", multiple=True, metavar="GLOB", help="Judge only these; repeatable.")
@click.option("--report-only", multiple=True, metavar="GLOB", help="Show these, but do not judge them; repeatable.")
@click.option(
    "--margin",
    type=float,
    metavar="SHARE",
    help="Loss that must be ruled out [default: 0.045 for times, 0.075 for ratios, 0.01 for sizes and counts].",
)
@click.option(
    "--accuracy-margin", type=float, metavar="POINTS", help="Loss of accuracy that must be ruled out [default: 0.5]."
)
@click.option(
    "--least-time", type=float, metavar="SECONDS", help="Smallest difference of times that counts [default: 0]."
)
@click.option("--confidence", type=float, metavar="SHARE", help="Confidence level of the intervals [default: 0.95].")
@click.option(
    "--allow-inconclusive",
    metavar="SHARE",
    help="Share of the figures that may be inconclusive, such as 1% [default: 1% with --history, else 0].",
)
@click.option("--budget", type=float, metavar="SECONDS", help="Measuring time for each case, at most [default: 60].")
@click.option("--pairs", type=int, metavar="N", help="Most pairs of processes for a case [default: 64].")
@with_baselines
@click.option(
    "--save-baseline", metavar="NAME", help="Save the candidate as a baseline; if there is one, show what changes."
)
@click.option(
    "--replace",
    "replaces",
    metavar="DIGEST",
    help="With --save-baseline: replace the baseline with this digest, without confirmation.",
)
@with_shard("gate merge")
@click.option(
    "--save",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --shard: where what was measured is saved, for `gate merge`; there is no verdict.",
)
@with_outputs
def command(
    context: click.Context,
    base: str | None,
    head: str | None,
    baseline: Path | None,
    candidate: Path | None,
    history: Path | None,
    confirm: tuple[str, ...],
    self_test: bool,
    minutes: float | None,
    ratios_only: bool,
    baselines: Path,
    save_baseline: str | None,
    replaces: str | None,
    shard: Shard | None,
    save: Path | None,
    suite: str | None,
    form: str,
    outputs: tuple[Path, ...],
    **options: Any,
) -> int:
    """Compare two revisions, or two stored results, and fail when something got worse.

    Revisions, of any project that names models or functions in [tool.meprop-bench.gate] of its pyproject.toml, are
    written out side by side and measured in pairs of fresh processes, interleaved, until each case is decided or its
    budget is spent. A figure passes if a loss as large as its margin is ruled out, fails if there certainly is a loss
    and one as large as its margin is not ruled out, and is inconclusive otherwise.

    On a shared machine with two cores that did nothing else, with the default margin of 4.5% and a minute per case,
    identical code passed in 12 of 14 runs and failed in none, and a slowdown of 5% failed in 13 of 13. The first line
    of a result says which slowdown it would have caught; --self-test measures that.
    """
    from meprop_bench.gate.settings import load_settings

    if context.invoked_subcommand is not None:
        return _leave_to(context, context.invoked_subcommand)
    _check_mode(
        *(base, head, baseline, candidate, self_test, ratios_only, save_baseline, replaces, history, confirm, minutes)
    )
    if self_test and (outputs or form != "table"):
        raise UserError("--self-test prints only text: leave out --output and --format")
    _check_shard(shard, save, base, outputs, form)
    check_outputs(outputs)
    given = {name: value if value != () else None for name, value in options.items()}
    settings = load_settings(Path.cwd(), **given)
    if self_test:
        return run_self_test(head, settings, None if minutes is None else 60 * minutes)
    if shard is not None and save is not None:
        assert base is not None
        return save_shard(base, head, settings, shard, save)
    begun = time.monotonic()

    def finished(outcome: Outcome, of: Path | None) -> int:
        name = suite or suite_of(of, settings)
        return conclude(outcome, settings, form, outputs, name, time.monotonic() - begun)

    if save_baseline is not None:
        assert candidate is not None
        judged = partial(_of_baseline, candidate=candidate, ratios_only=ratios_only, settings=settings)

        def show(before: Baseline) -> int:
            return finished(judged(before), Path(before.name))

        return save_as_baseline(save_baseline, candidate, baselines, replaces, show)
    with telling_refusals(outputs, suite or suite_of(baseline or history, settings)):
        if history is not None:
            assert candidate is not None
            outcome = _of_history(history, candidate, confirm, settings)
        elif baseline is not None:
            outcome = _of_files(baseline, candidate, ratios_only, settings, baselines)
        else:
            assert base is not None
            outcome = of_revisions(base, head, settings)
    return finished(outcome, baseline or history)


def _leave_to(context: click.Context, verb: str) -> int:
    """See that a command of the gate's own was given no options of the gate."""
    given = [name for name in context.params if context.get_parameter_source(name) is not ParameterSource.DEFAULT]
    if given:
        raise UserError(
            f"--{given[0].replace('_', '-')} is not for gate {verb}: leave it out, or write it after {verb}"
        )
    return ExitCode.OK


def _check_mode(
    base: object,
    head: object,
    baseline: object,
    candidate: object,
    self_test: bool,
    ratios_only: bool,
    save_baseline: object,
    replaces: object,
    history: object,
    confirm: object,
    minutes: object,
) -> None:
    """See that exactly one thing is to be done, and that all that is given belongs to it."""
    modes = {
        "--base": base is not None,
        "--baseline": baseline is not None,
        "--self-test": self_test,
        "--save-baseline": save_baseline is not None,
        "--history": history is not None,
    }
    chosen = [name for name, given in modes.items() if given]
    if save_baseline is not None and (base is not None or head is not None):
        raise UserError(
            f"--save-baseline keeps stored results, and a revision needs none, as it is measured anew: give"
            f" --base {base or 'REV'} alone, or keep what a suite or meprop-bench speedup stored, with --candidate FILE"
        )
    if len(chosen) != 1:
        wrong = f"{' and '.join(chosen)} exclude each other" if chosen else "there is nothing to compare"
        raise UserError(f"{wrong}: give --base REV, --baseline FILE, --history FOLDER or --self-test")
    belongs = {
        "--head": (head, ("--base", "--self-test")),
        "--candidate": (candidate, ("--baseline", "--save-baseline", "--history")),
        "--confirm": (confirm or None, ("--history",)),
        "--minutes": (minutes, ("--self-test",)),
        "--replace": (replaces, ("--save-baseline",)),
    }
    for name, (value, owners) in belongs.items():
        if value is not None and chosen[0] not in owners:
            raise UserError(f"{name} goes with {' or '.join(owners)}, not with {chosen[0]}")
    if save_baseline is not None and candidate is None:
        raise UserError("--save-baseline needs the results that are to be kept: add --candidate FILE")
    if history is not None and candidate is None:
        raise UserError("--history needs the run that is judged: add --candidate FILE")
    if ratios_only and chosen[0] not in ("--baseline", "--save-baseline"):
        raise UserError(f"--ratios-only goes with --baseline, not with {chosen[0]}: revisions share one machine")


def _check_shard(shard: Shard | None, save: Path | None, base: object, outputs: tuple[Path, ...], form: str) -> None:
    """See that a shard is saved, and asked for no verdict."""
    if shard is None and save is None:
        return
    if shard is None or save is None:
        raise UserError("--shard and --save go together: give both, --shard 1/3 --save shard-1.json")
    if base is None:
        raise UserError("--shard splits what is measured between revisions: it goes with --base")
    if outputs or form != "table":
        raise UserError("a shard has no verdict: leave out --output and --format, and give them to gate merge")
    check_writable(save)


def _of_files(baseline: Path, candidate: Path | None, ratios_only: bool, settings: Settings, folder: Path) -> Outcome:
    from meprop_bench.gate.baselines import compared

    return _of_compared(compared(baseline, candidate, folder, ratios_only=ratios_only), settings)


def _of_history(history: Path, candidate: Path, confirm: tuple[str, ...], settings: Settings) -> Outcome:
    from meprop_bench.gate.history import judge_run
    from meprop_bench.progress import live

    with live(f"reading {history.name}") as (update, _):
        return judge_run(
            history,
            candidate,
            settings,
            confirm=bool(confirm),
            again=[Path(name) for name in confirm if name],
            progress=lambda done, total: update(done / total, None),
        )


def _of_baseline(baseline: Baseline, candidate: Path, ratios_only: bool, settings: Settings) -> Outcome:
    from meprop_bench.gate.baselines import compared_with

    return _of_compared(compared_with(baseline, candidate, ratios_only=ratios_only), settings)


def _of_compared(compared: Compared, settings: Settings) -> Outcome:
    from meprop_bench.gate.decide import judge
    from meprop_bench.gate.judgement import Outcome

    judgements = judge(compared.rest, settings, blocks=compared.blocks)
    sides = compared.base, compared.head
    return Outcome(*sides, judgements, compared.notes, doubts=compared.doubts, machine=compared.machine)


def suite_of(baseline: Path | None, settings: Settings) -> str:
    """Return what tells this gate from others of a pull request: its job, if it runs in one, and what it judges."""
    # A commit or a date in a file's name is another at the next run.
    what = (
        ("project" if settings.own else Path(settings.preset or "gate").name)
        if baseline is None
        else re.sub(r"\d{4}-\d\d-\d\d_?|[0-9a-f]{7,}|\d{4,}", "", baseline.name)
    )
    return " / ".join(filter(None, (*job(), what)))


command.add_command(explain)
command.add_command(merge)
command.add_command(list_baselines)
