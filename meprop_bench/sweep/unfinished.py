"""What a compiler leaves behind when it is ended: torch takes a library that is there for a finished one.

`torch.compile` has the C++ compiler write its libraries to where later processes look for them, and a linker that is
killed leaves half of one. So whoever ends a process that may be compiling discards what was written just then. Torch
holds a lock of each library while it is written, and the file of that lock stays: what has none is not torch's.
"""

from __future__ import annotations

import getpass
import os
import re
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

__all__ = ["discard_unfinished"]

_LINKING_S = 60.0
"""Seconds that a library is written for at most, on a busy machine, too."""


def discard_unfinished(now: Callable[[], float] = time.time) -> None:
    """Remove the libraries of torch's compiler that were written to less than a minute ago, and are not now."""
    import fcntl

    with suppress(OSError, KeyError, ImportError):  # there is no cache, or no name of the user's that it is called by
        cache = _cache()
        for path in cache.glob("??/*.so"):
            with suppress(OSError):  # among others: there is no lock, or somebody holds it
                if path.stat().st_mtime > now() - _LINKING_S:
                    with (cache / "locks" / f"{path.name.partition('.')[0]}.lock").open() as lock:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        path.unlink()


def _cache() -> Path:
    """Return the folder that torch has its cache in."""
    if given := os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        return Path(given)
    user = re.sub(r'[\\/:*?"<>|]', "_", getpass.getuser())
    return Path(tempfile.gettempdir()) / f"torchinductor_{user}"
