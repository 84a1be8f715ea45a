"""What torch.compile must leave to Python.

To be imported where something is being compiled, and not before: `torch.compiler.disable` loads the whole compiler, two
seconds in each process that measures, and in each of a user's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

__all__ = ["cannot_be_compiled"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


@torch.compiler.disable  # type: ignore[untyped-decorator]
def cannot_be_compiled(function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
    """Call a function eagerly: a break in the graph, or with `fullgraph` an error that names this function."""
    return function(*args, **kwargs)
