"""The child side of a measuring process: answer requests, one JSON object a line, until the parent is gone.

    serve(handler)          the whole main program of a worker: handler({"do": ...}) -> {...}

Libraries print, so `serve` first moves the protocol to private descriptors: file descriptor 1 becomes 2, and 0
becomes empty, for the child and all that it starts. What was printed earlier (while importing) is not JSON; the parent
sets it aside up to the first answer.

No orphans: a parent that is killed cannot end its children; therefore a thread of the child waits on standard input,
and its end-of-file ends the child at once, even amid a computation. (PR_SET_PDEATHSIG would not do: it fires when the
*thread* that started the child ends.) That thread sleeps in a system call while the child measures.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

from meprop_bench.errors import UserError

__all__ = ["Message", "one_line", "serve"]

Message = dict[str, Any]


def serve(handler: Callable[[Message], Mapping[str, Any]]) -> NoReturn:
    """Answer requests until standard input ends, then end the process: the main program of a worker.

    An exception of the handler becomes `{"error": one line, "kind": "user" | "out-of-memory" | "error"}` (its
    traceback goes to standard error) and the next request is served. Call it before anything heavy is imported.
    """
    requests, answers = _private_pipes()
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    idle = threading.Event()
    idle.set()
    _be_first_when_memory_runs_out()

    def listen() -> None:
        for line in requests:
            idle.clear()
            inbox.put(line)
        if idle.is_set():
            inbox.put(b"")
        else:  # the parent is gone amid a request: nobody wants the answer
            _kill_own_group()

    threading.Thread(target=listen, daemon=True).start()
    while line := inbox.get():
        answer = _answer(handler, line)
        idle.set()
        try:
            answers.write(answer)
            answers.flush()
        except BrokenPipeError:
            break
    # Nothing is left to be tidied up, and to take torch down module by module would take the parent a second.
    sys.stderr.flush()
    os._exit(0)


def _answer(handler: Callable[[Message], Mapping[str, Any]], line: bytes) -> bytes:
    try:
        return json.dumps(handler(json.loads(line)), allow_nan=False).encode() + b"\n"
    except Exception as error:  # noqa: BLE001  the parent decides what to do about it
        traceback.print_exc()
        return json.dumps({"error": _error_line(error), "kind": _kind(error)}).encode() + b"\n"


def _kind(error: Exception) -> str:
    if isinstance(error, UserError):
        return "user"
    # torch raises RuntimeError for the CPU ("DefaultCPUAllocator: can't allocate memory", "not enough memory").
    text = str(error)
    exhausted = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if exhausted or "can't allocate memory" in text or "not enough memory" in text or "out of memory" in text:
        return "out-of-memory"
    return "error"


def _error_line(error: Exception) -> str:
    text = one_line(str(error))
    if isinstance(error, UserError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _private_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Move the protocol to descriptors of its own; leave 0 empty and let 1 go where 2 goes."""
    sys.stdout.flush()
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    return requests, answers


def _be_first_when_memory_runs_out() -> None:
    """On Linux, let the kernel choose this process rather than its parent, or a neighbour."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def _kill_own_group() -> None:
    if hasattr(os, "getpgrp") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def one_line(text: str) -> str:
    """Return the first line that says something, without this machine's paths: it may end up in a published report."""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    for place, name in ((sys.prefix, "<python>"), (str(Path.cwd()), "."), (os.path.expanduser("~"), "~")):
        if len(place) > 1:
            first = first.replace(place, name)
    return first[:500]
