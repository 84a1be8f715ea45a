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

from meprop_bench.cli.options import AXIS_GROUPS, Grouped, examples, with_axes, with_format
from meprop_bench.cli.output import as_record, complaining, write
from meprop_bench.errors import ExitCode, UserError

if TYPE_CHECKING:
    from meprop_bench.results.profile import Profile
    from meprop_bench.sweep.network import ScalingForecast
    from meprop_bench.workloads.case import Case
    from meprop_bench.workloads.network import Network

__all__ = ["command"]


@click.command(
    name="profile",
    cls=Grouped,
    short_help="Show where the time of one step goes, and why it is not faster.",
    groups={**AXIS_GROUPS, "Profile": ("search", "trace", "ranks", "bandwidth", "latency", "format")},
    epilog=examples(
        "meprop-bench profile --method unified --k 30 --in-features 784 --hidden 500",
        "meprop-bench profile --workload mlp --k 80 --trace step.json.gz",
        "meprop-bench profile --workload mlp --method unified --gradient rows --optimizer sgd --ranks 8 --bandwidth 25",
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
@click.option(
    "--ranks", type=click.IntRange(2, 1 << 16), metavar="N", help="Say what a step would take of so many processes."
)
@click.option(
    "--bandwidth", type=click.FloatRange(1e-3, 1e6), metavar="GBIT", help="Of each one's link, in Gbit/s: for --ranks."
)
@click.option(
    "--latency",
    type=click.FloatRange(0, 1e6),
    metavar="US",
    help="Of a message, in microseconds: for --ranks [default: 20].",
)
@with_format("table", "json")
def command(
    form: str,
    trace: Path | None,
    search: float,
    ranks: int | None,
    bandwidth: float | None,
    latency: float | None,
    **options: str | None,
) -> int:
    """Show where the time of one step goes, by phase, stage and operator, and why it is not faster.

    The case is given by the axes of speedup, with one value each. This takes about 30 seconds; times are medians over
    four processes, with 95% intervals.
    """
    from meprop_bench.sweep.feasible import check_feasible

    case = _case(options)
    from meprop_bench.sweep.profile import check_trace, profile_case

    network = _network(case, ranks, bandwidth, latency)
    check_trace(trace)
    check_feasible([case])

    def progress(stage: str) -> None:
        click.echo(f"{case.label}: {stage}", err=True)

    profile, environment = profile_case(case, search_s=search, trace=trace, progress=progress)
    outlook = None
    if network is not None:
        from meprop_bench.sweep.network import outlook_of

        outlook = outlook_of(profile, network)
    with complaining():
        _print(form, profile, environment, outlook)
    if trace is not None:
        click.echo(f"trace: {trace}, for https://ui.perfetto.dev", err=True)
    return ExitCode.OK


def _case(options: dict[str, str | None]) -> Case:
    from meprop_bench.sweep.plan import given_axes, one_case

    return one_case(given_axes(options))


def _network(case: Case, ranks: int | None, bandwidth: float | None, latency: float | None) -> Network | None:
    """Return the network that was described, if one was; UserError where that, or the case, does not do."""
    from meprop_bench.results.axes import AXES
    from meprop_bench.workloads.network import Network

    if ranks is None:
        for name, given in (("bandwidth", bandwidth), ("latency", latency)):
            if given is not None:
                raise UserError(f"--{name} is of the network between processes: add --ranks 64, or leave it out")
        return None
    if bandwidth is None:
        raise UserError("--ranks needs to know the network between them: add --bandwidth 25 (Gbit/s)")
    if not AXES["world-size"].of(case.workload):
        raise UserError(f"--ranks is about a step in training, and {case.workload} has none: add --workload mlp")
    if case.gradient != "rows":
        raise UserError("--ranks is about rows: add --gradient rows, and an optimizer that takes them (adagrad, sgd)")
    return Network(ranks, 1e9 * bandwidth, 1e-6 * (_LATENCY_US if latency is None else latency))


_LATENCY_US = 20.0
"""A message's between two machines of one network, about."""


def _print(form: str, profile: Profile, environment: dict[str, Any], outlook: ScalingForecast | None) -> None:
    if form == "json":
        from meprop_bench.report.why import answers

        found = [{"question": one.question, "answer": one.text, "how": one.how} for one in answers(profile)]
        record = {**profile.to_json(), "answers": found}
        if outlook is not None:
            record["network"] = outlook.to_json()
        write(as_record(environment, profile.rows, profile=record))
        return
    from meprop_bench.report.profile import as_text

    terminal = sys.stdout.isatty()
    write(as_text(profile, terminal=terminal))
    if outlook is not None:
        from meprop_bench.report.network import as_text as in_words

        write(in_words(outlook, terminal=terminal))
