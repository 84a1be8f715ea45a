"""One measurement on a device at a time: two runs side by side would each measure the other.

    with device_lock("cpu", waiting):     waits until no other run of this machine measures on the device
        ...                               processes start, set up and are timed

A lock is the kernel's, one for each device, and ends with the process that holds it, whatever ends that, so no crash
leaves a device locked. Where it lies decides who sees it:

    a name       a Unix socket in Linux's abstract namespace, which belongs to the network namespace and lies in no
                 folder: batch systems and services give each job a /tmp of its own, and often a TMPDIR
    a file       in /tmp, locked by flock: containers that have their own network may share that folder, older versions
                 of this package know nothing else, and other systems have no such names. The file that stays behind is
                 empty and means nothing
    a folder     that MEPROP_BENCH_LOCKS names has the files instead, and there are no names: containers that share
                 nothing else can share it

It is held for one case: two runs alternate case by case, neither is refused, and each has the machine to itself while
it measures. That they alternate is the work of a second lock, in front of the first: who waits for the device holds the
place before it, so that whoever gives the device back and wants it again comes after. Within a process the lock may be
taken again by whoever holds it. A GPU is known by its UUID, as jobs see other numbers for one chip, or one for several.

The limits: containers that share a machine and none of these do not see each other (the state of the machine does:
`machine`), a program that is no run of ours knows of no lock, and on a system without flock there is none.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Protocol, TypeAlias

from meprop_bench.errors import UserError

__all__ = ["FOLDER", "DeviceLock", "device_lock", "device_name", "waiting_for"]

FOLDER = "MEPROP_BENCH_LOCKS"
"""Variable that names the folder of the locks; without it they are where all of the machine find them."""

_POLL_S = 0.2
_WAITING = 64
"""Runs that may ask who holds a name while it is held."""

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

    `waiting` is called once, before waiting, with the process that holds it (None if that cannot be found out). With a
    `folder` the locks are files there. Raises `UserError` where no lock can be had in the folder of the variable.
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
        _take(_locks(name, folder), _locks(f"{name}-next", folder), stack, waiting, sleep)
        _held[name] = 1
        stack.callback(_held.pop, name)
        yield


class _Lock(Protocol):
    """A lock of the kernel's."""

    def take(self) -> bool:
        """Whether it is ours now; also where the system has no such locks after all."""

    def holder(self) -> int | None:
        """Return the process that holds it, if the kernel tells."""

    def close(self) -> None:
        """Give it back."""


def _locks(name: str, folder: Path | None) -> list[_Lock]:
    """Return the locks that stand for a name: whoever has them all has it."""
    stem = f"meprop-bench-{name}"
    if folder is None and (given := os.environ.get(FOLDER)):
        file = _open(Path(given) / f"{stem}.lock")
        if file is None:
            raise UserError(
                f"{FOLDER} names {given}, where no lock can be made: name a folder that this user can write"
            )
        return [_LockedFile(file)]
    if folder is not None:
        return [] if (file := _open(folder / f"{stem}.lock")) is None else [_LockedFile(file)]
    common = Path("/tmp") if os.path.isdir("/tmp") else Path(tempfile.gettempdir())
    files = [_LockedFile(file) for file in [_open(common / f"{stem}.lock")] if file is not None]
    return [*([_Name(stem)] if sys.platform == "linux" else []), *files]


def _take(
    device: list[_Lock],
    place: list[_Lock],
    stack: ExitStack,
    waiting: Callable[[int | None], object],
    sleep: Callable[[float], object],
) -> None:
    """Take the place before the device, then the device, and leave the place; the stack gives the device back."""
    holders: list[int | None] = []

    def wait() -> None:
        if not holders:
            holders.append(next((found for lock in device if (found := lock.holder()) is not None), None))
            waiting(holders[0])
        sleep(_POLL_S)

    for lock in device:
        stack.callback(lock.close)
    try:
        for lock in (*place, *device):
            while not lock.take():
                wait()
    finally:
        for lock in place:
            lock.close()


def waiting_for(holder: int | None) -> str:
    """Return what a run does that waits for this process: the stage that its progress shows."""
    return f"waiting for {'another run' if holder is None else f'process {holder}'}"


def device_name(device: str) -> str:
    """Return a device's name for all processes: "cuda:0" is another chip where CUDA_VISIBLE_DEVICES says so, or where a
    batch system shows a job its own chips alone.
    """
    if device == "cpu":
        return device
    index = device.removeprefix("cuda").removeprefix(":") or "0"
    visible = [word.strip() for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
    chosen = visible[int(index)] if index.isdigit() and int(index) < len(visible) else index
    return "cuda-" + re.sub(r"[^A-Za-z0-9-]", "-", _uuid(chosen))


@cache
def _uuid(chosen: str) -> str:
    """Return the UUID of a GPU that is chosen by its number or by the beginning of its UUID; where NVML does not tell,
    what was given.
    """
    try:
        nvml = import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # noqa: BLE001 (NVML has an exception for each thing that can be missing)
        return chosen
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex
        if chosen.isdigit():
            return str(nvml.nvmlDeviceGetUUID(handle(int(chosen))))
        known = [str(nvml.nvmlDeviceGetUUID(handle(index))) for index in range(nvml.nvmlDeviceGetCount())]
        return next((uuid for uuid in known if uuid.startswith(chosen)), chosen)
    except nvml.NVMLError:
        return chosen
    finally:
        nvml.nvmlShutdown()


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


class _LockedFile:
    """A file that is locked by flock."""

    def __init__(self, file: int) -> None:
        self._file = file

    def take(self) -> bool:
        try:
            import fcntl
        except ImportError:
            return True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            pass
        return True

    def holder(self) -> int | None:
        with suppress(OSError, ValueError):
            inode = str(os.fstat(self._file).st_ino)
            for line in Path("/proc/locks").read_text().splitlines():
                words = line.split()  # number: FLOCK ADVISORY WRITE pid major:minor:inode start end
                if len(words) >= 6 and words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode:
                    return int(words[4]) or None
        return None

    def close(self) -> None:
        os.close(self._file)  # and with it goes the lock


class _Name:
    """An abstract name, which one socket at a time can be bound to."""

    def __init__(self, name: str) -> None:
        self._address = f"\0{name}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def take(self) -> bool:
        try:
            self._socket.bind(self._address)
            self._socket.listen(_WAITING)  # so that others can ask who holds it
        except OSError as error:
            return error.errno != errno.EADDRINUSE  # else the system has no such names
        return True

    def holder(self) -> int | None:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as own:
            own.setblocking(False)
            own.connect(self._address)
            peer = own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            return struct.unpack("3i", peer)[0] or None
        return None

    def close(self) -> None:
        self._socket.close()
