"""A results folder as one file that somebody else can read, check and repeat: rows, environment, command, constraints.

    out.zip
        bundle.json          what this is: schema, name of the folder, each file's size and SHA-256
        measurements.jsonl   the rows, with all raw values
        environment.json     command, plan, environments, peaks, the machine's states
        *.json, *.jsonl      what else the command stored: trainings, counts
        constraints.txt      the versions that were measured, for `pip install -c`
        README.md            how to read it, and how to repeat it

`report`, `compare` and `mb.load` take a bundle for the folder that it was made of; `speedup --replay` runs its cases
again. A bundle comes from somebody, by mail or from a web page. So it is never unpacked as it says: names are flat and
of a known form, each is there once and is a plain file, sizes are counted while they are read and not believed, and
what is listed is what is there, to the bit. The same folder gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from meprop_bench.atomic import replacing
from meprop_bench.errors import UserError
from meprop_bench.report.markdown import code_block
from meprop_bench.results.incoming import checked, parsed, refused
from meprop_bench.results.redact import one_line
from meprop_bench.results.store import ENVIRONMENT, MEASUREMENTS, Store

__all__ = ["MANIFEST", "SCHEMA", "Written", "folder_of", "is_bundle", "opened", "write_bundle"]

SCHEMA = "meprop-bench-bundle/1"
MANIFEST = "bundle.json"

_FILES = 64
"""Files of a bundle at most."""
_BYTES = 4 << 30
"""Bytes of all of its files at most, unpacked: 100,000 rows are one."""
_MANIFEST_BYTES = 1 << 20
_RATIO = 200
"""Of what is unpacked to the file: JSON's numbers are packed to a third, and the dullest of rows to a hundredth."""
_CHUNK = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,80}\.(?:jsonl?|txt|md)")
_STORED = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,80}\.jsonl?")
"""What is taken of a results folder: neither its pages, which are made anew, nor what somebody else put there."""
_DATE = (1980, 1, 1, 0, 0, 0)

_Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
_Size = Annotated[int, Meta(ge=0, le=_BYTES)]


class _FileDigest(msgspec.Struct):
    sha256: _Digest
    size: _Size


class _Manifest(msgspec.Struct):
    schema: str
    name: Annotated[str, Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,200}$")]  # of the folder
    files: Annotated[dict[str, _FileDigest], Meta(max_length=_FILES)]


@dataclass(frozen=True)
class Written:
    """A bundle that was written."""

    path: Path
    files: tuple[str, ...]
    size: int  # bytes


