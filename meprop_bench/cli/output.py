"""What the output of commands has in common: text for any terminal, results folders, the object of `--format json`."""

from __future__ import annotations

import gc
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meprop_bench.errors import ExitCode, UserError

if TYPE_CHECKING:
    from meprop_bench.report.document import Document
    from meprop_bench.report.sections import Section
    from meprop_bench.results.schema import Row
    from meprop_bench.results.shards import ShardOf
    from meprop_bench.results.store import Store

__all__ = [
    "as_record", "command_line", "complaining", "held_for_good", "interrupted", "name_left_out", "results_folder",
    "write", "write_pages", "write_prose", "write_tables",
]  # fmt: skip


def write(text: str) -> None:
    """Print text, as the stream can hold it."""
    from meprop_bench.report.terminal import fit_for

    sys.stdout.write(fit_for(sys.stdout, text))


def write_prose(text: str) -> None:
    """Print a paragraph: on a terminal in lines of its width, broken between words, else as one line."""
    from meprop_bench.report.layout import wrapped

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    write(f"{text}\n" if width is None else "".join(f"{line}\n" for line in wrapped(text, width)))


def write_tables(*sections: Section) -> None:
    """Print sections in the one style that all tables have: on a terminal in its width, else whole."""
    from meprop_bench.report.terminal import tables

    write(tables(sections, terminal=sys.stdout.isatty()))


@contextmanager
def held_for_good() -> Iterator[None]:
    """Keep the cyclic collector off what is read here and held until the program ends: it would look through all of it
    again and again, a quarter of the time of a report of 100,000 rows.
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def command_line() -> str:
    """Return the command that runs now, as it is stored: without --resume, with which it goes on."""
    return shlex.join(["meprop-bench", *(word for word in sys.argv[1:] if word != "--resume")])


def results_folder(
    out: Path,
    name: str,
    machine: str,
    plan: Mapping[str, Any],
    *,
    resume: bool,
    what: str,
    shard: ShardOf | None = None,
    here: bool = True,
) -> Store:
    """Return a new results folder under `out`, or with `resume` the latest one that was begun with the same plan, of
    the same shard. What is not measured `here`, but on a cluster, is continued from any machine.
    """
    from meprop_bench.results.store import Store

    if resume:
        found = Store.find_resumable(out, name, machine, plan, shard=shard)
        where = "on this machine" if here else "on a cluster"
        for note in found.notes if found else [f"no earlier run of {what} {where}: starting anew"]:
            click.echo(note, err=True)
        if found is not None:
            return found
    return Store.create(out, name, machine, command_line(), plan, shard=shard, here=here)


_CONTINUE = "continue with the same command and --resume"


def interrupted(after: str = "") -> ExitCode:
    """Say that a run was interrupted, after what, and return the exit code of that."""
    click.echo(f"meprop-bench: interrupted{after and f' after {after}'}; {_CONTINUE}", err=True)
    return ExitCode.INTERRUPTED


def name_left_out(
    names: Sequence[str], what: str = "case", *, spent: str = "the deadline", then: str = _CONTINUE, most: int = 10_000
) -> None:
    """Name what there was no time for, one a line."""
    if names:
        count = f"one {what}" if len(names) == 1 else f"{len(names)} {what}s"
        click.echo(f"{spent} left no time for {count}; {then}", err=True)
    more = [f"{len(names) - most} more"] if len(names) > most else []
    for name in [*names[:most], *more]:
        click.echo(f"left out: {name}", err=True)


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


def write_pages(folder: Path, document: Document, printed: Callable[[], None]) -> None:
    """Print a report, and write its pages into the results folder; neither keeps the other from it."""
    from meprop_bench.report.formats import missing_parts, write_report

    with complaining():
        write_report(folder, document)
    with complaining():
        printed()
    click.echo(f"report: {folder / 'README.md'}", err=True)
    if remark := missing_parts():
        click.echo(remark, err=True)


def as_record(
    environments: Mapping[str, Any], rows: Iterable[Row] = (), *, command: str | None = None, **more: Any
) -> str:
    """Return the JSON of `results.schema.as_object`, by default for the command that runs now."""
    from meprop_bench.results.schema import as_object

    command = command or shlex.join(["meprop-bench", *sys.argv[1:]])
    return json.dumps(as_object(command, environments, rows, **more), indent=1, allow_nan=False) + "\n"
