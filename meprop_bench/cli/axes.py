"""The axes of a sweep as options, and what was given to them as values: all from their table, `results.axes`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from meprop_bench.results.axes import AXES

__all__ = ["AXIS_GROUPS", "given_axes", "with_axes"]

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


def given_axes(options: dict[str, Any]) -> dict[str, list[Any]]:
    """Take the axes out of a command's options, and return the values of those that were given.

    Raises:
        UserError: what was given to one is none of its values.

    """
    from meprop_bench.sweep.plan import parse_axis

    texts = {name: options.pop(name.replace("-", "_")) for name in AXES}
    return {
        name: parse_axis(name, [text] if isinstance(text, str) else text)
        for name, text in texts.items()
        if text not in (None, ())
    }
