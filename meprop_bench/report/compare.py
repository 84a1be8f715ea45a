"""Two stored results side by side: the same cases, measured twice, say before and after a change.

    sparse time   base / head: 1.10x means that head does a tenth more of the same work in the same time
    speed-up      head / base, each over dense, which ran beside it: what the change did to the advantage over dense

`changes` has the pairs and what they say; this is the document of them. What differs between the environments comes
first, then the biggest changes, then each workload.

The trade-off: between two runs a machine drifts by some percent, which no interval over processes shows. The ratio of
times contains that drift; that of the speed-ups hardly does, since each divides by a baseline that drifted alike.
Believe the times where both agree. To decide on a change, measure both revisions interleaved instead: that is what the
gate does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.report.cells import ABSENT, Cell, counted, pair, plain_speedup, ratio_within, seconds
from meprop_bench.report.changes import FIGURES, Change, Changes, Figure, differences, in_full, paired
from meprop_bench.report.document import Document
from meprop_bench.report.findings import Finding, Kind, plain
from meprop_bench.report.reliability import doubts, with_disagreements
from meprop_bench.report.sections import AXES, WORDS, Section, phase_order, varying
from meprop_bench.results.axes import AXES as TABLE
from meprop_bench.results.axes import case_name
from meprop_bench.results.schema import SCHEMA, Row
from meprop_bench.stats import (
    Interval,
    clear_of,
    too_wide,
)

__all__ = ["Change", "Comparison", "compare"]

_OF_EITHER = ("kernel", "environment")
"""Axes that may differ within a pair."""
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
    "The two were measured one after the other. What the machine did in between affects the times, and no interval"
    " shows it; the change of the speed-up is nearly free of it, since dense ran beside sparse each time.",
    "To decide whether a revision is slower, measure both interleaved: meprop-bench gate --base REVISION.",
)


@dataclass(frozen=True)
class Comparison(Changes):
    """Two results, paired; it has what the formats ask of a `Document`."""

    base: Document  # the earlier one
    head: Document
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

    @property
    def findings(self) -> Sequence[Finding]:
        """What was found: what speaks against it first, other environments, then how the means moved."""
        others = [Finding(text, "mixed") for text in self._other_environments()]
        means = [Finding(*found) for found in self._means()]
        return [*plain(self.doubts, ()), *others, *means, *map(Finding, self._counted())]

    @property
    def summary(self) -> list[str]:
        """The result in a few sentences."""
        return [*self._counted(), *self._other_environments(), *(text for text, _ in self._means())]

    def _counted(self) -> list[str]:
        cases = len({change.head.case_id for change in self.changes})
        lines = [f"{counted(len(self.changes), 'phase')} of {counted(cases, 'case')} in both."]
        apart = zip(("base", "head"), self.apart, strict=True)
        if alone := [f"{counted(count, 'phase')} in {name} alone" for name, count in apart if count]:
            lines.append(f"Not compared: {', '.join(alone)}.")
        if doubted := sum(change.doubted for change in self.changes):
            are = "is" if doubted == 1 else "are"
            lines.append(f"{counted(doubted, 'phase')} whose dense times disagree {are} in no mean.")
        return lines

    def _other_environments(self) -> list[str]:
        return [f"Different environments, {line}." for line in self.environments]

    def _means(self) -> Iterator[tuple[str, Kind]]:
        """Give a sentence for each kind of work, and whether the advantage over dense grew or shrank."""
        for (workload, phase), changes in self.kinds().items():
            found = {figure: self.mean(changes, figure) for figure in FIGURES}
            means = (
                f"{words} {_precise(found[figure])}{self._count(changes, figure)}" for figure, words in FIGURES.items()
            )
            grew, shrank = clear_of(found["speedup"].low, found["speedup"].high, 1.0)
            kind: Kind = "faster" if grew else "slower" if shrank else "mixed"
            yield f"{workload} {phase}, {counted(len(changes), 'case')}: {'; '.join(means)}.", kind

    def _count(self, changes: Sequence[Change], figure: Figure) -> str:
        verdicts = [self.verdict(self.places[id(change)], figure) for change in changes]
        counts = [f"{verdicts.count(word)} {word}" for word in ("better", "worse") if word in verdicts]
        return f" ({', '.join(counts) or 'none significant'})"

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
                    **{figure: _bounds(self.mean(changes, figure)) for figure in FIGURES},
                }
                for (workload, phase), changes in self.kinds().items()
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
        for figure in FIGURES:
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
    changes, *alone = paired(base.rows, head.rows)
    if not changes:
        raise UserError(
            f"{base.title} and {head.title} have no case in common: measure the same axes or preset in both",
            ExitCode.NOT_COMPARABLE,
        )
    apart = tuple(differences(base, head, changes))
    if apart and not across_environments:
        raise UserError(
            f"{base.title} and {head.title} were measured in different environments ({'; '.join(apart)}), so"
            " their times are not comparable: measure again in one, or add --across-environments",
            ExitCode.NOT_COMPARABLE,
        )
    differing = tuple(in_full(base, head, changes)) if apart else ()
    return Comparison(tuple(changes), base, head, (alone[0], alone[1]), apart, differing)


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
