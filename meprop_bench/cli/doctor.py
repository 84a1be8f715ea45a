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
from meprop_bench.cli.output import as_record, complaining, write, write_tables
from meprop_bench.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meprop_bench.doctor import Examination
    from meprop_bench.report.cells import Tone

__all__ = ["command"]

_TONES: Mapping[str, Tone] = {"ok": "good", "note": "quiet", "warning": "", "problem": "bad"}
_VERDICTS = {
    ExitCode.OK: "fine: nothing speaks against measuring here",
    ExitCode.USAGE: "there is a mistake to put right",
    ExitCode.INCONCLUSIVE: "this machine, as it is now, cannot be trusted to measure",
}


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

    A PRESET, the name of one that comes with the package or a TOML file, is checked as well. Exit codes: 0 fine, 2 a
    mistake to put right, 4 the machine is too noisy or too busy.
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
    from meprop_bench.report.cells import Cell
    from meprop_bench.report.sections import Section

    problems = sum(finding.state == "problem" for finding in found.findings)
    count = {0: "", 1: " (1 problem)"}.get(problems, f" ({problems} problems)")
    click.echo(f"{_VERDICTS[found.exit_code]}{count}; exit code {int(found.exit_code)}\n")
    groups: dict[str, list[tuple[Cell, ...]]] = {}
    for finding in found.findings:
        own = groups.setdefault(finding.section, [])
        heading = "" if own else finding.section
        text = f"{finding.text} → {finding.advice}" if finding.advice else finding.text
        own.append((Cell(heading), Cell(finding.check), Cell(finding.state, _TONES[finding.state]), Cell(text)))
    columns = ("section", "check", "state", "found")
    write_tables(Section("", columns, tuple(map(tuple, groups.values())), left=frozenset(columns)))
