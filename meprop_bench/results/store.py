"""A results folder: created once, appended to after each case, resumed after a kill, never overwritten.

    <root>/<YYYY-MM-DD>_<machine>_<name>/measurements.jsonl   one row per line, append only
                                         environment.json     command, plan, environments, peaks, states

The case is the unit of work: its rows are appended in one write and synced, so that a kill costs the case being
measured and no other. A write that was cut off leaves a torn last line; it is recognised on opening, removed together
with the rest of its case, and that case is measured again. The writer holds an flock on `measurements.jsonl` itself:
two runs cannot mix, a crash releases it, and no lock file is left behind. A later row of a case and phase replaces an
earlier one.
"""

from __future__ import annotations

import gc
import json
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

from msgspec import Meta

from meprop_bench.atomic import replacing
from meprop_bench.errors import UserError
from meprop_bench.measure.many import settle
from meprop_bench.measure.notes import Note
from meprop_bench.results.consistency import check_row
from meprop_bench.results.incoming import Name, Number, Rate, checked, parsed, refused
from meprop_bench.results.lines import Lines, append_lines, cut, or_user_error
from meprop_bench.results.reading import rows_of
from meprop_bench.results.redact import one_line, printable, without_paths
from meprop_bench.results.schema import SCHEMA, Flat, Row, check_schema
from meprop_bench.results.shards import ShardOf

__all__ = ["ENVIRONMENT", "MEASUREMENTS", "Store", "folder_of", "lock", "replace_file", "sound_row"]

MEASUREMENTS = "measurements.jsonl"
ENVIRONMENT = "environment.json"

_FIRST_YEAR = 2000
_ADVICE = "delete the line, or the folder, and measure again"
_NOT_STORED = "it was not stored, since nobody could read it: please report this"


def folder_of(path: Path) -> Path:
    """Return the results folder that a path names by one of its files; any other path as it is."""
    if path.name not in (MEASUREMENTS, ENVIRONMENT) or not path.is_file():
        return path
    return path.parent


def replace_file(path: Path, content: str | bytes | Iterable[str]) -> None:
    """Write `path`, from pieces where it is long, as a whole or not at all (`UserError`)."""
    pieces: Iterable[str | bytes] = (content,) if isinstance(content, str | bytes) else content
    with or_user_error(path), replacing(path) as file:
        for piece in pieces:
            file.write(piece.encode("utf-8", "backslashreplace") if isinstance(piece, str) else piece)


