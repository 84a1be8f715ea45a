"""What is known of one case in two revisions, pair of processes by pair of processes, and the figures that it makes.

    blocks          a block of each side, next to each other: phase -> seconds, and whether the machine disturbed it
    set-up          some of them -> pairs of values (base, head) for each phase
    record          the pairs of one pair of processes
    case records    those of a case, its figures without noise, and what went wrong

A set-up gives the pairs that nothing disturbed. On a machine that is busy with other work there may be none, and then
what is next to each other no longer says something of the code. Two threads that meet at the end of each parallel
region wait for whichever of them has no core: one and the same backward pass took 0.25 ms in one block and 20 ms in the
next (two threads, two cores, seven processes that wanted them), so that the medians of three blocks, 0.3 ms for
base and 16 for head, said that identical code was 50 times slower. Such a set-up gives one pair: the fastest block of
each side is the one that the neighbours held up least, and is chosen in the same way for both. What is left of the
noise is in the interval, and a note says that the machine was busy.

A pair of processes most of whose set-ups were disturbed has seen little but that, and is left out as long as most pairs
have not: one of thirteen, with 4 values where the others had 40, said that identical code was 41% slower, and doubled
the error of all of them together. Who was disturbed is asked of the scheduler, never of the times.

What the ratio sparse / dense does from base to head is the change of the sparsified side over that of the dense one,
each the median over neighbours: medians of a side alone hold all that the machine does in the seconds between. The
dense side is torch's own and has a fifth of the time, so that the ratio says of the code what the time of its phase
says, at several times the noise (backward pass at B = 10, identical code, 17 pairs of processes: 5.6% and 0.8%).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias

from meprop_bench.gate.judgement import Kind
from meprop_bench.gate.series import Series
from meprop_bench.gate.targets import Measurable
from meprop_bench.measure.paired import Measurement
from meprop_bench.stats import median

__all__ = ["SIDES", "Blocks", "CaseRecords", "Facts", "PairRecord", "Side", "judged_records", "record_of"]

Side: TypeAlias = Literal["base", "head"]
SIDES: tuple[Side, Side] = ("base", "head")

Blocks: TypeAlias = Mapping[Side, Mapping[str, Any]]
"""A block of each side, as the workers answered."""

Facts: TypeAlias = dict[Kind, tuple[float | None, float | None]]
"""Figures without noise, and those of one side alone -> (base, head), None for a revision that has none."""

_RATIOS = ("backward", "step")
_BUSY = 0.5
"""Share of disturbed set-ups from which a pair of processes says little, and a note that the machine was busy."""


@dataclass(frozen=True)
class PairRecord:
    """What one pair of processes gave for one case, under one injected slowdown (usually none); seconds."""

    pairs: Mapping[str, tuple[tuple[float, float], ...]]  # phase -> values (base, head) of the sparsified side
    disturbed: tuple[bool, ...] | None
    """Which of the pairs are of a set-up all of whose blocks the machine disturbed; None where nobody could tell."""
    dense: Mapping[str, tuple[float, float]]  # phase -> (base, head) of the dense side over all set-ups, as `_level`
    setups: int = 0

    @property
    def busy(self) -> bool:
        """Whether the machine disturbed most of the set-ups from beginning to end."""
        return sum(self.disturbed or ()) > _BUSY * self.setups


@dataclass
class CaseRecords:
    """All that is known of one case."""

    case: Measurable
    records: dict[float, list[PairRecord]] = field(default_factory=dict)  # slowdown -> one for each pair of processes
    loops: int = 1  # iterations behind a value
    facts: Facts = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what a reader should know besides, one line each
    accuracy: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # (base, head), of each a value for each seed
    percent: bool = True  # whether these are percentages, so that points are lost
    faults: dict[Side, list[str]] = field(default_factory=lambda: {"base": [], "head": []})  # why its process died
    failure: str = ""  # why the head cannot do what the base does
    missing: str = ""  # why the base cannot be compared with
    new: bool = False  # whether that is because the base has no such thing, and not because it fails
    gone: str = ""  # why the head has no such thing
    rounds: int = 0  # pairs of processes that were started for it

    @property
    def open(self) -> bool:
        """Whether it can be measured on."""
        return not (self.failure or self.missing or self.gone)

    def remarks(self) -> list[str]:
        """Return what a reader should know of the case, one line each."""
        if not self.open:  # its figure says it
            return []
        lines = list(self.notes)
        for side, reasons in self.faults.items():
            lines += [f"a process of the {side} {reason}; its pair is left out" for reason in reasons]
        records = self.records.get(0.0, [])
        if left_out := len(records) - len(judged_records(records)):
            lines.append(f"{left_out} of {len(records)} pairs of processes were disturbed throughout, and are left out")
        marked = [record for record in records if record.disturbed is not None]
        # Set-ups that the machine disturbed from beginning to end, and all.
        disturbed, setups = sum(sum(one.disturbed or ()) for one in marked), sum(one.setups for one in marked)
        if disturbed > _BUSY * setups:
            lines.append(
                f"the machine was busy with something else during {disturbed} of {setups} set-ups, so the times say"
                " little: let the gate run alone"
            )
        return lines

    def series(self, records: Sequence[PairRecord] | None = None) -> list[Series]:
        """Return its figures; of other records than those without a slowdown, for the self-test."""
        one = partial(Series, case=self.case.label)
        if self.missing or self.gone:
            return [
                one(
                    figure="times",
                    quantity="time",
                    unit="s",
                    unjudged=self._unjudged,
                    gone=bool(self.gone),
                    decides=not self.new,
                )
            ]
        if self.failure:
            return [one(figure="correctness check", quantity="count", unit="1", failure=self.failure)]
        records = self.records.get(0.0, []) if records is None else records
        if not records:  # its processes died, or the budget ended
            return [one(figure="times", quantity="time", unit="s", pairs=())]
        records = judged_records(records)
        found = [series for phase in records[0].pairs for series in self._timed(phase, records)]
        for (name, quantity, unit), sides in self.facts.items():
            base, head = (() if value is None else (value,) for value in sides)
            found.append(one(figure=name, quantity=quantity, unit=unit, base=base, head=head))
        if self.accuracy is not None:
            before, after = self.accuracy
            unit = "points" if self.percent else "%"
            found.append(
                one(figure="accuracy", quantity="accuracy", unit=unit, base=before, head=after, own_processes=True)
            )
        return found

    @property
    def _unjudged(self) -> str:
        if self.gone:
            return f"gone: the head has none ({self.gone})"
        if self.new:
            return f"new: the base has none ({self.missing})"
        return f"not comparable: {self.missing}"

    def _timed(self, phase: str, records: Sequence[PairRecord]) -> Iterator[Series]:
        """Yield the time of a phase, and its ratio to the dense side's where all have that."""
        marks = None if any(r.disturbed is None for r in records) else tuple(r.disturbed or () for r in records)
        runs = tuple(record.pairs[phase] for record in records)
        judged = Measurement(phase, runs, self.loops, marks).judged_runs
        yield Series(case=self.case.label, figure=phase, quantity="time", unit="s", pairs=judged)
        if phase in _RATIOS and all(phase in record.dense for record in records):
            ratios = []
            for run, record in zip(judged, records, strict=True):
                sparse, dense = _level(run), record.dense[phase]
                ratios.append(((sparse[0] / dense[0], sparse[1] / dense[1]),))
            figure = f"sparse/dense {phase}"
            one = partial(Series, case=self.case.label, quantity="ratio", unit="1", repeats=phase)
            yield one(figure=figure, pairs=tuple(ratios))


