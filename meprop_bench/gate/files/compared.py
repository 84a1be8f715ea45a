"""Two files side by side: what both have becomes series, what one has alone becomes a note, a failed head a failure.

Absolute times and sizes mean something within one environment. If those of two files come from different ones, the
comparison is refused with what differs, unless it is about ratios sparse / dense only, which were taken within each.

Cases are matched by their names as they stand in the files. What is left over in both is matched without the addresses
of objects, where that leaves one on each side (`names`).
"""

from __future__ import annotations

import itertools
import operator
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from meprop_bench.errors import ExitCode, UserError
from meprop_bench.gate.files.figures import ALONE, OWN_PROCESSES, Figures, Kind
from meprop_bench.gate.files.machine import common_machine
from meprop_bench.gate.names import shown, without_addresses
from meprop_bench.gate.series import Block, Integers, Series
from meprop_bench.results.redact import one_line

__all__ = ["Compared", "OtherEnvironment", "differing"]

_ABSOLUTE = ("time", "memory")
_IN_BLOCKS = ("time", "ratio", "memory")
_SHOWN = 3
"""Names, or differences, that one line shows."""


class OtherEnvironment(UserError):
    """Times and sizes of two environments; `reason` says how these differ."""

    def __init__(self, base: str, head: str, reason: str) -> None:
        super().__init__(
            f"times and sizes of {base} and {head} cannot be compared: {reason}; measure both in one environment, or"
            " compare the ratios sparse / dense alone (--ratios-only)",
            ExitCode.NOT_COMPARABLE,
        )
        self.reason = reason


