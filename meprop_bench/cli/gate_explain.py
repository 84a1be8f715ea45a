"""`meprop-bench gate explain`: the evidence of a verdict, as a plot in the terminal.

Exit codes: 0 explained, 2 no such figure, or nothing that was judged.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from meprop_bench.cli.gate_baselines import with_baselines
from meprop_bench.cli.options import Grouped, examples
from meprop_bench.cli.output import write
from meprop_bench.errors import ExitCode, UserError

__all__ = ["explain"]

_PIPE = 100
"""Columns where there is no terminal."""


@click.command(
    name="explain",
    cls=Grouped,
    groups={"Verdict": ("result",), "Stored results": ("baseline", "candidate", "margin", "baselines")},
    short_help="Plot the pairs behind a verdict in the terminal.",
    epilog=examples(
        "meprop-bench gate explain 'linear*/backward'",
        "meprop-bench gate explain backward --result gate.json",
        "meprop-bench gate explain 'tests/test_io.py::test_read/time' --baseline before.json --candidate after.json",
    ),
)
@click.argument("figure")
@click.option(
    "--result",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="JSON that --output gate.json wrote [default: the last result in this folder].",
)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Instead: stored results to compare with, or the name of a baseline.",
)
@click.option("--candidate", type=click.Path(path_type=Path), metavar="FILE", help="Stored results to judge.")
@click.option("--margin", type=float, metavar="SHARE", help="Tolerated loss, for stored results [default: the gate's].")
@with_baselines
def explain(
    figure: str,
    result: Path | None,
    baseline: Path | None,
    candidate: Path | None,
    margin: float | None,
    baselines: Path,
) -> int:
    """Show the evidence behind the verdict on FIGURE, a name or a glob of case/figure, case or figure.

    Each pair of processes is a line: its median ratio, and the middle half of what it measured. For a run that was
    judged by a history, each of the last runs is a line. For stored results, the values of both sides are drawn.
    """
    from meprop_bench.gate.explain import as_text
    from meprop_bench.gate.stored import kept, of_files, of_outcome

    if baseline is not None and result is not None:
        raise UserError("--result and --baseline exclude each other: give one of them")
    for option, value in (("--candidate", candidate), ("--margin", margin)):
        if value is not None and baseline is None:
            raise UserError(f"{option} goes with --baseline")
    if baseline is not None:
        from meprop_bench.gate.baselines import compared
        from meprop_bench.gate.settings import load_settings

        found = of_files(compared(baseline, candidate, baselines), load_settings(Path.cwd(), margin=margin), figure)
    else:
        path = result or kept(Path.cwd())
        if path is None or (result is None and not path.exists()):
            raise UserError(
                "no gate has measured in this folder, or judged by a history: give --result FILE, or --baseline and"
                " --candidate"
            )
        found = of_outcome(path, figure)
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size((_PIPE, 24)).columns if terminal else _PIPE
    write(as_text(found, terminal=terminal, width=width, encoding=sys.stdout.encoding or "utf-8"))
    return ExitCode.OK