def judged_records(records: Sequence[PairRecord]) -> Sequence[PairRecord]:
    """Return those that the machine did not disturb most of the time; all where it disturbed half of them, or more."""
    calm = [record for record in records if not record.busy]
    return calm if 2 * len(calm) > len(records) else records


def record_of(setups: Sequence[Sequence[Blocks]], dense: Sequence[Blocks], phases: Sequence[str]) -> PairRecord:
    """Return what a pair of processes gave for some phases: of each set-up its blocks, and those of the dense side."""
    marks = [[_disturbed(blocks) for blocks in of_one] for of_one in setups]
    known = not any(mark is None for of_one in marks for mark in of_one)
    calm_ones = [_calm(of_one) for of_one in setups]
    return PairRecord(
        {
            phase: tuple(
                pair
                for of_one, calm in zip(setups, calm_ones, strict=True)
                for pair in ([_values([one], phase) for one in calm] or [_values(of_one, phase)])
            )
            for phase in phases
        },
        tuple(not calm for calm in calm_ones for _ in calm or (None,)) if known else None,
        {phase: _level([_values([one], phase) for one in _calm(dense)] or [_values(dense, phase)]) for phase in phases}
        if dense
        else {},
        len(setups),
    )


def _level(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the base's median, and that times the median of head / base over the pairs, which the machine moves less
    than the head's own median.
    """
    base = median(base for base, _ in pairs)
    if any(base <= 0 or head <= 0 for base, head in pairs):
        return base, median(head for _, head in pairs)
    return base, base * math.exp(median(math.log(head / base) for base, head in pairs))


def _disturbed(blocks: Blocks) -> bool | None:
    marks = [blocks[side]["disturbed"] for side in SIDES]
    return None if None in marks else any(marks)


def _calm(setup: Sequence[Blocks]) -> list[Blocks]:
    return [blocks for blocks in setup if not _disturbed(blocks)]


def _values(setup: Sequence[Blocks], phase: str) -> tuple[float, float]:
    """Return (base, head): medians of what was not disturbed, or the fastest where all was."""
    calm = _calm(setup)
    middle = median if calm else min
    base, head = (middle([blocks[side]["values"][phase] for blocks in calm or setup]) for side in SIDES)
    return base, head
