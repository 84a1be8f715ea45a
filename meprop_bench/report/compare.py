"""Two stored results side by side: the same cases, measured twice, say before and after a change.

    sparse time   base / head: 1.10x means that head takes a tenth less time for the same work
    speed-up      head / base, each over dense, which ran beside it: what the change did to the advantage over dense

Cases pair up by their id and phase, never by their order. The two results share no pairs, so each ratio is one of
independent samples over fresh processes (`stats.independent_ratio`), from the raw values and without the pairs that
the machine disturbed. All ratios of a comparison are judged at once (Holm), and what does not differ from 1 then is
called not significant.

The trade-off: between two runs a machine drifts by some percent, and no interval over processes knows of it. The ratio
of times holds that drift; that of the speed-ups hardly does, since each divides by a baseline that drifted alike.
Believe the times where both agree. To decide on a change, measure both revisions interleaved instead: that is what the
gate does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.report.cells import (
    ABSENT,
    AXES,
    WORDS,
    Cell,
    Section,
    counted,
    pair,
    phase_order,
    plain_speedup,
    ratio_within,
    seconds,
    varying,
)
from meprop_bench.report.document import Document
from meprop_bench.report.findings import Finding, Kind, plain
from meprop_bench.report.reliability import doubts, judged_runs, with_disagreements
from meprop_bench.results.axes import AXES as TABLE
from meprop_bench.results.axes import case_name
from meprop_bench.results.redact import one_line
from meprop_bench.results.schema import SCHEMA, Row
from meprop_bench.stats import (
    LEVEL,
    Estimate,
    Interval,
    Samples,
    clear_of,
    holm,
    independent_estimate,
    independent_ratio,
    too_wide,
)

__all__ = ["Change", "Comparison", "compare"]

Figure = Literal["time", "speedup"]
_FIGURES: Mapping[Figure, str] = {"time": "time", "speedup": "speed-up over dense"}
_OF_EITHER = ("kernel", "environment")
"""Axes that may differ within a pair."""
_MOST, _LONGEST = 4, 40
"""Differences of two environments that are named, and characters of each."""
_DIFFERENCES = 60
"""Of them that are listed."""
_COMPARED = ("git_revision", "package_version")
_BIGGEST = 12
"""Changes that stand before all others, where there are more."""
_SHOWN_ALONE = 50
"""Cases and phases that are listed of what one result has alone."""

_REMARK = (
    "Sparse: median of the method, base → head. Faster: base time / head time, so that above 1 head is faster."
    " Speed-up: dense / sparse, base → head; change: head / base, so that above 1 the advantage over dense grew."
    " Brackets: 95% interval over the processes of both. Not significant: not told apart from 1 at the 5% level when"
    " all ratios here are judged at once (Holm)."
)
_HINTS = (
    "The two were measured one after the other. What the machine did in between is in the times and in no interval;"
    " the change of the speed-up is nearly free of it, since dense ran beside sparse each time.",
    "To decide whether a revision is slower, measure both interleaved: meprop-bench gate --base REVISION.",
)


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
        return {} if self.reason else {name: independent_estimate([self.samples(name)]) for name in _FIGURES}

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
class Comparison:
    """Two results, paired; it has what the formats ask of a `Document`."""

    base: Document  # the earlier one
    head: Document
    changes: tuple[Change, ...]  # what both have
    alone: tuple[Sequence[Row], Sequence[Row]] = ((), ())  # what is in base alone, in head alone
    environments: tuple[str, ...] = ()  # what differs between the environments of a pair, a line each
    differing: tuple[tuple[str, str, str], ...] = ()  # the same in full: what, in base, in head

    @property
    def apart(self) -> tuple[int, int]:
        """How many cases and phases are in base alone, in head alone."""
        return len(self.alone[0]), len(self.alone[1])

    @property
    def started(self) -> str:
        """When both were begun."""
        return f"{self.base.started} and {self.head.started}"

    @property
    def title(self) -> str:
        """Both names."""
        return f"{self.base.title} → {self.head.title}"

    @property
    def command(self) -> str:
        """What made the results, one line each."""
        return f"{self.base.command}\n{self.head.command}"

    @property
    def notes(self) -> Sequence[str]:
        """What was noticed while the results were read."""
        return [f"{found.title}: {note}" for found in (self.base, self.head) for note in found.notes]

    @property
    def doubts(self) -> list[str]:
        """A busy machine, and dense times that disagree, within a result or between the two."""
        rows = with_disagreements([*self.base.rows, *self.head.rows])
        return doubts([*self.base.states, *self.head.states], rows)

    @property
    def hints(self) -> Sequence[str]:
        """How to read it."""
        return _HINTS

    @property
    def how_to_read(self) -> Sequence[str]:
        """The same, and what the columns are."""
        return (_REMARK, *_HINTS)

    @property
    def facts(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """The environments of both."""
        return [*self.base.facts, *(facts for facts in self.head.facts if facts not in self.base.facts)]

    @cached_property
    def adjusted(self) -> Mapping[tuple[int, Figure], float]:
        """(place, figure) -> p-value after Holm's correction for all of them."""
        places = [
            (place, figure) for place, change in enumerate(self.changes) if not change.reason for figure in _FIGURES
        ]
        found = holm([self.changes[place].p_value(figure) for place, figure in places])
        return dict(zip(places, found, strict=True))

    @cached_property
    def _places(self) -> Mapping[int, int]:
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

    @property
    def findings(self) -> Sequence[Finding]:
        """What was found: what speaks against it first, other environments, then how the means moved."""
        told = [Finding(text, "mixed") for text in self._other_environments()]
        means = [Finding(*found) for found in self._means()]
        return [*plain(self.doubts, ()), *told, *means, *map(Finding, self._counted())]

    @property
    def summary(self) -> list[str]:
        """The result in a few sentences."""
        return [*self._counted(), *self._other_environments(), *(text for text, _ in self._means())]

    def _counted(self) -> list[str]:
        cases = len({change.head.case_id for change in self.changes})
        lines = [f"{len(self.changes)} phases of {cases} cases in both."]
        apart = zip(("base", "head"), self.apart, strict=True)
        if alone := [f"{count} phases in {name} alone" for name, count in apart if count]:
            lines.append(f"Not compared: {', '.join(alone)}.")
        if doubted := sum(change.doubted for change in self.changes):
            lines.append(f"{doubted} phases whose dense times disagree are in no mean.")
        return lines

    def _other_environments(self) -> list[str]:
        return [f"Different environments, {line}." for line in self.environments]

    def _means(self) -> Iterator[tuple[str, Kind]]:
        """Give a sentence for each kind of work, and whether the advantage over dense grew or shrank."""
        for (workload, phase), changes in self._kinds().items():
            found = {figure: self.mean(changes, figure) for figure in _FIGURES}
            means = (
                f"{words} {_precise(found[figure])}{self._count(changes, figure)}" for figure, words in _FIGURES.items()
            )
            grew, shrank = clear_of(found["speedup"].low, found["speedup"].high, 1.0)
            kind: Kind = "faster" if grew else "slower" if shrank else "mixed"
            yield f"{workload} {phase}, {counted(len(changes), 'case')}: {'; '.join(means)}.", kind

    def _kinds(self) -> dict[tuple[str, str], list[Change]]:
        kinds: dict[tuple[str, str], list[Change]] = {}
        for change in sorted(self.changes, key=lambda found: phase_order(found.head.phase)):
            if not (change.reason or change.doubted):
                kinds.setdefault((change.head.workload, change.head.phase or ""), []).append(change)
        return kinds

    def _count(self, changes: Sequence[Change], figure: Figure) -> str:
        verdicts = [self.verdict(self._places[id(change)], figure) for change in changes]
        counts = [f"{verdicts.count(word)} {word}" for word in ("better", "worse") if word in verdicts]
        return f" ({', '.join(counts) or 'none significant'})"

    @cached_property
    def order(self) -> Sequence[int]:
        """The places of the changes: those that are told apart from chance first, the biggest of them first."""

        def rank(place: int) -> tuple[bool, float]:
            told = any(self.verdict(place, figure) in ("better", "worse") for figure in _FIGURES)
            return (not told or self.changes[place].doubted, -self.changes[place].size)

        return sorted(range(len(self.changes)), key=rank)

    @property
    def sections(self) -> list[Section]:
        """What differs between the environments, the biggest changes, each workload, what is in one alone."""
        workloads = dict.fromkeys(change.head.workload for change in self.changes)
        first = [self._environments(), self._biggest() if len(self.changes) > _BIGGEST else None]
        last = [_alone(name, rows) for name, rows in zip(("base", "head"), self.alone, strict=True)]
        return [one for one in (*first, *map(self._section, workloads), *last) if one is not None]

    def _environments(self) -> Section | None:
        """Return what differs, line by line."""
        if not self.differing:
            return None
        lines = tuple(tuple(map(Cell, line)) for line in self.differing)
        columns = ("what", "base", "head")
        return Section("The environments differ", columns, (lines,), left=frozenset(columns))

    def _biggest(self) -> Section:
        """Return the first of all changes, whatever their workload."""
        columns = ("case", "phase", "sparse", "faster", "speed-up", "change")
        lines = tuple(
            (Cell(case_name(change.head)), Cell(change.head.phase or ABSENT), *self._figures(place, {}).values())
            for place in self.order[:_BIGGEST]
            if not (change := self.changes[place]).reason
        )
        title = f"The {len(lines)} biggest changes of {len(self.changes)}"
        return Section(title, columns, (lines,), left=WORDS | {"case", "faster", "change"})

    def _figures(self, place: int, reasons: Mapping[str, int]) -> dict[str, Cell]:
        change = self.changes[place]
        return {
            "sparse": Cell(pair(seconds(change.base.sparse.median_s), seconds(change.head.sparse.median_s))),
            "faster": self._cell(place, "time", reasons),
            "speed-up": Cell(pair(*map(plain_speedup, (change.base, change.head)))),
            "change": self._cell(place, "speedup", reasons),
        }

    def _section(self, workload: str) -> Section:
        own = [(place, found) for place in self.order if (found := self.changes[place]).head.workload == workload]
        axes, constants = varying([change.head for _, change in own])
        axes = [name for name in axes if name not in _OF_EITHER]
        if len(allocators := {change.head.allocator for _, change in own}) == 1:
            constants = "; ".join(filter(None, (constants, f"{allocators.pop()} allocator")))
        either = [name for name in _OF_EITHER if any(AXES[name](c.base) != AXES[name](c.head) for _, c in own)]
        texts = dict.fromkeys(change.reason for _, change in own if change.reason)
        reasons = {text: number for number, text in enumerate(texts, 1)}
        lines = {
            place: {
                **{name: Cell(AXES[name](change.head)) for name in axes},
                **({"allocator": Cell(change.head.allocator)} if allocators else {}),
                **{name: Cell(pair(AXES[name](change.base), AXES[name](change.head))) for name in either},
                **self._figures(place, reasons),
            }
            for place, change in own
        }
        phases = sorted(dict.fromkeys(change.head.phase for _, change in own), key=phase_order)
        return Section(
            title=workload,
            constants=constants,
            columns=tuple(lines[own[0][0]]),
            groups=tuple(
                tuple(tuple(lines[place].values()) for place, change in own if change.head.phase == phase)
                for phase in phases
            ),
            remark=_REMARK,
            footnotes=tuple(f"({number}) {reason}" for reason, number in reasons.items()),
            left=WORDS | {"allocator", "faster", "change"},
            keys=frozenset({*axes, *either, "allocator"}),
            drop=("speed-up", "sparse"),
        )

    def _cell(self, place: int, figure: Figure, reasons: Mapping[str, int]) -> Cell:
        change = self.changes[place]
        if (found := change.ratio(figure)) is None:
            return Cell(f"{ABSENT} ({reasons[change.reason]})", "quiet")
        if change.doubted:
            return Cell(f"{_precise(found)} do not believe", "bad")
        word = self.verdict(place, figure)
        if word in ("better", "worse"):
            return Cell(_precise(found), "good" if word == "better" else "bad")
        return Cell(f"{_precise(found)} {word}", "quiet")

    def to_json(self) -> dict[str, Any]:
        """Return the object that `--format json` prints."""
        return {
            "schema": SCHEMA,
            "doubts": self.doubts,
            "command": {"base": self.base.command, "head": self.head.command},
            "environment": {**self.base.environments, **self.head.environments},
            "environments_differ": list(self.environments),
            "in_one_alone": {"base": self.apart[0], "head": self.apart[1]},
            "rows": [self._record(place) for place in range(len(self.changes))],
            "means": [
                {
                    "workload": workload, "phase": phase, "cases": len(changes),
                    **{figure: _bounds(self.mean(changes, figure)) for figure in _FIGURES},
                }
                for (workload, phase), changes in self._kinds().items()
            ],
        }  # fmt: skip

    def _record(self, place: int) -> dict[str, Any]:
        change = self.changes[place]
        record: dict[str, Any] = {
            "case_id": change.head.case_id,
            "phase": change.head.phase,
            **{axis.stored: getattr(change.head, axis.stored) for axis in TABLE.values()},
            "base_median_s": change.base.sparse.median_s,
            "head_median_s": change.head.sparse.median_s,
            "base_speedup": change.base.speedup,
            "head_speedup": change.head.speedup,
            "base_baseline_disagreement": change.base.baseline_disagreement,
            "head_baseline_disagreement": change.head.baseline_disagreement,
            "reason": change.reason or None,
        }
        for figure in _FIGURES:
            p = self.adjusted.get((place, figure), math.nan)
            record[figure] = {
                **_bounds(change.ratio(figure)),
                "p_adjusted": None if math.isnan(p) else p,
                "verdict": self.verdict(place, figure),
            }
        return record

    def lines(self) -> list[list[Any]]:
        """Return the lines of a CSV file: the head, and one for each phase of each case."""
        records = [_flat(self._record(place)) for place in range(len(self.changes))]
        return [list(records[0]), *(list(record.values()) for record in records)]


