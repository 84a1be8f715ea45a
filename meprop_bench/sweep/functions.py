"""A measuring process's part in comparing two functions of a user: it loads them, tries them, and times them in pairs.

    load_functions   unpickles both, with the modules that they need; all processes at once
    try_functions    calls each once, compares what they return, warms up and calibrates the loops; one after the other
    time_functions   takes interleaved pairs, as `measure` does of a case

What a function raises is no fault of the process: the answer then has `raised`, which side it was and its traceback,
and nothing else. Nothing here imports torch. Where the functions have started CUDA, each value waits for the device at
both ends, or it would be the time of the launches alone.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import pickle
import reprlib
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from meprop_bench.measure.clock import Clock, WallClock
from meprop_bench.measure.paired import Subject, calibrate, warm_up
from meprop_bench.sweep.worker import WorkerSession, measure

if TYPE_CHECKING:
    from meprop_bench.measure.worker import Message

__all__ = [
    "CALL", "Functions", "Timed", "device_of_functions", "fingerprint", "load_functions", "no_call", "time_functions",
    "try_functions",
]  # fmt: skip

CALL = "call"
"""The one phase of a function."""

_LOADED = "functions"
_MOST_S = 0.05
"""Seconds of a value at most, for the other side's sake."""

_NO_CALL: Mapping[str, Callable[[Any], bool]] = {
    "a coroutine function, whose call runs nothing: give a function that runs it, as by asyncio.run": (
        inspect.iscoroutinefunction
    ),
    "a generator function, whose call runs nothing: give a function that exhausts it, as by list": (
        lambda function: inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
    ),
}


def no_call(function: object) -> str | None:
    """Say why a call of a function runs nothing of it: "a coroutine function, ..."; None where it does."""
    return next((reason for reason, applies in _NO_CALL.items() if applies(function)), None)


@dataclass(frozen=True)
class Timed:
    """A function and what it is called with."""

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None
    setup: Callable[[], Any] | None = None  # called before each call, untimed: gives its (args, kwargs), or None

    def bound(self) -> Callable[[], Any]:
        """Return the next call."""
        made = None if self.setup is None else self.setup()
        if made is None:
            return partial(self.function, *self.args, **(self.kwargs or {}))
        if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], Mapping)):
            raise TypeError(f"a setup function returns (args, kwargs) or None, not {reprlib.repr(made)}")
        args, kwargs = made
        return partial(self.function, *args, **kwargs)

    @property
    def subject(self) -> Subject:
        """What times it; fresh arguments are made outside of what is timed."""
        if self.setup is None:
            call = self.bound()
            return lambda loops, clock: {CALL: clock.time(call, loops)}
        following: list[Callable[[], Any]] = [self.bound]

        def prepare() -> None:
            following[0] = self.bound()

        def run() -> Any:
            return following[0]()

        return lambda loops, clock: {CALL: clock.time_phases({"setup": prepare, CALL: run}, loops)[CALL]}


@dataclass(frozen=True)
class Functions:
    """What a pickle holds: both sides, and how what they return is compared."""

    reference: Timed
    candidate: Timed
    same_result: bool | Callable[[Any, Any], object] = False


class _Raised(Exception):
    """A user's function raised its cause."""

    def __init__(self, side: int) -> None:
        super().__init__(side)
        self.side = side


def load_functions(session: WorkerSession, file: str) -> Message:
    """Unpickle the functions, which imports what they need."""
    try:
        with Path(file).open("rb") as stream:
            session.loaded[_LOADED] = pickle.load(stream)
    except BaseException as error:  # noqa: BLE001  a module that it imports may do anything
        return {"raised": _said(error, None)}
    return {}


def try_functions(session: WorkerSession, warm_s: float, timed: bool = True) -> Message:
    """Call both once and, if they are to be `timed`, warm them up and calibrate the loops.

    The answer: `differ`, how their results do, or None; `changed`, whether each changed its arguments; `device` that
    they use; `loops`.
    """
    from meprop_bench.results.schema import PASSED
    from meprop_bench.workloads import Prepared

    functions: Functions = session.loaded[_LOADED]
    sides = (functions.reference, functions.candidate)
    try:
        results, changed = zip(*(_once(index, side) for index, side in enumerate(sides)), strict=True)
        differ = None
        if functions.same_result is not False:
            differ = _compared(functions.same_result, *results)
        del results
        answer: Message = {"differ": differ, "changed": list(changed), "device": device_of_functions(), "loops": [1, 1]}
        if not timed or differ is not None:
            return answer
        clock = WallClock(answer["device"])
        reference, candidate = (_guarded(index, side.subject) for index, side in enumerate(sides))
        for subject in (reference, candidate):
            warm_up(subject, clock, seconds=warm_s)
        answer["loops"] = _loops((reference, candidate), clock)
    except _Raised as raised:
        return {"raised": _said(raised.__cause__, raised.side)}
    prepared = Prepared(phases=(CALL,), baseline=reference, method=candidate, check=lambda: PASSED, kernel="", k=1)
    session.checked = prepared, clock
    return answer