class Store:
    """One results folder; make it with `create`, `open` or `find_resumable`, and close it (or use `with`).

    `header` is `environment.json` as stored: command, started, plan, environments, peaks, and the machine's states, one
    for each time that the run was begun or resumed.
    """

    def __init__(self, folder: Path, *, write: bool) -> None:
        self.folder = folder
        self.notes: list[str] = []  # what had to be put right on opening, one line each
        self._fd: int | None = None
        self.header = _read_header(folder)
        try:
            if write:
                self._fd = lock(folder / MEASUREMENTS)
            self._rows = self._load()
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(
        cls,
        root: Path,
        name: str,
        machine: str,
        command: str,
        plan: Mapping[str, Any],
        *,
        shard: ShardOf | None = None,
        here: bool = True,
        now: datetime | None = None,
    ) -> Self:
        """Make a new folder under `root` (made if it is not there) and open it for writing.

        The name of the sweep and the machine are parts of the folder's: letters, digits, dot, dash and underscore; and
        so is the shard, where the plan is of a part of a run. The plan, JSON-able, and the shard are what
        `find_resumable` compares. What is not measured `here`, but on a cluster, is continued from any machine.
        Absolute paths in the command are shortened.
        """
        from meprop_bench.measure.environment import hardware

        started = now or datetime.now(UTC)
        stem = f"{started:%Y-%m-%d}_{_slug(machine, 'machine')}_{_slug(_named(name, shard), 'name')}"
        header = {
            "schema": SCHEMA,
            "command": one_line(command, 2000),
            "started": started.isoformat(timespec="seconds"),
            "plan": _plain(plan),
            "environments": {},
            "peaks": {},
            "states": [],
            "hardware": _plain(hardware()) if here else {},
            **({} if shard is None else {"shard": _plain(shard.to_json())}),
        }
        with or_user_error(root / stem):
            root.mkdir(parents=True, exist_ok=True)
            folder = _new_folder(root, stem)
        return cls.begin(folder, header)

    @classmethod
    def begin(cls, folder: Path, header: Mapping[str, Any]) -> Self:
        """Open a folder that is there and empty for writing, with this header, which is `environment.json`."""
        with or_user_error(folder):
            (folder / MEASUREMENTS).touch()
        replace_file(folder / ENVIRONMENT, _dump(header))
        return cls(folder, write=True)

    @classmethod
    def open(cls, folder: Path, *, write: bool = False) -> Self:
        """Open an existing folder, for reading by default (no lock, nothing changed on disk).

        `UserError`: no results there, a corrupt row, another schema; with `write`, another run holds it.
        """
        return cls(folder, write=write)

    @classmethod
    def find_resumable(
        cls, root: Path, name: str, machine: str, plan: Mapping[str, Any], *, shard: ShardOf | None = None
    ) -> Self | None:
        """Open for writing the latest folder of this name and machine whose plan equals `plan`, if there is one.

        Two machines may share a name; what was begun on another one is not continued, nor is another shard's.
        """
        stem = f"{re.escape(machine)}_{re.escape(_named(name, shard))}"
        pattern = re.compile(rf"\d{{4}}-\d\d-\d\d_{stem}(?:-\d+)?")
        wanted = _plain(plan), None if shard is None else _plain(shard.to_json())
        found: list[tuple[str, Path]] = []
        for folder in root.iterdir() if root.is_dir() else ():
            if pattern.fullmatch(folder.name) and (folder / ENVIRONMENT).is_file():
                with suppress(UserError):  # a broken neighbour is no reason to stop here
                    header = _read_header(folder)
                    if (header["plan"], header.get("shard")) == wanted and _begun_here(header):
                        found.append((header["started"], folder))
        return cls.open(max(found)[1], write=True) if found else None

    @classmethod
    def begun(
        cls, root: Path, name: str, machine: str, command: str, plan: Mapping[str, Any], *, resume: bool = True
    ) -> Self:
        """Open what `find_resumable` finds, if it is to be resumed, or `create` a new folder."""
        found = cls.find_resumable(root, name, machine, plan) if resume else None
        return found or cls.create(root, name, machine, command, plan)

    def append(self, rows: Iterable[Row], others: Iterable[Store] = ()) -> None:
        """Add the rows of one case: all of them are on the disk when this returns, or none (`UserError`).

        Those that other folders hold are stored as the lines that they are there.
        """
        if self._fd is None:
            raise ValueError("append: the store is not open for writing")
        rows = list(rows)
        there = {id(row): line[:-1] for other in others for row, line in other._lines()}
        lines = [there.get(id(row)) or json.dumps(row.to_json(), allow_nan=False).encode() for row in rows]
        for line in lines:
            _parse(line, self.folder / MEASUREMENTS, "(new row)", _NOT_STORED)
        append_lines(self.folder / MEASUREMENTS, lines, self._fd)
        self._rows.extend(rows)

    def take(self, other: Store, case_ids: Collection[str]) -> int:
        """Add the rows that another folder has of these cases, and where they were measured; return of how many cases.

        Cases that are here already stay as they are, and what failed there is left to be measured. A note in each row
        says where it is from.
        """
        found: dict[str, list[Row]] = {}
        for row in other.rows():
            found.setdefault(row.case_id, []).append(row)
        known = {case_id for case_id, rows in found.items() if any(row.passed for row in rows)}
        wanted = known & set(case_ids) - self.done_case_ids()
        environments = {row.environment_id for case_id in wanted for row in found[case_id]}
        if wanted:
            of_rows = {key: each for key, each in other.header["environments"].items() if key in environments}
            self.write_environment(of_rows, other.header["peaks"])
        for case_id in (case_id for case_id in case_ids if case_id in wanted):
            origin = Note(f"measured for {other.folder.name}")
            self.append([replace(row, notes=(*row.notes, origin)) for row in found[case_id]])
        return len(wanted)

    def rows(self) -> list[Row]:
        """Return the rows in the order of their first appearance, the latest of each case and phase."""
        return list({(row.case_id, row.phase): row for row in self._rows}.values())

    def _lines(self) -> Iterable[tuple[Row, bytes]]:
        """Return each row with its line; what was cut off, and its case, come last and have no row."""
        return zip(self._rows, chain.from_iterable(Lines(self.folder / MEASUREMENTS)), strict=False)

    def done_case_ids(self) -> frozenset[str]:
        """Return the cases that need not be measured again; a case that failed is one of them."""
        return frozenset(row.case_id for row in self._rows)

    def write_environment(
        self, environments: Mapping[str, Mapping[str, Any]], peaks: Mapping[str, Any] | None = None
    ) -> None:
        """Add environments (by their id) and peaks to `environment.json`.

        An environment that is there already stays as it is: rows that do not say their revision have the one of it.
        """
        self.header["environments"] = {**_plain(environments), **self.header["environments"]}
        self.header["peaks"] |= _plain(peaks or {})
        self._save()

    def write_state(self, state: Mapping[str, Any], *, now: datetime | None = None) -> None:
        """Add what the machine did when the run was begun, or resumed, to `environment.json`."""
        at = (now or datetime.now(UTC)).isoformat(timespec="seconds")
        self.header["states"] = [*self.header.get("states", []), {"at": at, **_plain(state)}]
        self._save()

    def write_answer(self, sentence: str) -> None:
        """Put what came of a search into `environment.json`: its rows are what was timed on the way."""
        self.header["answer"] = sentence
        self._save()

    def _save(self) -> None:
        replace_file(self.folder / ENVIRONMENT, _dump(self.header))

    def close(self) -> None:
        """Release the lock; reading still works."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _load(self) -> list[Row]:
        path = self.folder / MEASUREMENTS
        found, rows = Lines(path), list[Row]()
        size, last = 0, (0, 0)  # last: rows and bytes before the case that the last rows are of
        with _without_collector():
            for lines in found:
                for row, line in zip(_sound_rows(lines, path, len(rows)), lines, strict=True):
                    if not rows or row.case_id != rows[-1].case_id:
                        last = (len(rows), size)
                    rows.append(row)
                    size += len(line)
        if not found.torn:
            return rows
        # A case has a row for each phase: unless the torn line names another case, the rows before it are its own.
        owner = re.search(rb'"case_id": "([^"]+)"', found.torn)
        if rows and (owner is None or owner[1] == json.dumps(rows[-1].case_id)[1:-1].encode()):
            del rows[last[0] :]
            size = last[1]
        self.notes.append(
            "the last case had been cut off while it was written; it was removed and counts as not measured"
        )
        if self._fd is not None:
            cut(path, size, self._fd)
        return rows


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep the cyclic collector from looking through all rows again and again while they are read: they hold none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _sound_rows(lines: Sequence[bytes], path: Path, before: int) -> list[Row]:
    """Return the rows of some lines, behind that many; a `UserError` names the first that is not sound."""
    if (sound := rows_of(lines)) is not None:
        return sound
    found: list[tuple[Row, Flat]] = []
    wrong: Exception | None = None
    try:
        for line in lines:
            found.append(Row.unchecked(parsed(line[:-1])))
    except (UserError, ValueError) as error:
        wrong = error
    settle([row.measurement for row, _ in found if row.measurement is not None])
    place = 0
    try:
        for place, (row, flat) in enumerate(found):  # noqa: B007 (it says which one is wrong)
            check_row(row, flat)
        if wrong is not None:
            place = len(found)
            raise wrong
    except (UserError, ValueError) as error:
        where = f"{path.parent.name}/{MEASUREMENTS} line {before + place + 1}"
        raise _unsound(error, where, f"{where} is not a sound row", _ADVICE) from None
    return [row for row, _ in found]


def _parse(line: bytes, path: Path, place: str, advice: str = _ADVICE) -> Row:
    where = f"{path.parent.name}/{MEASUREMENTS} {place}"
    return sound_row(line, where, f"{where} is not a sound row", advice)


def sound_row(record: bytes | Mapping[str, Any], where: str, otherwise: str, advice: str = "measure again") -> Row:
    """Return a row from JSON; a `UserError` says where it stands, and of one that is not sound `otherwise`."""
    try:
        return Row.from_json(parsed(record) if isinstance(record, bytes) else record)
    except (UserError, ValueError) as error:
        raise _unsound(error, where, otherwise, advice) from None


def _unsound(error: Exception, where: str, otherwise: str, advice: str) -> UserError:
    return UserError(f"{where}: {error}") if isinstance(error, UserError) else refused(otherwise, error, advice)


def _begun_here(header: Mapping[str, Any]) -> bool:
    """Whether a run was begun on this machine; one of an older version says so by its environments."""
    from meprop_bench.measure.environment import hardware

    if header.get("hardware") == {}:  # measured on the nodes of a cluster
        return True
    own = _plain(hardware())
    known = [
        found for found in (header.get("hardware"), *header["environments"].values()) if isinstance(found, Mapping)
    ]
    return all(found.get(name) in (None, value) for found in known for name, value in own.items())


@dataclass
class _Plan:
    """What all plans have in common; the rest is of the verb that made it."""

    name: str | None = None
    cases: tuple[dict[str, Any], ...] = ()


@dataclass
class _Peaks:
    flops_per_s: dict[str, Rate]
    bandwidth: Annotated[tuple[tuple[Rate, Rate], ...], Meta(min_length=1)]


@dataclass
class _Environment:
    """What is read of an environment; the rest is shown as it is."""

    git_revision: Name | None = None
    cpu_usable_cores: Number | None = None
    variables: dict[str, str | None] | None = None


@dataclass
class _Header:
    """What a reader of `environment.json` may rely on."""

    command: str
    started: datetime
    plan: _Plan
    environments: dict[Name, _Environment]
    peaks: dict[Name, _Peaks]
    states: tuple[dict[str, Any], ...] = ()
    shard: dict[str, Any] | None = None
    answer: str | None = None


def _read_header(folder: Path) -> dict[str, Any]:
    path = folder / ENVIRONMENT
    if not path.is_file() or not (folder / MEASUREMENTS).is_file():
        what = "is not a results folder" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {what}: expected a folder with {MEASUREMENTS} and {ENVIRONMENT}")
    with or_user_error(path, "read"):
        data = path.read_bytes()
    where = f"{folder.name}/{ENVIRONMENT}"
    try:
        header = parsed(data)
        check_schema(header)
        if checked(header, _Header).started.year < _FIRST_YEAR:
            raise ValueError(f"started is {header['started']}, before there was this package")
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except ValueError as error:
        raise refused(where, error, "restore it or measure again") from None
    return {**header, **{name: printable(header[name]) for name in _SHOWN if name in header}}


_SHOWN = ("command", "environments", "states", "answer")
"""Keys of a header that are shown to readers as they are."""


def lock(path: Path) -> int:
    """Open for appending under an exclusive lock that ends with the process (POSIX; elsewhere there is no lock).

    `UserError`: the file cannot be opened, or another process holds it.
    """
    with or_user_error(path):
        fd = os.open(path, os.O_RDWR | os.O_APPEND | getattr(os, "O_BINARY", 0))
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            busy = isinstance(error, BlockingIOError)
            reason = "another run is writing to it" if busy else f"its file system has no locks ({error.strerror})"
            raise UserError(
                f"results folder {path.parent.name} cannot be locked: {reason}; wait, or use --out"
            ) from None
    return fd


def _new_folder(root: Path, stem: str) -> Path:
    count = 1
    while True:
        folder = root / (stem if count == 1 else f"{stem}-{count}")
        try:
            folder.mkdir()
        except FileExistsError:
            count += 1
        else:
            return folder


def _named(name: str, shard: ShardOf | None) -> str:
    return name if shard is None else f"{name}-{shard.shard.stem}"


def _slug(text: str, what: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        raise UserError(
            f"{what} {text!r} cannot be part of a folder's name: use letters, digits, dot, dash, underscore"
        )
    return text


def _plain(value: Any) -> Any:
    """Return `value` as JSON gives it back (tuples are lists, keys strings), without paths, so that `==` is right."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return without_paths(value)
    if isinstance(value, float) and value - value != 0:
        return None
    return value


def _dump(header: Mapping[str, Any]) -> str:
    return json.dumps(header, indent=2, allow_nan=False) + "\n"