def compare(base: Document, head: Document, *, across_environments: bool = False) -> Comparison:
    """Pair two results.

    Raises:
        UserError: nothing was measured (5); no case is in both, or environments differ and nobody said they may (3).

    """
    for found in (base, head):
        if not found.rows:
            raise UserError(f"{found.title}: no case has been measured there yet", ExitCode.NOTHING_MEASURED)
    # Equal dense work is one figure in both, so that a machine that changed in between shows.
    marked = with_disagreements([*base.rows, *head.rows])
    before, after = marked[: len(base.rows)], marked[len(base.rows) :]
    earlier = {(row.case_id, row.phase): row for row in before}
    later = {(row.case_id, row.phase): row for row in after}
    # A case that failed has one row without a phase, which stands for all of its phases.
    failed = [{row.case_id: row for row in rows if row.phase is None} for rows in (before, after)]
    changes = [Change.of(earlier[key], row) for key, row in later.items() if key in earlier]
    changes += [Change.of(failed[0][case], row) for (case, phase), row in later.items() if phase and case in failed[0]]
    changes += [
        Change.of(row, failed[1][case]) for (case, phase), row in earlier.items() if phase and case in failed[1]
    ]
    if not changes:
        raise UserError(
            f"{base.title} and {head.title} have no case in common: measure the same axes or preset in both",
            ExitCode.NOT_COMPARABLE,
        )
    differences = tuple(_differences(base, head, changes))
    if differences and not across_environments:
        raise UserError(
            f"{base.title} and {head.title} were measured in different environments ({'; '.join(differences)}), so"
            " their times are not comparable: measure again in one, or add --across-environments",
            ExitCode.NOT_COMPARABLE,
        )
    paired = {change.head.case_id for change in changes}
    alone = [
        [row for key, row in own.items() if key not in other and key[0] not in paired]
        for own, other in ((earlier, later), (later, earlier))
    ]
    differing = tuple(_in_full(base, head, changes)) if differences else ()
    return Comparison(base, head, tuple(changes), (alone[0], alone[1]), differences, differing)


