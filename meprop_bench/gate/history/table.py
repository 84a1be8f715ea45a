"""All runs of a folder as one table, (runs, figures), and the cache that spares reading them again.

    run                 a/value   b/value   c(1)/value ...
    2021-03-01  …       1.2e-3    4.0e-5      NaN           NaN: not measured, infinite: failed
    2021-03-02  …       1.2e-3    4.1e-5     7.1e-2

825 runs of scipy (13,800 columns, 6,000 of them in a run) took 17 s of a processor and 0.48 GiB to read, from the cache
1.0 s; to judge a run by them took 1.2 s. The cache is a file of the user's cache folder for each history folder. A run
is known again by name, size and time of change, so that what is new is read, and what was changed, too; a cache that
cannot be read, or is of another version, is made anew.
"""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from meprop_bench.atomic import replacing
from meprop_bench.cache import writable
from meprop_bench.gate.files.figures import Kind
from meprop_bench.gate.history.runs import Columns, Run, RunReader, files, stamp_of
from meprop_bench.gate.series import Floats

__all__ = ["History", "read_history"]

_VERSION = 3
"""Of what is read from a file, and of how it is kept: a cache of another version is not read."""


@dataclass(frozen=True)
class History:
    """The runs of a folder in the order in which they were made, as rows of `values`."""

    runs: tuple[Run, ...]  # without their own columns
    columns: Columns
    values: Floats  # (runs, figures): medians in the figure's unit, NaN where there is none, infinite where it failed
    disagreement: npt.NDArray[np.float32]  # (runs, figures): of the values behind each, log scale
    environments: Mapping[str, Mapping[str, Any]]  # by `Run.where`
    unread: tuple[tuple[str, str], ...] = ()  # files that are no runs, and why


class _Stored(msgspec.Struct):
    """What the cache keeps beside the values; `kinds` are figure, quantity, unit, basis."""

    version: int
    units: list[tuple[str, int, int]]
    runs: list[tuple[str, tuple[int, int], float | None, str, str, str]]
    cases: list[str]
    kinds: list[tuple[str, Any, str, str]]
    kind: list[int]
    environments: dict[str, dict[str, Any]]


def read_history(folder: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> History:
    """Return the runs of a folder; `progress` is called with how many of how many files are read.

    Raises `UserError` for a folder that is none.
    """
    paths = files(folder)
    units = [(str(path), *stamp_of(path)) for path in _unit_files(folder)]
    known, columns, environments, old, before = _load(folder, units)
    reader = RunReader(folder, columns, environments)
    runs: list[Run] = []
    rows: list[int] = []  # of a run that is in the cache its row there, else -1
    for done, path in enumerate(paths):
        progress(done, len(paths))
        name = path.relative_to(folder).as_posix()
        row, run = known.get(name, (-1, None))
        if run is None or run.stamp != stamp_of(path):
            row, run = -1, reader.read(path)
        runs.append(run)
        rows.append(row)
    values = np.full((len(runs), len(columns)), np.nan)
    apart = np.zeros(values.shape, np.float32)
    for place, (run, row) in enumerate(zip(runs, rows, strict=True)):
        if row >= 0:
            values[place, : old.shape[1]], apart[place, : old.shape[1]] = old[row], before[row]
        else:
            values[place, run.places], apart[place, run.places] = run.values, run.disagreement
    nothing = np.zeros(0)
    runs = [replace(run, places=run.places[:0], values=nothing, disagreement=nothing) for run in runs]
    if any(row < 0 for row in rows) or len(known) != len(runs):
        _keep(folder, units, runs, columns, environments, values, apart)
    order = [place for place, run in enumerate(runs) if not run.trouble]
    order.sort(key=lambda place: (runs[place].when if runs[place].when == runs[place].when else -math.inf, place))
    unread = tuple((run.name, run.trouble) for run in runs if run.trouble)
    return History(tuple(runs[place] for place in order), columns, values[order], apart[order], environments, unread)


def _unit_files(folder: Path) -> list[Path]:
    """Return what tells the units of asv's benchmarks: if that is another one, all is read anew."""
    above = folder.resolve().parent / "benchmarks.json"
    return [path for path in (above, *sorted(folder.rglob("benchmarks.json"))) if path.is_file()]


def _cache(folder: Path) -> Path | None:
    place = writable("history")
    return place and place / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:24]}.npz"


_Known: TypeAlias = dict[str, tuple[int, Run]]
_Apart: TypeAlias = npt.NDArray[np.float32]
_Loaded: TypeAlias = tuple[_Known, Columns, dict[str, Any], Floats, _Apart]


def _load(folder: Path, units: list[tuple[str, int, int]]) -> _Loaded:
    """Return what the cache has of a folder: runs by name, each with its row, columns, environments, both tables."""
    nothing: _Loaded = {}, Columns(), {}, np.zeros((0, 0)), np.zeros((0, 0), np.float32)
    path = _cache(folder)
    if path is None or not path.is_file():
        return nothing
    try:
        with np.load(path, allow_pickle=False) as arrays:
            stored = msgspec.json.decode(arrays["about"].tobytes(), type=_Stored)
            values: Floats = arrays["values"]
            apart: _Apart = arrays["disagreement"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, msgspec.MsgspecError):
        return nothing
    kinds = [Kind(*one) for one in stored.kinds]
    shape = (len(stored.runs), len(stored.cases))
    if stored.version != _VERSION or stored.units != units or values.shape != shape or apart.shape != shape:
        return nothing
    if len(stored.kind) != shape[1]:
        return nothing
    known = {
        name: (row, Run(name, stamp, math.nan if when is None else when, commit, where, trouble))
        for row, (name, stamp, when, commit, where, trouble) in enumerate(stored.runs)
    }
    return known, Columns(stored.cases, kinds, np.array(stored.kind, np.int64)), stored.environments, values, apart


def _keep(
    folder: Path,
    units: list[tuple[str, int, int]],
    runs: list[Run],
    columns: Columns,
    environments: Mapping[str, Mapping[str, Any]],
    values: Floats,
    apart: _Apart,
) -> None:
    """Write the cache; where that cannot be done, the next run reads the files again."""
    if (path := _cache(folder)) is None:
        return
    stored = _Stored(
        _VERSION,
        units,
        [(r.name, r.stamp, None if math.isnan(r.when) else r.when, r.commit, r.where, r.trouble) for r in runs],
        columns.cases,
        [(kind.figure, kind.quantity, kind.unit, kind.basis) for kind in columns.kinds],
        columns.kind,
        {key: dict(one) for key, one in environments.items()},
    )
    about = np.frombuffer(msgspec.json.encode(stored), np.uint8)
    with suppress(OSError, UnicodeEncodeError, TypeError), replacing(path) as file:
        np.savez(file, about=about, values=values, disagreement=apart)
