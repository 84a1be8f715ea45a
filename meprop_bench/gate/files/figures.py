"""The figures of one file, held as columns, so that a million of them fit: 90 bytes each, besides its name.

    kind                    what of a case: figure, quantity, unit
    kind, case  ->  i       values[ends[i]:ends[i+1]], environment[i], flags[i]

A figure of which the file kept no values but what is known of them (`Summary`) fills three places: median, its standard
error, count.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from meprop_bench.errors import UserError
from meprop_bench.gate.evidence import lower_rank
from meprop_bench.gate.files.stream import LARGEST, out_of_range
from meprop_bench.gate.judgement import Quantity
from meprop_bench.gate.names import quoted
from meprop_bench.gate.series import Flags, Floats, Integers, Side, Sides, Summary

__all__ = ["ALONE", "MOST_VALUES", "OWN_PROCESSES", "SKIPPED", "Figures", "Kind", "flat"]

SKIPPED = "skipped"
"""Why a case is left out that did not run."""
MOST_VALUES = 1000
"""Values of a figure that are kept, evenly spaced ones if there are more: what they leave unknown is the processes."""

_SUMMARY, OWN_PROCESSES, ALONE = 1, 2, 4
"""Flags. Own processes: each value is of a process, or a seed, of its own; alone: the figure has a 0, or no value, so
that no ratio of it can be taken together with those of others."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What of a case is judged, as in `Series`: the same in base and head, or the two are not compared.

    `basis` is what else has to be equal: the seeds and steps of a training run, the version of a benchmark's code.
    """

    figure: str
    quantity: Quantity
    unit: str
    basis: str = ""


class Figures:
    """What one file holds: its `name`, for messages, its `source`, what it is in a few words, and its figures."""

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source = name, source
        self.environments: dict[str, Mapping[str, Any]] = {}  # key -> what makes numbers incomparable, flat
        self.host: Mapping[str, Any] = {}
        """What tells a machine from another of the same make; numbers of the two are compared with a note."""
        self.notes: list[str] = []  # what a reader should know of the file
        self.doubts: list[str] = []  # why its figures are not to be believed
        self.failures: dict[str, str] = {}  # case -> why it has no figures although it was asked for
        self.left_out: dict[str, str] = {}
        """Case -> why it has no figures although it ran, or was skipped; a note of the file counts them."""
        self.ids: dict[str, str] = {}
        """Case -> what it is known by as well: its case id, of results of this project; of asv its benchmark, which may
        have failed before it had parameters."""
        self.zeros = 0  # rounds of 0 s that were replaced
        self.when: float | None = None
        """Seconds since 1970 at which it was measured, of asv the date of its commit; None where the file is silent."""
        self.series = ""
        """What asv calls the environment: its runs are a history of their own, however alike two are described."""
        self._places: dict[Kind, dict[str, int]] = {}
        self._keys: dict[str, int] = {}
        self.environment_keys: list[str] = []  # of all environments that its figures have
        self._values, self._ends = array("d"), array("q", [0])
        self._where, self._flags = array("q"), array("B")

    def __len__(self) -> int:
        return len(self._where)

    @property
    def kinds(self) -> Iterable[Kind]:
        """The kinds that it has."""
        return self._places.keys()

    def places(self, kind: Kind) -> Mapping[str, int]:
        """Return case -> place of its figure of a kind."""
        return self._places.get(kind, {})

    def cases(self) -> Iterable[str]:
        """Return the names of all cases, each once."""
        parts: list[Mapping[str, Any]] = [*self._places.values(), self.failures, self.left_out]
        return parts[0] if not any(parts[1:]) else dict.fromkeys(chain.from_iterable(parts))

    def has(self, case: str) -> bool:
        """Return whether it knows of a case."""
        return case in self.failures or case in self.left_out or any(case in of for of in self._places.values())

    def ran(self, case: str) -> bool:
        """Return whether a case was measured, if not for something that is judged."""
        return self.left_out.get(case, SKIPPED) != SKIPPED or any(case in of for of in self._places.values())

    def add(self, case: str, kind: Kind, side: Side, environment: str = "", *, own_processes: bool = False) -> None:
        """Add a figure: at least one value, or the summary of some, measured in one of `environments`.

        Raises `UserError` where the file has it already, or a value cannot be one of its quantity.
        """
        if isinstance(side, Summary):
            alone = side.empty or self._has_zero(case, kind, (side.median,))
        elif (alone := self._has_zero(case, kind, side)) and kind.quantity == "time" and not own_processes:
            side, alone = self._without_zeros(side)
        cases = self._places.setdefault(kind, {})
        place = len(self._where)
        if cases.setdefault(case, place) != place:
            twice = f"{quoted(case)} twice ({kind.figure})"
            raise UserError(f"{self.name} has {twice}: it is unclear which of them to compare")
        if isinstance(side, Summary):
            self._values.extend((side.median, side.error, side.count))
        else:
            self._values.extend(side if len(side) <= MOST_VALUES else side[:: math.ceil(len(side) / MOST_VALUES)])
        self._ends.append(len(self._values))
        self._where.append(self._key(environment))
        self._flags.append(_SUMMARY * isinstance(side, Summary) + OWN_PROCESSES * own_processes + ALONE * alone)

    def add_many(self, cases: Sequence[str], kind: Kind, values: Sequence[Sequence[float]]) -> None:
        """Add a figure of each of many cases: what `add` does for each of them, six times as fast."""
        lengths = np.fromiter(map(len, values), np.int64, len(values))
        every = np.fromiter(chain.from_iterable(values), np.float64, int(lengths.sum()))
        if len(every) and lengths.max() <= MOST_VALUES and self._all_new_and_usable(cases, kind, every):
            self._append(cases, kind, every, lengths, 0)
            return
        for case, side in zip(cases, values, strict=True):
            self.add(case, kind, tuple(side))

    def add_many_summaries(self, cases: Sequence[str], kind: Kind, known: Sequence[tuple[float, float, int]]) -> None:
        """Likewise, of cases of which median, standard error and count are known."""
        every = np.array(known, np.float64).reshape(-1, 3)
        if every[:, 2].all() and self._all_new_and_usable(cases, kind, every[:, 0]):
            self._append(cases, kind, every.ravel(), np.full(len(known), 3, np.int64), _SUMMARY)
            return
        for case, one in zip(cases, known, strict=True):
            self.add(case, kind, Summary(*one))

    def _append(self, cases: Sequence[str], kind: Kind, every: Floats, lengths: Integers, flags: int) -> None:
        first, count = len(self._where), len(cases)
        self._places.setdefault(kind, {}).update(zip(cases, range(first, first + count), strict=True))
        self._ends.frombytes((lengths.cumsum() + len(self._values)).tobytes())
        self._values.frombytes(every.tobytes())
        self._where.extend([self._key("")] * count)
        self._flags.extend([flags] * count)

    def _all_new_and_usable(self, cases: Sequence[str], kind: Kind, values: Floats) -> bool:
        old = self._places.get(kind, {})
        usable = bool(((values > 0) & (values <= LARGEST)).all())  # NaN is not above 0 either
        return usable and len(set(cases)) == len(cases) and old.keys().isdisjoint(cases)

    def _key(self, environment: str) -> int:
        if environment not in self._keys:
            self._keys[environment] = len(self.environment_keys)
            self.environment_keys.append(environment)
        return self._keys[environment]

    def side(self, place: int) -> Side:
        """Return what was added."""
        values = self._values[self._ends[place] : self._ends[place + 1]]
        if self._flags[place] & _SUMMARY:
            return Summary(values[0], values[1], int(values[2]))
        return tuple(values)

    def sides(self, places: Integers) -> Sides:
        """Return what was added at some places, as columns over this object's own values."""
        values, ends = np.frombuffer(self._values), np.frombuffer(self._ends, np.int64)
        starts, summarised = ends[places], self.flagged(places, _SUMMARY)
        return Sides(values, starts, np.where(summarised, 1, ends[places + 1] - starts), summarised)

    def flagged(self, places: Integers, flag: int) -> Flags:
        """Return which of what was added at some places have a flag: `OWN_PROCESSES` or `ALONE`."""
        found: Flags = (np.frombuffer(self._flags, np.uint8)[places] & flag) != 0
        return found

    def own_processes(self, place: int) -> bool:
        """Return what was said of what was added."""
        return bool(self._flags[place] & OWN_PROCESSES)

    def environment(self, place: int) -> str:
        """Return the key of the environment of what was added."""
        return self.environment_keys[self._where[place]]

    def rename(self, names: Mapping[str, str]) -> None:
        """Give cases other names, none of which it has."""
        parts: list[dict[str, Any]] = [*self._places.values(), self.failures, self.left_out, self.ids]
        for of in parts:
            for old in names.keys() & of.keys():
                of[names[old]] = of.pop(old)

    def _has_zero(self, case: str, kind: Kind, values: tuple[float, ...]) -> bool:
        """Return whether a value is 0; raises `UserError` for one that cannot be."""
        signed = kind.quantity == "accuracy"
        least = -LARGEST if signed else 0.0
        wrong = next((value for value in values if not least <= value <= LARGEST), None)  # NaN is not between either
        if wrong is not None:
            raise out_of_range(wrong, f"{self.name}: the {kind.figure} of {quoted(case)}", signed=signed)
        return not signed and min(values) == 0

    def _without_zeros(self, values: tuple[float, ...]) -> tuple[tuple[float, ...], bool]:
        """Return the values of one process with the shortest in place of 0 s; or as they are, and True.

        Median and interval rest on the `lower_rank`-th value and those above it, so fewer zeros change neither.
        """
        zeros = values.count(0.0)
        if zeros >= lower_rank(len(values)):
            return values, True
        self.zeros += zeros
        shortest = min(filter(None, values))
        return tuple(value or shortest for value in values), False


def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested JSON as name -> value, names joined by dots; null and empty values are left out."""
    found: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        elif value not in (None, "", []):
            found[f"{prefix}{key}"] = value
    return found
