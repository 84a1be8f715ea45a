"""A function of a user's as a case: found by its name in a project's files, given its arguments, timed in blocks.

    setup_function   imports the function and makes its arguments
    check_function   calls it once, since what it raises is found before anything is timed; warms up, calibrates
    again_function   makes the arguments anew, elsewhere in memory
    peak_function    the memory that a call takes, in a pass of its own, which is slow

The blocks and how two processes alternate are those of any case (`sweep.blocks`). Nothing here, and nothing that it
imports, needs more than the standard library: it runs in the environment of a project that knows nothing of this
package. A case is named by what is called, so it needs no file of settings in the revision that is measured.
"""

from __future__ import annotations

import json
import random
import sys
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

from meprop_bench.errors import UserError
from meprop_bench.measure import affinity
from meprop_bench.measure.clock import WallClock
from meprop_bench.measure.paired import Subject, calibrate, warm_up
from meprop_bench.sweep.blocks import blocks_of
from meprop_bench.sweep.functions import CALL, Timed, device_of_functions, fingerprint, no_call
from meprop_bench.sweep.worker import PROTOCOL, WorkerSession
from meprop_bench.tasks.build import find, guarded

__all__ = [
    "FunctionCase", "again_function", "check_function", "hello_function", "peak_function", "setup_function",
]  # fmt: skip

_SLOW_S = 0.5
"""A call of so many seconds is one value: it is not warmed up, or calibrated."""
_TRACED_S = 10.0
"""Seconds of a call from which its memory is not measured, which slows it several times."""
_BALLAST = (4 << 10, 64 << 10, 1 << 20)
"""Bytes at most of each block of memory that is in the way when the arguments are made again."""
_SEED = 0
"""Of `random`, NumPy and torch, each time before arguments are made: they are the same in both revisions."""
_FORM = "function_case"

_Answer = Mapping[str, Any]


@dataclass(frozen=True)
class FunctionCase:
    """A function, and what it is called with.

    The size, `args` and `kwargs` go to the set-up function where there is one, else to the function itself.
    """

    function: str  # as `tasks.build` has it: "bench.py:parse", "package.module:parse"
    threads: int
    setup: str | None = None  # likewise; makes the arguments: (args, kwargs), None for none, or the one argument
    each_call: bool = False  # whether these are made before each call, as one that changes them needs
    args: tuple[Any, ...] = ()  # JSON values
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    sizes: tuple[Any, ...] = ()  # of this case: one, or none
    name: str = ""  # in place of the function's
    device: str = "cpu"
    allocator: str = "default"

    @property
    def label(self) -> str:
        """Its name: `bench.py:parse size=1000`."""
        return " ".join([self.name or self.function, *(f"size={_text(size)}" for size in self.sizes)])

    def __hash__(self) -> int:
        return hash(self.label)

    def changed(self) -> dict[str, Any]:
        """Return the JSON object of it."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Build from a JSON object."""
        return cls(**{**record, "args": tuple(record["args"]), "sizes": tuple(record["sizes"])})


def _text(size: Any) -> str:
    return size if isinstance(size, str) else json.dumps(size)


@dataclass(frozen=True)
class _Ready:
    """A function with its arguments, in the shape that blocks take (`blocks.Timeable`)."""

    method: Subject
    call: Callable[[], object]
    phases: tuple[str, ...] = (CALL,)

    @property
    def baseline(self) -> Subject:
        return self.method

    @property
    def memory(self) -> Mapping[str, tuple[Callable[[], object], Callable[[], object]]]:
        return {CALL: (self.call, self.call)}


