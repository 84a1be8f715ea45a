"""Where this package keeps what it would otherwise compute anew: compiled code, peaks of the machine, revisions.

    $XDG_CACHE_HOME/meprop-bench       absolute, as its specification wants it
    ~/.cache/meprop-bench              where there is a home directory
    $TMPDIR/meprop-bench-UID           where neither can be written: a container's user without a home, a read-only disk

The last one is taken only if it belongs to this user alone, since what lies in it is executed.
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

__all__ = ["places", "user_cache", "writable"]


def user_cache() -> Path | None:
    """Return the package's folder in the user's cache, which need not exist, or None for a user without a home."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():  # a relative one would be another cache in each working directory
        home = Path(os.path.expanduser("~"))  # not `Path.home`, which raises where there is none
        if not home.is_absolute():
            return None
        cache = home / ".cache"
    return cache / "meprop-bench"


def places(name: str = "") -> list[Path]:
    """Return the folders in which `name` may be kept, the best first; none of them need exist."""
    return [folder / name for folder in (user_cache(), _temporary()) if folder is not None]


def writable(name: str = "") -> Path | None:
    """Make the folder `name` in the first place that can be written, and return it; None where there is none."""
    temporary = _temporary()
    for folder in places(name):
        with suppress(OSError):
            if temporary is not None and temporary in (folder, folder.parent):
                temporary.mkdir(mode=0o700, exist_ok=True)
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
    return None


def _temporary() -> Path | None:
    """Return this user's folder among the temporary files, which need not exist; None where it is not theirs alone."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    with suppress(OSError):
        folder = Path(tempfile.gettempdir()) / f"meprop-bench-{user}"  # raises where nothing can be written at all
        if not os.path.lexists(folder):
            return folder
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid in (user, 0) and not found.st_mode & 0o022:
            return folder
    return None
