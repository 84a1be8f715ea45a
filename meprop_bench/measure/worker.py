"""A worker: one fresh process, as whoever started it sees it. Several of them are a `pool.Pool`.

The protocol is one JSON object a line: a request on the child's standard input, its answer on its standard output.
What the child prints while it imports is not JSON; up to the first answer it is set aside with standard error. The
child's side is `serve`.

Whatever goes wrong with a child (killed, hung, gone, garbage) becomes one exception with one line, after which the
child and all that it started are gone.

No orphans: the child leads a session of its own, so the terminal's Ctrl-C reaches the parent alone, which then ends
the child and its whole process group. A parent that is killed cannot do that; the child sees to it (`serve`).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from typing import IO, Any, Protocol, Self

from meprop_bench.measure.serve import Message, one_line

__all__ = [
    "Worker",
    "WorkerDied",
    "WorkerError",
    "WorkerFailed",
    "WorkerLike",
    "WorkerOutOfMemory",
    "WorkerRefused",
]

_LONGEST_LINE = 64 * 1024 * 1024  # bytes of one answer; raw values of the longest run are far below
_POLL_S = 0.2
_GOODBYE_S = 2.0


class WorkerError(Exception):
    """A request has no answer.

    Attributes:
        reason: why, in one line.
        worker: the process's name in its pool.
        request: what it was asked to do.

    """

    def __init__(self, reason: str, worker: Any = None, request: str = "") -> None:
        super().__init__(reason)
        self.reason, self.worker, self.request = reason, worker, request

    def sentence(self, subject: str) -> str:
        """Return the reason, behind a subject ("its process") where it needs one."""
        return str(self)


class WorkerDied(WorkerError):
    """It was killed, hung, exited or answered garbage, and is gone."""

    def sentence(self, subject: str) -> str:
        """Return a sentence: "its process exited with status 3"."""
        return f"{subject} {self.reason}"


class WorkerRefused(WorkerError):
    """What was asked for cannot be done, as was found before anything happened."""


class WorkerOutOfMemory(WorkerError):
    """Memory ran out."""

    def __str__(self) -> str:
        return f"out of memory: {self.reason}"


class WorkerFailed(WorkerError):
    """Anything else went wrong."""


class WorkerLike(Protocol):
    """A `Worker`, or something that stands for one."""

    def request(self, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """Return the answer; raises `WorkerDied` when there is none."""

    def close(self) -> None:
        """End it."""


class Worker:
    """A child process that answers requests, one at a time.

    Args:
        argv: the command, whose program calls `serve`.
        env: changes to this process's environment; None removes a variable.

    """

    def __init__(self, argv: Sequence[str], env: Mapping[str, str | None] | None = None) -> None:
        merged = {**os.environ, **(env or {})}
        self._process = subprocess.Popen(
            list(argv),
            env={name: value for name, value in merged.items() if value is not None},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._stderr: deque[str] = deque(maxlen=50)
        self._answered = False
        self._dead: str | None = None
        # At exit of the interpreter, too; it refers to the process, never to self.
        self._end = weakref.finalize(self, _kill_group, self._process)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = (
            threading.Thread(target=_read_answers, args=(self._process.stdout, self._answers), daemon=True),
            threading.Thread(target=_read_tail, args=(self._process.stderr, self._stderr), daemon=True),
        )
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        """The child's process id, which is also its group's."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the child can answer."""
        return self._dead is None and not _exited(self._process)

    def request(self, message: Mapping[str, Any], timeout: float) -> Message:
        """Send one request and return its answer: the handler's, or `{"error": one line, "kind": ...}` from `serve`.

        Args:
            message: anything JSON.
            timeout: seconds to wait for the answer.

        Raises:
            WorkerDied: no answer came; the child and its process group are gone, and every later request says why.

        """
        if self._dead is not None:
            raise WorkerDied(self._dead)
        line = json.dumps(message, allow_nan=False).encode() + b"\n"
        try:
            # From a thread: a child that does not read must not hold us up beyond the time.
            threading.Thread(target=_write, args=(self._process.stdin, line), daemon=True).start()
            return self._await_answer(time.monotonic() + timeout, timeout)
        except WorkerDied as died:
            self._end()
            self._dead = died.reason
            raise
        except BaseException:  # Ctrl-C amid a request: its answer would be taken for the next one's
            self._end()
            self._dead = "interrupted"
            raise

    def close(self) -> None:
        """End the child: end-of-file lets an idle one finish, then its whole group is killed. Idempotent."""
        if self._dead is None:
            self._dead = "closed"
            _close(self._process.stdin)
            _await_exit(self._process, _GOODBYE_S)
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _await_answer(self, deadline: float, timeout: float) -> Message:
        while True:
            try:
                line = self._answers.get(timeout=max(0.0, min(_POLL_S, deadline - time.monotonic())))
            except queue.Empty:
                # A grandchild may hold the pipe open after the child is gone: ask for the child itself.
                if _exited(self._process):
                    self._readers[0].join(_POLL_S)
                    if self._answers.empty():
                        raise WorkerDied(self._obituary()) from None
                elif time.monotonic() >= deadline:
                    raise WorkerDied(self._with_tail(f"no answer within {timeout:.3g} s, so it was killed")) from None
                continue
            if line is None:
                raise WorkerDied(self._obituary())
            answer = _parse(line)
            if answer is not None:
                self._answered = True
                return answer
            if self._answered:
                raise WorkerDied(f"it answered garbage: {one_line(line.decode(errors='replace'))}")
            self._stderr.append(one_line(line.decode(errors="replace")))

    def _obituary(self) -> str:
        if not _await_exit(self._process, _GOODBYE_S):
            return self._with_tail("closed its standard output, so it was killed")
        self._end()
        status = self._process.returncode
        self._readers[1].join(_POLL_S)
        if status >= 0:
            return self._with_tail(f"exited with status {status}")
        reason = f"killed by signal {-status} ({signal.strsignal(-status)})"
        return self._with_tail(reason + (", probably out of memory" if -status == signal.SIGKILL else ""))

    def _with_tail(self, reason: str) -> str:
        last = next((line for line in reversed(self._stderr) if line.strip()), None)
        return reason if last is None else f"{reason}; its last line: {last}"


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a worker with all that it started, and reap it."""
    if process.returncode is None:  # until it is reaped, nothing else can be given its number
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        process.wait()
    _close(process.stdin)


def _exited(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended, without reaping it: its group can still be told from a stranger's."""
    if process.returncode is not None:
        return True
    if hasattr(os, "waitid"):
        try:
            return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # reaped, but an interrupt came before its status was noted
            process.poll()
            return True
    return process.poll() is not None


def _await_exit(process: subprocess.Popen[bytes], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not _exited(process):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.005)
    return True


def _close(stream: IO[bytes] | None) -> None:
    with contextlib.suppress(OSError, ValueError):
        if stream is not None:
            stream.close()


def _write(stream: IO[bytes], line: bytes) -> None:
    with contextlib.suppress(OSError, ValueError):  # it died before: its exit status tells more
        stream.write(line)
        stream.flush()


def _read_answers(stream: IO[bytes], answers: queue.SimpleQueue[bytes | None]) -> None:
    with stream:
        while line := stream.readline(_LONGEST_LINE):
            answers.put(line)
    answers.put(None)


def _read_tail(stream: IO[bytes], tail: deque[str]) -> None:
    with stream:
        while line := stream.readline(4096):
            tail.append(one_line(line.decode(errors="replace")))


def _parse(line: bytes) -> Message | None:
    try:
        answer = json.loads(line)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None
