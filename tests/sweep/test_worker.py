"""A worker's answers, without a process: what it tells of a real, tiny case."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from meprop_bench import workloads
from meprop_bench.errors import UserError
from meprop_bench.measure import affinity
from meprop_bench.measure.cold import ColdClock
from meprop_bench.measure.graph import CudaGraphClock
from meprop_bench.results.schema import Utilization
from meprop_bench.sweep.worker import Session
from meprop_bench.workloads.case import Case

_CASE = Case(method="unified", k=2, batch=4, in_features=6, out_features=8, threads=1)


@pytest.fixture
def session() -> Session:
    session = Session()
    _ask(session, do="setup", case=_CASE.to_json())
    assert _ask(session, do="check", warm_s=0.0)["check"] == "passed"
    return session


def _ask(session: Session, **message: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(json.dumps(session.handle(message), allow_nan=False))
    return answer


def test_it_binds_itself_to_cores_when_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[int] = []
    monkeypatch.setattr(affinity, "bind", bound.append)
    threads = torch.get_num_threads()
    try:
        _ask(Session(), do="hello", threads=1, device="cpu")
        assert bound == []
        _ask(Session(), do="hello", threads=1, device="cpu", pin=True)
    finally:
        torch.set_num_threads(threads)
    assert bound == [1]


def test_each_phase_is_weighed_on_both_sides(session: Session) -> None:
    weights = _ask(session, do="memory", device="cpu")["weights"]
    assert list(weights) == ["forward", "backward"]
    dense = weights["backward"][0]
    assert dense["tensor_bytes"] >= 4 * (4 * 6 + 8 * 6 + 8)  # dx, dW and db
    assert dense["process_bytes"] > dense["tensor_bytes"]
    assert dense["reserved_bytes"] is None


def test_each_side_is_watched_in_its_main_phase(session: Session) -> None:
    found = _ask(session, do="utilization", device="cpu", seconds=0.02)
    assert found["phase"] == "backward"
    for side in found["sides"]:
        told = Utilization.from_json(side)
        assert told.iterations > 0
        assert told.cpu_utilization is not None
        assert told.gpu_utilization is None
        assert told.unavailable["gpu_utilization"] == "the device is the CPU"
        nulls = {name for name in vars(told) if getattr(told, name) is None}
        assert nulls == set(told.unavailable)


def test_a_case_that_its_kernel_cannot_do_is_the_user_s_wish_and_the_next_one_is_measured(session: Session) -> None:
    with pytest.raises(UserError, match="kernel 'gather' does not support this case: it needs a unified selection"):
        _ask(session, do="setup", case={**_CASE.to_json(), "method": "meprop", "kernel": "gather"})
    with pytest.raises(ValueError, match="no case is set up"):
        _ask(session, do="check", warm_s=0.0)
    _ask(session, do="setup", case=_CASE.to_json())
    assert _ask(session, do="check", warm_s=0.0)["check"] == "passed"


class _Replays(CudaGraphClock):
    """What stands for a GPU: a replay is the call, and is counted."""

    def __init__(self) -> None:
        self.replayed: list[Callable[[], object]] = []

    def replay(self, fn: Callable[[], object]) -> Callable[[], object]:
        self.replayed.append(fn)
        return fn

    def synchronize(self) -> None:
        pass


def test_of_a_captured_case_the_replays_are_watched(session: Session) -> None:
    prepared, _ = session._passed()
    clock = _Replays()
    session._checked = prepared, clock
    assert _ask(session, do="utilization", device="cpu", seconds=0.02)["phase"] == "backward"
    assert tuple(clock.replayed) == prepared.memory["backward"]


def test_the_memory_of_the_last_case_is_given_back_to_the_gpu(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("given back"))
    kept = weakref.ref(session._passed()[0])
    monkeypatch.setattr(workloads, "setup", lambda case: done.append(str(kept())) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _ask(session, do="setup", case={**_CASE.to_json(), "device": "cuda:0"})
    assert done == ["given back", "None"]


def test_cold_caches_are_emptied_before_each_call() -> None:
    session = Session()
    _ask(session, do="setup", case={**_CASE.to_json(), "caches": "cold"})
    answer = _ask(session, do="check", warm_s=0.0)
    assert (answer["check"], isinstance(session._passed()[1], ColdClock)) == ("passed", True)


@pytest.mark.parametrize(
    "message",
    [
        {"do": "memory", "device": "cpu"},
        {"do": "utilization", "device": "cpu", "seconds": 1},
        {"do": "block", "side": "method", "loops": 1, "lead_s": 0.0},
        {"do": "again", "seed": 0},
        {"do": "count"},
    ],
)
def test_what_was_not_checked_is_neither_weighed_nor_watched(message: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no case whose check passed"):
        Session().handle(message)


def test_a_block_times_one_side_of_a_case_that_is_set_up_again_and_again(session: Session) -> None:
    for seed in range(2):
        assert _ask(session, do="again", seed=seed) == {}
        for side in ("baseline", "method"):
            answer = _ask(session, do="block", side=side, loops=2, lead_s=0.0)
            assert list(answer["values"]) == ["forward", "backward"]
            assert min(answer["values"].values()) > 0
            assert answer["disturbed"] in (None, False, True)
    slowed = _ask(session, do="block", side="method", loops=2, lead_s=0.0, slowdown=50.0)["values"]["backward"]
    assert slowed > 5 * answer["values"]["backward"]
    assert _ask(session, do="memory", device="cpu")["weights"]  # it is whole, and passed its check


def test_the_collector_works_again_with_the_next_case(session: Session) -> None:
    _ask(session, do="block", side="method", loops=1, lead_s=0.0)
    assert not gc.isenabled()
    _ask(session, do="setup", case=_CASE.to_json())
    assert gc.isenabled()


def test_the_operators_of_a_phase_are_counted() -> None:
    session = Session()
    found = []
    for kernel in ("masked", "gather"):
        _ask(session, do="setup", case={**_CASE.to_json(), "kernel": kernel})
        _ask(session, do="check", warm_s=0.0)
        counts = [_ask(session, do="count")["operators"] for _ in range(2)]
        assert counts[0] == counts[1]
        assert list(counts[0]) == ["forward", "backward"]
        found.append(counts[0]["backward"])
    assert found[0] > 0
    assert found[0] != found[1]
