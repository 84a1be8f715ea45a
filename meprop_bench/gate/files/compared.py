"""Two files side by side: what both have becomes series, what one has alone becomes a note, a failed head a failure.

Absolute times and sizes mean something within one environment. If those of two files come from different ones, the
comparison is refused with what differs, unless it is about ratios sparse / dense only, which were taken within each.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.gate.block import Block, Integers
from meprop_bench.gate.files.figures import Figures, Kind
from meprop_bench.gate.series import Series
from meprop_bench.results.redact import one_line

__all__ = ["Compared"]

_ABSOLUTE = ("time", "memory")
_IN_BLOCKS = ("time", "ratio", "memory")
_SHOWN = 3
"""Names, or differences, that one line shows."""


class Compared:
    """The figures that two files have in common, as series one after the other.

    Args:
        base: what is compared with.
        head: what is judged.
        ratios_only: whether only ratios sparse / dense are compared.

    Attributes:
        base: what the base is, in a few words.
        head: what the head is.
        notes: what a reader should know.

    Raises:
        UserError: one of them is empty (exit code 5), they have nothing in common, or their environments differ (3).

    """

    def __init__(self, base: Figures, head: Figures, *, ratios_only: bool = False) -> None:
        for found in (base, head):
            if not len(found) and not found.failures:
                raise UserError(f"{found.name} holds no figures: measure first", ExitCode.NOTHING_MEASURED)
        self.base, self.head = base.source, head.source
        self._base, self._head = base, head
        self._kinds = [kind for kind in base.kinds if not ratios_only or _is_ratio(kind)]
        head_kinds = [kind for kind in head.kinds if not ratios_only or _is_ratio(kind)]
        if ratios_only and not (self._kinds and (head_kinds or head.failures)):
            without = head.name if self._kinds else base.name
            raise UserError(
                f"{without} holds no ratios sparse / dense, which is all that --ratios-only compares",
                ExitCode.NOT_COMPARABLE,
            )
        self._count = 0
        remarks = self._match(head_kinds)
        if not self._count:
            raise UserError(
                f"{base.name} and {head.name} have no figure in common, so there is nothing to compare: "
                + "; ".join(remarks),
                ExitCode.NOT_COMPARABLE,
            )
        self._check_environments()
        if base.host and head.host and base.host != head.host:
            remarks.append(
                "the two were measured on two hosts, or kernels, of the same make: how these differ is not known"
            )
        self.notes = tuple(dict.fromkeys((*base.notes, *head.notes, *remarks)))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Series]:
        """Yield every figure as a series; a million of them, held at once, would take a GB."""
        for kind in self._kinds:
            yield from self._series(kind, self._base.places(kind))

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The figures that are judged by their ratio, as columns."""
        return self._split[0]

    @property
    def rest(self) -> Iterator[Series]:
        """What is in no block: counts, accuracy, sizes of 0, and what failed in the head."""
        for kind, cases in self._split[1]:
            yield from self._series(kind, cases)

    @cached_property
    def _split(self) -> tuple[tuple[Block, ...], list[tuple[Kind, list[str]]]]:
        blocks: list[Block] = []
        rest: list[tuple[Kind, list[str]]] = []
        for kind in self._kinds:
            ours = self._base.places(kind)
            own = self._blocks(kind) if kind.quantity in _IN_BLOCKS else []
            if sum(map(len, own)) < len(ours):
                held = set(itertools.chain.from_iterable(block.cases for block in own))
                rest.append((kind, [case for case in ours if case not in held]))
            blocks += own
        return tuple(blocks), rest

    def _blocks(self, kind: Kind) -> list[Block]:
        """Return the figures of a kind that both have, apart by whether each value has a process of its own."""
        base, head = self._base, self._head
        ours, theirs = base.places(kind), head.places(kind)
        cases = [case for case in ours if case in theirs]
        first, second = _places(ours, cases), _places(theirs, cases)
        whole = Block(
            figure=kind.figure,
            quantity=kind.quantity,
            unit=kind.unit,
            cases=cases,
            base=base.sides(first),
            head=head.sides(second),
        )
        own = base.of_own_processes(first) & head.of_own_processes(second)
        sound = np.full(len(cases), True)
        if kind.quantity == "memory":  # a size may be 0
            sound = whole.base.positive & whole.head.positive
        apart = [replace(whole.only(sound & (own == each)), own_processes=each) for each in (True, False)]
        return [block for block in apart if len(block)]

    def _series(self, kind: Kind, cases: Iterable[str]) -> Iterator[Series]:
        base, head = self._base, self._head
        ours, theirs = base.places(kind), head.places(kind)
        for case in cases:
            place, other = ours[case], theirs.get(case)
            failure = "" if other is not None else self._failure(case)
            if other is None and not failure:
                continue
            yield Series(
                case=case,
                figure=kind.figure,
                quantity=kind.quantity,
                unit=kind.unit,
                base=base.side(place),
                head=() if other is None else head.side(other),
                own_processes=base.own_processes(place) and (other is None or head.own_processes(other)),
                failure=failure,
            )

    def _failure(self, case: str) -> str:
        """Return why the head has nothing of a case although it was asked for."""
        failures = self._head.failures
        return (failures.get(case) or failures.get(self._base.ids.get(case, ""), "")) if failures else ""

    def _match(self, head_kinds: list[Kind]) -> list[str]:
        """Count what both have; return what is to be said of the rest."""
        base, head = self._base, self._head
        gone, new, other = _Names(), _Names(), _Names()
        shared = dict.fromkeys(head_kinds, 0)
        for kind in self._kinds:
            theirs = head.places(kind)
            similar = [head.places(each) for each in head_kinds if each != kind and _alike(each, kind)]
            ours = base.places(kind)
            shared[kind] = sum(map(theirs.__contains__, ours))
            self._count += shared[kind]
            for case in ours if shared[kind] < len(ours) else ():
                if case in theirs:
                    continue
                if self._failure(case):
                    self._count += 1
                elif any(case in places for places in similar):
                    other.add(case, kind)
                else:
                    gone.add(case, kind)
        for kind in head_kinds:
            ours, theirs = base.places(kind), head.places(kind)
            if shared[kind] == len(theirs):
                continue
            similar = [base.places(each) for each in self._kinds if each != kind and _alike(each, kind)]
            for case in theirs:
                if case not in ours and not any(case in places for places in similar):
                    new.add(case, kind)
        remarks = [
            gone.told(f"in {base.name} only"),
            new.told(f"in {head.name} only"),
            other.told("measured by another version of the benchmark, or with other seeds"),
            *(f"not judged: {found.zeros} times of 0 s in {found.name}" for found in (base, head) if found.zeros),
        ]
        return [remark for remark in remarks if remark]

    def _check_environments(self) -> None:
        base, head = self._base, self._head
        pairs: dict[tuple[str, str], None] = {}
        single = len(list(base.environment_keys)) == len(list(head.environment_keys)) == 1
        for kind in self._kinds:
            if kind.quantity not in _ABSOLUTE:
                continue
            theirs = head.places(kind)
            for case, place in base.places(kind).items():
                if (other := theirs.get(case)) is not None:
                    pairs[base.environment(place), head.environment(other)] = None
                    if single:
                        break
        for ours, others in pairs:
            if ours and ours == others:  # an id, which says by itself that nothing differs
                continue
            if reason := _difference(base, ours, head, others):
                raise UserError(
                    f"times of {base.name} and {head.name} cannot be compared: {reason}; measure both in one"
                    " environment, or compare the ratios sparse / dense alone (--ratios-only)",
                    ExitCode.NOT_COMPARABLE,
                )


