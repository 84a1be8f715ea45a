"""Two results' rows in pairs, and what each pair says: the ratios of times and of speed-ups, judged together.

    sparse time   base / head: 1.10x means that head does a tenth more of the same work in the same time
    speed-up      head / base, each over dense, which ran beside it: what the change did to the advantage over dense

Cases pair up by their id and phase, never by their order. The two results share no pairs of values, so each ratio is
one of independent samples over fresh processes (`stats.independent_ratio`), from the raw values and without the pairs
that the machine disturbed. All ratios are judged at once (Holm), and what does not differ from 1 then is called not
significant.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

from meprop_bench.report.document import Document
from meprop_bench.report.reliability import judged_runs, with_disagreements
from meprop_bench.report.sections import phase_order
from meprop_bench.results.redact import one_line
from meprop_bench.results.schema import Row
from meprop_bench.stats import (
    LEVEL,
    Estimate,
    Interval,
    Samples,
    holm,
    independent_estimate,
    independent_ratio,
)

__all__ = ["FIGURES", "Change", "Changes", "Figure", "differences", "in_full", "paired"]

Figure = Literal["time", "speedup"]
FIGURES: Mapping[Figure, str] = {"time": "time", "speedup": "speed-up over dense"}
_MOST, _LONGEST = 4, 40
"""Differences of two environments that are named, and characters of each."""
_DIFFERENCES = 60
"""Of them that are listed."""
_COMPARED = ("git_revision", "package_version")


@dataclass(frozen=True)
class Change:
    """One phase of one case in both results."""

    base: Row  # the earlier one
    head: Row
    reason: str = ""  # why there are no ratios; empty where there are

    @classmethod
    def of(cls, base: Row, head: Row) -> Self:
        """Pair two rows of the same case and phase."""
        for name, row in (("base", base), ("head", head)):
            if not row.passed:
                return cls(base, head, f"{name} has no figures: {row.error or row.check or 'it was not checked'}")
            if judged_runs(row) is None:
                return cls(base, head, f"{name} has no raw values")
        if base.baseline_chosen != head.baseline_chosen:
            return cls(base, head, f"the dense sides differ: {base.baseline_chosen} → {head.baseline_chosen}")
        return cls(base, head)

    @property
    def doubted(self) -> bool:
        """Whether a dense time of the two disagrees with another one: then the change means nothing, however sure."""
        return any(row.baseline_disagreement is not None for row in (self.base, self.head))

    def samples(self, figure: Figure) -> tuple[Samples, Samples]:
        """Return both sides of a ratio, process by process, so that first / second is above 1 where head is better."""
        base, head = (judged_runs(row) or () for row in (self.base, self.head))
        if figure == "time":
            return [[own for _, own in run] for run in base], [[own for _, own in run] for run in head]
        before, after = ([[dense / own for dense, own in run] for run in runs] for runs in (base, head))
        return after, before

    @cached_property
    def estimates(self) -> Mapping[Figure, Estimate]:
        """The logarithm of each ratio; none where there is a reason."""
        return {} if self.reason else {name: independent_estimate([self.samples(name)]) for name in FIGURES}

    def ratio(self, figure: Figure) -> Interval | None:
        """Return a ratio with its interval; None where there is a reason."""
        return None if self.reason else self.estimates[figure].ratio()

    def p_value(self, figure: Figure) -> float:
        """Return the p-value of "the ratio is 1"; NaN where there is none."""
        return math.nan if self.reason else self.estimates[figure].p_value()

    @property
    def size(self) -> float:
        """How far a figure moved at most, as a logarithm; -1 where nothing is compared, or nothing can be believed."""
        if self.reason or self.doubted:
            return -1.0
        return max(abs(found.value) for found in self.estimates.values())


@dataclass(frozen=True)
class Changes:
    """What two results have in common, judged together; a change is named by its place."""

    changes: tuple[Change, ...]

    @cached_property
    def adjusted(self) -> Mapping[tuple[int, Figure], float]:
        """(place, figure) -> p-value after Holm's correction for all of them."""
        places = [
            (place, figure) for place, change in enumerate(self.changes) if not change.reason for figure in FIGURES
        ]
        found = holm([self.changes[place].p_value(figure) for place, figure in places])
        return dict(zip(places, found, strict=True))

    @cached_property
    def places(self) -> Mapping[int, int]:
        """The id of a change -> its place."""
        return {id(change): place for place, change in enumerate(self.changes)}

    def verdict(self, place: int, figure: Figure) -> Literal["better", "worse", "not significant", "no interval"]:
        """Say what a ratio is worth once all are judged together."""
        found = self.changes[place].ratio(figure)
        p = self.adjusted.get((place, figure), math.nan)
        if found is None or math.isnan(p):
            return "no interval"
        if p > LEVEL:
            return "not significant"
        return "better" if found.estimate > 1 else "worse"

    def mean(self, changes: Sequence[Change], figure: Figure) -> Interval:
        """Return the geometric mean of ratios."""
        cases = [change.samples(figure) for change in changes]
        counts = [{len(case[side]) for case in cases} for side in (0, 1)]
        # As `reliability.mean_speedup`: to take processes for the same where they are not costs but a little width.
        return independent_ratio(cases, same_processes=all(len(count) == 1 for count in counts))

    def kinds(self) -> dict[tuple[str, str], list[Change]]:
        """Return the changes of each workload and phase, without those that cannot be compared or believed."""
        kinds: dict[tuple[str, str], list[Change]] = {}
        for change in sorted(self.changes, key=lambda found: phase_order(found.head.phase)):
            if not (change.reason or change.doubted):
                kinds.setdefault((change.head.workload, change.head.phase or ""), []).append(change)
        return kinds

    @cached_property
    def order(self) -> Sequence[int]:
        """The places of the changes: those that differ significantly first, the biggest of them first."""

        def rank(place: int) -> tuple[bool, float]:
            clear = any(self.verdict(place, figure) in ("better", "worse") for figure in FIGURES)
            return (not clear or self.changes[place].doubted, -self.changes[place].size)

        return sorted(range(len(self.changes)), key=rank)