def _alone(name: str, rows: Sequence[Row]) -> Section | None:
    """Return what is in one result alone."""
    if not rows:
        return None
    columns = ("case", "phase", "speed-up")
    lines = tuple(
        (Cell(case_name(row)), Cell(row.phase or ABSENT), Cell(plain_speedup(row))) for row in rows[:_SHOWN_ALONE]
    )
    more = len(rows) - len(lines)
    footnotes = (f"{more} more are not shown.",) if more else ()
    return Section(f"In {name} alone", columns, (lines,), footnotes=footnotes, left=WORDS | {"case"})


def _differences(base: Document, head: Document, changes: Iterable[Change]) -> list[str]:
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


def _in_full(base: Document, head: Document, changes: Iterable[Change]) -> Iterable[tuple[str, str, str]]:
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


def _precise(found: Interval) -> str:
    """A ratio near 1, between a half and 2, with as many digits as it needs."""
    if not 0.5 < found.estimate < 2 or too_wide(found.half_width):
        return ratio_within(found)
    return f"{found.estimate:.3f}x" + (f" [{found.low:.3f}, {found.high:.3f}]" if found.bounded else "")


def _bounds(found: Interval | None) -> dict[str, float | None]:
    values = (math.nan,) * 3 if found is None else (found.estimate, found.low, found.high)
    return {
        name: None if math.isnan(value) else value for name, value in zip(("ratio", "low", "high"), values, strict=True)
    }


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        (f"{name}_{part}" if part else name): item
        for name, value in record.items()
        for part, item in (value.items() if isinstance(value, Mapping) else [("", value)])
    }