class Compared:
    """The figures that two files have in common, as series one after the other, or as `blocks` and the `rest`.

    `base` and `head` say what the two are, `notes` what a reader should know. Raises `UserError` where one of them is
    empty (exit code 5), they have nothing in common, or their environments differ (3).
    """

    def __init__(self, base: Figures, head: Figures, *, ratios_only: bool = False) -> None:
        for found in (base, head):
            if not len(found) and not found.failures:
                why = ", ".join(f"{count} {what}" for what, count in Counter(found.left_out.values()).items())
                nothing = f"nothing that could be judged: {why}" if why else "no figures: measure first"
                raise UserError(f"{found.name} holds {nothing}", ExitCode.NOTHING_MEASURED)
        self.base, self.head = base.source, head.source
        self.doubts = (*base.doubts, *head.doubts)
        self._base, self._head = base, head
        self._kinds = [kind for kind in base.kinds if not ratios_only or _is_ratio(kind)]
        head_kinds = [kind for kind in head.kinds if not ratios_only or _is_ratio(kind)]
        if ratios_only and not (self._kinds and (head_kinds or head.failures)):
            without = head.name if self._kinds else base.name
            raise UserError(
                f"{without} holds no ratios sparse / dense, which is all that --ratios-only compares",
                ExitCode.NOT_COMPARABLE,
            )
        self._unclear: set[str] = set()
        self._failures_alone: list[str] = []
        renamed = self._match_addresses()
        self._failures = self._failures_of_the_head()
        self._count = 0
        remarks = [*renamed, *self._match(head_kinds)]
        if not self._count:
            raise UserError(
                f"{base.name} and {head.name} have no figure in common, so there is nothing to compare: "
                + "; ".join(filter(None, remarks)),
                ExitCode.NOT_COMPARABLE,
            )
        # What is not known of a host, or of both, does not make two of them.
        known = [(base.host.get(key), value) for key, value in head.host.items()]
        if self._check_environments() and any(one and other and one != other for one, other in known):
            remarks.append(
                "the two were measured on two hosts, or kernels, of the same make: how these differ is not known"
            )
        self.notes = tuple(dict.fromkeys(filter(None, (*base.notes, *head.notes, *remarks))))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Series]:
        """Yield every figure as a series; a million of them, held at once, would take a GB."""
        for kind in self._kinds:
            yield from self._series(kind, self._base.places(kind))
        yield from self._alone()

    @property
    def machine(self) -> str:
        """Where the head was measured, in a few words."""
        used = (self._head.environments.get(key, {}) for key in self._head.environment_keys)
        return common_machine(used)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The figures that are judged by their ratio, as columns."""
        return tuple(itertools.chain.from_iterable(self._columns.values()))

    @property
    def rest(self) -> Iterator[Series]:
        """What is in no block: counts, accuracy, figures with a 0, and what failed in the head."""
        for kind, blocks in self._columns.items():
            ours = self._base.places(kind)
            if sum(map(len, blocks)) < len(ours):
                held = set(itertools.chain.from_iterable(block.cases for block in blocks))
                yield from self._series(kind, [case for case in ours if case not in held])
        yield from self._alone()

    @cached_property
    def _columns(self) -> dict[Kind, list[Block]]:
        """The blocks of each kind: what both have, apart by whether each value has a process of its own."""
        return {kind: self._blocks(kind) if kind.quantity in _IN_BLOCKS else [] for kind in self._kinds}

    def _blocks(self, kind: Kind) -> list[Block]:
        base, head = self._base, self._head
        ours, theirs = base.places(kind), head.places(kind)
        cases = [case for case in ours if case in theirs]
        first, second = _places(ours, cases), _places(theirs, cases)
        sides = base.sides(first), head.sides(second)
        whole = Block(kind.figure, kind.quantity, kind.unit, cases, *sides)
        own = base.flagged(first, OWN_PROCESSES) & head.flagged(second, OWN_PROCESSES)
        sound = ~(base.flagged(first, ALONE) | head.flagged(second, ALONE))
        apart = [replace(whole.only(sound & (own == each)), own_processes=each) for each in (True, False)]
        return [block for block in apart if len(block)]

    def _series(self, kind: Kind, cases: Iterable[str]) -> Iterator[Series]:
        base, head = self._base, self._head
        ours, theirs = base.places(kind), head.places(kind)
        for case in cases:
            place, other = ours[case], theirs.get(case)
            failure = "" if other is not None else self._failures.get(case, "")
            if other is None and not failure:
                continue
            yield Series(
                case=case,
                figure=kind.figure,
                quantity=kind.quantity,
                unit=kind.unit,
                base=base.side(place),
                head=() if other is None else head.side(other),
                own_processes=other is not None and base.own_processes(place) and head.own_processes(other),
                failure=failure,
            )

    def _alone(self) -> Iterator[Series]:
        """Yield what failed in the head, and has no figure of the base under which to show it."""
        for case in self._failures_alone:
            yield Series(case=case, figure="run", quantity="count", unit="1", failure=self._failures[case])

    def _match_addresses(self) -> list[str]:
        """Give the head's cases that differ from one of the base by an address alone its name; return what to say."""
        base, head = self._base, self._head
        groups: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
        for place, (own, other) in enumerate(((base, head), (head, base))):
            for case in own.cases():
                if "0x" in case and not other.has(case) and (plain := without_addresses(case)) != case:
                    groups[plain][place].append(case)
        one = _Names("matched without the address in the name")
        several = _Names("not judged, as several differ by the address in the name alone")
        names: dict[str, str] = {}
        for plain, (first, second) in groups.items():
            if len(first) == len(second) == 1:
                names[second[0]] = first[0]
                one.add(plain)
            elif first and second:
                self._unclear.update(first, second)
                for case in second:
                    several.add(case)
                failed = [case for case in second if case in head.failures]
                if len(failed) > sum(case in base.failures for case in first):
                    self._failures_alone += failed
        head.rename(names)
        return [one.line, several.line]

    def _failures_of_the_head(self) -> dict[str, str]:
        """Return why the head has nothing of a case although it was asked for, by the base's name of the case."""
        base, head = self._base, self._head
        names: dict[str, list[str]] = defaultdict(list)
        for case, key in base.ids.items() if head.failures else ():
            names[key].append(case)
        return {
            name: reason
            for case, reason in head.failures.items()
            for name in ([case] if base.has(case) else names.get(head.ids.get(case, ""), [case]))
        }

    def _match(self, head_kinds: list[Kind]) -> list[str]:
        """Count what both have; return what is to be said of the rest."""
        base, head = self._base, self._head
        gone, new, mended, left, found_again, version, unit = names = [
            _Names(f"not judged, {why}")
            for why in (
                f"in {base.name} only",
                f"in {head.name} only",
                f"failed in {base.name}",
                f"without a figure in {head.name}",
                f"without a figure in {base.name}",
                "measured by another version of the benchmark, or with other seeds",
                "measured in another unit",
            )
        ]
        shared = dict.fromkeys(head_kinds, 0)
        listed = set(self._failures_alone)  # failures that have a line in the table
        for kind in self._kinds:
            ours, theirs = base.places(kind), head.places(kind)
            alike = [each for each in head_kinds if each != kind and each.figure == kind.figure]
            shared[kind] = sum(map(theirs.__contains__, ours))
            self._count += shared[kind]
            for case in ours if shared[kind] < len(ours) else ():
                if case in theirs or case in self._unclear:
                    continue
                if case in self._failures:
                    self._count += 1
                    listed.add(case)
                elif (other := next((each for each in alike if case in head.places(each)), None)) is not None:
                    (version if (other.quantity, other.unit) == (kind.quantity, kind.unit) else unit).add(case, kind)
                else:
                    (left if case in head.left_out else gone).add(case, kind)
        for kind in head_kinds:
            ours, theirs = base.places(kind), head.places(kind)
            if shared[kind] == len(theirs):
                continue
            similar = [base.places(each) for each in self._kinds if each != kind and each.figure == kind.figure]
            for case in theirs:
                if case not in ours and case not in self._unclear and not any(case in of for of in similar):
                    failed = case in base.failures or head.ids.get(case) in base.failures
                    (mended if failed else found_again if case in base.left_out else new).add(case, kind)
        failures = self._other_failures(listed)
        self._count += len(self._failures_alone)
        replaced = [
            f"{found.name}: rounds of 0 s count as the shortest of their benchmark: {found.zeros}"
            for found in (base, head)
            if found.zeros
        ]
        return [*(each.line for each in names), *failures, *replaced]

    def _other_failures(self, listed: set[str]) -> list[str]:
        """Give what failed in the head a line if the base ran it; return what to say of the rest."""
        base, head = self._base, self._head
        both = _Names("failed in both")
        new = _Names(f"failed in {head.name}, and {base.name} has nothing to compare with")
        for case in self._failures:
            if case in listed:
                continue
            if case in base.failures:
                both.add(case)
            elif base.ran(case):
                self._failures_alone.append(case)
            else:
                new.add(case)
        return [both.line, new.line]

    def _check_environments(self) -> bool:
        """Return whether there is a figure that depends on them; raises `UserError` where they differ then."""
        base, head = self._base, self._head
        pairs: dict[tuple[str, str], None] = {}
        single = len(base.environment_keys) == len(head.environment_keys) == 1
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
                raise OtherEnvironment(base.name, head.name, reason)
        return bool(pairs)


