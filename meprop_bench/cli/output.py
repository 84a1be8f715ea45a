"""What the output of verbs has in common: `--format`, `--out`, text for any terminal, the object of `--format json`.

{"schema", "command", "environment", "rows", ...}    and what else a verb has to tell, after these
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meprop_bench.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from meprop_bench.results.schema import Row

__all__ = ["as_record", "complaining", "console", "with_format", "with_out", "write"]


def with_format(*forms: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a verb `--format`, as `form`: one of these, the first by default."""
    return click.option(
        "--format",
        "form",
        type=click.Choice(forms),
        default=forms[0],
        show_default=True,
        help="Format of standard output.",
    )


with_out = click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    default=Path("reports"),
    help="Folder of the results folders [default: reports].",
)
"""Gives a verb `--out`: the folder of results folders."""


def write(text: str) -> None:
    """Print text as it is; what the stream's encoding does not have becomes `?`."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))


def console(**settings: Any) -> Console:
    """Return rich's console, for which a pipe that its reader closed is an error like others.

    Rich itself ends the program with 1 then, which is the exit code of a regression. What is told on standard error
    nobody has to read.
    """
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            if not self.stderr:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            self.quiet = True

    return Plain(**settings)


@contextmanager
def complaining() -> Iterator[None]:
    """Make one line on standard error of what cannot be written or printed: a verdict that was reached stands.

    Standard output is flushed at the end, and led nowhere if it fails: what is left in its buffer would fail again at
    the program's end.
    """
    try:
        try:
            yield
            sys.stdout.flush()
        except OSError as error:
            if error.filename is not None:
                raise
            with suppress(OSError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
            raise UserError(f"cannot write to standard output: {error.strerror or type(error).__name__}") from None
    except (UserError, OSError, MemoryError) as error:
        what = str(error) if isinstance(error, UserError) else f"cannot write: {error or 'out of memory'}"
        with suppress(OSError):
            click.echo(f"meprop-bench: {what}", err=True)


def as_record(
    environments: Mapping[str, Any], rows: Iterable[Row] = (), *, command: str | None = None, **more: Any
) -> str:
    """Return the JSON of `results.schema.as_object`, by default for the command that runs now."""
    from meprop_bench.results.schema import as_object

    command = command or shlex.join(["meprop-bench", *sys.argv[1:]])
    return json.dumps(as_object(command, environments, rows, **more), indent=1, allow_nan=False) + "\n"
