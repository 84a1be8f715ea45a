"""One measurement on a device at a time: two runs side by side would each measure the other.

    with device_lock("cpu", waiting):     waits until no other run of this machine measures on the device
        ...                               processes start, set up and are timed

The lock is the kernel's (flock) on a small file of the machine's temporary folder, one for each device. It ends with
the process that holds it, whatever ends that, so no crash leaves a device locked; the file that stays behind is empty
and means nothing. It is held for one case: two runs alternate case by case, neither is refused, and each has the
machine to itself while it measures. That they alternate is the work of a second lock, in front of the first: who waits
for the device holds the place before it, so that whoever gives the device back and wants it again comes after. Within a
process the lock may be taken again by whoever holds it.

The limits: containers that share a machine but no temporary folder do not see each other (the state of the machine
does: `machine`), a program that is no run of ours knows of no lock, and on a system without flock there is none.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

__all__ = ["DeviceLock", "device_lock", "device_name", "waiting_for"]

_POLL_S = 0.2

DeviceLock: TypeAlias = Callable[[str, Callable[[int | None], object]], AbstractContextManager[None]]
"""What `device_lock` is to whoever takes it: of a device, and of what to call before waiting."""

_held: dict[str, int] = {}
"""Device -> how often this process holds it."""


@contextmanager
def device_lock(
    device: str,
    waiting: Callable[[int | None], object] = lambda _: None,
    *,
    folder: Path | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> Iterator[None]:
    """Hold a device ("cpu" or "cuda:N") for as long as the block lasts.

    `waiting` is called once, before waiting, with the process that holds it (None if that cannot be found out). The
    locks are in the system's temporary folder.
    """
    name = device_name(device)
    if _held.get(name):
        _held[name] += 1
        try:
            yield
        finally:
            _held[name] -= 1
        return
    with ExitStack() as stack:
        _take(folder or Path(tempfile.gettempdir()), name, stack, waiting, sleep)
        _held[name] = 1
        stack.callback(_held.pop, name)
        yield


def _take(
    folder: Path, name: str, stack: ExitStack, waiting: Callable[[int | None], object], sleep: Callable[[float], object]
) -> None:
    """Take the place before the device, then the device, and leave the place; the stack gives the device back."""
    files = [_open(folder / f"meprop-bench-{name}{part}.lock") for part in ("", "-next")]
    holders: list[int | None] = []

    def wait() -> None:
        if not holders:
            holders.append(None if files[0] is None else _holder(files[0]))
            waiting(holders[0])
        sleep(_POLL_S)

    device, place = files
    if device is not None:
        stack.callback(os.close, device)  # and with it goes the lock
    try:
        for file in (place, device):
            if file is not None:
                _acquire(file, wait)
    finally:
        if place is not None:
            os.close(place)


def waiting_for(holder: int | None) -> str:
    """Return what a run does that waits for this process: the stage that its progress shows."""
    return f"waiting for {'another run' if holder is None else f'process {holder}'}"


def device_name(device: str) -> str:
    """Return a device's name for all processes: "cuda:0" is another chip where CUDA_VISIBLE_DEVICES says so."""
    if device == "cpu":
        return device
    index = device.removeprefix("cuda").removeprefix(":") or "0"
    visible = [word.strip() for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
    chosen = visible[int(index)] if index.isdigit() and int(index) < len(visible) else index
    return "cuda-" + re.sub(r"[^A-Za-z0-9-]", "-", chosen)


def _open(path: Path) -> int | None:
    """Open the lock, which may be another user's, for reading: that is all that a lock needs. None: there is none."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)
    with suppress(FileExistsError):  # another process was first: then it is there to be opened
        try:
            return _regular(os.open(path, flags))
        except FileNotFoundError:
            pass
        except OSError:
            return None
        try:
            file = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            raise
        except OSError:  # a read-only or full temporary folder must not keep anybody from measuring
            return None
        with suppress(OSError):
            os.fchmod(file, 0o644)  # whatever the umask is, others may wait for it
        return file
    try:
        return _regular(os.open(path, flags))
    except OSError:
        return None


def _regular(file: int) -> int | None:
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    return None


def _acquire(file: int, wait: Callable[[], None]) -> None:
    try:
        import fcntl
    except ImportError:
        return
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            wait()
        except OSError:  # a file system without locks
            return
        else:
            return


def _holder(file: int) -> int | None:
    """Return the process that holds the lock, as the kernel tells it."""
    with suppress(OSError, ValueError):
        inode = str(os.fstat(file).st_ino)
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()  # number: FLOCK ADVISORY WRITE pid major:minor:inode start end
            if len(words) >= 6 and words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode:
                return int(words[4]) or None
    return None
