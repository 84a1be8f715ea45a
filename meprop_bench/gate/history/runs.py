"""One run of a suite, as a history keeps it: when, where, and the median of each of its figures.

    file  ->  Run      asv's result of a commit, a file of pytest-benchmark's storage, a results folder of ours

Of the values behind a median a history keeps how far they disagree (`evidence.disagreement`), to know when a run was
disturbed: how well a median is known, the medians of the other runs tell. So a run is three columns, places, values and
disagreements, over the figures of all runs (`Columns`). What failed is infinite, what was skipped or left out is not
there.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from meprop_bench.errors import UserError
from meprop_bench.gate.evidence import disagreement, medians
from meprop_bench.gate.files import asv, read_file
from meprop_bench.gate.files.figures import OWN_PROCESSES, Figures, Kind
from meprop_bench.gate.files.stream import LARGEST
from meprop_bench.gate.names import shown
from meprop_bench.gate.series import Floats, Integers
from meprop_bench.results.redact import one_line
from meprop_bench.results.store import MEASUREMENTS

__all__ = ["FAILED", "Columns", "Run", "RunReader", "files", "where"]

FAILED = math.inf
"""Stands for a figure that was asked for and failed."""

_NOT_RUNS = {"benchmarks.json", "machine.json", "environment.json"}
_HEAD = 4096
"""Bytes in which asv and pytest-benchmark say what they are."""


class Columns:
    """The figures of all runs, each a case and what of it, in the order in which they were met."""

    def __init__(self, cases: list[str] | None = None, kinds: list[Kind] | None = None, kind: Integers | None = None):
        self.cases = cases or []
        self.kinds = kinds or []
        self.kind = [] if kind is None else kind.tolist()
        self._kinds = {one: place for place, one in enumerate(self.kinds)}
        own = zip(self.cases, self.kind, strict=True)
        self._places = {(kind, case): place for place, (case, kind) in enumerate(own)}
        self._known: dict[tuple[int, int], tuple[list[str], Integers]] = {}

    def __len__(self) -> int:
        return len(self.cases)

    def places(self, kind: Kind, cases: list[str]) -> Integers:
        """Return the column of each case, new ones for those that were not met before."""
        number = self._number(kind)
        # asv's reader gives the same list for the same parameters, run after run.
        known = self._known.get((number, id(cases)))
        if known is not None and known[0] is cases:
            return known[1]
        found = np.fromiter((self._place(number, case) for case in cases), np.int64, len(cases))
        self._known[number, id(cases)] = (cases, found)
        return found

    def find(self, kind: Kind, case: str) -> int | None:
        """Return the column of a figure, None where no run has it."""
        number = self._kinds.get(kind)
        return None if number is None else self._places.get((number, case))

    def _number(self, kind: Kind) -> int:
        if kind not in self._kinds:
            self._kinds[kind] = len(self.kinds)
            self.kinds.append(kind)
        return self._kinds[kind]

    def _place(self, kind: int, case: str) -> int:
        place = self._places.setdefault((kind, case), len(self.cases))
        if place == len(self.cases):
            self.cases.append(case)
            self.kind.append(kind)
        return place


@dataclass(frozen=True, slots=True)
class Run:
    """One run; its figures are `values` and their `disagreement` at some `places` of the columns."""

    name: str  # its file below the folder
    stamp: tuple[int, int]  # size and time of change of that file, by which a cache knows it again
    when: float = math.nan  # seconds since 1970
    commit: str = ""
    where: str = ""  # a digest of its environment
    trouble: str = ""  # why it cannot be read, if so
    places: Integers = field(default_factory=lambda: np.zeros(0, np.int64))
    values: Floats = field(default_factory=lambda: np.zeros(0))
    disagreement: Floats = field(default_factory=lambda: np.zeros(0))


class RunReader:
    """Reads the runs of a folder; `environments` are those that it met, by their digest."""

    def __init__(self, folder: Path, columns: Columns, environments: dict[str, Mapping[str, Any]]) -> None:
        self._folder, self._columns, self.environments = folder, columns, environments
        self._names: dict[tuple[str, str], list[str]] = {}
        self._units: dict[Path, dict[str, str]] = {}

    def read(self, path: Path) -> Run:
        """Return a run; one that cannot be read says why in its `trouble`."""
        name = path.relative_to(self._folder).as_posix()
        stamp = stamp_of(path)
        try:
            if path.name != MEASUREMENTS and (document := _asv(path)) is not None:
                return self._of_asv(path, name, stamp, document)
            return self._of_figures(read_file(path), name, stamp)
        except UserError as error:
            return Run(name, stamp, trouble=one_line(str(error), 200))

    def _of_asv(self, path: Path, name: str, stamp: tuple[int, int], document: Mapping[str, Any]) -> Run:
        if path.parent not in self._units:
            self._units[path.parent] = asv.units_of(path)
        places: list[Integers] = []
        values: list[Floats] = []
        apart: list[Floats] = []
        try:
            for kind, cases, results, disagree in asv.medians(document, self._units[path.parent], self._names):
                places.append(self._columns.places(kind, cases))
                values.append(np.array([FAILED if value is None else value for value in results], np.float64))
                apart.append(disagree)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            return self._of_figures(read_file(path), name, stamp)  # which says what is wrong
        where = self._environment(_described([asv.identity(document)], asv.series(document)))
        commit = str(document.get("commit_hash") or "")
        when = asv.date(document)
        return _run(name, stamp, when, commit, where, places, values, apart)

    def _of_figures(self, found: Figures, name: str, stamp: tuple[int, int]) -> Run:
        places: list[Integers] = []
        values: list[Floats] = []
        apart: list[Floats] = []
        for kind in found.kinds:
            if kind.quantity == "accuracy":
                continue
            own = found.places(kind)
            rows = np.fromiter(own.values(), np.int64, len(own))
            places.append(self._columns.places(kind, list(own)))
            values.append(medians(sides := found.sides(rows)))
            apart.append(disagreement(sides, found.flagged(rows, OWN_PROCESSES)))
        where = self._environment(where_of(found))
        return _run(name, stamp, found.when, "", where, places, values, apart)

    def _environment(self, identities: list[Mapping[str, Any]]) -> str:
        digest = where(identities)
        self.environments.setdefault(digest, identities[0] if identities else {})
        return digest


def files(folder: Path) -> list[Path]:
    """Return what may be a run in a folder, or below: JSON files, and the rows of results folders.

    Raises `UserError` for a folder that is none.
    """
    if not folder.is_dir():
        raise UserError(
            f"{shown(str(folder), 120)} is not a folder: name one of asv's results, of pytest-benchmark's"
            " storage, or of results of meprop-bench"
        )
    if (folder / "results" / "benchmarks.json").is_file():  # asv's own folder, whose pages are JSON as well
        folder = folder / "results"
    own = [path for path in folder.rglob("*.json") if path.name not in _NOT_RUNS and path.is_file()]
    return sorted([*own, *folder.rglob(MEASUREMENTS)])


def stamp_of(path: Path) -> tuple[int, int]:
    """Return by what a file is known again."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def where(identities: list[Mapping[str, Any]]) -> str:
    """Return a digest of the environments of a run, the same for equal ones."""
    text = json.dumps(sorted(json.dumps(one, sort_keys=True, default=str) for one in identities))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def where_of(found: Figures) -> list[Mapping[str, Any]]:
    """Return the environments that figures were measured in; of one that is not described, its key."""
    own = [found.environments.get(key) or ({"environment": key} if key else {}) for key in found.environment_keys]
    return _described(own, found.series)


def _described(identities: list[Mapping[str, Any]], series: str) -> list[Mapping[str, Any]]:
    return [{**one, "asv environment": series} for one in identities] if series else identities


def _run(
    name: str,
    stamp: tuple[int, int],
    when: float | None,
    commit: str,
    where: str,
    places: list[Integers],
    values: list[Floats],
    apart: list[Floats],
) -> Run:
    every = np.concatenate(values) if values else np.zeros(0)
    every[~((every >= 0) & (every <= LARGEST)) & (every != FAILED)] = np.nan  # a negative number has no ratio
    found = np.concatenate(places) if places else np.zeros(0, np.int64)
    disagree = np.concatenate(apart) if apart else np.zeros(0)
    return Run(name, stamp, math.nan if when is None else when, commit, where, "", found, every, disagree)


def _asv(path: Path) -> Mapping[str, Any] | None:
    """Return the result of asv that a file holds; None where it holds something else, which others read."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            if b'"commit_hash"' not in head or b'"machine_info"' in head:
                return None
            document = json.loads(head + file.read())
    except (OSError, ValueError, RecursionError):
        return None
    if not (isinstance(document, dict) and document.get("version") == asv.VERSION and "result_columns" in document):
        return None
    return document