def _places(of: Mapping[str, int], cases: list[str]) -> Integers:
    """Return the place of each case; two files of one suite mostly have the same cases in the same order."""
    same = len(of) == len(cases) and all(map(operator.eq, of, cases))
    return np.fromiter(of.values() if same else map(of.__getitem__, cases), np.int64, len(cases))


class _Names:
    """The first of many names, and how many there were."""

    def __init__(self) -> None:
        self._first: list[str] = []
        self._count = 0

    def add(self, case: str, kind: Kind) -> None:
        self._count += 1
        if len(self._first) < _SHOWN:
            self._first.append(one_line(f"{case}/{kind.figure}", 120))

    def told(self, what: str) -> str:
        if not self._count:
            return ""
        return f"{self._count} not judged, {what}: {_listed(self._first, self._count)}"


def _listed(first: list[str], count: int) -> str:
    rest = count - len(first)
    return ", ".join(first) + (f" and {rest} more" if rest else "")


def _is_ratio(kind: Kind) -> bool:
    return kind.quantity == "ratio" and kind.unit == "1"


def _alike(one: Kind, other: Kind) -> bool:
    return one.figure == other.figure and one.quantity == other.quantity


def _difference(base: Figures, ours: str, head: Figures, others: str) -> str:
    """Return how two environments differ, in a few words; nothing where they do not."""
    known = base.environments.get(ours), head.environments.get(others)
    for found, environment in zip((base, head), known, strict=True):
        if not environment:
            if ours and others:
                return f"their environments are {one_line(ours, 20)} and {one_line(others, 20)}"
            return f"{found.name} does not say where it was measured"
    differing = _differing(*known)
    first = [f"{name} is {_shown(one)} and {_shown(other)}" for name, one, other in differing[:_SHOWN]]
    return _listed(first, len(differing)) if differing else ""


def _differing(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> list[tuple[str, Any, Any]]:
    one, other = one or {}, other or {}
    names = [*one, *(name for name in other if name not in one)]
    return [(name, one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)]


def _shown(value: object) -> str:
    return "not told" if value is None else one_line(str(value), 60)
