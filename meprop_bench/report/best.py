"""The fastest case of a sweep that can be recommended, in words; or why there is none.

A case can be recommended if its check passed, its speed-up differs significantly from 1 (all of the report judged at
once), and its quality, where it was compared, is not inferior to dense's by more than a margin. Among several the one
with the highest speed-up is taken; where the interval of another one overlaps with its own, nothing decides between the
two, and the answer begins with that. Cases of different dense work (two batch sizes, say) are not compared at all:
their speed-ups are over different things.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from operator import not_

from meprop_bench.errors import UserError, one_of
from meprop_bench.methods import METHODS, Method
from meprop_bench.report.cells import capital, counted, failure, ratio, ratio_within
from meprop_bench.report.conversion import conversion
from meprop_bench.report.quality import held, verdict_at
from meprop_bench.report.sections import distinct_rows
from meprop_bench.results.axes import AXES, method_name
from meprop_bench.results.schema import Row
from meprop_bench.stats import Interval, Verdict, too_wide

__all__ = ["Best", "best", "chosen"]

_PHASES = {"step": "a training step", "backward": "the backward pass"}
"""What a case is judged by: the first of these that there is."""


@dataclass(frozen=True)
class Best:
    """What to take: true if there is something, and printed as sentences."""

    row: Row | None  # of the phase that decides; None where no case can be recommended
    sentences: tuple[str, ...]  # the verdict first
    decided: bool  # whether its interval overlaps with none of the others that can be recommended
    comparable: bool = True  # whether the cases can be compared at all

    def __bool__(self) -> bool:
        return self.row is not None

    def __str__(self) -> str:
        return "\n".join(self.sentences)

    def __repr__(self) -> str:
        return str(self)

    @property
    def method(self) -> str | None:
        """Its method."""
        return None if self.row is None else self.row.method

    @property
    def k(self) -> float | None:
        """Its k."""
        return None if self.row is None else self.row.k

    @property
    def speedup(self) -> float | None:
        """Its speed-up; `row` has the interval."""
        return None if self.row is None else self.row.speedup

    @property
    def code(self) -> str | None:
        """The line, or lines, that make a model train like that: the layers that were sparsified, each with its k.

        None where there is nothing to take, where more than a conversion belongs to the method, and of a row that does
        not say which layers were sparsified, as older ones, and was not measured with the usual ones.
        """
        row = self.row
        if row is None or METHODS[row.method].algorithm is not None:
            return None
        module = METHODS[row.method].module
        if row.convertible is None and (row.leave, row.k_by_layer) != (None, None):
            return None
        found = conversion(
            row.convertible,
            function="meprop_bench.convert" if module == Method.module else f"{module}.convert",
            method=row.method,
            k=row.k,
            rows=row.gradient == "rows",
            kernel=row.kernel_requested,
        )
        return "\n".join([*found.imports, *found.calls, *["model.compile()"] * (row.compile == "on")])


def best(rows: Sequence[Row], margin: float | None = None) -> Best:
    """Return the fastest case that can be recommended.

    Args:
        rows: of a whole report.
        margin: the loss of quality that is allowed, in the metric's unit; by default that of each comparison, half a
            point of a percentage if nothing was said.

    Raises:
        UserError: a margin below 0.

    """
    if margin is not None and not 0 <= margin < float("inf"):
        raise UserError(f"the margin must be at least 0, not {margin:g}")
    phases = _phases(rows)
    asked = [row for row in rows if row.method != "dense" and row.phase in (phases.get(row.workload), None)]
    timed = [row for row in asked if row.interval is not None and row.passed]
    if not timed:
        reason = next((f": {text}" for row in asked if (text := failure(row))), "")
        return Best(None, (f"No speed-up was measured{reason}.",), decided=False)
    if (different := _different_work(timed)) is not None:
        return Best(None, (different,), decided=False, comparable=False)
    return _Candidates(rows, timed, _PHASES[timed[0].phase or ""], margin).best()


def _phases(rows: Iterable[Row]) -> dict[str, str]:
    """Return workload -> the phase that its cases are judged by."""
    measured: dict[str, set[str | None]] = {}
    for row in rows:
        measured.setdefault(row.workload, set()).add(row.phase)
    return {workload: name for workload, found in measured.items() for name in reversed(_PHASES) if name in found}


class _Candidates:
    """Cases of one dense work, and what may be said of each."""

    def __init__(self, rows: Sequence[Row], timed: list[Row], phase: str, margin: float | None) -> None:
        distinct = distinct_rows(rows)
        self._phase, self._margin = phase, margin
        doubtful = [row.baseline_disagreement is not None or too_wide(row.half_width) for row in timed]
        self._doubted = list(compress(timed, doubtful))
        self._believed = list(compress(timed, map(not_, doubtful)))
        self._faster = [row for row in self._believed if id(row) in distinct and _interval(row).estimate > 1]
        self._faster.sort(key=lambda row: -_interval(row).estimate)

    def best(self) -> Best:
        good = self._judged(None, "pass")
        if not good:
            return Best(None, (*self._none(), *self._doubts()), decided=False)
        first, *others = good
        rivals = [row for row in others if _interval(row).high >= _interval(first).low]
        lines = [f"Take {method_name(first)}: {self._phase} is {_speed(first)} as fast as dense."]
        if rivals:
            more = f" and {len(rivals) - 3} more" * (len(rivals) > 3)
            names = ", ".join(map(method_name, rivals[:3])) + more
            lines = [
                f"Which is fastest is not decided: the intervals of {names} and {method_name(first)} overlap.",
                f"{method_name(first)} has the highest figure: {self._phase} is {_speed(first)} as fast as dense.",
            ]
        lines.append(self._quality(first))
        reasons = {"fail": "loses more accuracy than the margin", "inconclusive": "has an undecided accuracy"}
        faster = self._faster[: self._faster.index(first)]
        lines += [f"{method_name(row)}, {_speed(row)}, {reasons[self._verdict(row) or 'fail']}." for row in faster]
        return Best(first, (*lines, *self._doubts()), decided=not rivals)

    def _none(self) -> list[str]:
        """Say why there is none."""
        if open_ := self._judged("inconclusive"):
            first = "Not decided: no case faster than dense is shown to keep the accuracy; more seeds may show it."
            return [
                first,
                f"The fastest of these is {method_name(open_[0])}, {_speed(open_[0])}.",
                self._quality(open_[0]),
            ]
        if lost := self._judged("fail"):
            first = "Stay dense: every faster case loses more accuracy than the margin."
            return [first, f"The fastest is {method_name(lost[0])}, {_speed(lost[0])}.", self._quality(lost[0])]
        if not self._believed:
            return ["Not decided: no measured speed-up can be believed."]
        top = max(self._believed, key=lambda row: _interval(row).estimate)
        first = "Stay dense: no case is significantly faster than dense."
        return [first, f"The highest figure is that of {method_name(top)}, {_speed(top)}."]

    def _judged(self, *verdicts: Verdict | None) -> list[Row]:
        """Return what is faster than dense, the fastest first, by how its quality is judged; None: not compared."""
        return [row for row in self._faster if self._verdict(row) in verdicts]

    def _verdict(self, row: Row) -> Verdict | None:
        return None if row.parity is None else verdict_at(row.parity, self._margin)

    def _quality(self, row: Row) -> str:
        if (found := row.parity) is None:
            return "Its accuracy was not compared: compare it before you use it."
        said = capital(held(found, self._margin, "its "))
        return f"{said}, over {counted(len(found.seeds), 'seed')} of {found.steps:,} steps."

    def _doubts(self) -> list[str]:
        """Name what might be faster, and cannot be believed."""
        return [f"Not to be believed: {', '.join(map(method_name, self._doubted))}."] if self._doubted else []


def _different_work(rows: Sequence[Row]) -> str | None:
    """Say that the cases differ in what the dense side does, if they do."""
    differing = {
        axis.option.replace("-", "_"): values
        for axis in AXES.values()
        if axis.dense and len(values := list(dict.fromkeys(getattr(row, axis.stored) for row in rows))) > 1
    }
    if not differing:
        return None
    found = "; ".join(f"{name} {', '.join(map(str, values))}" for name, values in differing.items())
    name, values = next(iter(differing.items()))
    return (
        f"No case is chosen, since these do not do the same dense work ({found}): say which, as in"
        f" best({name}={values[0]!r})."
    )


def chosen(rows: Iterable[Row], axes: Mapping[str, object]) -> list[Row]:
    """Return the rows at these values of axes, by their names in Python (`in_features`); UserError for another name."""
    stored = {option.replace("-", "_"): axis.stored for option, axis in AXES.items()}
    for name in axes:
        one_of("axis", name, tuple(stored))
    return [row for row in rows if all(getattr(row, stored[name]) == value for name, value in axes.items())]


def _interval(row: Row) -> Interval:
    assert row.interval is not None
    return row.interval


def _speed(row: Row) -> str:
    found = _interval(row)
    return ratio_within(found) if found.bounded else f"{ratio(found.estimate)} (no interval)"
