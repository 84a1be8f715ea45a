"""What the gate writes: its outcome, printed and in files, and the summary of a GitHub job; or why there is none."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meprop_bench.cli.options import with_format
from meprop_bench.cli.output import complaining, write
from meprop_bench.errors import UserError

if TYPE_CHECKING:
    from meprop_bench.gate.judgement import Outcome
    from meprop_bench.gate.settings import Settings

__all__ = [
    "FORMATS",
    "OUTPUT",
    "check_outputs",
    "check_writable",
    "conclude",
    "job",
    "telling_refusals",
    "typed",
    "with_outputs",
    "write_outcome",
]

OUTPUT = ("format", "output", "suite")
"""The options of `with_outputs`."""

FORMATS = {
    ".codequality.json": "gitlab",
    ".annotations": "github",
    ".json": "json",
    ".md": "md",
    ".xml": "junit",
    ".txt": "table",
}
"""Ending of an --output file -> its format; the first that fits."""


def with_outputs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command what a verdict is written by: `form`, `outputs` and `suite`."""
    of_suite = click.option(
        "--suite",
        metavar="NAME",
        help="Name of this gate's pull-request comment [default: the GitHub job, and the preset or the baseline].",
    )
    also = click.option(
        "--output",
        "outputs",
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="FILE",
        help=f"Also write a file, in the format of its ending ({', '.join(FORMATS)}); repeatable.",
    )
    return of_suite(with_format("table", "json", "md", "junit", "github", "gitlab")(also(function)))


def check_outputs(outputs: Iterable[Path]) -> None:
    """Find out before anything is measured whether the files can be written."""
    for path in outputs:
        if _format_of(path) is None:
            raise UserError(f"the format of {path.name} is not known: end it in {', '.join(FORMATS)}")
        check_writable(path)


def check_writable(path: Path) -> None:
    """Find out whether a file can be written."""
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: its folder does not exist")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"cannot write {path}: {'it is a folder' if path.is_dir() else 'permission denied'}")


def _format_of(path: Path) -> str | None:
    return next((form for ending, form in FORMATS.items() if path.name.endswith(ending)), None)


def job() -> Iterable[str | None]:
    """Return what tells the job of GitHub that this runs in from others."""
    return (os.environ.get(name) for name in ("GITHUB_WORKFLOW", "GITHUB_JOB"))


def conclude(
    outcome: Outcome, settings: Settings, form: str, outputs: Iterable[Path], suite: str, seconds: float
) -> int:
    """Say of an outcome what belongs to every one, write it, and return its exit code."""
    from meprop_bench.gate.repeat import words

    found = replace(
        outcome,
        notes=(*outcome.notes, *settings.idle_globs(outcome.judgements.names)),
        command=typed(),
        repeat=outcome.repeat or words(sys.argv[1:]),
        seconds=seconds,
        allowed=outcome.allowed or settings.inconclusive_allowed(),
        suite=suite,
    )
    write_outcome(found, form, outputs)
    return found.exit_code


def typed() -> str:
    """Return the command line, fit to be shown to all who read the pull request."""
    from meprop_bench.gate.names import shown

    return shown(shlex.join(["meprop-bench", *sys.argv[1:]]), 4000)


def write_outcome(outcome: Outcome, form: str, outputs: Iterable[Path]) -> None:
    """Print the outcome, write the files that were named, and the summary of a GitHub job.

    The verdict stands whatever of that cannot be done.
    """
    from meprop_bench.gate.markdown import write_job_summary
    from meprop_bench.gate.stored import keep
    from meprop_bench.results.store import replace_file

    with complaining():
        for piece in _as(form, outcome, terminal=sys.stdout.isatty()):
            write(piece)
    for path in outputs:
        with complaining():
            replace_file(path, _as(str(_format_of(path)), outcome))
    with complaining():
        write_job_summary(outcome)
    with complaining():
        keep(outcome, Path.cwd())


def _as(form: str, outcome: Outcome, *, terminal: bool = False) -> Iterable[str]:
    """Return the outcome in a format, in pieces."""
    if form in ("json", "junit"):
        from meprop_bench.gate.machine_readable import as_junit, json_pieces

        return json_pieces(outcome) if form == "json" else (as_junit(outcome),)
    if form in ("github", "gitlab"):
        from meprop_bench.gate.annotations import as_code_quality, as_workflow_commands

        return (as_workflow_commands(outcome) if form == "github" else as_code_quality(outcome),)
    if form == "md":
        from meprop_bench.gate.markdown import as_comment

        return (as_comment(outcome),)
    from meprop_bench.gate.document import OutcomeDocument
    from meprop_bench.report.terminal import as_table

    return (as_table(OutcomeDocument(outcome), terminal=terminal),)


@contextmanager
def telling_refusals(outputs: Iterable[Path], suite: str) -> Iterator[None]:
    """Write into the comment, the annotations and the job's summary why there is no verdict; the error goes on.

    Else the comment of an earlier run would go on to say that all is well.
    """
    try:
        yield
    except UserError as error:
        from meprop_bench.gate.annotations import refusal_command
        from meprop_bench.gate.markdown import append_job_summary, as_refusal
        from meprop_bench.results.store import replace_file

        texts = {"md": as_refusal(str(error), suite), "github": refusal_command(str(error))}
        for path in outputs:
            if (text := texts.get(str(_format_of(path)))) is not None:
                with complaining():
                    replace_file(path, text)
        with complaining():
            append_job_summary(texts["md"])
        raise
