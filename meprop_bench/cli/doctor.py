"""`meprop-bench doctor`: can this machine be trusted to measure, what is missing, and is the configuration sound?

Exit codes: 0 fine; 2 a mistake to put right (configuration, damaged data); 4 the machine cannot be trusted: others
take more than a quarter of its cores, the hypervisor more than a tenth, a CPU quota is below the threads, or the
noise leaves ±2% out of reach. What is optional and absent changes nothing.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from meprop_bench.cli.options import examples, with_format
from meprop_bench.cli.output import as_record, complaining, write
from meprop_bench.errors import ExitCode
from meprop_bench.progress import console

if TYPE_CHECKING:
    from rich.text import Text

    from meprop_bench.doctor import Examination, Finding

__all__ = ["command"]

_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "problem": "bold red"}
_VERDICTS = {
    ExitCode.OK: "fine: nothing speaks against measuring here",
    ExitCode.USAGE: "there is a mistake to put right",
    ExitCode.INCONCLUSIVE: "this machine, as it is now, cannot be trusted to measure",
}
_WIDE = 160
"""Columns where no terminal says how many."""


@click.command(
    name="doctor",
    short_help="Examine this machine, its software and the configuration.",
    epilog=examples("meprop-bench doctor", "meprop-bench doctor --fast --format json"),
)
@click.argument("presets", metavar="[PRESET]...", nargs=-1)
@click.option(
    "--fast", is_flag=True, help="Skip the noise measurement and the contents of the data: 3 seconds instead of 7."
)
@with_format("table", "json")
def command(form: str, fast: bool, presets: tuple[str, ...]) -> int:
    """Say whether this machine can be trusted to measure, what is missing, and what is wrong in the configuration.

    A PRESET is a TOML file, or a name that comes with the package: it is checked, too. Exit codes: 0 fine, 2 a mistake
    to put right, 4 too noisy or too busy a machine.
    """
    from meprop_bench.doctor import examine

    def progress(stage: str) -> None:
        if sys.stderr.isatty():
            click.echo(f"{stage} …", err=True)

    found = examine(tuple(dict.fromkeys(presets)), fast=fast, progress=progress)
    with complaining():
        if form == "json":
            from dataclasses import asdict

            from meprop_bench.measure.environment import environment_id

            findings = [asdict(finding) for finding in found.findings]
            environments = {environment_id(found.environment): found.environment}
            write(as_record(environments, findings=findings, exit_code=int(found.exit_code)))
        else:
            _print(found)
    return found.exit_code


def _print(found: Examination) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    target = console(highlight=False, markup=False, emoji=False)
    if not target.is_terminal:
        target = console(width=_WIDE, highlight=False, markup=False, emoji=False)
    table = Table("section", "check", "state", "found", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    section = ""
    for finding in found.findings:
        heading = finding.section if finding.section != section else ""
        section = finding.section
        state = Text(finding.state, _STYLES[finding.state])
        table.add_row(Text(heading, "bold"), Text(finding.check), state, _text(finding))
    target.print(table)
    problems = sum(finding.state == "problem" for finding in found.findings)
    count = {0: "", 1: " (1 problem)"}.get(problems, f" ({problems} problems)")
    target.print(Text(f"{_VERDICTS[found.exit_code]}{count}; exit code {int(found.exit_code)}", "bold"))


def _text(finding: Finding) -> Text:
    from rich.text import Text

    return Text.assemble(finding.text, (f" → {finding.advice}", "dim") if finding.advice else "")
