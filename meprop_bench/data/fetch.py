"""Downloading a data set: resumed where it stopped, verified on the way, and in its place only when it is whole.

One file goes through these hands:

    mirror -> .FILE.<mirror>.part      raw bytes, for a later run to go on from
           -> decompress, count, hash  stops one byte past the published size
           -> .FILE.<random>.tmp       packed again, without a time stamp: equal content gives equal bytes
           -> FILE.gz                  by one `os.replace` (`atomic`)

What comes from the network is not trusted (`mirror`). Sizes come from our own table: neither a body nor what it unpacks
to can grow past it. File names come from our own table, and no archives are read. A transfer that stalls, ends early,
or is not what was published costs that mirror alone; the next is tried. All of it has a deadline, of which a mirror has
no more than its share: one that trickles leaves time for the others. What had come by then is removed, since it was too
slow to be worth going on with. Two processes may fetch the same file: one goes on with that part under a lock, the
other with a part of its own, and either result is whole.

The standard library's client is enough for this, and spares the user a dependency; what it lacks are the rules above.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from meprop_bench.atomic import replacing
from meprop_bench.data.content import PIECE, ContentError, State, inspect, published
from meprop_bench.data.mirror import Interrupted, Refused, TooLate, transfer
from meprop_bench.data.sources import DataFile, Source
from meprop_bench.errors import UserError

if sys.platform != "win32":
    import fcntl

__all__ = ["Progress", "fetch"]

Progress = Callable[[DataFile, int], None]
"""Called with a file and how many bytes of its decompressed content have been verified so far."""

_ATTEMPTS = 5  # for one mirror; each goes on where the one before was interrupted
_GZIP_SLACK = 1 << 16  # what gzip may add to content that does not compress: far less than this


def fetch(
    source: Source,
    folder: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
    timeout: float = 30.0,
    deadline: float = math.inf,
) -> list[Path]:
    """Download what is missing or damaged of a data set into `folder / source.name`, and return those files.

    The data folder is created when it is not there; `force` downloads files that are whole already, too. `timeout`:
    seconds without an answer, or with next to no data, after which a mirror is given up; `deadline`: seconds for all of
    it. `UserError`: no mirror served a file as published in time, or the folder cannot be written.
    """
    place, until = folder / source.name, time.monotonic() + deadline
    fetched = []
    try:
        place.mkdir(parents=True, exist_ok=True)
        for file in source.files:
            if not force and inspect(folder, source, file, thorough=True)[0] is State.VERIFIED:
                continue
            try:
                _fetch_file(source, file, place, progress, timeout, until)
            except TooLate:
                raise UserError(
                    f"{source.name}/{file.stored_name} was not here within the {deadline:g} seconds for all of "
                    f"{source.name}: allow more by --deadline, or put the file from {source.homepage} into {place}"
                ) from None
            fetched.append(place / file.stored_name)
    except OSError as error:
        raise UserError(f"cannot keep data in {place}: {error.strerror or error}") from error
    return fetched


def _fetch_file(
    source: Source, file: DataFile, place: Path, progress: Progress | None, timeout: float, until: float
) -> None:
    """Try one mirror after the other; `TooLate` when the time is over, on the clock `time.monotonic`."""
    complaints = []
    for place_in_line, url in enumerate(file.urls):
        now = time.monotonic()
        share = (until - now) / (len(file.urls) - place_in_line)
        try:
            _fetch_from(url, file, place, progress, timeout, now + share)
        except (Refused, Interrupted, ContentError, TooLate) as error:
            complaints.append(f"{urlsplit(url).netloc}: {error}")
        else:
            _remove_parts(place, file)  # of mirrors that were given up, now or in an earlier run
            return
    if time.monotonic() >= until:
        _remove_parts(place, file)
        raise TooLate
    raise UserError(
        f"no mirror served {source.name}/{file.stored_name} ({'; '.join(complaints)}): try again later, "
        f"or put the file from {source.homepage} into {place}"
    )


def _remove_parts(place: Path, file: DataFile) -> None:
    for part in place.glob(f".{file.name}.*.part"):
        with suppress(OSError):
            part.unlink()


def _fetch_from(url: str, file: DataFile, place: Path, progress: Progress | None, timeout: float, until: float) -> None:
    """Download from one mirror, resuming; put the file in its place."""
    with _part(place, url, file) as part:
        for attempt in range(1, _ATTEMPTS + 1):
            resumed = part.seek(0, os.SEEK_END) > 0
            try:
                _store(_received(url, part, file, timeout, until), file, place, progress)
            except TooLate:
                part.truncate(0)
                raise
            except Interrupted:
                if attempt == _ATTEMPTS:
                    raise
            except ContentError:
                # A part of another version of the file, or one damaged on disk: the mirror itself may be sound.
                part.truncate(0)
                if not resumed or attempt == _ATTEMPTS:
                    raise
            else:
                part.truncate(0)
                return


@contextmanager
def _part(place: Path, url: str, file: DataFile) -> Iterator[IO[bytes]]:
    """Open the part of a download from `url` that is here, or one of our own while another process writes that one.

    What is in it stays, for a later run to go on from, unless it is one of our own.
    """
    mirror = hashlib.sha256(url.encode()).hexdigest()[:8]
    path = place / f".{file.name}.{mirror}.part"
    stream = path.open("a+b")  # creates, does not truncate
    lasting = _lock(stream)
    if not lasting:
        stream.close()
        path = place / f".{file.name}.{mirror}-{secrets.token_hex(4)}.part"
        stream = path.open("x+b")
    try:
        with stream:
            try:
                yield stream
            finally:
                lasting = lasting and stream.seek(0, os.SEEK_END) > 0
    finally:
        if not lasting:
            path.unlink(missing_ok=True)


def _lock(stream: IO[bytes]) -> bool:
    """Try to lock a file for as long as it is open; the lock goes even if the process is killed."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _store(raw: Iterable[bytes], file: DataFile, place: Path, progress: Progress | None) -> None:
    """Verify `raw` while packing it, then move it to where readers look."""
    with replacing(place / file.stored_name) as stream, gzip.GzipFile("", "wb", 6, stream, mtime=0) as target:
        done = 0
        for piece in published(raw, file):
            target.write(piece)
            done += len(piece)
            if progress is not None:
                progress(file, done)


def _received(url: str, part: IO[bytes], file: DataFile, timeout: float, until: float) -> Iterator[bytes]:
    """Yield the raw bytes of the whole file: those in `part`, then the rest from the network, written to it."""
    size = part.seek(0, os.SEEK_END)
    with transfer(url, size, timeout=timeout, deadline=until) as (start, pieces):
        if start != size:  # the mirror does not resume: it sends everything
            part.truncate(0)
            size = 0
        part.seek(0)
        while piece := part.read(PIECE):
            yield piece
        for piece in pieces:
            size += len(piece)
            if size > file.size + file.size // 64 + _GZIP_SLACK:
                raise ContentError(f"longer than the published {file.size:,} bytes")
            part.write(piece)
            yield piece