def time_functions(session: WorkerSession, loops: Sequence[int], **fields: Any) -> Message:
    """Take interleaved pairs; fields and answer are those of `measure`, but for the loops, which each side has."""
    prepared, clock = session.passed()
    reference, candidate = loops
    timed = replace(
        prepared, baseline=_repeated(prepared.baseline, reference), method=_repeated(prepared.method, candidate)
    )
    session.checked = timed, clock
    try:
        return dict(measure(session, loops=1, **fields))
    except _Raised as raised:
        return {"raised": _said(raised.__cause__, raised.side)}
    finally:
        session.checked = prepared, clock


def _loops(sides: Sequence[Subject], clock: Clock) -> list[int]:
    """Return the iterations for a value of each side: the same for both, so that they find like caches, unless that
    would make one side's value long because the other's is short.
    """
    own = [calibrate(side, clock) for side in sides]
    found = []
    for side, loops in zip(sides, own, strict=True):
        begun = clock.now()
        side(loops, clock)
        allowed = int(_MOST_S * loops / max(clock.now() - begun, 1e-9))
        found.append(max(loops, min(max(own), allowed)))
    return found


def _repeated(side: Subject, times: int) -> Subject:
    return lambda loops, clock: side(loops * times, clock)


def _guarded(side: int, subject: Subject) -> Subject:
    def guarded(loops: int, clock: Clock) -> Mapping[str, float]:
        try:
            return subject(loops, clock)
        except BaseException as error:
            raise _of_user(error, side) from error

    return guarded


def _once(index: int, side: Timed) -> tuple[Any, bool]:
    """Return what a call returns, and whether it changed its arguments: then the next call does other work."""
    before = _state(side)
    try:
        result = side.bound()()
    except BaseException as error:
        raise _of_user(error, index) from error
    return result, before is not None and before != _state(side)


def _of_user(error: BaseException, side: int) -> BaseException:
    return error if isinstance(error, KeyboardInterrupt) else _Raised(side)


def _state(side: Timed) -> str | None:
    """Return a hash of the arguments; None of fresh ones."""
    return None if side.setup is not None else fingerprint((side.args, side.kwargs or {}))


def fingerprint(given: tuple[Sequence[Any], Mapping[str, Any]]) -> str | None:
    """Return a hash of arguments; None where there are none, and of what has no pickle."""
    # What is of no module has come by cloudpickle, and goes by it. Others do not: a call may be the first to import it.
    picklers: list[Callable[[Any], bytes]] = [pickle.dumps]
    if (module := sys.modules.get("cloudpickle")) is not None:
        picklers.append(module.dumps)
    for dumps in picklers if any(given) else ():
        with suppress(Exception):  # a pickle may raise anything: nothing is known then
            return hashlib.sha256(dumps(given)).hexdigest()
    return None


def _compared(same: bool | Callable[[Any, Any], object], reference: Any, candidate: Any) -> str | None:
    """Return how two results differ; None when they are the same."""
    found = f"{reprlib.repr(candidate)}, not {reprlib.repr(reference)}"
    if callable(same):
        try:
            verdict = same(reference, candidate)
        except AssertionError as error:  # of numpy.testing, torch.testing, ...
            return f"{found}: {error}"
        return found if verdict is not None and not verdict else None
    if getattr(reference, "shape", None) != getattr(candidate, "shape", None):
        return found
    try:
        equal = reference == candidate
        return None if bool(equal.all() if hasattr(equal, "all") else equal) else found
    except Exception as error:  # noqa: BLE001  a list of arrays, say
        return f"{found}; == cannot tell ({type(error).__name__}): give same_result a function of both results"


def device_of_functions() -> str:
    """Return the device that the functions have started, if they have."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return "cpu"
    return f"cuda:{torch.cuda.current_device()}"


def _said(error: BaseException | None, side: int | None) -> Message:
    """Return what was raised, with its traceback from the user's code on."""
    assert error is not None
    text = str(error).strip().partition("\n")[0]
    line = f"{type(error).__name__}: {text}" if text else type(error).__name__
    start = _users(error.__traceback__)
    return {"side": side, "line": line, "traceback": "".join(traceback.format_exception(type(error), error, start))}


def _users(frame: TracebackType | None) -> TracebackType | None:
    """Return a traceback from its first frame outside of this package on; all of it where there is none."""
    package, rest = str(Path(__file__).parents[1]) + os.sep, frame
    while rest is not None and rest.tb_frame.f_code.co_filename.startswith(package):
        rest = rest.tb_next
    return rest or frame
