"""The help of a command: its options in groups, and examples at its end.

@click.command(cls=Grouped, groups={"Output": ("out", "format")}, epilog=examples("meprop-bench speedup"))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import click

__all__ = ["Grouped", "examples"]


class Grouped(click.Command):
    """A command that shows its options in groups.

    Args:
        groups: heading -> the long names of its options, without dashes, in the order in which they are shown. What
            is in no group comes last, under "Options".

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


def examples(*lines: str) -> str:
    """Return what ends a help text: command lines to copy, which are not wrapped."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
