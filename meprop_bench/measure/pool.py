"""A pool of fresh processes: the unit of replication, and the wall between one case's fault and all the others.

A process draws its memory layout, its page placement and its code alignment once, and keeps them; two processes with
identical code differ by 3%. So a case is measured in several fresh ones, round by round. And a case may run out of
memory, crash in native code or hang: that ends its own process and no other.

    pool.hello(...)               all import what takes seconds; one that replaces another does so, too
    pool.ask(name, "check", ...)  one of them; `ask_each` one after the other, `ask_all` all at once
    pool.share(jobs, ...)         a queue of jobs, each done by whoever is free
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, Generic, Self, TypeVar

from meprop_bench.measure.worker import (
    Message,
    WorkerAbsent,
    WorkerDied,
    WorkerError,
    WorkerFailed,
    WorkerLike,
    WorkerLost,
    WorkerOutOfMemory,
    WorkerRefused,
)

__all__ = ["Pool"]

_PATIENCE_S = 900.0
"""Seconds after which a silent worker counts as hung; the largest case takes a tenth of that to set up on two cores."""

Name = TypeVar("Name", bound=Hashable)
Job = TypeVar("Job")

_KINDS: Mapping[str, type[WorkerError]] = {
    "absent": WorkerAbsent,
    "user": WorkerRefused,
    "out-of-memory": WorkerOutOfMemory,
}
"""What `serve` calls an error -> its exception; any other is `WorkerFailed`."""


class Pool(Generic[Name]):
    """Fresh processes, each with a name, and the requests to them.

    They start together and import side by side: have them all say `hello` before the first is timed.

    Args:
        start: name -> starts that process, now and when it is replaced.
        timeout: seconds after which one that does not answer counts as hung.
        order: in which they are started; the names' own by default.

    """

    def __init__(
        self,
        start: Mapping[Name, Callable[[], WorkerLike]],
        timeout: float = _PATIENCE_S,
        order: Sequence[Name] | None = None,
    ) -> None:
        self._start, self._timeout = dict(start), timeout
        self._workers: dict[Name, WorkerLike] = {}
        self._dead: set[Name] = set()
        self._hello: dict[str, Any] | None = None
        self._closed = False
        try:
            for name in order or self._start:
                self._workers[name] = self._start[name]()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def of(start: Callable[[], WorkerLike], count: int, timeout: float = _PATIENCE_S) -> Pool[int]:
        """Return a pool of `count` processes, at least 1, that are all started alike; their names are numbers."""
        if count < 1:
            raise ValueError(f"count is at least 1, got {count!r}")
        return Pool(dict.fromkeys(range(count), start), timeout)

    def __len__(self) -> int:
        return len(self._start)

    @property
    def lost(self) -> bool:
        """Whether one of them has died and was not replaced."""
        return bool(self._dead)

    def hello(self, *, one_first: bool = False, timeout: float | None = None, **fields: Any) -> dict[Name, Message]:
        """Have all of them import what takes seconds, and every one that takes the place of another."""
        self._hello = fields
        return self.ask_all("hello", one_first=one_first, timeout=timeout, **fields)

    def ask(self, name: Name, do: str, *, timeout: float | None = None, **fields: Any) -> Message:
        """Return the answer of one of them, within the timeout in seconds; `fields` say more, anything JSON.

        Raises:
            WorkerError: there is none, and why.

        """
        try:
            answer = self._workers[name].request({"do": do, **fields}, timeout or self._timeout)
        except WorkerDied as died:
            self._dead.add(name)
            raise type(died)(died.reason, name, do) from None
        if answer.get("error") is not None:  # a training's record has the field, and none
            kind = _KINDS.get(str(answer.get("kind")), WorkerFailed)
            raise kind(str(answer["error"]), name, do)
        return answer

    def ask_each(self, do: str, **fields: Any) -> list[Message]:
        """Ask all, one after the other: exactly one works at any time, the others sleep in a system call."""
        return [self.ask(name, do, **fields) for name in self._start]

    def ask_all(
        self,
        do: str,
        *,
        each: Mapping[Name, Mapping[str, Any]] | None = None,
        timeout: float | None = None,
        one_first: bool = False,
        **fields: Any,
    ) -> dict[Name, Message]:
        """Ask all at once, or those that `each` names, with what it says to them besides.

        With `one_first` the others follow when the first has answered: what it compiles, they find.

        Raises:
            WorkerError: of several the first one's. Unless a process has died all have answered, and can go on.

        """
        todo = {name: {**fields, **own} for name, own in (each or {name: {} for name in self._start}).items()}
        answers: dict[Name, Message] = {}
        errors: list[WorkerError] = []
        if one_first:
            first = next(iter(todo))
            answers[first] = self.ask(first, do, timeout=timeout, **todo.pop(first))
        with _threads(len(todo)) as threads:
            pending = {name: threads.submit(self.ask, name, do, timeout=timeout, **own) for name, own in todo.items()}
            for name, answer in pending.items():
                try:
                    answers[name] = answer.result()
                except WorkerError as error:
                    errors.append(error)
                    if isinstance(error, WorkerDied):
                        break
        if errors:
            raise errors[0]
        return answers

    def share(
        self,
        jobs: Iterator[Job],
        request: Callable[[Job], tuple[str, Mapping[str, Any]]],
        idle: Callable[[], object] = lambda: None,
        poll_s: float = 0.5,
    ) -> Iterator[tuple[Job, Message | WorkerError]]:
        """Do jobs side by side, each by the next process that is free; yield each with its answer, as they come.

        Everything but the waiting happens in the caller's thread: a process gets its next job when the last answer has
        been dealt with. One that has died is replaced when there is another job for it. One that was lost with its
        machine is not, and its job goes to another one, as long as there is one.

        Args:
            jobs: drawn from when a process is free.
            request: job -> what to ask for, and what else the request says.
            idle: called whenever nothing has come for a while.
            poll_s: that while, in seconds.

        """
        free = list(self._start)
        running: dict[Future[Message], tuple[Name, Job]] = {}
        again: list[Job] = []
        with _threads(len(free)) as threads:
            while True:
                first = [again.pop(0) for _ in range(min(len(again), len(free)))]
                for job in islice(chain(first, jobs), len(free)):
                    name = free.pop(0)
                    running[threads.submit(self._ask_living, name, *request(job))] = name, job
                if not running:
                    yield from ((job, WorkerLost("none is left")) for job in again)
                    return
                done, _ = wait(running, timeout=poll_s, return_when=FIRST_COMPLETED)
                if not done:
                    idle()
                for future in done:
                    name, job = running.pop(future)
                    error = future.exception()
                    if isinstance(error, WorkerLost):
                        again.append(job)
                        continue
                    free.append(name)
                    if error is not None and not isinstance(error, WorkerError):
                        raise error
                    yield job, error or future.result()

    def replace(self, name: Name) -> None:
        """End one and put a fresh one in its place, which says hello if the others have."""
        self._workers[name].close()
        self._workers[name] = fresh = self._start[name]()
        if self._closed:  # by another thread, meanwhile
            fresh.close()
        if self._hello is not None:
            self.ask(name, "hello", **self._hello)
        self._dead.discard(name)

    def close(self) -> None:
        """End all; idempotent."""
        self._closed = True
        for worker in self._workers.values():
            worker.close()

    def _ask_living(self, name: Name, do: str, fields: Mapping[str, Any]) -> Message:
        if name in self._dead:
            self.replace(name)
        return self.ask(name, do, **fields)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Give threads that nobody waits for: after an interrupt or a fault the pool is closed, which ends the requests."""
    executor = ThreadPoolExecutor(max(1, count))
    try:
        yield executor
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
