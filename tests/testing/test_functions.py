"""Two functions and the processes that time them: the order of things, and what becomes of faults, by made-up ones."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from meprop_bench.errors import UserError
from meprop_bench.measure.worker import WorkerDied
from meprop_bench.sweep.functions import CALL, Functions, Timed
from meprop_bench.testing.functions import FunctionError, FunctionTimes, sent

_ACTIVITY = {"wall_s": 1.0, "cores": 2, "others_s": 1.0, "stolen_s": 0.0, "throttled_s": None, "overheated": None}
_NAMES = ("old", "new")


class Processes:
    """Starts processes that answer as those of functions do: 2 ms against 1 ms; a second passes at each request."""

    def __init__(self, **answers: Any) -> None:
        self.seconds = 0.0
        self.log: list[tuple[str, Any]] = []
        self.closed = 0
        self._answers = answers

    def __call__(self) -> _Process:
        return _Process(self)

    def now(self) -> float:
        return self.seconds

    def answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        do = message["do"]
        self.log.append((do, message))
        self.seconds += 1.0
        own = self._answers.get(do, {})
        if isinstance(own, BaseException):
            raise own
        usual = {
            "load_functions": {},
            "try_functions": {"differ": None, "changed": [False, False], "device": "cpu", "loops": [4, 5]},
            "time_functions": {
                "pairs": {CALL: [[2e-3, 1e-3], [2e-3, 1e-3]]},
                "disturbed": [False, True],
                "activity": {**_ACTIVITY, "swapped_in": 0},
            },
        }
        return {**usual[do], **own}

    @contextmanager
    def lock(self, device: str, waiting: Callable[[int | None], object]) -> Iterator[None]:
        waiting(12)
        self.seconds += 100.0
        self.log.append(("lock", device))
        yield
        self.log.append(("unlock", device))


class _Process:
    def __init__(self, owner: Processes) -> None:
        self._owner = owner

    def request(self, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        return self._owner.answer(message)

    def close(self) -> None:
        self._owner.closed += 1


def _times(processes: Processes, **options: Any) -> FunctionTimes:
    return FunctionTimes(_NAMES, b"", start=processes, lock=processes.lock, now=processes.now, **options)


def test_a_batch_loads_tries_and_then_takes_pairs_in_random_order() -> None:
    processes, lines = Processes(), list[str]()
    times = _times(processes, waiting=lines.append, least_pairs=5)
    found = times.take(3)
    done = [do for do, _ in processes.log]
    assert done == ["lock", *["load_functions"] * 3, *["try_functions"] * 3, *["time_functions"] * 6, "unlock"]
    assert processes.closed == 3
    assert lines == ["waiting for process 12"]
    asked = [message for do, message in processes.log if do == "time_functions"]
    assert {(message["least_pairs"], *message["loops"]) for message in asked} == {(3, 4, 5)}
    assert len({message["seed"] for message in asked}) == 6
    measurement = found.measurement
    assert measurement.run_lengths == [4, 4, 4]
    assert measurement.loops == 5
    assert measurement.disturbed == ((False, True, False, True),) * 3
    assert found.seconds == 12.0  # the wait for another run is not its own
    assert [note.kind for note in found.notes] == ["others"]


def test_a_second_batch_has_fresh_processes_and_adds_to_the_first() -> None:
    processes = Processes()
    times = _times(processes)
    times.take(3)
    found = times.take(2)
    assert found.measurement.processes == 5
    assert processes.closed == 5
    assert found.seconds == 20.0


def test_where_a_gpu_is_used_it_is_locked_as_well() -> None:
    processes = Processes(try_functions={"device": "cuda:0"}, time_functions={"disturbed": None})
    found = _times(processes).take(3)
    assert [device for do, device in processes.log if do == "lock"] == ["cpu", "cuda:0"]
    assert found.measurement.disturbed is None
    assert found.seconds == 12.0


def test_once_times_nothing() -> None:
    processes = Processes(try_functions={"changed": [True, False]})
    times = _times(processes)
    times.once()
    assert [do for do, _ in processes.log] == ["load_functions", "try_functions"]
    assert processes.log[-1][1]["timed"] is False
    assert times.changed == ("old",)


@pytest.mark.parametrize(
    ("answers", "line"),
    [
        (
            {"try_functions": {"raised": {"side": 1, "line": "ValueError: bad", "traceback": "Traceback: here"}}},
            "new raised ValueError: bad\n\nTraceback: here",
        ),
        (
            {"time_functions": {"raised": {"side": 0, "line": "ValueError: late", "traceback": ""}}},
            "old raised ValueError: late",
        ),
        (
            {"load_functions": {"raised": {"side": None, "line": "ImportError: x", "traceback": ""}}},
            "the functions cannot be loaded in a fresh process: ImportError: x",
        ),
        ({"try_functions": {"differ": "3, not 4"}}, "different results of new and old: 3, not 4"),
        (
            {"time_functions": WorkerDied("killed by signal 11 (Segmentation fault)")},
            "a process that measures new and old killed by signal 11 (Segmentation fault)",
        ),
        ({"load_functions": {"error": "no memory", "kind": "out-of-memory"}}, "out of memory: no memory"),
    ],
)
def test_faults_are_a_line_and_leave_no_process(answers: dict[str, Any], line: str) -> None:
    processes = Processes(**answers)
    with pytest.raises(FunctionError) as raised:
        _times(processes).take(3)
    assert str(raised.value) == line
    assert processes.closed == 3


async def _coroutine() -> None:
    pass


def _generator() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize("function", [_coroutine, _generator])
def test_a_function_whose_call_runs_nothing_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="whose call runs nothing: give a function that"):
        sent(Functions(Timed(int), Timed(function)))


@pytest.mark.parametrize(
    ("timed", "words"),
    [
        (Timed(len, (_generator(),)), "argument 1 of len, of type generator, cannot be sent"),
        (Timed(dict, (), {"a": _generator()}), "argument 'a' of dict, of type generator, cannot be sent"),
    ],
)
def test_an_argument_that_cannot_be_sent_is_named(timed: Timed, words: str) -> None:
    with pytest.raises(UserError, match=words):
        sent(Functions(Timed(int), timed))


def test_what_is_sent_can_be_called_elsewhere() -> None:
    number = 3
    functions = pickle.loads(sent(Functions(Timed(lambda: number), Timed(lambda x: x + number, (1,)))))
    assert (functions.reference.bound()(), functions.candidate.bound()()) == (3, 4)