def paired(base: Sequence[Row], head: Sequence[Row]) -> tuple[list[Change], list[Row], list[Row]]:
    """Pair the rows of two results; return the pairs, and what is in each of the two alone."""
    # Equal dense work is one figure in both, so that a machine that changed in between shows.
    marked = with_disagreements([*base, *head])
    before, after = marked[: len(base)], marked[len(base) :]
    earlier = {(row.case_id, row.phase): row for row in before}
    later = {(row.case_id, row.phase): row for row in after}
    # A case that failed has one row without a phase, which stands for all of its phases.
    failed = [{row.case_id: row for row in rows if row.phase is None} for rows in (before, after)]
    changes = [Change.of(earlier[key], row) for key, row in later.items() if key in earlier]
    changes += [Change.of(failed[0][case], row) for (case, phase), row in later.items() if phase and case in failed[0]]
    changes += [
        Change.of(row, failed[1][case]) for (case, phase), row in earlier.items() if phase and case in failed[1]
    ]
    both = {change.head.case_id for change in changes}
    alone = [
        [row for key, row in own.items() if key not in other and key[0] not in both]
        for own, other in ((earlier, later), (later, earlier))
    ]
    return changes, alone[0], alone[1]


def differences(base: Document, head: Document, changes: Iterable[Change]) -> list[str]:
    """Say what differs between the environments of the pairs, a line for each two of them."""
    from meprop_bench.measure.environment import NOT_IN_ID

    lines = []
    for one, other in dict.fromkeys((change.base.environment_id, change.head.environment_id) for change in changes):
        if one == other:
            continue
        known, found = base.environments.get(one), head.environments.get(other)
        if not (isinstance(known, Mapping) and isinstance(found, Mapping)):
            lines.append(f"{one} and {other}")
            continue
        known, found = _one_by_one(known), _one_by_one(found)
        names = [name for name in {**known, **found} if name not in NOT_IN_ID and known.get(name) != found.get(name)]
        changed = [f"{name} {_short(known.get(name))} → {_short(found.get(name))}" for name in names[:_MOST]]
        more = [f"{len(names) - _MOST} more"] if len(names) > _MOST else []
        lines.append(", ".join([*changed, *more]) or f"{one} and {other}")
    return lines


def in_full(base: Document, head: Document, changes: Iterable[Change]) -> Iterable[tuple[str, str, str]]:
    """Give everything that differs between the environments of the pairs, and what is compared first: the revision."""
    from meprop_bench.measure.environment import NOT_IN_ID

    found: dict[tuple[str, str, str], None] = {}
    for one, other in dict.fromkeys((change.base.environment_id, change.head.environment_id) for change in changes):
        known, new = base.environments.get(one), head.environments.get(other)
        if one == other or not (isinstance(known, Mapping) and isinstance(new, Mapping)):
            continue
        known, new = _one_by_one(known), _one_by_one(new)
        names = [name for name in {**known, **new} if known.get(name) != new.get(name)]
        for name in sorted(names, key=lambda name: name not in _COMPARED):
            if name in _COMPARED or name not in NOT_IN_ID:
                found.setdefault((one_line(name, 40), _short(known.get(name), 120), _short(new.get(name), 120)))
    return list(found)[:_DIFFERENCES]


def _one_by_one(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an environment, with the variables that were set each as one of them."""
    variables = environment.get("variables")
    return {**environment, **({"variables": None, **variables} if isinstance(variables, Mapping) else {})}


def _short(value: object, longest: int = _LONGEST) -> str:
    text = "none" if value is None else str(value)
    return one_line(text, longest)
