"""Which rows one picture shows, what is constant in them, and what makes a line of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar

from meprop_bench.report.cells import ABSENT, IN_SHAPE, counted, shape
from meprop_bench.report.sections import PHASES, phase_order
from meprop_bench.results.axes import AXES
from meprop_bench.results.schema import Row

__all__ = [
    "OVER", "PerKind", "called", "detail", "grouped", "held", "in_phases", "key_of", "line_of", "of_several",
    "setting_of", "unique", "way",
]  # fmt: skip

T = TypeVar("T")

OVER = {"k": "k", "hidden": "out_features", "batch": "batch", "length": "length", "layers": "layers"}
"""What a picture may be drawn over -> the field of a row."""

_PHASES = {
    "linear-backward": "backward pass of the linear layers",
    "forward": "forward pass",
    "backward": "backward pass",
    "communication": "communication of the ranks",
    "update": "update of the parameters",
    "step": "training step",
    "decode": "decoding",
}
_LINES = [axis for axis in AXES.values() if (not axis.dense or axis.came_later) and axis.field not in ("method", "k")]
_SETTING = [axis for axis in AXES.values() if axis.dense and not axis.came_later]
_IN_TITLE = (*IN_SHAPE, "workload", "device", "threads", "dtype", "allocator", "data")
_NAMES = (*(axis.stored for axis in _SETTING), "environment_id")
setting_of: Callable[[Row], tuple[object, ...]] = attrgetter(*_NAMES)
"""The dense work that a picture is of, however it was launched: the other axes make lines of it."""
_WAY = attrgetter(*(axis.stored for axis in _LINES))
_kind: Callable[[Row], tuple[object, ...]] = attrgetter(*_NAMES, *(axis.stored for axis in _LINES), "method")


def grouped(items: Iterable[T], key: Callable[[T], object]) -> list[list[T]]:
    """Return the items in groups of equal keys, in the order of their first ones."""
    groups: dict[object, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


class PerKind:
    """Makes keys for `grouped` that are worked out once for all rows of a kind, as it does not depend on the rest.

    Rows of a kind differ in their phase, their k and their figures alone: of a hundred thousand few are of another.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        kinds: dict[object, int] = {}
        self._kinds = {id(row): kinds.setdefault((_kind(row), type(row.k)), len(kinds)) for row in rows}
        self._rows = rows  # none of which another one can be taken for, as long as all are there

    def __call__(self, key: Callable[[Row], object]) -> Callable[[Row], int]:
        """Return a function that numbers rows: two have the same number where their keys are equal."""
        numbers: dict[object, int] = {}
        found: dict[int, int] = {}
        kinds = self._kinds

        def number(row: Row) -> int:
            kind = kinds[id(row)]
            if kind not in found:
                found[kind] = numbers.setdefault(key(row), len(numbers))
            return found[kind]

        return number


def key_of(row: Row, *over: str) -> tuple[object, ...]:
    """Return the setting of a row without what varies; a square layer stays one when its size does."""
    key = list(setting_of(row))
    for name in over:
        if name != "k":
            key[_NAMES.index(OVER[name])] = None
    if "hidden" in over and row.in_features == row.out_features:
        key[_NAMES.index("in_features")] = None
    return (*key, isinstance(row.k, float))


def line_of(row: Row) -> tuple[str, ...]:
    """Return what makes a line of its own, in words."""
    return (row.method, f"{row.gradient} gradient", *way(row))


def way(row: Row) -> tuple[str, ...]:
    """Return how it was computed, launched and found in the caches, as far as that is not the usual way."""
    return _said(row.workload, _WAY(row))


@cache  # of a hundred thousand rows few differ in it
def _said(workload: str, values: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(
        value if isinstance(value, str) else f"{axis.option} {axis.text(value)}"
        for axis, value in zip(_LINES, values, strict=True)
        if axis.field != "gradient" and value not in (None, axis.default, axis.usual_in(workload))
    )


def of_several(rows: Iterable[Row]) -> bool:
    """Whether rows are of several environments, so that a picture must say of which it is."""
    return len({row.environment_id for row in rows}) > 1


def detail(rows: Sequence[Row], *over: str, several: bool = False) -> str:
    """Return what is constant in a picture's rows, without what it is drawn over: two of a kind never say the same."""
    row = rows[0]
    named = {OVER[name] for name in over} - {"k"}
    whole = "" if shape(row) == ABSENT else f"batch {shape(row)}"
    shown = _partial_shape(row, named) if named & set(IN_SHAPE) else whole
    parts = [row.workload, shown, row.device, _threads(row), row.dtype]
    others = [axis.said(row) for axis in _SETTING if axis.field not in (*_IN_TITLE, *named)]
    others += ["k a share"] * isinstance(row.k, float)
    others += [f"environment {row.environment_id}"] * several
    return ", ".join(filter(None, (*parts, f"{row.allocator} allocator", row.data, *others)))


def _partial_shape(row: Row, named: set[str]) -> str:
    words = {"batch": f"batch {row.batch}", "out_features": f"n = {row.out_features}"}
    left = [text for name, text in words.items() if name not in named and getattr(row, name) is not None]
    if row.in_features is not None and not ("out_features" in named and row.in_features == row.out_features):
        left.append(f"m = {row.in_features}")
    return ", ".join(left)


def _threads(row: Row) -> str:
    return counted(row.threads, "thread") if row.threads else ""


def called(phase: str | None) -> str:
    """Return a phase in words."""
    return _PHASES.get(phase or "", phase or "case")


def held(rows: Sequence[Row]) -> str:
    """Return what k counts."""
    what = "positions" if rows[0].workload == "conv" else "neurons"
    return f"{what} kept, k" if isinstance(rows[0].k, int) else f"share of the {what} kept, k"


def in_phases(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Return the rows phase by phase, what users of the method ask for first: the step, then its parts."""
    found = {str(row.phase) for row in rows if row.phase}
    order = sorted(
        found, key=lambda phase: (phase not in ("step", "backward"), phase not in PHASES, -phase_order(phase))
    )
    return [(phase, [row for row in rows if row.phase == phase]) for phase in order]


def unique(values: Iterable[Any]) -> list[Any]:
    """Return the values, each once, in order."""
    return list(dict.fromkeys(values))