def _places(of: Mapping[str, int], cases: list[str]) -> Integers:
    """Return the place of each case; two files of one suite mostly have the same cases in the same order."""
    same = len(of) == len(cases) and all(map(operator.eq, of, cases))
    return np.fromiter(of.values() if same else map(of.__getitem__, cases), np.int64, len(cases))


class _Names:
    """The first of many names of which one thing is said, and how many there were."""

    def __init__(self, what: str) -> None:
        self._what, self._count = what, 0
        self._first: list[str] = []

    def add(self, case: str, kind: Kind | None = None) -> None:
        self._count += 1
        if len(self._first) < _SHOWN:
            self._first.append(shown(case if kind is None else f"{case}/{kind.figure}", 120))

    @property
    def line(self) -> str:
        return f"{self._count} {self._what}: {_listed(self._first, self._count)}" if self._count else ""


def _listed(first: list[str], count: int) -> str:
    rest = count - len(first)
    return ", ".join(first) + (f" and {rest} more" if rest else "")


def _is_ratio(kind: Kind) -> bool:
    return kind.quantity == "ratio" and kind.unit == "1"


def _difference(base: Figures, ours: str, head: Figures, others: str) -> str:
    """Return how two environments differ, in a few words; nothing where they do not."""
    known = base.environments.get(ours), head.environments.get(others)
    for found, environment in zip((base, head), known, strict=True):
        if not environment:
            if ours and others:
                return f"their environments are {one_line(ours, 20)} and {one_line(others, 20)}"
            return f"{found.name} does not say where it was measured"
    return differing(*(environment or {} for environment in known))


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return how two flat environments differ, in a few words; nothing where they do not."""
    names = [name for name in dict.fromkeys((*one, *other)) if one.get(name) != other.get(name)]
    first = [f"{shown(name, 60)} is {_shown(one.get(name))} and {_shown(other.get(name))}" for name in names[:_SHOWN]]
    return _listed(first, len(names)) if names else ""


def _shown(value: object) -> str:
    return "not stated" if value is None else one_line(str(value), 60)
