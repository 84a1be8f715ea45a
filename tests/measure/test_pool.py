"""A pool of workers that answer in this process: who is asked what, and what becomes of errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from meprop_bench.measure.pool import Pool
from meprop_bench.measure.worker import (
    WorkerDied,
    WorkerError,
    WorkerFailed,
    WorkerLost,
    WorkerOutOfMemory,
    WorkerRefused,
)

_ERRORS = {
    "refused": {"error": "k is 0: use at least 1", "kind": "user"},
    "full": {"error": "MemoryError", "kind": "out-of-memory"},
    "failed": {"error": "KeyError: 'step'", "kind": "error"},
    "of another kind": {"error": "what is that?", "kind": "new"},
}


class _Worker:
    """Answers with its number, and what it was asked; `does` says what it does instead."""

    started = 0

    def __init__(self, does: Callable[[int, Mapping[str, Any]], Any] = lambda *_: None) -> None:
        self.number, self.does, self.closed = _Worker.started, does, 0
        _Worker.started += 1

    def request(self, message: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        if (instead := self.does(self.number, message)) is not None:
            if isinstance(instead, BaseException):
                raise instead
            return dict(instead)
        return {**message, "number": self.number, "timeout": timeout}

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(autouse=True)
def _numbers() -> None:
    _Worker.started = 0


def _pool(count: int, does: Callable[[int, Mapping[str, Any]], Any] = lambda *_: None) -> Pool[int]:
    return Pool.of(lambda: _Worker(does), count, 7.0)


def test_one_is_asked_and_each_and_all() -> None:
    with _pool(3) as pool:
        assert pool.ask(1, "check", warm_s=0.1) == {"do": "check", "warm_s": 0.1, "number": 1, "timeout": 7.0}
        assert [answer["number"] for answer in pool.ask_each("check")] == [0, 1, 2]
        assert {name: answer["number"] for name, answer in pool.ask_all("setup", timeout=3.0).items()} == {
            0: 0,
            1: 1,
            2: 2,
        }
        some = pool.ask_all("accuracy", each={2: {"seeds": [1]}, 0: {"seeds": [2]}}, steps=5, timeout=3.0)
        assert [(name, answer["seeds"], answer["steps"], answer["timeout"]) for name, answer in some.items()] == [
            (2, [1], 5, 3.0),
            (0, [2], 5, 3.0),
        ]


def test_they_are_started_in_the_order_that_is_asked_for_and_answer_in_their_own() -> None:
    with Pool({"base": _Worker, "head": _Worker}, order=("head", "base")) as pool:
        assert {name: answer["number"] for name, answer in pool.ask_all("x").items()} == {"base": 1, "head": 0}
        assert list(pool.ask_all("x")) == ["base", "head"]


def test_at_least_one() -> None:
    with pytest.raises(ValueError, match="0"):
        _pool(0)


def test_those_that_were_started_are_ended_when_another_one_cannot_be() -> None:
    started: list[_Worker] = []

    def start() -> _Worker:
        if len(started) == 2:
            raise OSError("no more processes")
        started.append(_Worker())
        return started[-1]

    with pytest.raises(OSError, match="no more"):
        Pool.of(start, 3)
    assert [worker.closed for worker in started] == [1, 1]


@pytest.mark.parametrize(
    ("what", "kind", "text"),
    [
        ("refused", WorkerRefused, "k is 0: use at least 1"),
        ("full", WorkerOutOfMemory, "out of memory: MemoryError"),
        ("failed", WorkerFailed, "KeyError: 'step'"),
        ("of another kind", WorkerFailed, "what is that?"),
    ],
)
def test_an_answer_that_is_an_error_is_an_exception(what: str, kind: type[WorkerError], text: str) -> None:
    with _pool(2, lambda number, message: _ERRORS[what] if number == 1 else None) as pool:
        with pytest.raises(WorkerError) as caught:
            pool.ask(1, "setup")
        assert (type(caught.value), str(caught.value)) == (kind, text)
        assert (caught.value.worker, caught.value.request) == (1, "setup")
        assert caught.value.sentence("its process") == text
        assert not pool.lost


def test_an_answer_whose_error_is_null_is_none() -> None:
    with _pool(1, lambda *_: {"error": None, "test": 98.0}) as pool:
        assert pool.ask(0, "train_arm") == {"error": None, "test": 98.0}


def test_one_that_died_is_replaced_and_says_hello_again() -> None:
    died = WorkerDied("exited with status 3")
    with _pool(2, lambda number, message: died if (number, message["do"]) == (1, "measure") else None) as pool:
        pool.hello(threads=2)
        with pytest.raises(WorkerDied) as caught:
            pool.ask_each("measure")
        assert caught.value.sentence("its process") == "its process exited with status 3"
        assert (caught.value.worker, caught.value.request) == (1, "measure")
        assert pool.lost
        said: list[Any] = []
        pool._start[1] = lambda: _Worker(lambda number, message: said.append((number, dict(message))))
        pool.replace(1)
        assert said == [(2, {"do": "hello", "threads": 2})]
        assert not pool.lost
        assert [answer["number"] for answer in pool.ask_each("measure")] == [0, 2]


def test_with_one_first_the_others_are_asked_when_it_has_answered() -> None:
    log: list[tuple[str, int]] = []

    def does(number: int, message: Mapping[str, Any]) -> None:
        log.append(("asked", number))
        time.sleep(0.05 if number == 0 else 0.0)
        log.append(("answered", number))

    with _pool(3, does) as pool:
        assert list(pool.hello(one_first=True)) == [0, 1, 2]
        assert log[:2] == [("asked", 0), ("answered", 0)]
        log.clear()
        pool.ask_all("setup")
        assert log[-1] == ("answered", 0)


def test_all_have_answered_when_one_has_refused() -> None:
    """Otherwise the next request would get the answer of this one."""
    answered = threading.Event()

    def does(number: int, message: Mapping[str, Any]) -> Any:
        if number == 1:
            time.sleep(0.05)
            answered.set()
        return _ERRORS["refused"] if number in (0, 2) else None

    with _pool(3, does) as pool:
        with pytest.raises(WorkerRefused) as caught:
            pool.ask_all("setup")
        assert caught.value.worker == 0
        assert answered.is_set()


def test_of_two_errors_the_first_one_counts_and_the_process_is_lost_all_the_same() -> None:
    errors: dict[int, Any] = {0: _ERRORS["failed"], 1: WorkerDied("was killed")}
    with _pool(2, lambda number, _: errors[number]) as pool:
        with pytest.raises(WorkerFailed):
            pool.ask_all("turns")
        assert pool.lost


def test_an_interrupt_passes_through_and_ends_them() -> None:
    workers: list[_Worker] = []

    def start() -> _Worker:
        workers.append(_Worker(lambda number, _: KeyboardInterrupt() if number == 1 else None))
        return workers[-1]

    with pytest.raises(KeyboardInterrupt), Pool.of(start, 2) as pool:
        pool.ask_all("measure")
    assert [worker.closed for worker in workers] == [1, 1]


# Jobs that are shared.


def _request(job: int) -> tuple[str, Mapping[str, Any]]:
    return "train", {"job": job}


def test_jobs_are_shared_among_those_that_are_free() -> None:
    with _pool(2, lambda _, message: time.sleep(0.2 if message["job"] == 0 else 0.0)) as pool:
        found = [(job, answer["number"]) for job, answer in pool.share(iter(range(5)), _request)]  # type: ignore[index]
    assert sorted(job for job, _ in found) == [0, 1, 2, 3, 4]
    assert found[-1] == (0, 0)  # the long one; the other process did the rest
    assert {number for job, number in found if job} == {1}


def test_the_next_job_is_drawn_when_the_last_answer_has_been_dealt_with() -> None:
    done: list[int] = []

    def jobs() -> Iterator[int]:
        while len(done) < 3:  # as a deadline would
            yield len(done)

    with _pool(1) as pool:
        for job, _ in pool.share(jobs(), _request):
            done.append(job)
    assert done == [0, 1, 2]


def test_a_job_whose_process_dies_costs_itself_alone() -> None:
    def does(number: int, message: Mapping[str, Any]) -> Any:
        return (
            WorkerDied("was killed")
            if message.get("job") == 1
            else _ERRORS["full"]
            if message.get("job") == 2
            else None
        )

    with _pool(1, does) as pool:
        pool.hello(threads=1)
        found = dict(pool.share(iter(range(4)), _request))
    assert [type(found[job]).__name__ for job in range(4)] == ["dict", "WorkerDied", "WorkerOutOfMemory", "dict"]
    assert (found[0]["number"], found[3]["number"]) == (0, 1)  # type: ignore[index]
    assert _Worker.started == 2


def test_while_nothing_comes_the_caller_may_do_something() -> None:
    waited: list[None] = []
    with _pool(1, lambda *_: time.sleep(0.1)) as pool:
        list(pool.share(iter([1]), _request, idle=lambda: waited.append(None), poll_s=0.01))
    assert waited


def test_whatever_else_is_raised_passes_through() -> None:
    with pytest.raises(KeyboardInterrupt), _pool(2, lambda *_: KeyboardInterrupt()) as pool:
        list(pool.share(iter([1, 2]), _request))


def test_what_a_machine_that_was_lost_had_in_hand_another_process_does() -> None:
    def lost(number: int, message: Mapping[str, Any]) -> object:
        return WorkerLost("gone") if number == 0 else None

    with _pool(2, lost) as pool:
        found = list(pool.share(iter(range(4)), lambda job: ("do", {"job": job})))
    assert sorted(job for job, _ in found) == [0, 1, 2, 3]
    assert {answer["number"] for _, answer in found if isinstance(answer, dict)} == {1}  # the other one is not replaced
    assert _Worker.started == 2
    with _pool(2, lambda *_: WorkerLost("gone")) as pool:
        answers = dict(pool.share(iter(range(3)), lambda job: ("do", {"job": job})))
    assert answers.keys() == {0, 1}
    assert all(isinstance(answer, WorkerLost) for answer in answers.values())
