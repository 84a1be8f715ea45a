"""Two functions, sent to fresh processes that time them in interleaved pairs.

A batch of processes loads them at once; then one after the other tries and calibrates; then they take pairs in random
order, a visit each, again and again. Exactly one works at any time.
"""

from __future__ import annotations

import math
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from meprop_bench.errors import UserError
from meprop_bench.measure.lock import DeviceLock, device_lock, waiting_for
from meprop_bench.measure.pool import Pool
from meprop_bench.measure.worker import Message, WorkerError, WorkerLike
from meprop_bench.pickling import function_name, pickled
from meprop_bench.sweep.functions import CALL, Functions, no_call
from meprop_bench.sweep.rows import Answers
from meprop_bench.sweep.worker import start_worker
from meprop_bench.testing.claim import Evidence

__all__ = ["FunctionError", "FunctionTimes", "sent"]

_WARM_S = 0.02
"""Seconds of single iterations before the loops are calibrated, for each side."""
_SLICE_S = 0.8
"""Seconds of pairs in a process."""
_VISITS = 2
"""To each process of a batch, so that its pairs are spread over more of the time."""


class FunctionError(Exception):
    """A function raised, or both return something else, or a process was lost: a line, and perhaps a traceback."""

    def __init__(self, line: str, traceback: str = "") -> None:
        super().__init__(f"{line}\n\n{traceback}" if traceback else line)
        self.line, self.traceback = line, traceback


def sent(functions: Functions, modules: Iterable[ModuleType] = ()) -> bytes:
    """Return a pickle of both functions with all that they need; `modules` travel by value, as the test's own.

    Raises:
        UserError: cloudpickle is missing, something has no pickle, or a function does nothing when it is called; one
            line names it.

    """
    parts: dict[str, object] = {}
    for side in (functions.candidate, functions.reference):
        name = function_name(side.function)
        if reason := no_call(side.function):
            raise UserError(f"{name} is {reason}")
        parts |= {f"argument {place} of {name}": value for place, value in enumerate(side.args, 1)}
        parts |= {f"argument {key!r} of {name}": value for key, value in (side.kwargs or {}).items()}
        parts |= {name: side.function, f"the setup function of {name}": side.setup}
    return pickled(functions, {**parts, "same_result": functions.same_result}, modules)


class FunctionTimes:
    """The evidence about two functions, batch by batch of fresh processes.

    Args:
        names: of the reference and the candidate.
        content: what `pickled` returned.
        least_pairs: of each process.
        seed: of the order of processes and pairs.
        waiting: called with a line where another run measures on the device.
        start: starts a process.
        lock: keeps other runs from measuring meanwhile.
        now: wall seconds.

    """

    def __init__(
        self,
        names: tuple[str, str],
        content: bytes,
        *,
        least_pairs: int | None = None,
        seed: int = 0,
        waiting: Callable[[str], object] = lambda _: None,
        start: Callable[[], WorkerLike] = start_worker,
        lock: DeviceLock = device_lock,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._names, self._content = names, content
        self._least_pairs = math.ceil((least_pairs or _VISITS) / _VISITS)
        self._rng = random.Random(seed)
        self._waiting = waiting
        self._start = start
        self._lock, self._now = lock, now
        self._seconds = 0.0
        self._loops: list[int] = []  # of each side
        self._answers, self._measured = Answers(), 0
        self.changed: tuple[str, ...] = ()
        """The functions that changed their arguments."""

    def once(self) -> None:
        """Call both functions once, in a fresh process, and time nothing.

        Raises:
            FunctionError: one of them raises, their results are not the same, or the process is lost.

        """
        with self._processes(1) as pool:
            self._try(pool, 0, timed=False)

    def take(self, processes: int) -> Evidence:
        """Measure in so many more processes; return all that there is. Raises `FunctionError` as `once` does."""
        with self._device("cpu"), ExitStack() as stack:
            begun = self._now()
            pool = stack.enter_context(self._processes(processes))
            tried = [self._try(pool, name) for name in range(processes)]
            self._seconds += self._now() - begun
            if (device := str(tried[0]["device"])) != "cpu":
                stack.enter_context(self._device(device))
            begun = self._now()
            self._loops = self._loops or [max(sides) for sides in zip(*(one["loops"] for one in tried), strict=True)]
            self._measure(pool, processes)
            self._seconds += self._now() - begun
        found = self._answers.measurement(CALL, max(self._loops))
        return Evidence(found, self._seconds, tuple(self._answers.notes))

    def _measure(self, pool: Pool[int], processes: int) -> None:
        for _ in range(_VISITS):
            for name in self._rng.sample(range(processes), processes):
                answer = self._ask(
                    pool, name, "time_functions", seconds=_SLICE_S / _VISITS, least_pairs=self._least_pairs,
                    loops=self._loops, seed=self._rng.getrandbits(32),
                )  # fmt: skip
                self._answers.add(self._measured + name, answer)
        self._measured += processes

    @contextmanager
    def _processes(self, count: int) -> Iterator[Pool[int]]:
        """Give so many fresh processes that have loaded the functions."""
        with tempfile.TemporaryDirectory(prefix="meprop-bench-") as folder, ExitStack() as stack:
            (file := Path(folder, "functions.pickle")).write_bytes(self._content)
            pool = stack.enter_context(Pool.of(self._start, count))
            try:
                answers = pool.ask_all("load_functions", file=str(file))
            except WorkerError as error:
                raise self._lost(error) from None
            for answer in answers.values():
                self._check(answer)
            yield pool

    def _try(self, pool: Pool[int], name: int, *, timed: bool = True) -> Message:
        answer = self._ask(pool, name, "try_functions", warm_s=_WARM_S, timed=timed)
        if (differ := answer["differ"]) is not None:
            reference, candidate = self._names
            raise FunctionError(f"different results of {candidate} and {reference}: {differ}")
        self.changed = tuple(name for name, changed in zip(self._names, answer["changed"], strict=True) if changed)
        return answer

    def _ask(self, pool: Pool[int], name: int, do: str, **fields: Any) -> Message:
        try:
            answer = pool.ask(name, do, **fields)
        except WorkerError as error:
            raise self._lost(error) from None
        self._check(answer)
        return answer

    def _check(self, answer: Message) -> None:
        if (raised := answer.get("raised")) is None:
            return
        side = raised["side"]
        who = (
            f"{self._names[side]} raised" if side is not None else "the functions cannot be loaded in a fresh process:"
        )
        raise FunctionError(f"{who} {raised['line']}", raised["traceback"])

    def _lost(self, error: WorkerError) -> FunctionError:
        reference, candidate = self._names
        return FunctionError(error.sentence(f"a process that measures {candidate} and {reference}"))

    def _device(self, device: str) -> AbstractContextManager[None]:
        return self._lock(device, lambda holder: self._waiting(waiting_for(holder)))