class _Form:
    """A case whose functions have been imported."""

    def __init__(self, case: FunctionCase) -> None:
        self.case = case
        self.function = find(case.function, "function")
        self._make = None if case.setup is None else find(case.setup, "function")
        for name, function in ((case.function, self.function), (case.setup, self._make)):
            if reason := no_call(function):
                raise UserError(f"{name} is {reason}")
        self.ready: _Ready | None = None
        self.given: tuple[Sequence[Any], Mapping[str, Any]] = (), {}  # the arguments, where each call has the same
        self.first_s = 0.0  # what the first call took
        self.ballast: list[bytearray] = []

    def prepare(self) -> _Ready:
        """Make the arguments."""
        if self.case.each_call:
            timed = Timed(self.function, setup=self.made)

            def once() -> object:
                return timed.bound()()

            self.ready = _Ready(timed.subject, once)
        else:
            self.given = args, kwargs = self.made()
            call = partial(self.function, *args, **kwargs)
            self.ready = _Ready(lambda loops, clock: {CALL: clock.time(call, loops)}, call)
        return self.ready

    def made(self) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return args and kwargs."""
        _seed()
        args, kwargs = (*self.case.sizes, *self.case.args), self.case.kwargs
        if self._make is None:
            return args, kwargs
        with guarded(self.case.setup or "", "called"):
            made = self._make(*args, **kwargs)
        if made is None:
            return (), {}
        pair = isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], tuple | list)
        return made if pair and isinstance(made[1], Mapping) else ((made,), {})


def hello_function(session: WorkerSession, threads: int, device: str, pin: bool = False) -> _Answer:
    """Say where this process is, and which package it runs; with `pin` bind it to as many cores."""
    import meprop_bench
    from meprop_bench.measure.environment import collect

    if pin:
        affinity.bind(threads)
    session.environment = collect(device, "default", torch=False)
    return {
        "environment": session.environment,
        "protocol": PROTOCOL,
        "package": str(Path(meprop_bench.__file__).parent),
    }


def setup_function(session: WorkerSession, case: Mapping[str, Any]) -> _Answer:
    """Import the functions of a case, and make the arguments."""
    session.forget()
    session.loaded[_FORM] = form = _Form(FunctionCase.from_json(case))
    form.prepare()
    return {"phases": [CALL], "costs": {}}


def check_function(session: WorkerSession, warm_s: float) -> _Answer:
    """Call the function once and, unless a call takes long, warm it up and calibrate the loops."""
    form: _Form = session.loaded[_FORM]
    assert form.ready is not None
    before = fingerprint(form.given)
    with guarded(form.case.function, "called"):
        begun = time.perf_counter()
        form.ready.call()
        form.first_s = time.perf_counter() - begun
    changed = before is not None and before != fingerprint(form.given)
    clock = WallClock(device_of_functions())
    loops = 1
    with guarded(form.case.function, "called"):
        if form.first_s < _SLOW_S:
            warm_up(form.ready.method, clock, seconds=warm_s)
            loops = calibrate(form.ready.method, clock)
    session.checked = cast(Any, form.ready), clock  # all of it that blocks take
    return {"side_loops": [loops, loops], "changed": changed, "traced": form.first_s < _TRACED_S}


def again_function(session: WorkerSession, seed: int) -> _Answer:
    """Make the arguments once more, the same ones elsewhere: a ballast sees to it that other memory is free."""
    form: _Form = session.loaded[_FORM]
    blocks = blocks_of(session)
    form.ready, form.given = None, ((), {})
    blocks.release()
    rng = random.Random(seed)
    form.ballast = [bytearray(rng.randrange(1, most)) for most in _BALLAST]
    ready = form.prepare()
    if form.first_s < _SLOW_S:
        with guarded(form.case.function, "called"):
            warm_up(ready.method, blocks.clock, seconds=0.0)
    session.checked = cast(Any, ready), blocks.clock
    blocks.use(ready)
    return {}


def peak_function(session: WorkerSession) -> _Answer:
    """Return the bytes that a call takes at most, of what Python's allocators know; None where a call takes too long.

    They know what Python's objects and NumPy's arrays take, and nothing of what an extension gets from the system.
    """
    form: _Form = session.loaded[_FORM]
    assert form.ready is not None
    if form.first_s >= _TRACED_S:
        return {"peak": None}
    call = form.ready.call
    if form.case.each_call:
        args, kwargs = form.made()
        call = partial(form.function, *args, **kwargs)
    tracemalloc.start()
    try:
        with guarded(form.case.function, "called"):
            call()
        return {"peak": tracemalloc.get_traced_memory()[1]}
    finally:
        tracemalloc.stop()


def _seed() -> None:
    random.seed(_SEED)
    if (numpy := sys.modules.get("numpy")) is not None and hasattr(numpy, "random"):
        numpy.random.seed(_SEED)
    if (torch := sys.modules.get("torch")) is not None and hasattr(torch, "manual_seed"):
        torch.manual_seed(_SEED)