def write_bundle(folder: Path, target: Path) -> Written:
    """Write a results folder to a file; `UserError`: it is none, or cannot be read, or the file cannot be written."""
    store = Store.open(folder)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-.") or "result"
    sources = sorted(path for path in folder.iterdir() if _STORED.fullmatch(path.name) and path.is_file())
    made = {
        "constraints.txt": _constraints(store.header["environments"]).encode(),
        "README.md": _readme(name, store.header).encode(),
    }
    if len(sources) + len(made) > _FILES:
        raise UserError(f"{folder} holds {len(sources)} files of data: a bundle has {_FILES - len(made)} at most")
    try:
        with replacing(target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            entries = {path.name: _packed(archive, path.name, path) for path in sources}
            for key, content in made.items():
                entries[key] = _packed(archive, key, content)
            manifest = {"schema": SCHEMA, "name": name, "files": entries}
            _packed(archive, MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
        size = target.stat().st_size
    except OSError as error:
        where = error.filename or target
        raise UserError(f"cannot write {target}: {error.strerror or error} ({where}); name another file") from None
    return Written(target, (*entries, MANIFEST), size)


def is_bundle(path: Path) -> bool:
    """Whether a file is one by how it begins; what is in it is another question."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """Give the results folder of a bundle, in a temporary place; `UserError` for what is none, or is not sound."""
    with tempfile.TemporaryDirectory(prefix="meprop-bench-") as root:
        try:
            with zipfile.ZipFile(path) as archive:
                folder = _unpacked(archive, path, Path(root))
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
            raise refused(str(path), error, "it is no sound bundle: make it again by report --bundle") from None
        except OSError as error:
            raise UserError(
                f"cannot read {path}: {error.strerror or error}; check the path and its permissions"
            ) from None
        yield folder


@contextmanager
def folder_of(path: Path) -> Iterator[Path]:
    """Give a results folder: that of a bundle, or the one that is named."""
    if path.is_file():
        with opened(path) as folder:
            yield folder
    else:
        yield path


def _packed(archive: zipfile.ZipFile, name: str, content: bytes | Path) -> dict[str, Any]:
    info = zipfile.ZipInfo(name, _DATE)
    info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, (stat.S_IFREG | 0o644) << 16
    digest, size = hashlib.sha256(), 0
    with archive.open(info, "w", force_zip64=True) as file:
        for piece in _pieces(content):
            file.write(piece)
            digest.update(piece)
            size += len(piece)
    return {"sha256": digest.hexdigest(), "size": size}


def _pieces(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while piece := file.read(_CHUNK):
            yield piece


def _unpacked(archive: zipfile.ZipFile, path: Path, root: Path) -> Path:
    """Write the files of a bundle into a folder of its name; ValueError for whatever `write_bundle` does not write."""
    infos = archive.infolist()
    names = [info.filename for info in infos]
    if len(infos) > _FILES + 1:
        raise ValueError(f"it holds {len(infos)} files, where {_FILES + 1} are the most")
    for info in infos:
        kind = stat.S_IFMT(info.external_attr >> 16)
        packed = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if not (_NAME.fullmatch(info.filename) and kind in (0, stat.S_IFREG) and packed):
            raise ValueError(f"it holds {one_line(repr(info.filename), 60)}, which is no file of a bundle")
    if len(set(names)) < len(names):
        raise ValueError("it holds a file twice")
    if MANIFEST not in names:
        raise ValueError(f"it has no {MANIFEST}")
    record = parsed(b"".join(_read(archive, MANIFEST, _MANIFEST_BYTES)))
    found = record.get("schema") if isinstance(record, Mapping) else None
    if found != SCHEMA:
        what = one_line(repr(found), 60)
        raise UserError(f"{path}: a bundle of schema {what} cannot be read: this version reads {SCHEMA!r}")
    manifest = checked(record, _Manifest)
    if {*manifest.files, MANIFEST} != set(names) or not {ENVIRONMENT, MEASUREMENTS} <= manifest.files.keys():
        raise ValueError(f"what it holds is not what its {MANIFEST} lists")
    size = sum(file.size for file in manifest.files.values())
    if size > min(_BYTES, _RATIO * path.stat().st_size):
        raise ValueError(f"it would unpack to {size} bytes, which is more than a bundle of its size holds")
    folder = root / manifest.name
    folder.mkdir()
    for name, file in manifest.files.items():
        digest = hashlib.sha256()
        with (folder / name).open("xb") as target:
            for piece in _read(archive, name, file.size):
                digest.update(piece)
                target.write(piece)
        if (folder / name).stat().st_size != file.size or digest.hexdigest() != file.sha256:
            raise ValueError(f"its {name} is not what its {MANIFEST} says: it was changed, or damaged")
    return folder


def _read(archive: zipfile.ZipFile, name: str, most: int) -> Iterator[bytes]:
    """Give a file in pieces, whatever its header says of its size; ValueError where it is longer than `most`."""
    size = 0
    with archive.open(name) as file:
        while piece := file.read(_CHUNK):
            size += len(piece)
            if size > most:
                raise ValueError(f"its {name} is longer than the {most} bytes that it may have")
            yield piece


_PINNED = ("torch", "numpy", "numba", "triton")
"""Packages whose versions an environment has; what else is installed has no part in a time."""


def _constraints(environments: Mapping[str, Any]) -> str:
    """Return the versions of all environments that the rows were measured in, in pip's format."""
    known = [value for value in environments.values() if isinstance(value, Mapping)]
    pins = {
        name: list(dict.fromkeys(_version(value.get(name)) for value in known if value.get(name))) for name in _PINNED
    }
    lines = ["# What was measured; install by: pip install -c constraints.txt meprop-bench"]
    lines += [f"# Python: {one_line(text, 60)}" for text in dict.fromkeys(str(value.get("python")) for value in known)]
    for name, versions in pins.items():
        lines += (
            [f"{name}=={versions[0]}"]
            if len(versions) == 1
            else [f"# {name}: {', '.join(versions)}"]
            if versions
            else []
        )
    return "\n".join(lines) + "\n"


def _version(value: object) -> str:
    """Return a version for pip, whatever a file holds; of torch without its build, which is a matter of its index."""
    found = re.fullmatch(r"([0-9][0-9A-Za-z.!]{0,40})(?:\+[0-9A-Za-z.]{0,40})?", str(value))
    return found[1] if found else "0"


def _readme(name: str, header: Mapping[str, Any]) -> str:
    revisions = dict.fromkeys(
        str(value.get("git_revision")) for value in header["environments"].values() if isinstance(value, Mapping)
    )
    return f"""# {name}

Results of meprop-bench, measured from {header["started"]} by

{code_block(one_line(header["command"], 2000))}

at revision {one_line(", ".join(revisions), 200) or "unknown"} of the code. Read it, and run the same cases again, by

```
pip install -c constraints.txt meprop-bench
meprop-bench report {name}.zip
meprop-bench speedup --replay {name}.zip
```

A user's own model is not in it: put its file where the command names it.
"""
