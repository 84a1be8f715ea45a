"""Options that several commands have, in groups in their help texts, which end with examples.

@click.command(cls=Grouped, groups={"Output": ("out", "format")}, epilog=examples("meprop-bench speedup"))

Those of the axes all come from their table, `results.axes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from meprop_bench.results.axes import AXES

if TYPE_CHECKING:
    from meprop_bench.results.shards import Shard

__all__ = [
    "AXIS_GROUPS", "Grouped", "GroupedVerbs", "examples", "with_axes", "with_format", "with_out",
    "with_shard",
]  # fmt: skip

AXIS_GROUPS = {
    "Axes of every case": [name for name, axis in AXES.items() if axis.workloads is None],
    "Axes of some workloads": [name for name, axis in AXES.items() if axis.workloads is not None],
}
"""Headings of their options in a help text."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


def with_axes(metavar: str, *, multiple: bool = False) -> Callable[[_Function], _Function]:
    """Give a command an option for each axis; with `multiple` each may be repeated, and takes lists with commas."""

    def decorate(function: _Function) -> _Function:
        for name, axis in reversed(list(AXES.items())):
            function = click.option(f"--{name}", multiple=multiple, metavar=metavar, help=axis.help)(function)
        return function

    return decorate


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


def _shard(_: click.Context, __: click.Parameter, text: str | None) -> Shard | None:
    from meprop_bench.results.shards import Shard

    return None if text is None else Shard.read(text)


def with_shard(merged_by: str = "merge") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a verb `--shard`: a `results.shards.Shard`, or None."""
    return click.option(
        "--shard",
        metavar="I/N",
        callback=_shard,
        help=f"Do part I of N alone, as one of N machines; `meprop-bench {merged_by}` puts the parts together.",
    )


class Grouped(click.Command):
    """A command that shows its options in groups: heading -> their long names, without dashes, in order.

    What is in no group comes last, under "Options".
    """

    def __init__(self, *args: Any, groups: Mapping[str, Iterable[str]], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.groups = {heading: tuple(names) for heading, names in groups.items()}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each group."""
        records = {
            param.opts[-1].removeprefix("--"): record
            for param in self.get_params(ctx)
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)) is not None
        }
        grouped = {name for names in self.groups.values() for name in names}
        for heading, names in {**self.groups, "Options": [name for name in records if name not in grouped]}.items():
            with formatter.section(heading):
                formatter.write_dl([records[name] for name in names])


class GroupedVerbs(Grouped, click.Group):
    """The same with commands of its own, which are listed at the end; without one of them it runs itself."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each group, and the commands."""
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


def examples(*lines: str) -> str:
    """Return what ends a help text: command lines to copy, which are not wrapped."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
