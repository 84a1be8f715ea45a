"""`meprop-bench profile`: where the time of one step goes, and why it is not faster.

The case is set up in a process of its own, whose threads and allocator are the case's; dense and sparse are taken
apart in the same way. Exit codes: 1 when the gradients are wrong, 2 for a wrong request, 5 when nothing could be
measured.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meprop_bench.cli.options import AXIS_GROUPS, Grouped, examples, given_axes, with_axes, with_format
from meprop_bench.cli.output import as_record, complaining, write
from meprop_bench.errors import ExitCode

if TYPE_CHECKING:
    from meprop_bench.results.profile import Profile
    from meprop_bench.workloads.case import Case

__all__ = ["command"]


@click.command(
    name="profile",
    cls=Grouped,
    short_help="Show where the time of one step goes, and why it is not faster.",
    groups={**AXIS_GROUPS, "Profile": ("search", "trace", "format")},
    epilog=examples(
        "meprop-bench profile --method unified --k 30 --in-features 784 --hidden 500",
        "meprop-bench profile --workload mlp --k 80 --trace step.json.gz",
    ),
)
@with_axes("VALUE")
@click.option(
    "--search",
    type=click.FloatRange(0, 3600),
    metavar="SECONDS",
    default=10.0,
    help="Longest search for the k and size that break even; 0 skips it [default: 10].",
)
@click.option(
    "--trace", type=click.Path(path_type=Path), metavar="FILE", help="Write a trace for Perfetto, .json or .json.gz."
)
@with_format("table", "json")
def command(form: str, trace: Path | None, search: float, **options: str | None) -> int:
    """Show where the time of one step goes, by phase, stage and operator, and why it is not faster.

    The case is given by the axes of speedup, with one value each. This takes about 30 seconds; times are medians over
    four processes, with 95% intervals.
    """
    from meprop_bench.sweep.feasible import check_feasible

    case = _case(options)
    from meprop_bench.sweep.profile import check_trace, profile_case

    check_trace(trace)
    check_feasible([case])

    def progress(stage: str) -> None:
        click.echo(f"{case.label}: {stage}", err=True)

    profile, environment = profile_case(case, search_s=search, trace=trace, progress=progress)
    with complaining():
        _print(form, profile, environment)
    if trace is not None:
        click.echo(f"trace: {trace}, for https://ui.perfetto.dev", err=True)
    return ExitCode.OK


def _case(options: dict[str, str | None]) -> Case:
    from meprop_bench.sweep.plan import one_case

    return one_case(given_axes(options))


def _print(form: str, profile: Profile, environment: dict[str, Any]) -> None:
    if form == "json":
        from meprop_bench.report.why import answers

        found = [{"question": one.question, "answer": one.text, "how": one.how} for one in answers(profile)]
        write(as_record(environment, profile.rows, profile={**profile.to_json(), "answers": found}))
        return
    from meprop_bench.report.profile import as_text

    write(as_text(profile, terminal=sys.stdout.isatty()))
