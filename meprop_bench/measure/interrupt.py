"""SIGTERM and SIGHUP end a run as Ctrl-C does: the stack unwinds, so that what is done stays, and is said.

A batch system ends a job by SIGTERM, a closed terminal its programs by SIGHUP, and both would end Python at once: no
report, no checkpoint, folders left behind. What a program ignores it goes on ignoring (`nohup`). The first of them
counts; one that comes while things are tidied up changes nothing, for who waits no longer sends SIGKILL.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["interruptible"]

_NAMES = ("SIGTERM", "SIGHUP")


@contextmanager
def interruptible(note: Callable[[], None] | None = None) -> Iterator[None]:
    """Turn the two signals into `KeyboardInterrupt`; in another thread than the main one nothing changes.

    `note` is called in place of raising it, for a program that ends itself at the next good moment.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal came
        _leave_terminal()
        if came:
            return
        came = True
        if note is None:
            raise KeyboardInterrupt
        note()

    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    changed = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in changed:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, before[number] or signal.SIG_DFL)


def _leave_terminal() -> None:
    """Let output go nowhere where it would fail: the terminal was closed, and no complaint may end the rest."""
    for fd in (1, 2):
        try:
            os.write(fd, b"")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, fd)
            os.close(nowhere)
