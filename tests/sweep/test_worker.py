"""A worker's answers, without a process: what it says of a real, tiny case. And the table of its requests."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from inspect import signature
from typing import Any

import pytest
import torch

from meprop_bench import workloads
from meprop_bench.errors import UserError
from meprop_bench.measure import affinity
from meprop_bench.measure.clock import ColdClock, CudaGraphClock
from meprop_bench.results.schema import Utilization
from meprop_bench.sweep import worker
from meprop_bench.sweep.worker import REQUESTS, WorkerSession
from meprop_bench.workloads.case import Case

_CASE = Case(method="unified", k=2, batch=4, in_features=6, out_features=8, threads=1)


@pytest.fixture
def session() -> Iterator[WorkerSession]:
    session = WorkerSession()
    _ask(session, do="setup", case=_CASE.to_json())
    assert _ask(session, do="check", warm_s=0.0)["check"] == "passed"
    yield session
    gc.enable()  # the traceback of a test that failed holds its session, whose blocks keep the collector at rest


def test_what_knows_itself_is_gone_before_the_next_case(session: WorkerSession) -> None:
    class Circle:
        def __init__(self) -> None:
            self.itself = self

    circle = Circle()
    last = weakref.ref(circle)
    gc.disable()
    del circle
    assert last() is not None
    _ask(session, do="setup", case=_CASE.to_json())
    assert last() is None


def _ask(session: WorkerSession, **message: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(json.dumps(session.handle(message), allow_nan=False))
    return answer


def test_every_request_of_the_table_is_answered_by_a_function_of_its_module() -> None:
    for name, where in REQUESTS.items():
        module, _, function = where.partition(":")
        answers = getattr(import_module(f"meprop_bench.{module}"), function)
        assert answers.__module__ == f"meprop_bench.{module}", name
        assert next(iter(signature(answers).parameters)) == "session", name


def test_a_request_is_a_function_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "double", lambda session, value: {"double": 2 * value}, raising=False)
    with pytest.raises(ValueError, match="does not know the request 'double'"):
        _ask(WorkerSession(), do="double", value=4)
    monkeypatch.setitem(REQUESTS, "double", "sweep.worker:double")
    assert _ask(WorkerSession(), do="double", value=4) == {"double": 8}


def test_sets_of_a_users_model_have_one_order_in_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense and sparsified are trained in several processes: a vocabulary out of a set would be another in each."""
    monkeypatch.setattr(worker, "Worker", lambda argv, env, cwd: dict(env or {}))
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    own = Case(workload="model", model="my_model.py:build", optimizer="own", method="unified", k=2)
    started: list[Any] = [worker.start_for(own), worker.start_trainer(), worker.start_for(_CASE)]
    assert [env.get("PYTHONHASHSEED") for env in started] == ["0", "0", None]
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    started = [worker.start_for(own), worker.start_trainer()]
    assert [env["PYTHONHASHSEED"] for env in started] == ["7", "7"]


def test_the_gate_s_requests_are_those_that_older_revisions_know() -> None:
    """A gate of today asks a base of the protocol's first revision; a new meaning needs a new number."""
    assert worker.PROTOCOL == 2
    known = {"hello", "setup", "check", "measure", "memory", "again", "meet", "turns", "count", "accuracy"}
    assert known <= REQUESTS.keys()


def test_it_binds_itself_to_cores_when_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[int] = []
    monkeypatch.setattr(affinity, "bind", bound.append)
    monkeypatch.setattr(affinity, "load_openmp", lambda: None)
    threads = torch.get_num_threads()
    try:
        _ask(WorkerSession(), do="hello", threads=1, device="cpu")
        assert bound == []
        _ask(WorkerSession(), do="hello", threads=1, device="cpu", pin=True)
    finally:
        torch.set_num_threads(threads)
    assert bound == [1]


def test_the_memory_of_each_phase_is_measured_on_both_sides(session: WorkerSession) -> None:
    weights = _ask(session, do="memory", device="cpu")["weights"]
    assert list(weights) == ["forward", "backward"]
    dense = weights["backward"][0]
    assert dense["tensor_bytes"] >= 4 * (4 * 6 + 8 * 6 + 8)  # dx, dW and db
    assert dense["process_bytes"] > dense["tensor_bytes"]
    assert dense["reserved_bytes"] is None


