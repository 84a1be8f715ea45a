"""A worker: one fresh process that answers requests, from both ends. Several of them are a `pool.Pool`.

    Worker(argv).request({"do": ...}, timeout)    the parent's end
    serve(handler)                                the child's: its whole main program, handler({"do": ...}) -> {...}

The protocol is one JSON object a line: a request on the child's standard input, its answer on its standard output.
Libraries print, so `serve` first moves the protocol to private descriptors: file descriptor 1 becomes 2, and 0 becomes
empty, for the child and all that it starts. What was printed earlier (while importing) is not JSON; up to the first
answer it is set aside with standard error.

Whatever goes wrong with a child (killed, hung, gone, garbage) becomes one exception with one line, after which the
child and all that it started are gone.

No orphans: the child leads a session of its own, so the terminal's Ctrl-C reaches the parent alone, which then ends
the child and its whole process group. A parent that is killed cannot do that; therefore a thread of the child waits on
standard input, and its end-of-file ends the child at once, even amid a computation. (PR_SET_PDEATHSIG would not do: it
fires when the *thread* that started the child ends.) That thread sleeps in a system call while the child measures.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol, Self

from meprop_bench.errors import Absent, UserError, out_of_memory

__all__ = [
    "Message", "Worker", "WorkerAbsent", "WorkerDied", "WorkerError", "WorkerFailed", "WorkerLike", "WorkerLost",
    "WorkerOutOfMemory", "WorkerOverdue", "WorkerRefused", "serve",
]  # fmt: skip

Message = dict[str, Any]

_LONGEST_LINE = 64 * 1024 * 1024  # bytes of one answer; raw values of the longest run are far below
_POLL_S = 0.2
_GOODBYE_S = 2.0


class WorkerError(Exception):
    """A request has no answer: why, in one line, the process's name in its pool, and the request."""

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


class WorkerOverdue(WorkerDied):
    """It gave no answer in the time that it had, and is gone."""

    def sentence(self, subject: str) -> str:
        """Return a sentence: "its process gave no answer within 600 s, so it was killed"."""
        return f"{subject} gave {self.reason}"


class WorkerLost(WorkerDied):
    """It is gone with the machine that it ran on: on another one it may do the same."""

    def sentence(self, subject: str) -> str:
        """Return a sentence: "the machine of its process was lost: …"."""
        return f"the machine of {subject} was lost: {self.reason}"


class WorkerRefused(WorkerError):
    """What was requested cannot be done, as was found before anything happened."""


class WorkerAbsent(WorkerRefused):
    """What was named is not there."""


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
    """A child process, whose program calls `serve`, and which answers requests, one at a time.

    `env` are changes to this process's environment; None removes a variable. It works in the folder `cwd`, by default
    in this process's.
    """

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str | None] | None = None, cwd: Path | None = None
    ) -> None:
        merged = {**os.environ, **(env or {})}
        self._process = subprocess.Popen(
            list(argv),
            env={name: value for name, value in merged.items() if value is not None},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
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

    def request(self, message: Mapping[str, Any], timeout: float) -> Message:
        """Send one request, anything JSON, and return its answer: the handler's, or the error that `serve` makes of it.

        Raises:
            WorkerDied: no answer came in time; the child and its process group are gone, and later requests say why.

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
            _await_exit(self._process)
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
                        raise WorkerDied(self._how_it_ended()) from None
                elif time.monotonic() >= deadline:
                    raise WorkerOverdue(
                        self._with_tail(f"no answer within {timeout:.3g} s, so it was killed")
                    ) from None
                continue
            if line is None:
                raise WorkerDied(self._how_it_ended())
            answer = _parse(line)
            if answer is not None:
                self._answered = True
                return answer
            if self._answered:
                raise WorkerDied(f"it answered garbage: {_one_line(line.decode(errors='replace'))}")
            self._stderr.append(_one_line(line.decode(errors="replace")))

    def _how_it_ended(self) -> str:
        if not _await_exit(self._process):
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


def _await_exit(process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + _GOODBYE_S
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
            tail.append(_one_line(line.decode(errors="replace")))


def _parse(line: bytes) -> Message | None:
    try:
        answer = json.loads(line)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def serve(handler: Callable[[Message], Mapping[str, Any]]) -> NoReturn:
    """Answer requests until standard input ends, then end the process: the main program of a worker.

    An exception of the handler becomes `{"error": one line, "kind": "absent" | "user" | "out-of-memory" | "error"}`
    (its traceback goes to standard error) and the next request is served. Call it before anything heavy is imported.
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
        return "absent" if isinstance(error, Absent) else "user"
    return "out-of-memory" if out_of_memory(error) else "error"


def _error_line(error: Exception) -> str:
    text = _one_line(str(error))
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


def _one_line(text: str) -> str:
    """Return the first line that says something, without this machine's paths: it may end up in a published report."""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    for place, name in ((sys.prefix, "<python>"), (str(Path.cwd()), "."), (os.path.expanduser("~"), "~")):
        if len(place) > 1:
            first = first.replace(place, name)
    return first[:500]
