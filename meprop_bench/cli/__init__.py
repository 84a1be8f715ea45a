"""The frame of the command line: one module for each command, loaded when it is called and not before.

`meprop-bench --help` answers in 0.3 s because the commands' one-line helps are written here, and neither torch nor
SciPy nor Matplotlib is imported until a command needs it.

Results go to standard output, everything else to standard error; an error that the user can put right is one line and
an exit code (`meprop_bench.errors.ExitCode`). A traceback is a bug. A reader who closes the pipe (`| head`) ends the
program quietly with 141, as the shell reports any program that a closed pipe ends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

import click

from meprop_bench import __version__
from meprop_bench.errors import ExitCode, UserError, one_of
from meprop_bench.measure.interrupt import interruptible

__all__ = ["VERBS", "cli", "main", "run"]

VERBS = {
    "speedup": "Measure sparsified back propagation against dense.",
    "profile": "Show where the time of one step goes, and why it is not faster.",
    "report": "Print or write the report of a results folder.",
    "merge": "Put the shards of one run together.",
    "export": "Export stored results to other tools.",
    "compare": "Compare two stored results of the same cases.",
    "train": "Train one model of a task.",
    "parity": "Judge whether a method keeps the accuracy of dense training.",
    "tune": "Find the method and k that pay for a model, or that none does.",
    "gate": "Fail when something got slower, larger or less accurate.",
    "paper": "Show the tables of both papers: as printed, and measured here.",
    "data": "List, fetch and check the data sets.",
    "doctor": "Examine this machine, its software and the configuration.",
}
"""Verb -> its help in one line. The verb lives in the module of its name, as `command`."""

_CLOSED_PIPE = 141


class _Verbs(click.Group):
    """A group that knows its commands' names and helps without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = import_module(f"{__name__}.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-"):
            one_of("verb", args[0], VERBS)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=_Verbs, name="meprop-bench", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="meprop-bench", message="%(prog)s %(version)s")
def cli() -> None:
    """Does sparsified back propagation (meProp) pay, on this machine, and does it keep the accuracy?

    Exit codes: 0 done, 1 a check or the accuracy failed, 2 wrong usage, 3 not comparable, 4 inconclusive,
    5 nothing was measured, 130 interrupted.
    """


def main() -> None:
    """Run the command line and end the process: the entry point of `meprop-bench`."""
    if sys.stdout is None:  # closed by whoever started this (`>&-`)
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        _complain("standard output is closed: nothing is printed", ExitCode.OK)
    with interruptible():
        code = run(sys.argv[1:])
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; what a user can cause becomes one line on standard error."""
    try:
        code = _invoke(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered would raise again when the interpreter flushes it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = _CLOSED_PIPE
    except (KeyboardInterrupt, click.Abort):
        code = _complain("interrupted", ExitCode.INTERRUPTED)
    except UserError as error:
        code = _complain(f"error: {error}", error.exit_code)
    except click.ClickException as error:
        code = _complain(f"error: {error.format_message()}", ExitCode.USAGE)
    except MemoryError:
        code = _complain("error: out of memory: close other programs, or measure smaller cases", ExitCode.USAGE)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        code = _complain(f"error: {error.strerror or error}{where}", ExitCode.USAGE)
    return code


def _invoke(arguments: Sequence[str]) -> int:
    try:
        # Not `cli.main`, which has its own ideas of a closed pipe (exit code 1) and of an interrupt (an empty line).
        with cli.make_context("meprop-bench", list(arguments)) as context:
            result: Any = cli.invoke(context)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return ExitCode.USAGE
    except click.exceptions.Exit as ended:
        return int(ended.exit_code)
    return int(result) if isinstance(result, int) else ExitCode.OK


def _complain(message: str, code: int) -> int:
    with suppress(OSError):  # the exit code says it, too
        print("meprop-bench:", " ".join(message.split()), file=sys.stderr)
    return int(code)
