"""Named baselines: results that are kept under a name, so that later ones can be compared with them.

    baselines/main/baseline.json                what it is, and which of the folders beside it holds the results
                   3f2a1c0d9e8b/after.json      the results as they were: a results folder, or a file of another tool

The folder is meant to be committed: an update is then part of a change that somebody reviews. Whoever replaces a
baseline says which one, by its digest, so that nobody replaces another than the one that they looked at.

The results have a folder of their own, named after their content, and `baseline.json` is replaced as a whole: it points
at results that are complete, whenever a save is cut off.

    baselines = Baselines(Path("baselines"))
    baselines.save("main", [Path("reports/2026-11-28_amd-epyc-2c_gate")], source="...", machine="...")
    baselines.named("main").results
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from meprop_bench.errors import ExitCode, UserError, nearest
from meprop_bench.results.incoming import checked, parsed, refused
from meprop_bench.results.redact import one_line
from meprop_bench.results.store import ENVIRONMENT, MEASUREMENTS, replace_file

__all__ = ["FOLDER", "Baseline", "Baselines"]

FOLDER = Path("baselines")
"""Where they are by default, from the folder in which a command is started."""

_RECORD = "baseline.json"
_SCHEMA = "meprop-bench-baseline/1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DIGITS = 12


@dataclass(frozen=True)
class Baseline:
    """One of them: `results` are what it is of, a results folder or a file of another tool."""

    name: str
    results: Path
    saved: datetime
    source: str  # what was saved, in a few words: "after.json (pytest-benchmark)"
    machine: str  # where it was measured, in a few words
    digest: str  # of the results, 12 hexadecimal digits

    @property
    def line(self) -> str:
        """What it is, for the middle of a sentence."""
        return f"{self.name} ({self.digest}, saved {self.saved:%Y-%m-%d} from {self.source})"


@dataclass
class _StoredBaseline:
    schema: str
    saved: datetime
    results: Annotated[str, Meta(pattern=r"^[^/\\.][^/\\]*$")]
    source: str
    machine: str
    digest: Annotated[str, Meta(pattern=rf"^[0-9a-f]{{{_DIGITS}}}$")]


class Baselines:
    """The baselines of a folder, which need not exist yet."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder

    def __contains__(self, name: str) -> bool:
        return _NAME.fullmatch(name) is not None and (self.folder / name / _RECORD).is_file()

    def names(self) -> list[str]:
        """Return the names of all, sorted."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(path.name for path in found if path.name in self)

    def named(self, name: str) -> Baseline:
        """Return one; `UserError`: there is none (exit code 3), or its results are not those that were saved."""
        if name not in self:
            known = self.names()
            close = nearest(name, known)
            hint = f"did you mean {close!r}? " if close else ""
            there = f"there are {', '.join(known)}" if known else "there are none"
            wanted = one_line(name, 100)
            raise UserError(f"no baseline {wanted!r} in {self.folder}: {hint}{there}", ExitCode.NOT_COMPARABLE)
        found = self._read(name)
        if not found.results.exists() or _digest(self._folder(found).rglob("*")) != found.digest:
            raise UserError(
                f"the results of the baseline {name} are not those that were saved: restore them, or save it anew"
            )
        return found

    def save(
        self,
        name: str,
        results: Sequence[Path],
        *,
        source: str,
        machine: str,
        replaces: str = "",
        now: datetime | None = None,
    ) -> Baseline:
        """Keep results under a name: a results folder, or a file, and files that belong to it.

        `replaces` is the digest of the baseline that has the name, which is given up. `UserError`: no name for one,
        another baseline has it, or the folder cannot be written.
        """
        if not _NAME.fullmatch(name):
            wanted = one_line(name, 100)
            raise UserError(f"{wanted!r} cannot be a baseline's name: use letters, digits, dot, dash, underscore")
        first = results[0].resolve()
        if first.name == MEASUREMENTS and (first.parent / ENVIRONMENT).is_file():
            first = first.parent
        own = [first / part for part in (MEASUREMENTS, ENVIRONMENT)] if first.is_dir() else [first]
        files = {file: Path(first.name if first.is_dir() else "", file.name) for file in (*own, *results[1:])}
        try:
            digest = _digest(files)
        except OSError as error:
            raise UserError(f"cannot read {first.name}: {error.strerror or type(error).__name__}") from None
        before = self._read(name) if name in self else None
        if before is not None and before.digest not in (replaces, digest):
            raise UserError(
                f"there is a baseline {before.line}: to replace it, confirm that (at the command line --replace"
                f" {before.digest})"
            )
        saved = (now or datetime.now(UTC)).replace(microsecond=0)
        found = Baseline(name, self.folder / name / digest / first.name, saved, source, machine, digest)
        _copy(files, self._folder(found))
        record = _StoredBaseline(_SCHEMA, saved, first.name, source, machine, digest)
        replace_file(self.folder / name / _RECORD, msgspec.json.format(msgspec.json.encode(record)) + b"\n")
        if before is not None and before.digest != digest:
            shutil.rmtree(self._folder(before), ignore_errors=True)
        return found

    def _folder(self, baseline: Baseline) -> Path:
        return self.folder / baseline.name / baseline.digest

    def _read(self, name: str) -> Baseline:
        path = self.folder / name / _RECORD
        where = f"{self.folder.name}/{name}/{_RECORD}"
        advice = f"restore it, or delete {self.folder.name}/{name} and save the baseline anew"
        try:
            record = checked(parsed(path.read_bytes()), _StoredBaseline)
        except OSError as error:
            raise UserError(f"cannot read {where}: {error.strerror or type(error).__name__}") from None
        except ValueError as error:
            raise refused(where, error, advice) from None
        if record.schema != _SCHEMA:
            raise UserError(f"{where} has the schema {one_line(record.schema, 40)!r}, and this reads {_SCHEMA!r}")
        results = self.folder / name / record.digest / record.results
        source, machine = one_line(record.source), one_line(record.machine)
        return Baseline(name, results, record.saved, source, machine, record.digest)


def _digest(files: Iterable[Path]) -> str:
    """Return the digest of files by name and content, whatever their order; of folders, of nothing."""
    whole = hashlib.sha256()
    for file in sorted((file for file in files if file.is_file()), key=lambda file: file.name):
        with file.open("rb") as content:
            whole.update(f"{file.name}\0{hashlib.file_digest(content, 'sha256').hexdigest()}\0".encode())
    return whole.hexdigest()[:_DIGITS]


def _copy(files: dict[Path, Path], folder: Path) -> None:
    """Copy files to their places in a folder."""
    try:
        for source, place in files.items():
            (target := folder / place).parent.mkdir(parents=True, exist_ok=True)
            if not (target.exists() and target.samefile(source)):
                shutil.copyfile(source, target)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or type(error).__name__}") from None