def test_each_side_is_watched_in_its_main_phase(session: WorkerSession) -> None:
    found = _ask(session, do="utilization", device="cpu", seconds=0.02)
    assert found["phase"] == "backward"
    for side in found["sides"]:
        one = Utilization.from_json(side)
        assert one.iterations > 0
        assert one.cpu_utilization is not None
        assert one.gpu_utilization is None
        assert one.unavailable["gpu_utilization"] == "the device is the CPU"
        nulls = {name for name in one.__dataclass_fields__ if getattr(one, name) is None}
        assert nulls == set(one.unavailable)


def test_a_case_that_its_kernel_cannot_do_is_refused_and_the_next_one_is_measured(session: WorkerSession) -> None:
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


def test_of_a_captured_case_the_replays_are_watched(session: WorkerSession) -> None:
    prepared, _ = session.passed()
    clock = _Replays()
    session.checked = prepared, clock
    assert _ask(session, do="utilization", device="cpu", seconds=0.02)["phase"] == "backward"
    assert tuple(clock.replayed) == prepared.memory["backward"]


def test_the_memory_of_the_last_case_is_given_back_to_the_gpu(
    session: WorkerSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("given back"))
    kept = weakref.ref(session.passed()[0])
    monkeypatch.setattr(workloads, "setup", lambda *_: done.append(str(kept())) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _ask(session, do="setup", case={**_CASE.to_json(), "device": "cuda:0"})
    assert done == ["given back", "None"]


def test_cold_caches_are_emptied_before_each_call() -> None:
    session = WorkerSession()
    _ask(session, do="setup", case={**_CASE.to_json(), "caches": "cold"})
    answer = _ask(session, do="check", warm_s=0.0)
    assert (answer["check"], isinstance(session.passed()[1], ColdClock)) == ("passed", True)


@pytest.mark.parametrize(
    "message",
    [
        {"do": "memory", "device": "cpu"},
        {"do": "utilization", "device": "cpu", "seconds": 1},
        {"do": "turns", "me": "head", "plan": [["head", "method", 0.0]], "loops": {"method": 1}, "lead": 0},
        {"do": "again", "seed": 0},
        {"do": "count"},
    ],
)
def test_what_was_not_checked_is_neither_weighed_nor_watched(message: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no case whose check passed"):
        WorkerSession().handle(message)


def _interleaved(session: WorkerSession, *plan: tuple[str, str, float], **rest: Any) -> dict[str, Any]:
    return _ask(session, do="turns", me="head", plan=plan, loops={"method": 2, "baseline": 1}, lead=1, **rest)


def test_blocks_time_one_side_of_a_case_that_is_set_up_again_and_again(session: WorkerSession) -> None:
    for seed in range(2):
        assert _ask(session, do="again", seed=seed) == {}
        answer = _interleaved(session, ("head", "baseline", 0.0), ("head", "method", 0.0))
        assert not answer["stopped"]
        for block in answer["blocks"]:
            assert list(block["values"]) == ["forward", "backward"]
            assert min(block["values"].values()) > 0
            assert block["disturbed"] in (None, False, True)
    # The machine may keep any one block waiting, but hardly each of seven.
    plan = [("head", "method", slowdown) for slowdown in (0.0, 50.0) for _ in range(7)]
    values = [block["values"]["backward"] for block in _interleaved(session, *plan)["blocks"]]
    assert min(values[7:]) > 5 * min(values[:7])
    assert _ask(session, do="memory", device="cpu")["weights"]  # it is whole, and passed its check


class _Timed(WorkerSession):
    """A worker whose blocks only say whose they are."""

    def __init__(self, me: str, log: list[str]) -> None:
        super().__init__()
        self.me, self.log = me, log
        self.fails_at: int | None = None
        self.blocks, self.checked = self, (None, None)  # type: ignore[assignment]

    def take(self, side: str, loops: int, lead: int, slowdown: float) -> tuple[dict[str, float], bool | None]:
        self.log.append(self.me)
        if len(self.log) == self.fails_at:
            raise ValueError("no")
        return {"backward": 1.0}, None


def test_two_workers_alternate_by_themselves_and_one_that_fails_does_not_keep_the_other_waiting() -> None:
    plan = [(who, "method", 0.0) for who in ("base", "head", "head", "base", "base", "head", "base")]
    log: list[str] = []
    workers = {side: _Timed(side, log) for side in ("base", "head")}
    port = _ask(workers["base"], do="meet")["port"]
    assert _ask(workers["head"], do="meet", port=port) == {}

    def answer(side: str, number: int) -> Any:
        message = {"do": "turns", "me": side, "plan": plan, "loops": {"method": 1}, "lead": 0, "number": number}
        try:
            return _ask(workers[side], **message)
        except ValueError as error:
            return str(error)

    def together(number: int) -> dict[str, Any]:
        log.clear()
        with ThreadPoolExecutor(2) as pool:
            asked = {side: pool.submit(answer, side, number) for side in workers}
            return {side: one.result(timeout=30) for side, one in asked.items()}

    answers = together(1)
    assert log == [who for who, _, _ in plan]
    assert [len(answers[side]["blocks"]) for side in ("base", "head")] == [4, 3]
    workers["head"].fails_at = 3
    answers = together(2)
    assert (log, answers["head"]) == (["base", "head", "head"], "no")
    assert (answers["base"]["stopped"], len(answers["base"]["blocks"])) == (True, 1)
    workers["head"].fails_at = None
    together(3)  # what is left of the last exchange does not disturb this one
    assert len(log) == len(plan)


def test_the_collector_works_again_with_the_next_case(session: WorkerSession) -> None:
    _interleaved(session, ("head", "method", 0.0))
    assert not gc.isenabled()
    _ask(session, do="setup", case=_CASE.to_json())
    assert gc.isenabled()


def test_the_operators_of_a_phase_are_counted() -> None:
    session = WorkerSession()
    found = []
    for kernel in ("coo", "gather"):
        _ask(session, do="setup", case={**_CASE.to_json(), "kernel": kernel})
        _ask(session, do="check", warm_s=0.0)
        counts = [_ask(session, do="count")["operators"] for _ in range(2)]
        assert counts[0] == counts[1]
        assert list(counts[0]) == ["forward", "backward"]
        found.append(counts[0]["backward"])
    assert found[0] > 0
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("changes", "chosen", "expected"),
    [({}, None, 1), ({"compile": "on"}, None, 2), ({"baseline": "best"}, {"compiled": True, "optimizer": "plain"}, 2),
     ({"baseline": "best"}, {"compiled": False, "optimizer": "fused"}, 1)],
)  # fmt: skip
def test_what_is_compiled_is_compiled_for_the_threads_that_are_timed(
    changes: dict[str, str], chosen: dict[str, Any] | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, object]] = []

    def setup(case: Case, baseline: object) -> object:
        seen.append((torch.get_num_threads(), baseline))
        sides: dict[str, Any] = {"baseline": lambda *_: {}, "method": lambda *_: {}}
        return workloads.Prepared(**sides, phases=(), check=str, kernel="", k=1, dense_side="as it was set up")

    monkeypatch.setattr(workloads, "setup", setup)
    before = torch.get_num_threads()
    case = Case(**{**_CASE.to_json(), "threads": 2, **changes})
    answer = _ask(WorkerSession(), do="setup", case=case.to_json(), **({"baseline": chosen} if chosen else {}))
    ((threads, how),) = seen
    assert (threads, torch.get_num_threads()) == (expected, before)
    assert how == (workloads.DenseSide.from_json(chosen) if chosen else None)
    assert answer["baseline"] == "as it was set up"


def test_a_worker_finds_the_fastest_dense_side_and_sets_it_up(session: WorkerSession) -> None:
    case = {**_CASE.to_json(), "workload": "lstm", "baseline": "best"}
    found = _ask(session, do="baseline", case=case, seconds=0.01, seed=0)
    assert found == {"baseline": workloads.DenseSide().to_json(), "notes": []}
    assert session.checked is None
    answer = _ask(session, do="setup", case=case, baseline=found["baseline"])
    assert answer["baseline"] == "eager"
    assert answer["notes"] == ["the dense side is eager, the fastest here"]
    with pytest.raises(ValueError, match="has to be chosen"):
        _ask(session, do="setup", case=case)
