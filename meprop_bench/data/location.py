"""Where data lie: one folder, `NAME/FILE.gz` in it.

`MEPROP_BENCH_DATA` names the folder; without it the user's cache holds one (`$XDG_CACHE_HOME/meprop-bench`, else
`~/.cache/meprop-bench`; for a user without a home see `meprop_bench.cache`). A plain file `NAME/FILE` beside or instead
of the gzip is read too, so a folder that somebody unpacked by hand works; `FILE.gz` comes first when both are there.
"""

from __future__ import annotations

import os
from pathlib import Path

from meprop_bench.cache import places
from meprop_bench.data.sources import DataFile, Source
from meprop_bench.errors import UserError

__all__ = ["VARIABLE", "data_folder", "is_here", "locate", "path_of"]

VARIABLE = "MEPROP_BENCH_DATA"


def data_folder() -> Path:
    """Return the folder of all data sets; the default one need not exist yet.

    Raises:
        UserError: `MEPROP_BENCH_DATA` names no folder, or there is no home directory to keep a cache in.

    """
    if chosen := os.environ.get(VARIABLE):
        folder = Path(os.path.expanduser(chosen))
        if not folder.is_dir():
            raise UserError(f"{VARIABLE}={chosen} is not a folder: create it, or unset the variable to use the cache")
        return folder
    if not (found := places()):
        raise UserError(f"there is no home directory to keep data in: set {VARIABLE} to a folder")
    return found[0]


def locate(folder: Path, source: Source, file: DataFile) -> Path | None:
    """Return where `file` lies in `folder` (the gzip, else the plain file), or None."""
    for name in (file.stored_name, file.name):
        path = folder / source.name / name
        if path.is_file():
            return path
    return None


def is_here(source: Source) -> bool:
    """Whether all files of a data set lie in the data folder."""
    folder = data_folder()
    return all(locate(folder, source, file) for file in source.files)


def path_of(source: Source, name: str) -> Path:
    """Return where the file called `name` (without `.gz`) lies; `UserError` when it is not here."""
    folder, file = data_folder(), source.file(name)
    if (path := locate(folder, source, file)) is None:
        where = folder / source.name
        raise UserError(f"{source.name} is not complete: no {file.stored_name} in {where}; {source.remedy}")
    return path
